from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from medmoco.exporting.joining import joined

FIRST = '''"""First."""

from __future__ import annotations

import math
import os

SCALE = 2.0
"""A factor."""


# Two modules have a helper of this name.
def _load(number: float) -> float:
    """Double."""
    return SCALE * number


def unused() -> str:
    return os.getcwd()


def root(number: float) -> float:
    return math.sqrt(_load(number))
'''
SECOND = '''"""Second, with the docstring of the file."""

from __future__ import annotations

from sample import first
from sample.first import root as square_root

SCALE = 2.0
"""A factor."""


class _Box:
    """A box; é is two bytes."""

    def value(self, number: float) -> float:
        return _load(number) + first._load(number)


def _load(number: float) -> float:
    """Add one, é."""
    return number + 1


def main(number: float) -> tuple[float, float]:
    return square_root(number), _Box().value(number)
'''

Make = Callable[[str, str], list[ModuleType]]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Return a function that writes and imports the modules `first` and `second` of a package."""

    def write(*texts: str) -> list[ModuleType]:
        folder = tmp_path / "sample"
        folder.mkdir()
        for name, text in zip(("__init__", "first", "second"), ("", *texts), strict=True):
            (folder / f"{name}.py").write_text(text, encoding="utf-8")
        return [importlib.import_module(f"sample.{name}") for name in ("first", "second")]

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in ("sample", "sample.first", "sample.second"):
        sys.modules.pop(name, None)


def run(text: str) -> dict[str, object]:
    namespace: dict[str, object] = {"__name__": "joined"}
    exec(compile(text, "joined.py", "exec"), namespace)
    return namespace


def test_joined__renames_what_two_modules_define_differently(make: Make) -> None:
    modules = make(FIRST, SECOND)
    text = joined(modules, entries=["main"])
    found = run(text)
    assert found["main"](8.0) == modules[-1].main(8.0) == (4.0, 25.0)  # type: ignore[operator]
    assert "def _first_load" in text
    assert "def _second_load" in text
    assert "first._load" not in text


def test_joined__copies_only_what_the_entry_needs(make: Make) -> None:
    text = joined(make(FIRST, SECOND), entries=["main"])
    assert "unused" not in text
    assert "import os" not in text
    assert "import math" in text
    assert text.startswith('"""Second, with the docstring of the file."""\n\nfrom __future__')
    assert "# Two modules have a helper of this name." in text


def test_joined__equal_definitions_are_copied_once(make: Make) -> None:
    both = SECOND.replace("number + 1", "number + SCALE")
    assert joined(make(FIRST, both), entries=["main"]).count("SCALE = 2.0") == 1


def test_joined__refuses_a_variable_with_a_renamed_name(make: Make) -> None:
    hidden = SECOND.replace("return number + 1", "return number + (lambda _load: 1)(number) + 0 * len(str(_load))")
    with pytest.raises(AssertionError, match="_load is both"):
        joined(make(FIRST, hidden), entries=["main"])


def test_joined__definitions_before_take_the_place_of_others(make: Make) -> None:
    _, second = make(FIRST, SECOND.replace(" + first._load(number)", ""))
    text = joined([second], entries=["main"], before="def square_root(number: float) -> float:\n    return -number")
    assert run(text)["main"](8.0) == (-8.0, 9.0)  # type: ignore[operator]


def test_joined__without_an_entry_copies_everything(make: Make) -> None:
    second = SECOND.replace("def _load", "def _more").replace(
        "_load(number) + first._load", "_more(number) + first._load"
    )
    text = joined(make(FIRST, second))
    assert "def unused" in text
    assert text.count("SCALE = 2.0") == 1
