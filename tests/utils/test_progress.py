from __future__ import annotations

import io
from itertools import pairwise

import pytest
from rich.console import Console

from medmoco.utils import progress
from medmoco.utils.progress import track


def test_track__passes_all_on_and_says_a_line_at_times(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 10))  # ten seconds pass between two looks at it
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    text = io.StringIO()
    assert list(track("abcdefgh", 8, "reading", Console(file=text, soft_wrap=True))) == list("abcdefgh")
    lines = text.getvalue().rstrip().splitlines()  # rich before 15 ends with an empty line
    assert lines[0].startswith("reading: 3/8, 0/s, 0:00:")
    assert [line.split(",")[0] for line in lines] == ["reading: 3/8", "reading: 6/8"]
    left = [line.rpartition("0:00:")[2].split()[0] for line in lines]
    assert all(int(one) > int(other) for one, other in pairwise(left))


def test_track__a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    assert list(track(range(5), 5, "reading", console)) == [0, 1, 2, 3, 4]
    assert "reading" in text.getvalue()
    assert "5/5" in text.getvalue()


def test_track__nothing_is_said_of_a_short_pass() -> None:
    text = io.StringIO()
    assert list(track([], 0, "reading", Console(file=text))) == []
    assert list(track([1], 1, "reading", Console(file=text))) == [1]
    assert not text.getvalue().strip()


def test_track__counts_the_sizes_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(progress, "monotonic", lambda: next(clock))
    text = io.StringIO()
    batches = ["aaaa", "bbbb", "cc"]
    assert list(track(batches, 10, "images", Console(file=text, soft_wrap=True), size=len)) == batches
    assert text.getvalue().startswith("images: 8/10, 0/s, 0:00:")
