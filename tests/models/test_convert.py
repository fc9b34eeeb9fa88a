from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from medmoco.config import ModelSettings
from medmoco.errors import CheckpointError, SettingsError
from medmoco.models.backbones import create_backbone
from medmoco.models.convert import import_weights
from medmoco.utils.files import sha256_of
from tests.helpers import foreign


def moco_file(folder: Path) -> tuple[Path, Any, Any]:
    query, key = foreign.torchvision_resnet(seed=0), foreign.torchvision_resnet(seed=1)
    file = folder / "secret-name.pth.tar"
    torch.save(foreign.moco(query, key), file)
    return file, query, key


def test_import_weights__leaves_encoder_facts_and_the_account_of_keys(tmp_path: Path) -> None:
    file, query, _ = moco_file(tmp_path)
    out = tmp_path / "made" / "imported"
    said = import_weights(file, out)
    assert sorted(path.name for path in out.iterdir()) == ["encoder.safetensors", "import.json", "keys.csv"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["imported"]

    state = load_file(out / "encoder.safetensors")
    assert state["conv1.weight"].shape == (64, 1, 7, 7)
    torch.testing.assert_close(state["layer1.0.conv1.weight"], query.layer1[0].conv1.weight.data)
    with safe_open(out / "encoder.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "backbone": "resnet18"}

    facts = json.loads((out / "import.json").read_text())
    assert facts["source"] == {"sha256": sha256_of(file), "bytes": file.stat().st_size, "kind": "tar"}
    assert (facts["scheme"], facts["encoder"], facts["model"]["backbone"]) == ("moco", "query", "resnet18")
    assert facts["keys"]["converted"] == {"RGB summed to gray": 1}
    assert facts["keys"]["matched"] == 119
    assert (facts["preparation"]["mean"], facts["preparation"]["std"]) == (0.449, 0.226)
    assert facts["licence"] == "as the source's"

    rows = list(csv.DictReader((out / "keys.csv").read_text().splitlines()))
    assert len({row["key"] for row in rows}) == len(rows) == 124 + 124 + 2 + 250 + 2
    assert rows[0] == {
        "key": "state_dict/module.encoder_q.conv1.weight", "outcome": "converted", "name": "conv1.weight",
        "shape": "64x3x7x7", "what": "RGB summed to gray",
    }  # fmt: skip
    assert {row["outcome"] for row in rows} == {"matched", "converted", "left out"}

    lines = said.splitlines()
    assert lines[0] == "resnet18, 512 features"
    assert lines[1] == "query encoder of a moco file with names of timm:"
    assert lines[2].startswith("119 tensors unchanged, 1 converted")
    assert max(len(line.replace(str(out), "imported")) for line in lines) <= 100
    assert "--scheme moco-cxr" in said
    assert lines[-3:] == [
        "to use it, set",
        f"model.backbone=resnet18 model.init={out / 'encoder.safetensors'}",
        "views.mean=0.449 views.std=0.226",
    ]
    written = "".join(path.read_text() for path in out.glob("*.*s*") if path.suffix in (".json", ".csv"))
    assert "secret-name" not in written
    assert str(tmp_path) not in written


def test_import_weights__what_it_writes_is_loaded_and_imported_again(tmp_path: Path) -> None:
    file, _, key = moco_file(tmp_path)
    import_weights(file, tmp_path / "one", which="key")
    encoder = tmp_path / "one/encoder.safetensors"
    backbone = create_backbone(ModelSettings(backbone="resnet18", init=encoder), seed=0, size=32).eval()
    gray = torch.randn(2, 1, 32, 32)
    expected = foreign.features(key, gray)
    assert (backbone(gray) - expected).norm() < 1e-6 * expected.norm()
    import_weights(encoder, tmp_path / "two")
    torch.testing.assert_close(load_file(tmp_path / "two/encoder.safetensors"), load_file(encoder), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r"is of a resnet18, not a resnet34; set model\.backbone=resnet18"):
        create_backbone(ModelSettings(backbone="resnet34", init=encoder), seed=0, size=32)


def test_import_weights__a_transformer_keeps_its_positions(tmp_path: Path) -> None:
    source = foreign.moco_v3_vit(size=96)
    torch.save(foreign.moco_v3(source, source, "head"), tmp_path / "w.pth.tar")
    said = import_weights(tmp_path / "w.pth.tar", tmp_path / "out")
    assert said.startswith("moco-v3/vit_tiny for views of 96 pixels, 192 features\n")
    state = load_file(tmp_path / "out/encoder.safetensors")
    assert torch.equal(state["pos_embed"], source.pos_embed)
    init = tmp_path / "out/encoder.safetensors"
    backbone = create_backbone(ModelSettings(backbone="moco-v3/vit_tiny", init=init), seed=0, size=64)
    assert "positions resampled from 6 x 6 to 4 x 4" in (backbone.start or "")


def test_import_weights__a_network_that_is_not_looked_for_must_be_named(tmp_path: Path) -> None:
    source = create_backbone(ModelSettings(backbone="resnet18d"), seed=0, size=32)
    torch.save(source.net.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"seems to contain a resnet, but no known network.*\n.*--backbone NAME"):
        import_weights(tmp_path / "w.pth", tmp_path / "out")
    assert "resnet18d, 512 features" in import_weights(tmp_path / "w.pth", tmp_path / "out", backbone="resnet18d")


def test_import_weights__refuses_a_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").touch()
    with pytest.raises(SettingsError, match="is not an empty folder"):
        import_weights(tmp_path / "w.pth", tmp_path / "out")
    (tmp_path / "file").touch()
    source, _, _ = moco_file(tmp_path)
    with pytest.raises(SettingsError, match="cannot be written: "):
        import_weights(source, tmp_path / "file" / "out")


def test_import_weights__leaves_nothing_where_it_refuses(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="no known encoder"):
        import_weights(tmp_path / "w.pth", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_import_weights__an_efficientnet_with_timms_names_must_be_named(tmp_path: Path) -> None:
    source = create_backbone(ModelSettings(backbone="efficientnet_lite0"), seed=0, size=32)
    torch.save(source.net.state_dict(), tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"do not tell how it pads images\.\n.*--backbone NAME"):
        import_weights(tmp_path / "w.pth", tmp_path / "out")
    text = import_weights(tmp_path / "w.pth", tmp_path / "out", backbone="efficientnet_lite0")
    assert text.startswith("efficientnet_lite0, 1280 features")
