from __future__ import annotations

from pathlib import Path

import pytest

import medmoco
from medmoco.errors import SettingsError


def test_load_config__file_mapping_and_settings_are_the_same(workspace: Path) -> None:
    from_file = medmoco.load_config("config.yaml", seed=3)
    assert from_file.seed == 3
    assert medmoco.load_config(Path("config.yaml"), seed=3) == from_file
    assert medmoco.load_config(medmoco.load_config("config.yaml"), seed=3) == from_file
    assert medmoco.load_config(from_file) is from_file
    tree = {"out": Path("runs/a"), "data": {"manifest": "m", "root": Path("r")}}
    assert str(medmoco.load_config(tree).data.root) == "r"


def test_load_config__another_preset_replaces_the_values_of_the_first(workspace: Path) -> None:
    settings = medmoco.load_config("config.yaml", views={"size": 48}, method={"temperature": 0.3})
    changed = medmoco.load_config(settings, views={"recipe": "moco_v2"}, method={"name": "moco_v1"})
    direct = medmoco.load_config(
        "config.yaml", views={"size": 48, "recipe": "moco_v2"}, method={"temperature": 0.3, "name": "moco_v1"}
    )
    assert changed == direct


def test_load_config__a_given_value_stays_when_the_preset_changes(workspace: Path) -> None:
    given = {"name": "moco_v2", "temperature": 0.2}  # which is also what moco_v2 has
    changed = medmoco.load_config(medmoco.load_config("config.yaml", method=given), method={"name": "moco_v1"})
    assert changed == medmoco.load_config("config.yaml", method={**given, "name": "moco_v1"})
    assert changed.method.temperature == 0.2


def test_load_config__names_the_key(workspace: Path) -> None:
    with pytest.raises(SettingsError, match=r"'train\.epoch'.*train\.epochs"):
        medmoco.load_config("config.yaml", train={"epoch": 3})


def test_check__returns_what_it_writes(workspace: Path) -> None:
    audit = medmoco.check("config.yaml", out="checked")
    assert audit.folder == Path("checked")
    assert (workspace / "checked" / "report.txt").read_text().startswith(audit.text[:40])


def test_pack__needs_a_folder_and_makes_what_training_reads(workspace: Path) -> None:
    with pytest.raises(SettingsError, match="no folder for the pack"):
        medmoco.pack("config.yaml")
    packed = medmoco.pack("config.yaml", out="pack-of-a-test")
    assert packed.failed == 0
    settings = medmoco.load_config("config.yaml", data={"pack": packed.folder}, out="runs/packed")
    assert medmoco.pretrain(settings, progress=False).status["state"] == "done"


def test_pretrain__makes_a_missing_pack_first(workspace: Path) -> None:
    logged: list[str] = []
    settings = medmoco.load_config("config.yaml", data={"pack": "pack-that-is-missing"}, out="runs/pack-made")
    medmoco.pretrain(settings, progress=False, log=logged.append)
    assert "making it first" in logged[0]
    assert (workspace / "pack-that-is-missing" / "pack.json").is_file()


def test_split__paths_may_be_text(workspace: Path) -> None:
    text = medmoco.split("phantoms/train.csv", "split-of-a-test", labels=["Opacity"], val=0.3, test=0.3)
    assert text.startswith("train ")
    assert (workspace / "split-of-a-test" / "val.csv").is_file()
