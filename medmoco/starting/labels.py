"""Find label columns in a table, and turn words, lists, classes and grades into columns of 1, 0, -1 and blank."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medmoco.data.manifest.columns import meaning
from medmoco.data.manifest.row_filter import did_you_mean
from medmoco.errors import SettingsError

_NUMBERS = {"1": "1", "1.0": "1", "0": "0", "0.0": "0", "-1": "-1", "-1.0": "-1"}
_WORDS = {
    **dict.fromkeys(("yes", "y", "positive", "pos", "true", "t", "present"), "1"),
    **dict.fromkeys(("no", "n", "negative", "neg", "false", "f", "absent"), "0"),
    **dict.fromkeys(("uncertain", "equivocal", "indeterminate"), "-1"),
}
CELLS = (*_NUMBERS, "")
"""Cells that medmoco reads as a label without any change."""

_BLANKS = {"", "nan", "na", "n/a", "none", "null", "unknown", "missing"}
_MOST_CLASSES, _MOST_TERMS, _MOST_GRADES = 20, 100, 10
_LEAST_ROWS = 3  # of each class or term on average; a column with fewer holds free text
_METADATA = re.compile(
    r"(?i)modality|manufacturer|vendor|scanner|device|detector|body.?part|hospital|site|cent(er|re)|institution"
    r"|source|licen[cs]e|dataset|format|quality|technique|protocol|race|ethnicity|country|method|pediatric"
    r"|reader|annotator|rater|grader|rad(iologist)?.?id|dicom|pixel|instance|series|samples|bits|photometric|position"
    r"|syntax|signed|window|lut\b"
)


@dataclass(frozen=True)
class Labels:
    """Label columns of a table."""

    cells: pd.DataFrame  # (N, L) text: 1, 0, -1 or blank
    notes: tuple[str, ...] = ()  # how each column was read


@dataclass(frozen=True)
class _Reading:
    """How one column can be read as labels."""

    cells: pd.DataFrame
    how: str  # how the column was read; the same for several columns of 0 and 1
    of: str  # what `how` is about
    plain: bool  # whether the column states presence and absence itself; classes and grades may be metadata instead


def find_labels(table: pd.DataFrame, chosen: Sequence[str] | None = None) -> Labels:
    """Return the chosen label columns, or if none are named, those that look like labels.

    Columns of 0 and 1, words (yes, positive) and lists ("Mass|Nodule") are labels if they have both values; columns of
    a few classes or grades are proposed only if there are no others, since they may be metadata.

    Args:
        table: N rows of text.
        chosen: Names of columns, or of classes in them.

    Raises:
        SettingsError: a chosen name is unknown, or its column cannot be read as labels.
    """
    if chosen is not None:
        return _chosen_labels(table, chosen)
    readings = {name: _read(table, name) for name in table.columns if _may_be_label(name)}
    found = {name: reading for name, reading in readings.items() if reading is not None}
    plain = {name: reading for name, reading in found.items() if reading.plain}
    labels = _joined(list((plain or found).values()))
    varying = [name for name in labels.cells if _varies(labels.cells[name])]
    notes = [*labels.notes]
    if others := [repr(name) for name in found if plain and name not in plain]:
        notes.append(f"not used as labels: {', '.join(others[:6])}{', ...' * (len(others) > 6)}; choose with --labels")
    return Labels(labels.cells[varying], tuple(notes))


def _chosen_labels(table: pd.DataFrame, chosen: Sequence[str]) -> Labels:
    readings: list[_Reading] = []
    of_lists = [reading for name in table.columns if (reading := _read(table, name))]
    for name in chosen:
        if name in table:
            reading = _read(table, name)
            if reading is None:
                count = table[name].str.strip().nunique()
                raise SettingsError(
                    f"--labels {name}: its {count:,} different values are neither 0 and 1, words such as yes and no,\n"
                    f"lists such as A|B, nor 2 to {_MOST_CLASSES} classes"
                )
        else:
            reading = next((one for one in of_lists if name in one.cells), None)
            if reading is None:
                known = [*table.columns, *(label for one in of_lists for label in one.cells)]
                raise SettingsError(f"--labels: no column or class {name!r}{did_you_mean(name, known)}")
            reading = _Reading(reading.cells[[name]], "1 where a column names it, else 0", repr(name), plain=True)
        readings.append(reading)
    return _joined(readings)


def _joined(readings: Sequence[_Reading]) -> Labels:
    cells = pd.concat([reading.cells for reading in readings], axis=1) if readings else pd.DataFrame()
    names: dict[str, list[str]] = {}
    for reading in readings:
        names.setdefault(reading.how, []).append(reading.of)
    notes = tuple(f"{how}: {_named(of)}" for how, of in names.items())
    return Labels(cells.loc[:, ~cells.columns.duplicated()], notes)


def _varies(cells: pd.Series[str]) -> bool:
    return bool((cells == "1").any() and (cells != "1").any())


def _may_be_label(name: str) -> bool:
    return meaning(name) is None and not _METADATA.search(name)


def _read(table: pd.DataFrame, name: str) -> _Reading | None:
    """Return how a column can be read as labels, or None."""
    cells = table[name].str.strip()
    present = cells[~cells.str.lower().isin(_BLANKS)]
    distinct = set(present.str.lower())
    if not 0 < len(distinct) <= max(_MOST_CLASSES, len(present) // _LEAST_ROWS) or present.empty:
        return None
    if distinct <= set(_NUMBERS):
        return _mapped(name, cells, _NUMBERS, "labels of 0 and 1")
    if distinct <= {*_NUMBERS, *_WORDS}:
        words = [f"{word} = {_WORDS[word]}" for word in _WORDS if word in distinct]
        return _mapped(name, cells, {**_NUMBERS, **_WORDS}, f"labels in words ({', '.join(words)})")
    return _listed(table, name, cells) or _classes(table, name, cells, present)


def _mapped(name: str, cells: pd.Series[str], values: dict[str, str], how: str) -> _Reading:
    mapped = cells.str.lower().map(values).fillna("")
    return _Reading(pd.DataFrame({name: mapped}), how, repr(name), plain=True)


def _listed(table: pd.DataFrame, name: str, cells: pd.Series[str]) -> _Reading | None:
    """Read a column of lists, such as "Mass|Nodule"."""
    codes, texts = pd.factorize(cells)
    rows = np.bincount(codes, minlength=len(texts))
    for separator in "|;,":
        parts = [{part.strip(" []'\"") for part in text.split(separator)} for text in texts]
        terms = sorted({term for found in parts for term in found if term.lower() not in _BLANKS})
        count = sum(len(found) * number for found, number in zip(parts, rows, strict=True))
        if all(len(found) < 2 for found in parts) or not 1 < len(terms) <= min(_MOST_TERMS, count / _LEAST_ROWS):
            continue
        blank = np.array([text.lower() in _BLANKS for text in texts])
        columns = {
            _free_name(table, name, term): np.where(blank, "", np.where([term in found for found in parts], "1", "0"))
            for term in terms
        }
        marked = pd.DataFrame(columns).iloc[codes].set_axis(cells.index)
        return _Reading(marked, f"findings listed in {name!r} ({separator})", _named(terms), plain=True)
    return None


def _classes(table: pd.DataFrame, name: str, cells: pd.Series[str], present: pd.Series[str]) -> _Reading | None:
    """Read a column of a few classes, or of grades from 0 or 1."""
    names = sorted(present.unique())
    if not 2 <= len(names) <= min(_MOST_CLASSES, len(present) / _LEAST_ROWS):
        return None
    grades = all(text.isdecimal() for text in names)
    if grades:
        numbers = [int(text) for text in names]
        if len(names) > _MOST_GRADES or min(numbers) > 1 or max(numbers) >= 2 * len(names):
            return None
    elif any(re.fullmatch(r"[-+]?[\d.,]+(e[-+]?\d+)?", text, re.IGNORECASE) for text in names):
        return None
    columns = {
        f"{name} {value}" if grades else _free_name(table, name, value): cells.eq(value)
        .map({True: "1", False: "0"})
        .where(cells.isin(names), "")
        for value in names
    }
    how = f"{'grades' if grades else 'classes'} in {name!r}"
    return _Reading(pd.DataFrame(columns), how, _named(list(columns)), plain=False)


def _free_name(table: pd.DataFrame, column: str, value: str) -> str:
    """Return a label's name for a value: the value itself, unless a column has that name or means something."""
    return value if value not in table and meaning(value) is None else f"{column} {value}"


def _named(names: Sequence[str]) -> str:
    return f"{', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
