"""Read a CSV file or JSON lines as text cells, with the spreadsheet row of every record.

The header is row 1 and the first record row 2. A record whose quoted cells contain line breaks is one row. Spaces
around column names and IDs are stripped here and only here: "P01 " is the patient "P01".
Source: DICOM PS3.5 table 6.2-1: values of VR LO may be padded with spaces, which are not significant.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.data.manifest.columns import PATIENT, STUDY, other_name
from medmoco.data.manifest.row_filter import decimal_comma, did_you_mean
from medmoco.data.manifest.tables.json_lines import is_json_lines, read_json_lines
from medmoco.data.manifest.tables.naming import as_setting, renamed, renamed_if_there
from medmoco.errors import ManifestError
from medmoco.utils.files import IMAGE_SUFFIXES
from medmoco.utils.tables import read_bytes

_OTHER_KINDS = {b"PK\3\4": "an Excel workbook", b"\xd0\xcf\x11\xe0": "an Excel workbook", b"PAR1": "a Parquet file"}
UNNAMED = "Unnamed: "  # pandas' prefix for columns without a name


@dataclass(frozen=True)
class Joined:
    """Where cells of a joined table come from."""

    path: Path
    rows: NDArray[np.int64]  # (N,) int64, the row of each record's partner; 0 if it has none
    columns: frozenset[str]


@dataclass(frozen=True)
class CsvFile:
    """The records of a CSV file."""

    path: Path
    table: pd.DataFrame  # N records, with every column as text
    rows: NDArray[np.int64]  # (N,) int64, the row of each record
    sha256: str  # SHA-256 of the content after decompression, and of that of a joined table
    joined: Joined | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)  # records that data.where leaves out, by Split cell
    notices: tuple[str, ...] = ()

    def select(self, mask: NDArray[np.bool_]) -> CsvFile:
        """Return the records that a mask (N,) selects."""
        joined = self.joined and replace(self.joined, rows=self.joined.rows[mask])
        return replace(self, table=self.table[mask], rows=self.rows[mask], joined=joined)

    def refuse(self, bad: NDArray[np.bool_], what: str, columns: Sequence[str] = ()) -> None:
        """Raise ManifestError for the first bad row, if there is one.

        Args:
            bad: (N,), mask of the bad rows.
            what: End of the message, with the remedy.
            columns: Columns with the bad cells; if one has a decimal comma, the message says so.
        """
        if bad.any():
            first = int(bad.argmax())
            more = f" (and {bad.sum() - 1} more rows)" if bad.sum() > 1 else ""
            hints = [decimal_comma(str(self.table[column].iloc[first])) for column in columns]
            is_joined = self.joined and self.joined.columns.issuperset(columns) and columns and self.joined.rows[first]
            source = self.joined if self.joined and is_joined else self
            raise ManifestError(f"{source.path}: row {source.rows[first]}{more}: {what}{max(hints, default='')}")

    def refuse_other_name(self, column: str, how: str, labels: Collection[str] = ()) -> None:
        """Raise ManifestError if an optional reserved column is missing and another one seems to be meant.

        `how` states what its cells must contain, such as "with frames counted from 1".
        """
        if column not in self.table and (other := other_name(column, self.table.columns, labels)):
            raise ManifestError(
                f"{self.path}: no column {column!r}; did you mean {other!r}? Then set"
                f" {as_setting(column, self.table.columns, labels)}, {how};\n"
                "if it means something else, give it a name that says so"
            )

    def require(self, column: str, remedy: str) -> None:
        """Raise ManifestError if a column is missing; `remedy` ends the message."""
        if column in self.table.columns:
            return
        columns = [name for name in self.table.columns if not name.startswith(UNNAMED)]
        shown = ", ".join(repr(name) for name in columns[:12]) + (", ..." if len(columns) > 12 else "")
        if close := did_you_mean(column, columns):
            rename = f" Then set {as_setting(column, columns)}" if other_name(column, columns) else ""
            remedy = f"{close}{rename} ({remedy})"
        else:
            remedy = f"; {remedy}"
        raise ManifestError(f"{self.path}: no column {column!r}{remedy}\nthe columns are: {shown}")


def read_csv(
    path: Path,
    repetitive: Iterable[str] = (),
    columns: Mapping[str, str] | None = None,
    key: str = "data.columns",
    *,
    if_there: bool = False,
) -> CsvFile:
    """Read a CSV as text cells, and refuse rows that other readers would pad, truncate or guess.

    Args:
        path: CSV, or JSON lines (.jsonl), which may be compressed.
        repetitive: Columns with few distinct values, whose cells are stored in one byte instead of eight.
        columns: Columns under another name: our name -> name in the file.
        key: Setting with these names, for messages.
        if_there: Whether `columns` applies only to columns that are there; the file may have our names instead.

    Raises:
        ManifestError: the file cannot be opened, is not UTF-8 text, has a row whose width differs from the header, or
            lacks one of `columns`.
    """
    raw = read_bytes(path)
    _check_text(path, raw)
    table, rows = read_json_lines(path, raw) if is_json_lines(path) else _read_cells(path, raw, columns or {})
    columns = columns or {}
    table = renamed_if_there(path, table, columns) if if_there else renamed(path, table, columns, key)
    for name in table.columns.intersection([PATIENT, STUDY]):
        table[name] = table[name].str.strip()
    for name in table.columns.intersection(list(repetitive)):
        table[name] = table[name].astype("category")  # not by pd.read_csv, which would convert such text to numbers
    return CsvFile(path, table, rows, hashlib.sha256(raw).hexdigest())


def _read_cells(path: Path, raw: bytes, columns: Mapping[str, str]) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Return the N records in the content of a CSV, and the row of each."""
    start = raw[:1_000_000].decode("utf-8-sig", errors="ignore")
    header, separator = _header(path, start, {"Path", columns.get("Path", "Path")})
    widths = _record_widths(path, raw, separator)
    odd = (widths != len(header)) & (widths != 0)  # 0 is an empty line
    if odd.any():
        row = int(odd.argmax())
        comma = separator == "," and widths[row] > len(header)
        raise ManifestError(
            f"{path}: row {row + 1} has {widths[row]} cells, but the header has {len(header)};\n"
            f"add or remove a '{separator}', or put cells that contain it in double quotes".replace("\t", "\\t")
            + ("; a number with a decimal comma (0,5) counts as two cells: write 0.5" if comma else "")
        )
    table = pd.read_csv(
        io.BytesIO(raw), encoding="utf-8-sig", sep=separator, dtype=str, keep_default_na=False,
        skip_blank_lines=False, index_col=False,
    )  # fmt: skip
    filled = widths[1:] > 0
    rows = np.arange(2, len(widths) + 1, dtype=np.int64)
    table = table.rename(columns=_bare)
    return (table, rows) if filled.all() else (table[filled], rows[filled])


def _check_text(path: Path, raw: bytes) -> None:
    if not raw.strip():
        raise ManifestError(f"{path}: the file is empty; its first row must name the columns, Path among them")
    if kind := next((kind for start, kind in _OTHER_KINDS.items() if raw.startswith(start)), None):
        raise ManifestError(f"{path}: this is {kind}; save it as 'CSV UTF-8'")
    try:
        raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = 1 + raw.count(b"\n", 0, error.start)
        raise ManifestError(f"{path}: line {row} is not UTF-8 text; save the file as 'CSV UTF-8'") from None
    if b"\0" in raw:
        line = 1 + raw.count(b"\n", 0, raw.index(b"\0"))
        raise ManifestError(
            f"{path}: line {line} contains a NUL byte; the file is damaged or not a CSV, export it again"
        )


def _bare(name: str) -> str:
    """Return a column's name without surrounding spaces and without a second byte-order mark."""
    return name.strip("\ufeff").strip()


def _header(path: Path, start: str, path_columns: set[str]) -> tuple[list[str], str]:
    """Return the column names and the separator, chosen to yield a column of Paths or else the most columns."""
    if start[:4].lower() == "sep=":
        raise ManifestError(
            f"{path}: row 1 is an instruction for Excel, {start[:5]!r}; delete it, row 1 must name the columns"
        )
    headers = {}
    for separator in (",", ";", "\t"):
        try:
            cells = next(csv.reader(io.StringIO(start, newline=""), delimiter=separator, strict=True))
        except csv.Error:
            continue
        headers[separator] = list(map(_bare, cells))
    if not headers:
        raise ManifestError(f"{path}: row 1 has an unclosed quote; it must name the columns")
    separator, header = max(headers.items(), key=lambda item: (not path_columns.isdisjoint(item[1]), len(item[1])))
    if not header:
        raise ManifestError(f"{path}: row 1 is an empty line; it must name the columns, Path among them")
    if any(name.lower().endswith(IMAGE_SUFFIXES) for name in header):
        raise ManifestError(f"{path}: row 1 names a file; it must name the columns, Path among them: add a header")
    named = [name for name in header if name]
    if twice := sorted({name for name in named if named.count(name) > 1}):
        raise ManifestError(f"{path}: row 1 names the column {twice[0]!r} twice; rename one")
    return header, separator


def _record_widths(path: Path, raw: bytes, separator: str) -> NDArray[np.int32]:
    """Return the number of cells of every record: pandas pads short rows and may truncate long ones silently."""
    # Decoded in pieces, here and by pandas: the whole text would take up to four bytes per character.
    lines = io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8-sig", newline="")
    reader = csv.reader(lines, delimiter=separator, strict=True)
    widths: list[int] = []
    try:
        widths.extend(map(len, reader))
    except csv.Error as error:
        raise ManifestError(
            f"{path}: row {len(widths) + 1} cannot be read: {error};\n"
            'a double quote is not closed, or not doubled ("") inside a quoted cell'
        ) from None
    return np.array(widths, np.int32)
