"""The examples run as they are: the notebooks in kernels of their own, the scripts as processes of their own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

import medmoco
from docs.site import notebooks

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def execute(name: str, folder: Path) -> dict[str, str]:
    """Execute a notebook in a folder, and return what each of its cells shows, as text."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    notebooks.run(notebook, folder)
    return {cell.id: "".join(map(str, cell.outputs)) for cell in notebook.cells if cell.cell_type == "code"}


@pytest.mark.slow  # `make demo` does the same
def test_chest_films__pretrain_evaluate_and_export(tmp_path: Path) -> None:
    shown = execute("chest_films", tmp_path)
    assert "1,500 rows: train 900 of 499 patients" in shown["check"]
    assert "Pneumonia" in shown["evaluate"]
    few = re.findall(r"(\w+) +5 +(0\.\d+) +(0\.\d+) +(0\.\d+)", shown["differences"].replace("\\n", "\n"))
    (name, score, low, _), *controls = ((encoder, *map(float, numbers)) for encoder, *numbers in few)
    assert name == "pretrained"
    assert score == pytest.approx(0.9, abs=0.05)  # as the cell below the table says
    assert all(control < 0.8 and high < low for _, control, _, high in controls)
    assert "'onnx': 'verified'" in shown["export"]
    pictures = [cell for cell, text in shown.items() if "image/png" in text]
    assert pictures == ["views", "curve", "neighbours", "projection", "saliency"]


@pytest.mark.slow
def test_fundus__starts_from_a_folder_of_colour_images(tmp_path: Path) -> None:
    shown = execute("fundus", tmp_path)
    assert "channels: rgb" in shown["init"]
    assert "exudates" in shown["pretrain"]
    assert "image/png" in shown["plot"]


@pytest.mark.slow
def test_weights__lead_to_a_script_that_agrees_with_medmoco(tmp_path: Path) -> None:
    shown = execute("weights", tmp_path)
    assert "293 tensors unchanged" in shown["import"]
    by_script = float(re.findall(r"Pneumonia: (0\.\d+)", shown["run-script"])[0])
    by_medmoco = float(re.findall(r"0\.\d{5,}", shown["same"])[-1])
    assert by_script == pytest.approx(by_medmoco, abs=1e-4)


@pytest.mark.slow
def test_segmentation__compares_with_training_from_scratch(tmp_path: Path) -> None:
    shown = execute("segmentation", tmp_path)
    assert "run minus from scratch" in shown["segment"]
    assert "image/png" in shown["contours"]
    assert "(128, 128)" in shown["predict"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks__are_committed_without_outputs(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples") / "phantoms"
    medmoco.phantom(folder, patients=60, image_size=64, formats=["dicom"])
    return folder


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, EXAMPLES / script, "--epochs", 2, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_own_loop__leaves_weights_that_medmoco_loads(phantoms: Path, tmp_path: Path) -> None:
    printed = run("own_loop.py", "--data", phantoms, "--out", tmp_path / "encoder.pt")
    assert "epoch 1: loss" in printed
    weights = torch.load(tmp_path / "encoder.pt", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.slow
def test_third_party_trainer__leaves_a_checkpoint(phantoms: Path, tmp_path: Path) -> None:
    printed = run("third_party_trainer.py", "--data", phantoms, "--out", tmp_path / "checkpoints")
    assert "epoch 2: loss" in printed
    (file,) = (tmp_path / "checkpoints").iterdir()
    assert int(torch.load(file, weights_only=True)["pointer"]) > 0  # keys have entered the queue
