"""What pages show of the outputs of notebooks."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pandas as pd
import pytest

from docs.site import notebooks


def _rich(text: str) -> nbformat.NotebookNode:
    """Return a line as rich shows it in a notebook."""
    data = {"text/html": f"<pre style='white-space:pre'>{text}\n</pre>\n", "text/plain": f"{text}\n"}
    return nbformat.v4.new_output("display_data", data=data)


def outputs() -> list[nbformat.NotebookNode]:
    """Return the kinds of outputs that the tutorials have."""
    table = pd.DataFrame({f"column of numbers {number}": ["0.923 (0.895 to 0.944)"] for number in range(9)})
    html: str = table._repr_html_()  # type: ignore[operator]
    return [
        nbformat.v4.new_output("stream", name="stdout", text="printed\n"),
        nbformat.v4.new_output("stream", name="stderr", text="a warning\n"),
        _rich("step 10/42"),
        _rich(f"step 20/42 {'and a long line ' * 6}"),
        nbformat.v4.new_output("execute_result", data={"text/html": html, "text/plain": "table"}),
        nbformat.v4.new_output("execute_result", data={"text/plain": "{'onnx': 'verified'}"}),
    ]


def test_outputs__lines_are_one_block_and_tables_scroll(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(notebook: nbformat.NotebookNode, _folder: Path) -> None:
        notebook.cells[0].outputs = outputs()

    monkeypatch.setattr(notebooks, "run", run)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("work()")])
    nbformat.write(notebook, tmp_path / "lesson.ipynb")
    text, pictures = notebooks.page(tmp_path / "lesson.ipynb")
    assert "~~~~ { .text .output }\nprinted\nstep 10/42\nstep 20/42 and" in text
    assert text.count("~~~~") == 4  # the value comes after a table
    assert "warning" not in text
    assert "<pre" not in text
    assert "<style" not in text
    assert '<div class="md-typeset__scrollwrap">\n<table border="1" class="dataframe">' in text
    assert "{'onnx': 'verified'}\n~~~~" in text
    assert not pictures
