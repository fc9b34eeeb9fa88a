from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import medmoco
from medmoco.errors import CheckpointError


@pytest.mark.slow
def test_export__of_a_run_its_folder_and_its_encoder_are_the_same(workspace: Path) -> None:
    run = medmoco.Run("runs/phantoms")
    for number, network in enumerate((run, str(run.folder), run.encoder)):
        medmoco.export(network, f"exports/{number}", ["safetensors"])
    first = load_file("exports/0/encoder.safetensors")
    for other in ("exports/1", "exports/2", "export"):
        tensors = load_file(f"{other}/encoder.safetensors")
        assert tensors.keys() == first.keys()
        assert all((tensors[name] == value).all() for name, value in first.items())


def test_export__of_a_classifier_folder(workspace: Path) -> None:
    files = medmoco.export("runs/phantoms/evaluation/classifier", "classifier-export", ["safetensors"])
    assert Path("classifier-export/classifier.safetensors").resolve() in [file.resolve() for file in files]


def test_verify__says_what_was_checked_and_notices_damage(workspace: Path, tmp_path: Path) -> None:
    assert medmoco.verify("export") == {"safetensors": "verified", "onnx": "verified"}
    shutil.copytree("export", tmp_path / "copy")
    file = tmp_path / "copy" / "encoder.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors has changed"):
        medmoco.verify(tmp_path / "copy")


def test_import_weights__gives_what_load_encoder_takes(workspace: Path) -> None:
    text = medmoco.import_weights("export/encoder.safetensors", "imported-in-a-test", backbone="test_resnet")
    assert text.startswith("test_resnet")
    encoder = medmoco.load_encoder("imported-in-a-test", {"views": {"size": 32, "mean": 0.5, "std": 0.25}})
    assert encoder.embed("phantoms/val").shape[1] == encoder.feature_dim
