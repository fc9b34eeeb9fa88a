from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from medmoco.config import ModelSettings
from medmoco.data.loading.preprocessing import Preprocessing
from medmoco.errors import CheckpointError, SettingsError
from medmoco.evaluation.features.encoder import Encoder, load_encoder
from medmoco.evaluation.features.encoder_files import Provenance, implied_settings, kind_of_source, split_size
from medmoco.evaluation.features.features import fingerprint
from medmoco.exporting.contract import preprocessing
from medmoco.exporting.subject import save_state, subject_of
from medmoco.models.backbones import create_backbone

GRAY: dict[str, Any] = {
    "canvas_size": 40, "bit_depth": 16, "window": (40.0, 400.0), "mean": 0.4, "std": 0.2, "size": 32, "mirror": True,
}  # fmt: skip

VOLUMES: dict[str, Any] = {"dimensions": 3, "canvas_size": 256, "spacing": (1.5, 1.0, 3.0)}


def export_of(folder: Path, name: str = "test_resnet", **changes: Any) -> Encoder:
    """Write preprocessing.json and weights as an export has them; return what was exported."""
    prepared = Preprocessing(**(GRAY | changes))
    backbone = create_backbone(
        ModelSettings(backbone=name), seed=5, size=prepared.size, channels=prepared.channel_count,
        dimensions=prepared.dimensions,
    )  # fmt: skip
    encoder = Encoder(backbone.eval(), prepared, Provenance("random"))
    subject = subject_of(encoder, "CC0-1.0")
    folder.mkdir()
    save_state(subject.state, folder / "encoder.safetensors")
    contract = preprocessing(subject, {"safetensors": {"path": "encoder.safetensors"}}, folder)
    (folder / "preprocessing.json").write_text(json.dumps(contract))
    return encoder


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("test_resnet", {}),
        ("test_resnet", {"window": "full", "size": 96}),
        ("resnet10t", {"channels": "rgb", "window": "voi", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.3)}),
        ("resnet10t", {"channels": 5, "window": "voi", "scale": "log", "band_ranges": ((1.0, 9.0),)}),
        ("monai/densenet121", {}),
        ("vit_tiny_patch16_224", {}),
        ("moco-v3/vit_tiny", {}),
        ("moco-v3/vit_conv_tiny", {}),
        ("monai/resnet10_quarter", VOLUMES),
        ("monai/densenet121", VOLUMES | {"volumes": "resized", "window": "percentiles", "spacing": None}),
        ("nnunet/resenc_4stages_quarter", VOLUMES | {"mirror": False, "bit_depth": 8}),
    ],
)
def test_export__comes_back_as_the_encoder_it_is(tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    exported = export_of(tmp_path / "e", name, **changes)
    found = load_encoder(tmp_path / "e")
    assert found.module.name == name
    assert found.preprocessing == exported.preprocessing
    assert (found.provenance.kind, found.provenance.licence) == ("export", "CC0-1.0")
    assert found.provenance.weights_sha256 == fingerprint(exported.module)


def test_export__volumes_of_another_spacing_are_refused(tmp_path: Path) -> None:
    export_of(tmp_path / "e", "monai/resnet10_quarter", **VOLUMES)
    settings = load_encoder(tmp_path / "e").settings
    assert settings is not None
    assert load_encoder(tmp_path / "e", settings).preprocessing.spacing == (1.5, 1.0, 3.0)
    other = settings.model_copy(update={"data": settings.data.model_copy(update={"spacing": (1.0, 1.0, 1.0)})})
    with pytest.raises(SettingsError, match=r"data.spacing: export \[1.5, 1.0, 3.0\], settings \[1.0, 1.0, 1.0\]"):
        load_encoder(tmp_path / "e", other)


def test_export__damage_is_found(tmp_path: Path) -> None:
    export_of(tmp_path / "e")
    weights, contract = tmp_path / "e" / "encoder.safetensors", tmp_path / "e" / "preprocessing.json"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors is damaged: its SHA-256"):
        load_encoder(tmp_path / "e")
    weights.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_encoder(tmp_path / "e")
    for text in ("{", "[]", "{}"):
        contract.write_text(text)
        with pytest.raises(CheckpointError, match=r"preprocessing\.json is damaged"):
            load_encoder(tmp_path / "e")


def test_export__without_weights_that_medmoco_reads(tmp_path: Path) -> None:
    export_of(tmp_path / "e")
    file = tmp_path / "e" / "preprocessing.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"formats": {"onnx": {}, "program": {}}}))
    with pytest.raises(CheckpointError, match=r"formats onnx, program; .*\nExport again with --format safetensors"):
        load_encoder(tmp_path / "e")


def test_kind_of_source__tells_them_apart(tmp_path: Path) -> None:
    assert kind_of_source("random") == "random"
    with pytest.raises(CheckpointError, match=r"a\.pth does not exist;\nname a run folder"):
        kind_of_source(tmp_path / "a.pth")
    (tmp_path / "a.pth").touch()
    assert kind_of_source(tmp_path / "a.pth") == "file"
    (tmp_path / "a.pth").unlink()
    for name, kind in (("import.json", "import"), ("preprocessing.json", "export"), ("config.yaml", "run")):
        (tmp_path / name).touch()
        assert kind_of_source(str(tmp_path)) == kind
    assert kind_of_source(tmp_path / "best") == "run"


def test_implied_settings__of_a_file_of_ours_is_its_network(tmp_path: Path) -> None:
    net = create_backbone(ModelSettings(backbone="resnet10t"), seed=0, size=32).net
    save_file(net.state_dict(), tmp_path / "a.safetensors", metadata={"backbone": "resnet10t"})
    tree = implied_settings("file", tmp_path / "a.safetensors")
    assert tree["model"] == {"backbone": "resnet10t"}
    assert "mean" not in tree["views"]


def test_split_size__of_what_is_no_path_itself(tmp_path: Path) -> None:
    assert split_size("imported@224") == ("imported", 224)
    assert split_size("imported") == ("imported", None)
    assert split_size("me@host.pth") == ("me@host.pth", None)
    (tmp_path / "run@96").mkdir()
    assert split_size(str(tmp_path / "run@96")) == (str(tmp_path / "run@96"), None)
    assert split_size(f"{tmp_path / 'run@96'}@128") == (str(tmp_path / "run@96"), 128)
