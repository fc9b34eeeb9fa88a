"""The annotated images of a split: their canvases with the class of each pixel or voxel, in memory.

Masks are few, so everything is decoded once, before training. A pack is not used: it does not say which part of a
volume its canvas shows.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medmoco.config import DataSettings
from medmoco.data.image_io.images import Canvas, read_as_set, to_canvas
from medmoco.data.image_io.limits import limits_of
from medmoco.data.loading.quarantine import where
from medmoco.data.volume_io.canvases import canvas_and_box
from medmoco.data.volume_io.reading import read_volume
from medmoco.data.volume_io.volume import VolumeCanvas
from medmoco.errors import ImageError
from medmoco.segmentation.annotated.grids import Grid, grid_of_canvas, onto_canvas
from medmoco.segmentation.masks.image_grid import ImageGrid, grid_of_image, grid_of_volume
from medmoco.segmentation.masks.mask_rows import MaskedRows, naming_row, read_row
from medmoco.segmentation.masks.masks import IGNORED, Classes, Numbers, check_mask

_MOST_PLACES = 10_000  # remembered per class and image, to centre crops on; as many as nnU-Net


@dataclass(frozen=True)
class Placed:
    """An image as the network sees it.

    Attributes:
        canvas: Its canvas. That of an image counts as a whole, with its padding.
        grid: Where the canvas lies in the image.
        image: Where the image lies.
    """

    canvas: Canvas | VolumeCanvas
    grid: Grid
    image: ImageGrid


@dataclass(frozen=True)
class Case:
    """An annotated image.

    Attributes:
        canvas: See `Placed`.
        numbers: Class numbers on the canvas.
        grid: Where the canvas lies in the image.
        image: Where the image lies.
        values: The class numbers that occur, 0 and IGNORED included, ascending.
        places: For each class in it, positions of some of its pixels or voxels, (M, 2 or 3).
        mask_sha256: SHA-256 of the class numbers of the image, on its own grid.
    """

    canvas: Canvas | VolumeCanvas
    numbers: Numbers
    grid: Grid
    image: ImageGrid
    values: tuple[int, ...]
    places: tuple[NDArray[np.int32], ...]
    mask_sha256: str


@dataclass(frozen=True)
class Annotated:
    """The annotated images of a split.

    Attributes:
        rows: N rows and their masks.
        cases: N cases.
    """

    rows: MaskedRows
    cases: tuple[Case, ...]

    def __len__(self) -> int:
        return len(self.cases)


def read_cases(rows: MaskedRows, classes: Classes, data: DataSettings) -> Annotated:
    """Read images and masks.

    Args:
        rows: Rows and their masks.
        classes: Classes in the masks.
        data: Data settings; `workers` is the number of threads.

    Raises:
        ImageError: an image or a mask cannot be used; names the row.
    """
    with ThreadPoolExecutor(max(1, data.workers)) as pool:
        return Annotated(rows, tuple(pool.map(partial(_read_case, rows, classes, data), range(len(rows)))))


def truth_of(annotated: Annotated, position: int, classes: Classes, data: DataSettings) -> Numbers:
    """Return the class numbers of an image on its own grid."""
    return read_row(annotated.rows, position, classes, data, annotated.cases[position].image).numbers


def place_image(file: str | Path, data: DataSettings, *, frame: int = 1, series: str = "") -> Placed:
    """Read an image or a volume, and say where its canvas lies in it.

    Args:
        file: A file, or the folder of a DICOM series.
        data: Data settings.
        frame: Frame of a DICOM file or page of a TIFF file, from 1.
        series: SeriesInstanceUID of a volume, if its folder has several series.

    Raises:
        ImageError: it cannot be used.
    """
    if data.dimensions == 3:
        volume = read_volume(file, series=series, limits=limits_of(data))
        canvas, _, box = canvas_and_box(volume, data)
        return Placed(canvas, Grid(volume.values.shape, box, canvas.shape), grid_of_volume(volume))
    image = read_as_set(file, frame, data)
    scaled, side = to_canvas(image, data.canvas_size, data.bit_depth), data.canvas_size
    height, width = image.pixels.shape[:2]
    whole = replace(scaled, height=side, width=side, rgb=data.channels == "rgb")
    place = grid_of_image(Path(file), frame, (height, width), limits_of(data))
    return Placed(whole, grid_of_canvas(image.pixels.shape, scaled), place)


def _read_case(rows: MaskedRows, classes: Classes, data: DataSettings, position: int) -> Case:
    split = rows.split
    try:
        placed = place_image(
            split.files[position], data, frame=int(split.frames[position]), series=split.series[position]
        )  # fmt: skip
    except ImageError as error:
        raise ImageError(f"{where(split, position)}: {error}") from None
    grid, image = placed.grid, placed.image
    mask = read_row(rows, position, classes, data, image)
    with naming_row(rows, position):
        check_mask(mask, image.shape, image.affine)
    numbers = onto_canvas(mask.numbers, grid, placed.canvas.pixels.shape[: len(grid.shape)])
    values = np.unique(numbers).tolist()
    places = (_some_places(numbers == value) for value in values if value not in (0, IGNORED))
    digest = hashlib.sha256(mask.numbers.tobytes()).hexdigest()
    return Case(placed.canvas, numbers, grid, image, tuple(values), tuple(places), digest)


def _some_places(chosen: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return positions of up to `_MOST_PLACES` chosen pixels or voxels, evenly spread."""
    places = np.argwhere(chosen).astype(np.int32)
    return places[:: -(-len(places) // _MOST_PLACES)]
