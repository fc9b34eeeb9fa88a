from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from medmoco.data.loading import check_images
from medmoco.data.manifest import load_manifest
from medmoco.data.pack_writing import make_pack
from medmoco.errors import CheckpointError, SettingsError
from medmoco.exporting import export as export_module
from medmoco.exporting.export import export
from medmoco.exporting.parity import compare
from medmoco.training.checkpoint import load_checkpoint, load_run

ROOT = Path(__file__).parents[2]
NAMES = ["MODEL_CARD.md", "encoder.onnx", "encoder.safetensors", "parity.json", "preprocessing.json"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, make_run) -> tuple[Path, Path]:
    """Return a run, and its export made by a user and on a host with names."""
    run = make_run(tmp_path_factory.mktemp("run"))
    out = tmp_path_factory.mktemp("exports") / "encoder"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"USER": "planted-user", "LOGNAME": "planted-user", "HOSTNAME": "planted-host"}.items():
            patch.setenv(name, value)
        patch.setattr(socket, "gethostname", lambda: "planted-host")
        files = export(run, out)
    assert files == sorted(out.iterdir())
    assert list(out.parent.iterdir()) == [out]
    return run, out


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes long, where a test is about something else."""

    def write_nothing(net: nn.Module, size: int, folder: Path) -> Path:
        file = folder / "encoder.onnx"
        file.write_bytes(b"")
        return file

    def compare_nothing(file: Path, *_: object) -> dict[str, object]:
        return {"file": file.name, "max_absolute_difference": 0.0, "max_relative_difference": 0.0}

    monkeypatch.setattr(export_module, "_write_onnx", write_nothing)
    monkeypatch.setattr(export_module, "compare", compare_nothing)


def test_export__all_files_are_as_readable_as_any(exported: tuple[Path, Path]) -> None:
    run, out = exported
    assert {file.stat().st_mode for file in out.iterdir()} == {(run / "log.txt").stat().st_mode}


def test_export__weights_have_plain_timm_names(exported: tuple[Path, Path]) -> None:
    run, out = exported
    weights = load_file(out / "encoder.safetensors")
    timm.create_model("resnet18", in_chans=1, num_classes=0).load_state_dict(weights, strict=True)
    saved = load_checkpoint(run / "checkpoints", pytest.fail)["model"]
    for name, value in weights.items():
        assert torch.equal(value, saved[f"query_encoder.backbone.net.{name}"]), name


def test_export__onnx_takes_any_number_of_images(exported: tuple[Path, Path]) -> None:
    _, out = exported
    net = timm.create_model("resnet18", in_chans=1, num_classes=0).eval()
    net.load_state_dict(load_file(out / "encoder.safetensors"))
    session = onnxruntime.InferenceSession(out / "encoder.onnx")
    (given,), (features,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape, given.type) == ("image", ["batch", 1, 32, 32], "tensor(float)")
    assert (features.name, features.shape) == ("features", ["batch", 512])
    images = torch.randn(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = net(images).numpy()
    for count in (1, 5):
        (found,) = session.run(None, {"image": images[:count].numpy()})
        np.testing.assert_allclose(found, expected[:count], atol=1e-5 * np.abs(expected).max())


def test_export__parity_is_on_record(exported: tuple[Path, Path]) -> None:
    parity = json.loads((exported[1] / "parity.json").read_text())
    assert parity["images"] == {"synthetic": 4, "training": 4}
    assert [record["file"] for record in parity["files"]] == ["encoder.safetensors", "encoder.onnx"]
    for record in parity["files"]:
        assert 0 <= record["max_relative_difference"] <= parity["tolerance"] == 1e-4
        assert record["max_absolute_difference"] >= 0


def test_export__a_run_whose_pack_is_gone_is_exported_without_its_images(tmp_path: Path, make_run, light: None) -> None:
    run = make_run(tmp_path, f"data.pack={tmp_path / 'gone'}")
    export(run, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["images"] == {"synthetic": 4, "training": 0}
    assert "Training: 6 images of 3 patients" in (tmp_path / "out" / "MODEL_CARD.md").read_text()


def test_export__rows_that_the_pack_left_out_are_neither_counted_nor_missed(
    tmp_path: Path, make_run, light: None
) -> None:
    run = make_run(tmp_path, f"data.pack={tmp_path / 'pack'}", "data.pack_failures=leave_out")
    settings = load_run(run)
    (Path(settings.data.root) / "planted-file-0.png").write_bytes(b"no image")
    assert make_pack(settings.data, tmp_path / "pack", lambda _: None) == 1
    trained = check_images(load_manifest(settings.data, ("train",))["train"], settings.data)
    environment = json.loads((run / "environment.json").read_text()) | {"manifest_sha256": trained.sha256}
    (run / "environment.json").write_text(json.dumps(environment))
    export(run, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "parity.json").read_text())["images"] == {"synthetic": 4, "training": 4}
    assert "Training: 5 images of 3 patients" in (tmp_path / "out" / "MODEL_CARD.md").read_text()


def test_export__no_byte_names_a_person_or_a_place(exported: tuple[Path, Path]) -> None:
    run, out = exported
    assert sorted(file.name for file in out.iterdir()) == NAMES
    assert not _names_in(out, [str(run), str(out.parent), str(ROOT), sys.prefix])


def _names_in(out: Path, more: Sequence[str] = ()) -> list[str]:
    """Search every byte for planted words, paths and stack traces."""
    words = [
        "planted",
        "site-packages",
        'File "',
        *(word for word in more if len(word) > 8),
    ]  # shorter ones occur by chance
    return [f"{file.name}: {word}" for file in out.iterdir() for word in words if word.encode() in file.read_bytes()]


def test_export__unstripped_onnx_would_name_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "_strip", lambda _: None)
    export_module._write_onnx(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten()).eval(), 4, tmp_path)
    assert "encoder.onnx: site-packages" in _names_in(tmp_path)


def test_export__metadata_is_an_allow_list(exported: tuple[Path, Path]) -> None:
    _, out = exported
    with safe_open(out / "encoder.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    model = onnx.load(out / "encoder.onnx")
    assert model.producer_name == "medmoco"
    parts = [model.graph, *model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.value_info]
    assert not any(part.doc_string or part.metadata_props for part in [model, *parts])
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert set(json.loads((out / "preprocessing.json").read_text())) == {
        "steps", "grayscale", "canvas", "resize", "normalise", "input", "output", "model", "libraries", "files",
    }  # fmt: skip
    assert set(json.loads((out / "parity.json").read_text())) == {"images", "tolerance", "measure", "files"}


def test_export__other_features_are_refused_and_nothing_is_left(
    tmp_path: Path, make_run, light: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(net: nn.Module, folder: Path) -> Path:
        file = folder / "encoder.safetensors"
        state = net.state_dict()
        save_file(state | {"layer1.0.bn1.running_mean": state["layer1.0.bn1.running_mean"] + 0.01}, file)
        return file

    monkeypatch.setattr(export_module, "_write_safetensors", wrong)
    monkeypatch.setattr(export_module, "compare", compare)
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors gives other features"):
        export(make_run(tmp_path), tmp_path / "exports" / "out")
    assert list((tmp_path / "exports").iterdir()) == []


@pytest.mark.usefixtures("light")
def test_export__without_the_data_uses_synthetic_images_alone(tmp_path: Path, make_run) -> None:
    run = make_run(tmp_path)
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
        export(make_run(tmp_path), out)
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_export__no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run folder"):
        export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("light")
def test_export__damaged_checkpoint_is_told(tmp_path: Path, make_run) -> None:
    run = make_run(tmp_path)
    newer = run / "checkpoints" / "step-000000013.pt"
    newer.write_bytes(b"cut off")
    told: list[str] = []
    export(run, tmp_path / "out", told.append)
    assert len(told) == 1
    assert "step-000000013.pt is damaged" in told[0]
    assert "from step 12 " in (tmp_path / "out" / "MODEL_CARD.md").read_text()


@pytest.mark.usefixtures("light")
def test_export__diverged_run_is_refused(tmp_path: Path, make_run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
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
        export(make_run(tmp_path), tmp_path / "out")
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
    run = make_run(
        tmp_path, f"model.backbone={backbone}", f"views.size={size}", f"data.canvas_size={size}", "data.bit_depth=16"
    )
    files = export(run, tmp_path / "out")
    assert [file.name for file in files] == NAMES
    assert not _names_in(tmp_path / "out", [str(tmp_path)])
