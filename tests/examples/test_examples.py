"""The examples run as they are: the notebook in a kernel of its own, the scripts as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOK = EXAMPLES / "notebook.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the notebook was executed in; its phantoms serve the scripts as well."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "IPYTHONDIR": str(folder / "ipython")})  # not in the home folder
    nbformat.write(notebook, folder / NOTEBOOK.name)
    return folder


def outputs(folder: Path, cell_id: str) -> str:
    """Return what a cell of the executed notebook shows, as text."""
    notebook = nbformat.read(folder / NOTEBOOK.name, as_version=4)
    (cell,) = (cell for cell in notebook.cells if cell.id == cell_id)
    return "".join(str(output) for output in cell.outputs)


def run(script: str, folder: Path, *arguments: object) -> str:
    command = [sys.executable, EXAMPLES / script, "--data", folder / "phantoms", "--epochs", 2, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_notebook__runs_to_the_end(executed: Path) -> None:
    assert "512" in outputs(executed, "embed")
    assert "Opacity" in outputs(executed, "evaluate")
    assert "image/png" in outputs(executed, "plot")
    assert (executed / "export" / "encoder.onnx").is_file()


def test_notebook__imports_medmoco_alone() -> None:
    code = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    imports = [line for cell in code for line in cell.splitlines() if line.lstrip().startswith(("import ", "from "))]
    assert imports == ["import medmoco"]


def test_notebook__is_committed_without_outputs() -> None:
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_own_loop__leaves_weights_that_medmoco_loads(executed: Path, tmp_path: Path) -> None:
    printed = run("own_loop.py", executed, "--out", tmp_path / "encoder.pt")
    assert "epoch 1: loss" in printed
    weights = torch.load(tmp_path / "encoder.pt", weights_only=True)
    assert all(value.isfinite().all() for value in weights.values())


def test_third_party_trainer__leaves_a_checkpoint(executed: Path, tmp_path: Path) -> None:
    printed = run("third_party_trainer.py", executed, "--out", tmp_path / "checkpoints")
    assert "epoch 2: loss" in printed
    (file,) = (tmp_path / "checkpoints").iterdir()
    assert int(torch.load(file, weights_only=True)["pointer"]) > 0  # keys have entered the queue
