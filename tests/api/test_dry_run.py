from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

import medmoco
from medmoco.errors import ManifestError, SettingsError


@pytest.fixture(autouse=True)
def _temporary(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_dry_run__tries_everything_and_leaves_nothing(workspace: Path, tmp_path: Path) -> None:
    before, said = tree(workspace), []
    settings = medmoco.load_config("config.yaml", out="runs/none", train={"epochs": 5}, data={"workers": 1})
    found = medmoco.dry_run(settings, progress=False, log=said.append)
    assert tree(workspace) == before
    assert not list(tmp_path.iterdir())
    assert [line[:6] for line in said] == ["1 of 3", "2 of 3", "3 of 3"]
    assert (found.steps, found.warnings, found.workers) == (20, (), 1)
    assert 0 < found.seconds < 60
    assert 1e8 < found.worker_memory < 1e10
    assert 1e8 < found.memory < 1e10
    made = next(iter(sorted(Path("runs/phantoms/checkpoints").glob("*.pt"))))
    assert found.checkpoint == pytest.approx(made.stat().st_size, rel=0.05)
    lines = found.text.splitlines()
    assert lines[0].startswith("expected duration: about ")
    assert lines[0].endswith(" for 20 steps")
    assert "in the data worker" in lines[1]
    assert lines[2].endswith("for each checkpoint, of which the last 3 are kept")


@pytest.mark.slow
def test_dry_run__collects_all_warnings(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val"):
        file = workspace / "nameless" / f"{split}.csv"
        file.parent.mkdir(exist_ok=True)
        file.write_text((workspace / f"phantoms/{split}.csv").read_text().replace("PatientID", "Site"))
    settings = medmoco.load_config("config.yaml", data={"manifest": "nameless", "pack": "no-pack"})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr("medmoco.training.duration._LONG", 0)
    found = medmoco.dry_run(settings, progress=False)
    for words in (
        "train: no PatientID column", "data.pack does not exist yet", "out: runs/phantoms holds a run",
        "training test_resnet on views of 32 pixels", "out: the disk has 0 MB free",
    ):  # fmt: skip
        assert sum(text.startswith(words) for text in found.warnings) == 1, (words, found.warnings)
    assert not Path("no-pack").exists()
    assert found.text.count("\nwarning: ") == len(found.warnings)
    again = medmoco.dry_run("config.yaml", overwrite=True, progress=False)
    assert not [text for text in again.warnings if "holds a run" in text]


def test_dry_run__refuses_as_the_run_would(workspace: Path, tmp_path: Path) -> None:
    large = {"train": {"global_batch_size": 64}, "method": {"queue_size": 999}}
    with pytest.raises(SettingsError, match=r"exceed the 39 training images(?s:.*)Set train"):
        medmoco.dry_run(medmoco.load_config("config.yaml", **large), progress=False)
    shutil.copytree("phantoms", "gone")
    next(Path("gone/train").rglob("*.png")).unlink()
    gone = medmoco.load_config("config.yaml", data={"manifest": "gone", "root": "gone/{split}"})
    with pytest.raises(ManifestError, match="do not exist"):
        medmoco.dry_run(gone, progress=False)
    assert not list(tmp_path.iterdir())
