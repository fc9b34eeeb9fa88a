"""Cells to labels: 1, 0, -1 (uncertain) or nan (missing), by the usual texts, a map, or a class in a list.

Errors show the texts of cells if the column is one of few texts, so that a map can be copied from the message; texts
that may be ids or prose are not shown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.config import LabelPolicy, cell_text
from medmoco.data.manifest.columns import PATIENT, STUDY, meaning
from medmoco.data.manifest.csv_file import CsvFile
from medmoco.data.manifest.row_filter import decimal_comma, did_you_mean, number_in
from medmoco.errors import ManifestError

_USUAL = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "-1": -1.0, "-1.0": -1.0, "": np.nan}
_GUESSES = {
    **dict.fromkeys(("1", "yes", "y", "true", "t", "positive", "pos", "present", "abnormal", "malignant"), "1"),
    **dict.fromkeys(("0", "no", "n", "false", "f", "negative", "neg", "absent", "normal", "benign"), "0"),
    **dict.fromkeys(("-1", "uncertain", "unclear", "equivocal", "maybe", "possible", "indeterminate"), "-1"),
    **dict.fromkeys(("na", "n/a", "nan", "none", "null", "unknown", "missing", "-", "?"), "null"),
}
_OPEN = "..."  # stands in a map for a meaning that the user must fill in

_ITEM = re.compile(r"""'([^']*)'|"([^"]*)"|([^,'"]+)""")  # of a list in square brackets
_SEPARATORS = ("|", ";", ",", "/", "+")

_IDS = (PATIENT, STUDY, "Path")  # columns whose cells are never shown
_MOST_TEXTS, _MOST_CLASSES, _LONGEST = 12, 15, 30  # shown
_SMALL = 6  # rows in which even a label may have only distinct texts


class _Cells(NamedTuple):
    """The cells of a column."""

    codes: NDArray[np.intp]  # (N,)
    texts: list[str]  # distinct, as in the file


def label_columns(labels: Mapping[str, LabelPolicy]) -> set[str]:
    """Return the columns from which labels are read."""
    return {policy.column or name for name, policy in labels.items()}


def label_values(file: CsvFile, label: str, policy: LabelPolicy) -> NDArray[np.float64]:
    """Return the values of a label, (N,): 1, 0, -1 (uncertain) or nan (missing).

    Raises:
        ManifestError: the column is missing, or a cell has no known meaning; names the file and the row.
    """
    column = policy.column or label
    if column not in file.table:
        raise ManifestError(_no_column(file, label, column))
    codes, texts = pd.factorize(file.table[column])
    cells = _Cells(codes, [str(text) for text in texts])
    if policy.contains:
        known: dict[str, float] = _listed(cells.texts, policy)
    else:
        known = _known(cells.texts, policy.map)
    bad = np.array([text not in known for text in cells.texts], dtype=bool)[codes]
    if bad.any():
        file.refuse(bad, _unknown_cell(file, label, policy, cells, bad), [column])
    return np.array([known[text] for text in cells.texts], np.float64)[codes]


def _known(texts: Iterable[str], chosen: Mapping[str, int | None] | None) -> dict[str, float]:
    """Return the value of each text that has one."""
    if chosen is None:
        return {text: _USUAL[text.strip()] for text in texts if text.strip() in _USUAL}
    values = {"": np.nan} | {cell_text(text): np.nan if value is None else value for text, value in chosen.items()}
    numbers = {number: values[text] for text in values if (number := number_in(text)) is not None}
    known = {}
    for text in texts:
        plain = cell_text(text)
        if plain in values:
            known[text] = values[plain]
        elif (number := number_in(plain)) in numbers:
            known[text] = numbers[number]
    return known


# Lists of classes


def classes_in(text: str, separator: str) -> list[str]:
    """Return the classes in a cell such as "Effusion|Mass", or a list as Python and JSON write it: "['effusion']"."""
    text = text.strip()
    if text[:1] == "[" and text[-1:] == "]":
        parts = ["".join(found) for found in _ITEM.findall(text[1:-1])]
    else:
        parts = text.split(separator)
    return [name for part in parts if (name := part.strip())]


def _listed(texts: Iterable[str], policy: LabelPolicy) -> dict[str, float]:
    wanted = cell_text(policy.contains or "")
    return {text: float(_is_in(wanted, text, policy.separator)) if text.strip() else np.nan for text in texts}


def _is_in(wanted: str, text: str, separator: str) -> bool:
    return wanted in cell_text(text) and wanted in map(cell_text, classes_in(text, separator))


def check_classes(
    files: Sequence[CsvFile], labels: Mapping[str, LabelPolicy], others: Callable[[], Sequence[CsvFile]]
) -> None:
    """Refuse a label that names a class which is in none of the lists, or in lists with another separator.

    Args:
        files: Tables that are read.
        labels: The labels.
        others: Returns further tables of the manifest, which are read only if a class is in none of `files`.

    Raises:
        ManifestError: a class does not occur; names those that do.
    """
    for label, policy in labels.items():
        column = policy.column or label
        if policy.contains is None or any(column not in file.table for file in files):
            continue
        wanted = cell_text(policy.contains)
        _refuse_other_separator(files, label, policy, others)
        if any(_is_in(wanted, text, policy.separator) for text in _texts_of(files, column)):
            continue
        every = [*files, *others()]
        if any(_is_in(wanted, text, policy.separator) for text in _texts_of(every, column)):
            continue
        shown = _shown_classes(every, column, policy.separator)
        raise ManifestError(
            f"{files[0].path}: data.labels.{label}: no cell of {column!r} contains the class {policy.contains!r}"
            f"{did_you_mean(policy.contains, shown)}\n{_classes_line(shown)}"
        )


def _texts_of(files: Iterable[CsvFile], column: str) -> Iterator[str]:
    """Yield the distinct cells of a column of each table that has it."""
    for file in files:
        if column in file.table:
            yield from map(str, file.table[column].unique())


def _refuse_other_separator(
    files: Sequence[CsvFile], label: str, policy: LabelPolicy, others: Callable[[], Sequence[CsvFile]]
) -> None:
    """Refuse lists in which the class is found only with another separator, which would count as negative.

    If the column does use the separator of the label, other ones are part of a class such as "Fracture, rib".
    """
    column, wanted = policy.column or label, cell_text(policy.contains or "")
    for file in files:
        codes, texts = pd.factorize(file.table[column])
        for number, text in enumerate(map(str, texts)):
            if wanted not in cell_text(text) or _is_in(wanted, text, policy.separator):
                continue
            if other := next((other for other in _SEPARATORS if _is_in(wanted, text, other)), None):
                if any(policy.separator in each for each in _texts_of([*files, *others()], column)):
                    return
                file.refuse(
                    codes == number,
                    f"the classes of {column!r} seem to be separated by {other!r} here, not by {policy.separator!r};\n"
                    f'set data.labels.{label}.separator, such as separator: "{other}"',
                    [column],
                )


# Messages


def _no_column(file: CsvFile, label: str, column: str) -> str:
    """Return the message about a missing label column, with what is probably meant."""
    table = file.table
    names = [str(name) for name in table.columns]
    what = f"{file.path}: no column {column!r}"
    if column != label:
        return f"{what}, which data.labels.{label}.column names{did_you_mean(column, names)}"
    parts = [part.strip() for part in label.split(",")]
    if len(parts) > 1 and table.columns.isin(parts).sum() == len(set(parts)):
        return f"{what}; for several labels write a list: data.labels=[{', '.join(parts)}]"
    if close := did_you_mean(label, names):
        return f"{what}{close} (data.labels must name columns of the table)"
    for name in names:
        if found := _list_with(table[name], cell_text(label)):
            spelled, separator = found
            extra = "" if separator == "|" else f', separator: "{separator}"'
            return (
                f"{what}, but {name!r} contains {spelled!r}; to make it a label, set\n"
                f'\'data.labels={{{label}: {{column: "{name}", contains: "{spelled}"{extra}}}}}\''
            )
    likely = [name for name in names if meaning(name) is None and _looks_like_label(table[name])]
    shown = ", ".join(map(repr, (likely or names)[:_MOST_TEXTS])) + ", ..." * (len(likely or names) > _MOST_TEXTS)
    title = "the columns that look like labels are" if likely else "the columns are"
    return f"{what}; data.labels must name columns of the table\n{title}: {shown}"


def _list_with(cells: pd.Series[str], wanted: str) -> tuple[str, str] | None:
    """Return how a class is spelled in a column of lists, and the separator; None if it is not in it."""
    texts = [text for text in map(str, cells.unique()) if wanted in cell_text(text)]
    for separator in _SEPARATORS:
        if any(separator in text for text in texts) or any(text.startswith("[") for text in texts):
            names = (name for text in texts for name in classes_in(text, separator) if cell_text(name) == wanted)
            if spelled := next(names, None):
                return spelled, separator
    return None


def _looks_like_label(cells: pd.Series[str]) -> bool:
    texts = {cell_text(str(text)) for text in cells.unique()}
    return len(texts) <= _MOST_TEXTS and bool(texts - {""}) and texts <= {*_USUAL, *_GUESSES}


def _unknown_cell(file: CsvFile, label: str, policy: LabelPolicy, cells: _Cells, bad: NDArray[np.bool_]) -> str:
    """Return the end of the message about a cell without a meaning."""
    column = policy.column or label
    usual = f"the label {label!r} must be 1, 0, -1 (uncertain) or blank (missing)"
    text = cells.texts[cells.codes[int(bad.argmax())]].strip()
    texts = [each.strip() for each in cells.texts]
    if decimal_comma(text):
        return usual
    if _are_lists(texts):
        shown = _shown_classes([file], column, "|")
        name = shown[0] if shown else "NAME"
        return (
            f"{usual}; its cells are lists of classes. Make a class a label, such as\n"
            f'\'data.labels={{{name}: {{column: "{column}", contains: "{name}"}}}}\'\n{_classes_line(shown)}'
        )
    if not _may_be_shown(file, column, texts, bad):
        count = len(set(texts))
        return (
            f"{usual};\nits column has {count:,} different texts, not shown as they may be ids or prose.\n"
            f"If it is the right column, give each a meaning with data.labels.{label}.map, such as {{yes: 1, no: 0}}"
        )
    if policy.map is not None:
        return f"{text!r} is not in data.labels.{label}.map; to read all cells, set\nmap: {_suggest(texts, policy.map)}"
    return (
        f"{usual}, not {text!r};\nto read such cells, give each text a meaning (1, 0, -1 or null) with"
        f" data.labels.{label}:\n{{map: {_suggest(texts, None)}}}"
    )


def _are_lists(texts: Collection[str]) -> bool:
    """Return whether the texts of a column are lists of few, short classes."""
    lists = sum("|" in text or text[:1] == "[" for text in texts)
    if lists < 0.3 * len(texts):
        return False
    found = {name for text in texts for name in classes_in(text, "|")}
    return 0 < len(found) < 2 * len(texts) and max(map(len, found)) <= _LONGEST


def _shown_classes(files: Sequence[CsvFile], column: str, separator: str) -> list[str]:
    """Return the classes in a column of lists, the most frequent first, without those that may be ids or prose."""
    if _is_id(column):
        return []
    found: Counter[str] = Counter()
    ids: set[str] = set()
    for file in files:
        for name in map(str, file.table.columns):
            if _is_id(name):
                ids.update(text.strip() for text in _texts_of([file], name))
        if column in file.table:
            codes, texts = pd.factorize(file.table[column])
            for text, count in zip(map(str, texts), np.bincount(codes, minlength=len(texts)), strict=True):
                found.update(dict.fromkeys(classes_in(text, separator), int(count)))
    least = 1 if sum(len(file.rows) for file in files) <= _SMALL else 2
    return [name for name, count in found.most_common() if count >= least and len(name) <= _LONGEST and name not in ids]


def _classes_line(shown: Sequence[str]) -> str:
    if not shown:
        return "its classes are not shown, as they may be ids"
    return f"the classes are: {', '.join(shown[:_MOST_CLASSES])}{', ...' * (len(shown) > _MOST_CLASSES)}"


def _is_id(column: str) -> bool:
    means = meaning(column)
    return means is not None and means[0] in _IDS


def _may_be_shown(file: CsvFile, column: str, texts: Collection[str], bad: NDArray[np.bool_]) -> bool:
    """Return whether the texts of a column are few and short, and not ids."""
    distinct, rows = set(texts), len(file.rows)
    if _is_id(column):
        return False
    if len(distinct) > _MOST_TEXTS or max(map(len, distinct)) > _LONGEST or (rows > _SMALL and len(distinct) == rows):
        return False
    own: NDArray[Any] = file.table[column].astype(str).str.strip().to_numpy(object)[bad]
    return not any(
        (own == file.table[name].astype(str).to_numpy(object)[bad]).mean() > 0.5
        for name in _IDS
        if name in file.table and name != column
    )


def _suggest(texts: Collection[str], chosen: Mapping[str, int | None] | None) -> str:
    """Return a map of all texts to paste: meanings that are known or obvious, and `...` for those to fill in."""
    given = {cell_text(text): "null" if value is None else str(value) for text, value in (chosen or {}).items()}
    distinct = sorted(
        {text for text in texts if text}, key=lambda text: (number_in(text) is None, number_in(text) or 0, text)
    )
    graded = any(number_in(text) not in (None, 1, 0, -1) for text in distinct)  # so 1 need not mean positive
    parts = []
    for text in {cell_text(text): text for text in distinct}.values():
        guess = _GUESSES.get(cell_text(text).removesuffix(".0"), _OPEN)
        if graded and guess == "1" and number_in(text) is not None:
            guess = _OPEN
        parts.append(f"{_as_key(text)}: {given.get(cell_text(text), guess)}")
    return f"{{{', '.join(parts)}}}"


def _as_key(text: str) -> str:
    """Return a text as a key in YAML."""
    if re.fullmatch(r"-?\w[\w .+/()-]*(?<! )", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
