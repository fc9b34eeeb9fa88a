"""The parts of a report before it is HTML, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

NOTHING = "–"
NO_BREAK = "\N{NO-BREAK SPACE}"
ID_COLUMNS = ("Path", "PatientID", "StudyID")


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: Its words.
        kind: "plain"; "lead", larger; "missing", the command that makes what is missing; "warning".
    """

    text: str
    kind: str = "plain"


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row names the row.

    Attributes:
        caption: What it shows.
        head: Names of the columns.
        rows: Cells as text.
        words: Cells hold sentences rather than numbers.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False


@dataclass(frozen=True)
class Plot:
    """A figure, what it shows in words, and the numbers behind it."""

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
    """A picture as a data: address."""

    source: str
    alt: str


@dataclass(frozen=True)
class Html:
    """HTML that was made from text with everything escaped."""

    html: str


@dataclass(frozen=True)
class Fold:
    """Blocks behind a line to click on; on paper they are open."""

    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Group:
    """Plots side by side where there is room."""

    blocks: Sequence[Block]


Block = Text | Table | Plot | Listing | Picture | Html | Fold | Group


@dataclass(frozen=True)
class Section:
    """A heading with what stands under it."""

    title: str
    blocks: Sequence[Block] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def plots_first(blocks: Sequence[Block]) -> list[Block]:
    """Put plots side by side, and everything else below them."""
    plots: list[Block] = [block for block in blocks if isinstance(block, Plot)]
    rest: list[Block] = [block for block in blocks if not isinstance(block, Plot)]
    return [Group(plots), *rest] if plots else rest


def number(value: Any, digits: int = 3, sign: str = "") -> str:
    """Write a number; a dash where there is none."""
    return f"{value:{sign}.{digits}f}" if isinstance(value, int | float) else NOTHING


def count(value: Any) -> str:
    """Write a whole number."""
    return f"{value:,}" if isinstance(value, int) else number(value, 1)


def with_interval(
    value: float | None, low: float | None, high: float | None, *, digits: int = 3, sign: str = ""
) -> str:
    """Write a number with its 95 % interval, which a narrow column may put below it but not break."""
    text = number(value, digits, sign)
    if value is None or low is None or high is None:
        return text
    return f"{text} ({unbroken(f'{number(low, digits, sign)} to {number(high, digits, sign)}')})"


def unbroken(text: str) -> str:
    """Return a text whose spaces end no line."""
    return text.replace(" ", NO_BREAK)


def p_value(value: Any) -> str:
    """Write a p value."""
    if not isinstance(value, int | float):
        return NOTHING
    return unbroken("< 0.001") if value < 0.001 else f"{value:.3f}"


def where_words(where: Any) -> str:
    """Describe which rows were scored, without the ids that a condition may name."""
    if not where:
        return "all"
    return "some, chosen by id" if any(name in str(where) for name in ID_COLUMNS) else str(where)


def several(amount: int, thing: str) -> str:
    """Write a number of things."""
    return f"{amount:,} {thing}" + ("" if amount == 1 else "s")
