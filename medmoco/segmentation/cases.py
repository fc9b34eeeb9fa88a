"""The annotated images of a split: their canvases with the class of each pixel or voxel, in memory.

Masks are few, so everything is decoded once, before training. A pack is not used: it does not say which part of a
volume its canvas shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from medmoco.config import DataSettings, RunSettings
from medmoco.data.image_io.images import Canvas, read_as_set, to_canvas
from medmoco.data.image_io.limits import limits_of
from medmoco.data.loading.quarantine import where
from medmoco.data.volume_io.canvases import canvas_and_box
from medmoco.data.volume_io.reading import read_volume
from medmoco.data.volume_io.volume import VolumeCanvas
from medmoco.errors import ImageError
from medmoco.segmentation.grids import Grid, Numbers, onto_canvas
from medmoco.segmentation.masks.mask_rows import MaskedRows, naming_row, read_row
from medmoco.segmentation.masks.masks import IGNORED, Classes, Mask, check_mask

_MOST_PLACES = 10_000  # remembered per class and image, to centre crops on; as many as nnU-Net


@dataclass(frozen=True)
class Case:
    """An annotated image.

    Attributes:
        canvas: Its canvas. That of an image counts as a whole, with its padding.
        numbers: Class numbers on the canvas.
        grid: Where the canvas lies in the image.
        values: The class numbers that occur, 0 and IGNORED included, ascending.
        places: For each class in it, positions of some of its pixels or voxels, (M, 2 or 3).
        mask_sha256: SHA-256 of the class numbers of the image, on its own grid.
    """

    canvas: Canvas | VolumeCanvas
    numbers: Numbers
    grid: Grid
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


def read_cases(rows: MaskedRows, classes: Classes, settings: RunSettings) -> Annotated:
    """Read images and masks.

    Args:
        rows: Rows and their masks.
        classes: Classes in the masks.
        settings: Settings of the run; `data.workers` is the number of threads.

    Raises:
        ImageError: an image or a mask cannot be used; names the row.
    """
    read = _volume_case if settings.data.dimensions == 3 else _image_case
    with ThreadPoolExecutor(max(1, settings.data.workers)) as pool:
        return Annotated(rows, tuple(pool.map(partial(read, rows, classes, settings.data), range(len(rows)))))


def truth_of(annotated: Annotated, position: int, classes: Classes, data: DataSettings) -> Numbers:
    """Return the class numbers of an image on its own grid."""
    shape = annotated.cases[position].grid.shape
    return read_row(annotated.rows, position, classes, data, (shape[0], shape[1])).numbers


def _image_case(rows: MaskedRows, classes: Classes, data: DataSettings, position: int) -> Case:
    with _naming_row(rows, position):
        image = read_as_set(rows.split.files[position], int(rows.split.frames[position]), data)
        shape = image.pixels.shape[0], image.pixels.shape[1]
        canvas = to_canvas(image, data.canvas_size, data.bit_depth)
    mask = read_row(rows, position, classes, data, shape)
    with naming_row(rows, position):
        check_mask(mask, shape)
    side, box = data.canvas_size, (slice(0, shape[0]), slice(0, shape[1]))
    grid = Grid(shape, box, (canvas.height, canvas.width), (1.0, 1.0))
    return _case(replace(canvas, height=side, width=side, rgb=data.channels == "rgb"), mask, grid, (side, side))


def _volume_case(rows: MaskedRows, classes: Classes, data: DataSettings, position: int) -> Case:
    with _naming_row(rows, position):
        volume = read_volume(rows.split.files[position], series=rows.split.series[position], limits=limits_of(data))
        canvas, _, box = canvas_and_box(volume, data)
    mask, shape = read_row(rows, position, classes, data), volume.values.shape
    with naming_row(rows, position):
        check_mask(mask, shape, volume.affine)
    inside = tuple(slice(part.start, min(part.stop, side)) for part, side in zip(box, shape, strict=True))
    return _case(canvas, mask, Grid(shape, inside, canvas.shape, volume.spacing), canvas.shape)


@contextmanager
def _naming_row(rows: MaskedRows, position: int) -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{where(rows.split, position)}: {error}") from None


def _case(canvas: Canvas | VolumeCanvas, mask: Mask, grid: Grid, shape: tuple[int, ...]) -> Case:
    numbers = onto_canvas(mask.numbers, grid, shape)
    values = np.unique(numbers).tolist()
    places = (_some_places(numbers == value) for value in values if value not in (0, IGNORED))
    digest = hashlib.sha256(mask.numbers.tobytes()).hexdigest()
    return Case(canvas, numbers, grid, tuple(values), tuple(places), digest)


def _some_places(chosen: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return positions of up to `_MOST_PLACES` chosen pixels or voxels, evenly spread."""
    places = np.argwhere(chosen).astype(np.int32)
    return places[:: -(-len(places) // _MOST_PLACES)]
