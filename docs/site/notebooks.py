"""The tutorials: the notebooks of `examples/`, executed, as pages of the site."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter


def write(notebooks: Path, out: Path, *, execute: bool = True) -> None:
    """Write the page and the pictures of each notebook in a folder."""
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(notebooks.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if execute:
            with tempfile.TemporaryDirectory() as folder:
                run(notebook, Path(folder))
        text, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": path.stem})
        (out / f"{path.stem}.md").write_text(text, encoding="utf-8")
        for name, content in resources.get("outputs", {}).items():
            (out / name).write_bytes(content)


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Execute a notebook in place; it works in the folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "IPYTHONDIR": str(folder / "ipython")})  # not in the home folder
