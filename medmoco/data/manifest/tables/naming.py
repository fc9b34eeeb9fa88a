"""Columns under other names: `data.columns` says how the file calls the columns of a manifest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import pandas as pd

from medmoco.config import RESERVED_COLUMNS
from medmoco.data.manifest.columns import other_name
from medmoco.data.manifest.row_filter import did_you_mean
from medmoco.errors import ManifestError

_FIELD = re.compile(r"\{([^{}]+)\}")


def renamed(path: Path, table: pd.DataFrame, columns: Mapping[str, str], key: str = "data.columns") -> pd.DataFrame:
    """Return a table of text cells with its columns under our names.

    Args:
        path: File of the table, for messages.
        table: N records.
        columns: Our name -> name in the file, or a text with such names in braces, which is filled in for each row.
        key: Setting with these names, for messages.

    Raises:
        ManifestError: the file lacks a column, or a name would be given to two columns.
    """
    columns = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
    if not columns:
        return table
    plain = {ours: theirs for ours, theirs in columns.items() if theirs in table or not _FIELD.search(theirs)}
    composed = {ours: theirs for ours, theirs in columns.items() if ours not in plain}
    for ours, theirs in columns.items():
        for name in [theirs] if ours in plain else _FIELD.findall(theirs):
            if name not in table:
                raise ManifestError(_no_column(path, table, name, f"{key}.{ours}"))
        if ours in table and ours not in plain.values() and not (table[ours].str.strip() == "").all():
            raise ManifestError(
                f"{path}: there is a column {ours!r} already, so {key}.{ours} cannot name another;\n"
                f"drop {key}.{ours}, or rename that column of the file"
            )
    if twice := [theirs for theirs, count in Counter(plain.values()).items() if count > 1]:
        raise ManifestError(f"{path}: {key} names the column {twice[0]!r} twice; keep one")
    cells = {ours: _composed(table, template) for ours, template in composed.items()}
    blank = [ours for ours in columns if ours in table and ours not in plain.values()]
    return table.drop(columns=blank).rename(columns={theirs: ours for ours, theirs in plain.items()}).assign(**cells)


def renamed_if_there(path: Path, table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """Return a table whose columns may have our names or those of the manifest's file, under our names."""
    there = {
        ours: theirs
        for ours, theirs in columns.items()
        if ours not in table and (theirs in table or set(_FIELD.findall(theirs) or [theirs]) <= set(table.columns))
    }
    return renamed(path, table, there)


def as_setting(column: str, names: Collection[str], labels: Collection[str] = ()) -> str:
    """Return the setting, to paste into a command line, that reads columns under the reserved names they seem to mean.

    Args:
        column: Reserved column that is needed; others that a table lacks are added.
        names: Columns of the table.
        labels: Columns that are labels, whatever their names.
    """
    lacking = [column, *(name for name in RESERVED_COLUMNS if name != column and name not in names)]
    found = {ours: other_name(ours, [name for name in names if name != ours], labels) for ours in lacking}
    pairs = ", ".join(f'{ours}: "{theirs}"' for ours, theirs in found.items() if theirs)
    return f"'data.columns={{{pairs}}}'"


def _composed(table: pd.DataFrame, template: str) -> pd.Series[str]:
    """Return the text that a template such as "{Folder}/{File}.png" makes of each row."""
    cells = pd.Series("", table.index, dtype=str)
    for position, part in enumerate(_FIELD.split(template)):  # text and names alternate
        cells = cells + (table[part].astype(str).str.strip() if position % 2 else part)
    return cells


def _no_column(path: Path, table: pd.DataFrame, name: str, key: str) -> str:
    names = [str(column) for column in table.columns]
    shown = ", ".join(map(repr, names[:12])) + (", ..." if len(names) > 12 else "")
    return f"{path}: no column {name!r}, which {key} names{did_you_mean(name, names)}\nthe columns are: {shown}"
