from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from medmoco.errors import CheckpointError, SettingsError
from medmoco.exporting import export as export_module
from medmoco.exporting.contract import sha256
from medmoco.exporting.export import export
from medmoco.training.checkpoint import load_checkpoint

NAMES = ["MODEL_CARD.md", "encoder.onnx", "encoder.safetensors", "parity.json", "preprocessing.json"]


@pytest.fixture
def _planted_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"USER": "planted-user", "LOGNAME": "planted-user", "HOSTNAME": "planted-host"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(socket, "gethostname", lambda: "planted-host")


@pytest.mark.usefixtures("_planted_environment")
def test_export__writes_files_that_others_load_and_that_name_nobody(tmp_path: Path, make_run) -> None:
    run = make_run()
    out = tmp_path / "exports" / "encoder"
    files = export(run, out)
    assert [file.name for file in files] == NAMES == sorted(path.name for path in out.iterdir())
    assert [path.name for path in out.parent.iterdir()] == ["encoder"]

    # Weights: plain timm names, exactly the query encoder's.
    net = timm.create_model("resnet18", in_chans=1, num_classes=0)
    weights = load_file(out / "encoder.safetensors")
    net.load_state_dict(weights, strict=True)
    saved = load_checkpoint(run / "checkpoints", pytest.fail)["model"]
    for name, value in weights.items():
        assert torch.equal(value, saved[f"query_encoder.backbone.net.{name}"]), name

    # ONNX: any number of images, and what timm gives.
    session = onnxruntime.InferenceSession(out / "encoder.onnx")
    (given,), (features,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, given.type) == ("image", ["batch", 1, 32, 32], "tensor(float)")
    assert (features.name, features.shape) == ("features", ["batch", 512])
    images = torch.randn(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = net.eval()(images).numpy()
    for count in (1, 5):
        np.testing.assert_allclose(
            session.run(None, {"image": images[:count].numpy()})[0],
            expected[:count],
            atol=1e-4 * np.abs(expected).max(),
        )

    parity = json.loads((out / "parity.json").read_text())
    assert parity["images"] == {"synthetic": 4, "training": 4}
    assert [record["file"] for record in parity["files"]] == ["encoder.safetensors", "encoder.onnx"]
    assert all(0 <= record["max_relative_difference"] <= parity["tolerance"] for record in parity["files"])

    contract = json.loads((out / "preprocessing.json").read_text())
    for name, record in contract["files"].items():
        assert record == {"sha256": sha256(out / name), "bytes": (out / name).stat().st_size}

    _refuse_names(files, [str(tmp_path), getpass.getuser() * (getpass.getuser() != "root")])


def _refuse_names(files: list[Path], more: list[str]) -> None:
    """Scan every byte; the test below shows that this finds things."""
    words = [
        "planted",
        "site-packages",
        'File "',
        ".py",
        str(Path(export_module.__file__).parents[2]),
        *filter(None, more),
    ]
    found = [f"{file.name}: {word}" for file in files for word in words if word.encode() in file.read_bytes()]
    assert not found


def test_export__unstripped_onnx_would_name_this_machine(
    tmp_path: Path, make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "_strip", lambda _: None)
    files = export(make_run(), tmp_path / "out")
    with pytest.raises(AssertionError, match=r"encoder\.onnx: site-packages"):
        _refuse_names(files, [])


def test_export__metadata_is_an_allow_list(tmp_path: Path, make_run) -> None:
    out = tmp_path / "out"
    export(make_run(), out)
    with safe_open(out / "encoder.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    model = onnx.load(out / "encoder.onnx")
    assert model.producer_name == "medmoco"
    assert not model.metadata_props
    assert not model.doc_string
    parts = [model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.value_info]
    assert not any(part.doc_string or part.metadata_props for part in parts)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert set(json.loads((out / "preprocessing.json").read_text())) == {
        "steps", "grayscale", "canvas", "resize", "normalise", "input", "output", "model", "libraries", "files",
    }  # fmt: skip
    assert set(json.loads((out / "parity.json").read_text())) == {"images", "tolerance", "measure", "files"}


def test_export__other_features_are_refused_and_nothing_is_left(
    tmp_path: Path, make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = export_module._write_onnx

    def wrong(net: nn.Module, size: int, folder: Path) -> Path:
        with torch.no_grad():
            next(net.parameters()).mul_(1.01)
        file = right(net, size, folder)
        with torch.no_grad():
            next(net.parameters()).div_(1.01)
        return file

    monkeypatch.setattr(export_module, "_write_onnx", wrong)
    run = make_run()
    with pytest.raises(CheckpointError, match=r"encoder\.onnx gives other features"):
        export(run, tmp_path / "exports" / "out")
    assert list((tmp_path / "exports").iterdir()) == []


def test_export__without_the_data_uses_synthetic_images_alone(tmp_path: Path, make_run) -> None:
    run = make_run()
    for file in (run.parent / "data").iterdir():
        file.unlink()
    out = tmp_path / "out"
    out.mkdir()
    export(run, out)
    assert json.loads((out / "parity.json").read_text())["images"] == {"synthetic": 4, "training": 0}
    assert "Counts: unknown" in (out / "MODEL_CARD.md").read_text()


def test_export__folder_with_something_in_it_is_refused(tmp_path: Path, make_run) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(SettingsError, match="not an empty folder"):
        export(make_run(), out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_export__no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run folder"):
        export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export__damaged_checkpoint_is_told(tmp_path: Path, make_run) -> None:
    run = make_run()
    newer = run / "checkpoints" / "step-000000013.pt"
    newer.write_bytes(b"cut off")
    told: list[str] = []
    export(run, tmp_path / "out", told.append)
    assert len(told) == 1
    assert "step-000000013.pt is damaged" in told[0]
    assert "from step 12 " in (tmp_path / "out" / "MODEL_CARD.md").read_text()


def test_export__diverged_run_is_refused(tmp_path: Path, make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    load = export_module.load_backbone

    def diverged(*arguments: object) -> object:
        backbone, source = load(*arguments)
        next(backbone.parameters()).data.fill_(float("nan"))
        return backbone, source

    monkeypatch.setattr(export_module, "load_backbone", diverged)
    with pytest.raises(CheckpointError, match="not finite"):
        export(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_export__weights_beyond_one_onnx_file_are_refused(
    tmp_path: Path, make_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "ONNX_LIMIT", 1000)
    with pytest.raises(CheckpointError, match="2 GB that one ONNX file can hold"):
        export(make_run(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("vit_tiny_patch16_224", 64),
        ("densenet121", 64),
        ("convnext_atto", 64),
        ("swin_tiny_patch4_window7_224", 224),
        ("monai/densenet121", 64),
        ("monai/seresnet50", 64),
    ],
)
def test_export__other_architectures(tmp_path: Path, make_run, backbone: str, size: int) -> None:
    run = make_run(f"model.backbone={backbone}", f"views.size={size}", f"data.canvas_size={size}", "data.bit_depth=16")
    files = export(run, tmp_path / "out")
    assert [file.name for file in files] == NAMES
    _refuse_names(files, [str(tmp_path)])
