"""Class numbers between the grid of an image and that of its canvas.

Both are resampled as probabilities: each class is an image of its own, interpolated where the grid becomes finer and
averaged where it becomes coarser, and the largest one wins. Taking the nearest voxel instead would shift borders by up
to half a voxel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmoco.data.image_io.images import Canvas
from medmoco.data.volume_io.canvases import resize
from medmoco.segmentation.masks.masks import Numbers

Plane = NDArray[Any]


@dataclass(frozen=True)
class Grid:
    """Where the canvas of an image lies in it.

    Attributes:
        shape: Shape of the image, (H, W) or (X, Y, Z).
        box: The part of the image that the canvas shows.
        size: Shape of that part in the canvas, from its first pixel or voxel; the rest of it is padding.
    """

    shape: tuple[int, ...]
    box: tuple[slice, ...]
    size: tuple[int, ...]


def grid_of_canvas(shape: Sequence[int], canvas: Canvas) -> Grid:
    """Return where the canvas of an image lies in it: it shows all of the image, (H, W) or (H, W, C)."""
    height, width = shape[:2]
    return Grid((height, width), (slice(0, height), slice(0, width)), (canvas.height, canvas.width))


def onto_canvas(numbers: Numbers, grid: Grid, shape: Sequence[int]) -> Numbers:
    """Return the class numbers of an image on its canvas; padding is background.

    Args:
        numbers: Of the image.
        grid: Where the canvas lies.
        shape: Shape of the canvas.
    """
    inside = numbers[grid.box]
    values = np.unique(inside)
    planes = ((value, _resized((inside == value).astype(np.float32), grid.size)) for value in values.tolist())
    found = np.zeros(tuple(shape), np.uint8)
    found[tuple(slice(0, side) for side in grid.size)] = largest(planes, grid.size)
    return found


def onto_image(probabilities: NDArray[np.float32], grid: Grid) -> Numbers:
    """Return the most probable class of each pixel or voxel of an image; outside of the canvas, the background.

    Args:
        probabilities: (1 + C, ...) on the canvas.
        grid: Where the canvas lies.
    """
    part = probabilities[(slice(None), *(slice(0, side) for side in grid.size))]
    full = tuple(side.stop - side.start for side in grid.box)
    numbers = np.zeros(grid.shape, np.uint8)
    numbers[grid.box] = largest(((value, _resized(plane, full)) for value, plane in enumerate(part)), full)
    return numbers


def largest(planes: Any, shape: Sequence[int]) -> Numbers:
    """Return the value of the largest plane at each place; the first of equals.

    Args:
        planes: Yields values and their planes, one at a time, since a volume has many voxels.
        shape: Shape of the planes.
    """
    numbers, best = np.zeros(tuple(shape), np.uint8), np.zeros(tuple(shape), np.float32)
    for value, plane in planes:
        above = plane > best
        numbers[above] = value
        best[above] = plane[above]
    return numbers


def _resized(plane: Plane, shape: Sequence[int]) -> Plane:
    """Return an image or a volume with another number of pixels or voxels; images are volumes of one slice."""
    volume = resize(plane if plane.ndim == 3 else plane[None], shape if plane.ndim == 3 else (1, *shape))
    resized: Plane = volume.reshape(tuple(shape))
    return resized
