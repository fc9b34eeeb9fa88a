"""The examples in the docstrings of the public names run as they are printed."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import medmoco

# Their methods that users call; the others serve medmoco itself.
METHODS = {
    "Classifier": ["predict"],
    "Curve": ["load", "plot", "to_frame"],
    "Encoder": ["embed", "preprocess"],
    "Evaluation": ["load", "plot_curve", "summary", "to_frame"],
    "MoCo": ["forward"],
    "TwoViews": ["loader", "set_epoch", "to_float"],
}


def _examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(recurse=False)
    names = {"medmoco": medmoco, "np": np}
    for name in medmoco.__all__:
        thing = getattr(medmoco, name)
        parts = {name: thing} | {f"{name}.{method}": getattr(thing, method) for method in METHODS.get(name, ())}
        for where, part in parts.items():
            yield from finder.find(part, where, globs=names)


EXAMPLES = {example.name: example for example in _examples()}
LONG = {"dry_run", "export", "verify"}  # seconds each; tests/api covers the same calls


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LONG else []) for name in EXAMPLES]
)
def test_examples__run(name: str, workspace: Path) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    printed: list[str] = []
    runner.run(EXAMPLES[name], out=printed.append, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0, "".join(printed)


@pytest.mark.parametrize("name", sorted(medmoco.__all__))
def test_docstrings__describe_every_argument_and_have_an_example(name: str) -> None:
    thing = getattr(medmoco, name)
    text = inspect.getdoc(thing) or ""
    assert EXAMPLES[name].examples, name
    assert re.search(r"^Examples:$", text, flags=re.MULTILINE)
    if inspect.isfunction(thing):
        documented = text.partition("Args:")[2]
        missing = [word for word in inspect.signature(thing).parameters if f"{word}:" not in documented]
        assert not missing


@pytest.mark.parametrize("path", sorted(Path(medmoco.__file__).parent.rglob("*.py")), ids=lambda path: path.stem)
def test_docstrings__title_examples_in_the_plural(path: Path) -> None:
    """Sites that render Google docstrings show "Example:" as a note, not as a section."""
    assert not re.search(r"^ *Example:$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_methods__have_an_example_of_their_own_or_of_their_class() -> None:
    code = {name: "".join(step.source for step in example.examples) for name, example in EXAMPLES.items()}
    unused = [
        f"{name}.{method}"
        for name, methods in METHODS.items()
        for method in methods
        if f".{method}(" not in code[name] and not code.get(f"{name}.{method}")
    ]
    assert unused == ["MoCo.forward"]  # the example calls the module
