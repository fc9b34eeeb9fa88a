"""A second table, whose columns are added to the rows of a manifest that have the same keys (`data.join`).

Keys are compared as text after surrounding spaces have been stripped: "007" is not "7". A blank key has no partner.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.config import JoinSettings
from medmoco.data.manifest.csv_file import UNNAMED, CsvFile, Joined, read_csv
from medmoco.data.manifest.tables.paths import with_slashes
from medmoco.errors import ManifestError

_AMBIGUOUS = (
    "the label column {column!r} is also in {name}, with another cell;\n"
    "to use that one, give it another name with data.join.columns={{New name: {column}}}"
)
_KEY = "\x1f"  # joins the cells of a key; no cell contains it


@dataclass(frozen=True)
class _Second:
    """The second table."""

    file: CsvFile
    on: tuple[str, ...]
    keys: pd.Index[str]  # (M,) unique
    rows: NDArray[np.int64]  # (M,) positions of the keys in the table


def join(files: Sequence[CsvFile], settings: JoinSettings, labels: Collection[str] = ()) -> list[CsvFile]:
    """Return tables with the columns of the second table; cells of rows without a partner are blank.

    Args:
        files: Tables of the manifest.
        settings: The second table.
        labels: Columns with labels.

    Raises:
        ManifestError: a column is missing, a label has different cells in the two tables, a key of the second table
            appears twice, or no row has a partner.
    """
    second = _read(settings, labels)
    partners = [_partners(file, second) for file in files]
    used = np.zeros(len(second.file.rows), dtype=bool)
    for own in partners:
        used[own[own >= 0]] = True
    name = second.file.path.name
    if not used.any():
        raise ManifestError(
            f"{second.file.path}: no row has the {' and '.join(settings.on)} of a row of"
            f" {', '.join(file.path.name for file in files)};\ndata.join.on must name what identifies a row in both"
            " tables; cells are compared as text, so '007' is not '7'"
        )
    joined = [_joined(file, second, own, labels) for file, own in zip(files, partners, strict=True)]
    if rest := int((~used).sum()):
        of = ", ".join(file.path.name for file in files)
        notice = f"{rest:,} of {len(used):,} rows of {name} have no partner in {of} and are not used"
        joined[0] = replace(joined[0], notices=(*joined[0].notices, notice))
    return joined


def _read(settings: JoinSettings, repetitive: Collection[str]) -> _Second:
    file = with_slashes(read_csv(settings.file, repetitive, settings.columns, "data.join.columns"))
    for column in settings.on:
        file.require(column, "data.join.on must name columns of both tables; data.join.columns translates names")
    keys = _keys(file, settings.on)
    named = np.flatnonzero(keys != "")
    repeated = pd.Series(keys[named]).duplicated().to_numpy()
    if repeated.any():
        again = named[repeated][0]
        first = int((keys == keys[again]).argmax())
        more = f" ({repeated.sum()} such rows)" if repeated.sum() > 1 else ""
        raise ManifestError(
            f"{file.path}: rows {file.rows[first]} and {file.rows[again]} have the same"
            f" {' and '.join(settings.on)}{more};\n"
            "a row can have one partner only: add a column to data.join.on, or remove the duplicates"
        )
    return _Second(file, settings.on, pd.Index(keys[named]), named)


def _keys(file: CsvFile, on: Sequence[str]) -> NDArray[Any]:
    """Return the key of each row, blank if a cell of it is."""
    cells = [file.table[column].astype(str).str.strip() for column in on]
    keys = cells[0]
    for other in cells[1:]:
        keys = keys + _KEY + other
    blank = np.any([(column == "").to_numpy() for column in cells], axis=0)
    texts: NDArray[Any] = keys.mask(blank, "").to_numpy(object)
    return texts


def _partners(file: CsvFile, second: _Second) -> NDArray[np.int64]:
    """Return the position of each row's partner in the second table; -1 if it has none."""
    for column in second.on:
        file.require(column, "data.join.on must name columns of both tables")
    found = second.keys.get_indexer(pd.Index(_keys(file, second.on)))
    return np.where(found < 0, -1, second.rows[found]) if len(second.rows) else np.full(len(found), -1)


def _joined(file: CsvFile, second: _Second, partners: NDArray[np.int64], labels: Collection[str]) -> CsvFile:
    has, name = partners >= 0, second.file.path.name
    added: dict[str, Any] = {}
    notices = list(file.notices)
    if not has.all():
        lone = f"{(~has).sum():,} of {len(has):,} rows of {file.path.name} have no partner in {name}"
        notices.append(f"{lone}; its columns are blank for them")
    for column in second.file.table.columns.difference(list(second.on), sort=False):
        if column.startswith(UNNAMED):
            continue
        cells = second.file.table[column].take(np.maximum(partners, 0)).set_axis(file.table.index)
        if column in file.table:
            differ = has & (_texts(file.table[column]) != _texts(cells))
            if column in labels:
                file.refuse(differ, _AMBIGUOUS.format(column=column, name=name))
            if differ.any():
                notices.append(
                    f"{file.path.name} and {name} have different cells of {column!r} in {differ.sum():,} rows; those of"
                    f" {file.path.name} are used"
                )
            continue
        if isinstance(cells.dtype, pd.CategoricalDtype) and "" not in cells.cat.categories:
            cells = cells.cat.add_categories([""])
        added[column] = cells.where(has, "")
    return replace(
        file,
        table=pd.concat([file.table, pd.DataFrame(added, index=file.table.index)], axis=1),
        sha256=hashlib.sha256(f"{file.sha256} {second.file.sha256}".encode()).hexdigest(),
        joined=Joined(second.file.path, np.where(has, second.file.rows[np.maximum(partners, 0)], 0), frozenset(added)),
        notices=tuple(notices),
    )


def _texts(cells: pd.Series[str]) -> NDArray[Any]:
    texts: NDArray[Any] = cells.astype(str).str.strip().to_numpy(object)
    return texts
