"""The tutorials: the notebooks of `examples/`, executed, as pages of the site."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter


def page(path: Path, *, execute: bool = True) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its pictures by name."""
    notebook = nbformat.read(path, as_version=4)
    if execute:
        with tempfile.TemporaryDirectory() as folder:
            run(notebook, Path(folder))
    for cell in notebook.cells:  # progress and warnings of libraries are not part of a lesson
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    text, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": path.stem})
    return text, resources["outputs"]


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Execute a notebook in place; it works in the folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=600, coalesce_streams=True, resources=place)
    client.execute(env={**os.environ, "IPYTHONDIR": str(folder / "ipython")})  # not in the home folder
