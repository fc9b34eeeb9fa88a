"""The tutorials: the notebooks of `examples/`, executed, as pages of the site."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

TABLE = '<div class="md-typeset__scrollwrap">'
"""What the theme puts around wide tables."""


def page(path: Path, *, execute: bool = True) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its pictures by name."""
    notebook = nbformat.read(path, as_version=4)
    if execute:
        with tempfile.TemporaryDirectory() as folder:
            run(notebook, Path(folder))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _shown(cell.outputs)
    text, resources = MarkdownExporter().from_notebook_node(notebook, {"unique_key": path.stem})
    return text, resources["outputs"]


def _shown(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Return outputs as a page shows them: lines that follow each other as one block, and wide tables that scroll.

    Progress and warnings of libraries are not part of a lesson.
    """
    shown: list[nbformat.NotebookNode | str] = []
    for output in outputs:
        data = output.get("data", {})
        is_of_rich = data.get("text/html", "").startswith("<pre")
        is_text = is_of_rich or not data.keys() - {"text/plain"}
        text = output.get("text") or data.get("text/plain", "")
        if output.get("name") == "stderr":
            continue
        if is_text and shown and isinstance(shown[-1], str):
            shown[-1] += f"\n{text.rstrip()}"
        else:
            shown.append(text.rstrip() if is_text else _scrolling(output))
    return [_block(part) if isinstance(part, str) else part for part in shown]


def _block(text: str) -> nbformat.NotebookNode:
    data = {"text/markdown": f"~~~~ {{ .text .output }}\n{text}\n~~~~"}
    block: nbformat.NotebookNode = nbformat.v4.new_output("display_data", data=data)
    return block


def _scrolling(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    html = output.data.get("text/html", "")
    if "dataframe" in html:
        output.data["text/html"] = re.sub(r"<div>\s*<style.*?</style>", TABLE, html, flags=re.DOTALL)
    return output


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Execute a notebook in place; it works in the folder.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=600, coalesce_streams=True, resources=place)
    client.execute(env={**os.environ, "IPYTHONDIR": str(folder / "ipython")})  # not in the home folder
