"""The annotated rows of a manifest: its column Mask names the mask of each image.

A mask is a file below `data.root`, or run lengths. A row whose Mask is blank has not been annotated, and is not used;
an image that was annotated and shows no class has a mask of zeros, or "-1" as its run lengths.

Messages name the row, never a path or the text of a cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from medmoco.config import DataSettings
from medmoco.data.manifest.file_checks import check_files
from medmoco.data.manifest.manifest import Split, require_column
from medmoco.data.manifest.tables.paths import path_fault, relative, slashed
from medmoco.errors import ImageError, ManifestError, SettingsError
from medmoco.segmentation.masks.image_grid import ImageGrid
from medmoco.segmentation.masks.masks import MOST_CLASSES, VALUES, Classes, Mask, distinct_values, read_mask
from medmoco.segmentation.masks.run_lengths import Runs, looks_like_runs


@dataclass(frozen=True)
class MaskedRows:
    """The annotated rows of a split.

    Attributes:
        split: M rows.
        sources: M files, or run lengths.
        column: Column of the manifest with the masks.
        runs: How run lengths count; None if the masks are files.
    """

    split: Split
    sources: tuple[str, ...]
    column: str = "Mask"
    runs: Runs | None = None

    def __len__(self) -> int:
        return len(self.sources)


def masked_rows(split: Split, data: DataSettings, *, column: str = "Mask", runs: Runs | None = None) -> MaskedRows:
    """Return the rows of a split that have a mask; rows whose cell is blank are left out.

    Args:
        split: N rows; the caller tells the user how many of them are left out.
        data: Data settings with the root, and whether symbolic links may leave it.
        column: Column of the manifest with the masks.
        runs: How the run lengths in its cells count; None if the cells are paths.

    Raises:
        ManifestError: the column is missing, no row has a mask, or a file is missing or lies outside the root.
        SettingsError: run lengths are requested for volumes.
    """
    if runs and data.dimensions == 3:
        raise SettingsError("segmentation.runs: run lengths are of 2-D images; give files as the masks of volumes")
    require_column(split, column, "segmentation needs: a mask for each annotated row, and blank cells for the others")
    cells = [cell.strip() for cell in split.table[column].astype(str)]
    annotated = np.array([cell != "" for cell in cells], dtype=bool)
    if not annotated.any():
        raise ManifestError(f"{split.csv.name}: column {column} is blank in all {len(split)} {split.name} rows")
    rows, sources = split.select(annotated), [cell for cell in cells if cell]
    if runs is None:
        sources = _files(rows, sources, data, column)
    return MaskedRows(rows, tuple(sources), column, runs)


def _files(rows: Split, cells: list[str], data: DataSettings, column: str) -> list[str]:
    """Return the files of masks, after checking that they exist below the root."""
    paths = relative(slashed(cells), data.root, rows.name)
    faults = np.array([path_fault(path).replace("Path", column) for path in paths], dtype=object)
    if (bad := faults != "").any():
        row = int(bad.argmax())
        more = f" (and {bad.sum() - 1} more rows)" if bad.sum() > 1 else ""
        raise ManifestError(f"{rows.csv.name}: row {rows.rows[row]}{more}: {faults[row]}")
    root = data.root.replace("{split}", rows.name)
    files = np.array([f"{root}/{path}" for path in paths], dtype=rows.files.dtype)
    try:
        check_files(replace(rows, files=files), data, column=column)
    except ManifestError:
        if not any(map(looks_like_runs, cells)):
            raise
        raise ManifestError(
            f"{rows.csv.name}: column {column} has run lengths, not files;\n"
            "set segmentation.runs=absolute or relative (are starts counted from the image's start, or from the end of"
            " the previous run?)"
        ) from None
    return [str(file) for file in files]


def read_row(
    rows: MaskedRows, position: int, classes: Classes, data: DataSettings, grid: ImageGrid | None = None
) -> Mask:
    """Read the mask of a row; arguments are those of `read_mask`.

    Raises:
        ImageError: see `read_mask`; names the row.
    """
    with naming_row(rows, position):
        return read_mask(rows.sources[position], classes, data=data, grid=grid, runs=rows.runs)


@contextmanager
def naming_row(rows: MaskedRows, position: int) -> Iterator[None]:
    """Add the row and the column to the message of an `ImageError` about a mask that is raised in the block."""
    try:
        yield
    except ImageError as error:
        place = f"{rows.split.csv.name} row {rows.split.rows[position]}, column {rows.column}"
        raise ImageError(f"{place}: {error}") from None


def class_values(rows: MaskedRows, data: DataSettings, ignore: int | None = None) -> tuple[int, ...]:
    """Return the distinct values in the masks of some rows, without 0 and `ignore`, ascending.

    Each of them is a class if the user names none.

    Raises:
        ImageError: a mask cannot be read, or there are too many values for classes; names the row.
        ManifestError: all masks are blank.
    """
    if rows.runs:
        return (1,)
    found: set[int] = set()
    for position, source in enumerate(rows.sources):
        with naming_row(rows, position):
            image = str(rows.split.files[position]), int(rows.split.frames[position])
            found |= distinct_values(source, data, image) - {0, ignore}
            _refuse_no_classes(found)
    if not found:
        raise ManifestError(
            f"{rows.split.csv.name}: the masks of all {len(rows)} {rows.split.name} rows are blank;"
            f" check the column {rows.column}"
        )
    return tuple(sorted(found))


def _refuse_no_classes(values: set[int]) -> None:
    low, high = VALUES
    if len(values) > MOST_CLASSES or not all(low <= value <= high for value in values):
        raise ImageError(
            "with this one, the masks have too many or too large values for classes, so it may be an image;\n"
            f"correct the cell, or name up to {MOST_CLASSES} classes in segmentation.classes"
        )
