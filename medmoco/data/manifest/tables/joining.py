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

_KEY = "\x1f"  # joins the cells of a key; no cell contains it


@dataclass(frozen=True)
class _Second:
    """The second table."""

    file: CsvFile
    on: tuple[str, ...]
    keys: pd.Index[str]  # (M,) unique
    rows: NDArray[np.int64]  # (M,) positions of the keys in the table


def join(files: Sequence[CsvFile], settings: JoinSettings, repetitive: Collection[str] = ()) -> list[CsvFile]:
    """Return tables with the columns of the second table; cells of rows without a partner are blank.

    Args:
        files: Tables of the manifest.
        settings: The second table.
        repetitive: See `read_csv`.

    Raises:
        ManifestError: a column is missing or in both tables with different cells, a key of the second table appears
            twice, or no row has a partner.
    """
    second = _read(settings, repetitive)
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
    joined = [_joined(file, second, own) for file, own in zip(files, partners, strict=True)]
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


def _joined(file: CsvFile, second: _Second, partners: NDArray[np.int64]) -> CsvFile:
    has = partners >= 0
    added: dict[str, Any] = {}
    for column in second.file.table.columns.difference(list(second.on), sort=False):
        if column.startswith(UNNAMED):
            continue
        cells = second.file.table[column].take(np.maximum(partners, 0)).set_axis(file.table.index)
        if column in file.table:
            _refuse_difference(file, second, column, cells, has)
            continue
        if isinstance(cells.dtype, pd.CategoricalDtype):
            cells = cells.cat.add_categories([""]) if "" not in cells.cat.categories else cells
        added[column] = cells.where(has, "")
    notices = file.notices
    if not has.all():
        notice = f"{(~has).sum():,} of {len(has):,} rows of {file.path.name} have no partner in {second.file.path.name}"
        notices = (*notices, f"{notice}; its columns are blank for them")
    return replace(
        file,
        table=pd.concat([file.table, pd.DataFrame(added, index=file.table.index)], axis=1),
        sha256=hashlib.sha256(f"{file.sha256} {second.file.sha256}".encode()).hexdigest(),
        joined=Joined(second.file.path, np.where(has, second.file.rows[np.maximum(partners, 0)], 0), frozenset(added)),
        notices=notices,
    )


def _refuse_difference(
    file: CsvFile, second: _Second, column: str, cells: pd.Series[str], has: NDArray[np.bool_]
) -> None:
    """Refuse a column that both tables have, unless its cells agree, so that it does not matter which is used."""
    own, theirs = (each.astype(str).str.strip().to_numpy(object) for each in (file.table[column], cells))
    file.refuse(
        has & (own != theirs),
        f"the column {column!r} is also in {second.file.path.name}, with another cell;\n"
        f"read that one under another name with data.join.columns={{{column} 2: {column}}}, or add it to data.join.on",
    )
