"""The blocks of a report, before they become HTML, and the formats of its numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

NOTHING = "–"
NO_BREAK = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
APART = {"gain": "gains over", "loss": "loses against", "unclear": "cannot be told apart from"}
"""Words between what an answer compares, by its kind."""
SPLITS = {"val": "the validation set", "test": "the test set"}


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: Text, with `code` in backticks.
        kind: "plain"; "note", in smaller type; "missing", the command that writes a missing result; "warning".
    """

    text: str
    kind: str = "plain"


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row names the row.

    Attributes:
        caption: Title of the table.
        head: Names of the columns.
        rows: Cells as text.
        words: Whether cells contain sentences rather than numbers.
        decisive: Whether the second column is the one to read first; it is set in bold, and fits on a phone.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False
    decisive: bool = False


@dataclass(frozen=True)
class Plot:
    """A figure, its description in words, and its data as a table."""

    figure: Figure
    caption: str
    alt: str
    table: Table


@dataclass(frozen=True)
class Listing:
    """Preformatted text."""

    text: str


@dataclass(frozen=True)
class Picture:
    """A picture as a data: URL."""

    source: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Html:
    """HTML from text in which everything was escaped."""

    html: str


@dataclass(frozen=True)
class Fold:
    """Blocks that a click on a line unfolds; on paper they are unfolded."""

    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Group:
    """Blocks side by side, if there is room; or stacked, as one block of a group around them."""

    blocks: Sequence[Block]
    stacked: bool = False


@dataclass(frozen=True)
class Answer:
    """The main result: a difference, and what it shows.

    Attributes:
        kind: "gain", "loss" or "unclear".
        title: The kind in words, with the control.
        effect: The difference.
        interval: Its 95 % interval.
        text: One sentence with the task, the labels, the split and the control.
        metric: Of which the effect is a difference.
    """

    kind: str
    title: str
    effect: str
    interval: str
    text: str
    metric: str = "AUROC"


Block = Text | Table | Plot | Listing | Picture | Html | Fold | Group | Answer


@dataclass(frozen=True)
class Section:
    """A heading with its content."""

    title: str
    blocks: Sequence[Block] = ()
    sections: Sequence[Section] = field(default_factory=tuple)
    columns: bool = False  # whether the sections inside stand in columns, if there is room

    @property
    def key(self) -> str:
        """The title as part of an address."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


def by_run(title: str, parts: Mapping[str, Sequence[Block]], head: Sequence[Block] = ()) -> Section:
    """Return a section with a part for each run; a single run needs no heading, and equal parts are shown once."""
    if len(parts) == 1:
        return Section(title, [*head, *(block for blocks in parts.values() for block in blocks)])
    together: list[tuple[list[str], Sequence[Block]]] = []
    for name, blocks in parts.items():
        names = next((names for names, shown in together if shown == blocks), None)
        if names:
            names.append(name)
        else:
            together.append(([name], blocks))
    return Section(title, head, [Section(", ".join(names), blocks) for names, blocks in together])


def plots_first(blocks: Sequence[Block]) -> list[Block]:
    """Put plots side by side, above all other blocks."""
    plots: list[Block] = [block for block in blocks if isinstance(block, Plot)]
    rest: list[Block] = [block for block in blocks if not isinstance(block, Plot)]
    return [Group(plots), *rest] if plots else rest


def number(value: Any, digits: int = 3, sign: str = "") -> str:
    """Write a number, or a dash if there is none."""
    if not isinstance(value, int | float):
        return NOTHING
    text = f"{value:{sign}.{digits}f}".replace("-", MINUS)
    return text if any(digit in text for digit in "123456789inf") else text.lstrip(f"+{MINUS}")  # 0 has no sign


def count(value: Any) -> str:
    """Write a whole number."""
    return f"{value:,}" if isinstance(value, int) else number(value, 1)


def with_interval(
    value: float | None, low: float | None, high: float | None, *, digits: int = 3, sign: str = ""
) -> str:
    """Write a number with its 95 % interval, which stays on one line."""
    text = number(value, digits, sign)
    if value is None or low is None or high is None:
        return text
    return f"{text} ({span(low, high, digits=digits, sign=sign)})"


def span(low: float | None, high: float | None, *, digits: int = 3, sign: str = "") -> str:
    """Write an interval, which stays on one line."""
    return unbroken(f"{number(low, digits, sign)} to {number(high, digits, sign)}")


def unbroken(text: str) -> str:
    """Return a text that cannot be broken into lines."""
    return text.replace(" ", NO_BREAK)


def p_value(value: Any) -> str:
    """Write a p value."""
    if not isinstance(value, int | float):
        return NOTHING
    return unbroken("< 0.001") if value < 0.001 else f"{value:.3f}"


def several(amount: int, thing: str) -> str:
    """Write a number with its noun, in the plural if needed."""
    return f"{amount:,} {thing}" + ("" if amount == 1 else "s")
