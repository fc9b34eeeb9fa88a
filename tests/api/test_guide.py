"""docs/api.md names everything that is public, and its snippets run in the order of the page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import medmoco

PAGE = (Path(__file__).parents[2] / "docs/api.md").read_text(encoding="utf-8")


def test_guide__names_every_public_name() -> None:
    assert [name for name in medmoco.__all__ if not re.search(rf"\b{name}\b", PAGE)] == []


@pytest.mark.slow
def test_guide__snippets_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert len(snippets) > 5
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/api.md", "exec"), names)
