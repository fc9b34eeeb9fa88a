"""The folder that holds a downloaded data set: scanned once, its tables and images found at any depth."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from medmoco.data.manifest.manifest import read_table
from medmoco.data.manifest.row_filter import decimal_comma, did_you_mean
from medmoco.datasets.headers import read_headers
from medmoco.errors import ManifestError
from medmoco.utils.files import IMAGE_SUFFIXES
from medmoco.utils.tables import PACKED, read_bytes


@dataclass(frozen=True)
class Source:
    """A downloaded data set and the place for its manifest."""

    folder: Path  # folder of the data set, or its file if it is a single file
    out: Path  # folder for the manifest
    workers: int = 1  # number of processes that read DICOM headers
    volumes: bool = False  # whether a row is a volume, such as a CT series, instead of an image

    @cached_property
    def files(self) -> list[str]:
        """Every file, sorted, as a path relative to the folder, without hidden files and __MACOSX folders."""
        found: list[str] = []
        if not self.folder.is_dir():
            raise ManifestError(f"{self.folder} is not a folder; give the folder that holds the data set")
        try:
            _scan(self.folder, "", frozenset(), found)
        except OSError as error:
            raise ManifestError(f"{self.folder}: a folder inside cannot be read: {error.strerror}") from None
        return sorted(found)

    @cached_property
    def images(self) -> list[str]:
        """The files with the suffix of an image file."""
        return [file for file in self.files if file.lower().endswith(IMAGE_SUFFIXES)]

    def find(self, *names: str) -> Path:
        """Return the file with one of these names, also as .gz or .zip; an earlier name wins, then a higher folder.

        Raises:
            ManifestError: there is no such file, or several at the same depth.
        """
        if file := self.find_if_there(*names):
            return file
        raise ManifestError(
            f"{self.folder}: no {' or '.join(names)} in this folder or below it, nor as .gz or .zip;\n"
            "download the table from the page of the data set"
        )

    def find_if_there(self, *names: str) -> Path | None:
        """Return the same as `find`, or None if there is no such file."""
        for name in names:
            accepted = {name, *(name + suffix for suffix in PACKED)}
            found = sorted((file.count("/"), file) for file in self.files if file.rpartition("/")[2] in accepted)
            if len(found) > 1 and found[0][0] == found[1][0]:
                raise ManifestError(f"{self.folder}: several files are named {name}; keep one of them")
            if found:
                return self.folder / found[0][1]
        return None

    def table(self, *names: str, columns: Sequence[str] = ()) -> pd.DataFrame:
        """Read the table with one of these names as text; see `find`.

        Raises:
            ManifestError: the table lacks one of `columns`.
        """
        file = self.find(*names)
        table = read_table(file)[0]
        check_columns(table, columns, file)
        return table

    def table_if_there(self, *names: str, columns: Sequence[str] = ()) -> pd.DataFrame | None:
        """Read the table with one of these names, or return None if there is no such file."""
        return self.table(*names, columns=columns) if self.find_if_there(*names) else None

    def lines(self, *names: str) -> list[str]:
        """Read a text file of one entry per line; see `find`."""
        return read_bytes(self.find(*names)).decode("utf-8-sig", errors="replace").split()

    def headers(self, paths: Sequence[str], more: Mapping[str, str] = MappingProxyType({})) -> pd.DataFrame:
        """Read the DICOM headers of files in the folder; see `medmoco.datasets.headers.read_headers`."""
        return read_headers(self.folder, paths, self.workers, more)

    def locate(self, paths: pd.Series[str]) -> pd.Series[str]:
        """Find images at any depth and with any image suffix, by the end of their path or by their name alone.

        Args:
            paths: (N,) in the official layout.

        Returns:
            (N,) relative to the folder; blank if there is no such image, or if several could be meant.
        """
        return locate(paths, self.images)


def locate(paths: pd.Series[str], files: Sequence[str]) -> pd.Series[str]:
    """Find paths (N,) among files at any depth and with any suffix; see `Source.locate`."""
    found = paths.where(paths.isin(files), "")
    depths = paths.str.count("/") + 1
    for depth in range(int(depths.max()) if len(depths) else 0, 0, -1):
        missing = (found == "") & (depths >= depth)
        if not missing.any():
            continue
        ends = pd.Series(files, [_end(file, depth) for file in files], dtype=str)
        ends = ends[~ends.index.duplicated(keep=False)]
        sought = paths.map(lambda path, depth=depth: _end(path, depth))
        missing &= ~sought.duplicated(keep=False)
        found[missing] = ends.reindex(sought[missing]).fillna("").to_numpy()
    return found


def check_columns(table: pd.DataFrame, columns: Sequence[str], file: Path) -> None:
    """Raise ManifestError if a table lacks a column."""
    for column in columns:
        if column not in table:
            close = did_you_mean(column, list(table.columns))
            raise ManifestError(f"{file}: no column {column!r}{close}; this is not the published table")


def numbers(column: pd.Series[str]) -> pd.Series[float]:
    """Return a column as numbers, blank cells as nan.

    Raises:
        ManifestError: a cell is neither a number nor blank.
    """
    texts = column.astype(str).str.strip()
    values = pd.to_numeric(texts, errors="coerce").astype(float)
    odd = values.isna() & (texts != "")
    if odd.any():
        remedy = decimal_comma(texts[odd].iloc[0]) or "; download it again"
        raise ManifestError(f"the column {column.name!r} of a table has {odd.sum()} cells that are not numbers{remedy}")
    return values


def _end(path: str, depth: int) -> str:
    """Return the last `depth` parts of a path, without the suffix."""
    return os.path.splitext("/".join(path.split("/")[-depth:]))[0]


def _scan(folder: Path, prefix: str, above: frozenset[tuple[int, int]], found: list[str]) -> None:
    """Add the files below a folder. Links to folders are followed, unless they lead back to a folder above."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                _scan(folder / entry.name, f"{prefix}{entry.name}/", above | {here}, found)
            elif entry.is_file():
                found.append(prefix + entry.name)
