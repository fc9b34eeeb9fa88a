"""Tables as the settings describe them: under our names, with joined columns, without the rows that are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from medmoco.config import DataSettings
from medmoco.data.manifest.csv_file import CsvFile, read_csv
from medmoco.data.manifest.row_filter import matching_rows
from medmoco.data.manifest.tables.joining import join
from medmoco.data.manifest.tables.label_cells import label_columns
from medmoco.data.manifest.tables.paths import with_slashes


def described(paths: Sequence[Path], data: DataSettings, *, if_there: bool = False) -> list[CsvFile]:
    """Read tables of a manifest; `if_there`: `data.columns` applies only to columns that a table has.

    Raises:
        ManifestError: a file, a column or a joined table cannot be used; names the file and the row.
        SettingsError: `data.where` cannot be parsed, or names a missing column.
    """
    repetitive = label_columns(data.labels)
    files = [with_slashes(read_csv(path, repetitive, data.columns, if_there=if_there)) for path in paths]
    if data.join:
        files = join(files, data.join, repetitive)
    return [_kept(file, data.where) for file in files] if data.where else files


def _kept(file: CsvFile, where: str) -> CsvFile:
    """Return the records that meet a condition, with the number of the others."""
    mask = matching_rows(file.table, file.rows, where, "data.where")
    return replace(file.select(mask), left_out=Counter(split_cells(file.table[~mask])))


def split_cells(table: pd.DataFrame) -> pd.Series[str]:
    """Return the Split of each record in lower case, blank without such a column."""
    if "Split" not in table:
        return pd.Series("", table.index, dtype=str)
    return table["Split"].astype(str).str.strip().str.lower()
