from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from medmoco.data.augment.views import unchanged
from medmoco.data.augment.warps import Pyramid, geometry_of, warp
from medmoco.data.image_io.images import Canvas

SIDE = 24


def looked_at(pixels: np.ndarray, size: int, **changes: float) -> np.ndarray:
    canvas = Canvas(pixels, *pixels.shape)
    drawn = replace(unchanged([canvas]), **{name: np.array([value]) for name, value in changes.items()})
    out = np.empty((size, size), pixels.dtype)
    warp(Pyramid(pixels), geometry_of(drawn, [canvas], size), 0, out)
    return out


def bilinear(pixels: np.ndarray, x: float, y: float) -> float:
    """Sample at (x, y), pixel centres at whole numbers; what lies beyond the edge is mirrored at the edge's centre."""

    def at(row: int, column: int) -> float:
        row, column = (abs(place) if place < SIDE else 2 * (SIDE - 1) - place for place in (row, column))
        return float(pixels[row, column])

    left, top = int(np.floor(x)), int(np.floor(y))
    right, down = x - left, y - top
    upper = (1 - right) * at(top, left) + right * at(top, left + 1)
    lower = (1 - right) * at(top + 1, left) + right * at(top + 1, left + 1)
    return (1 - down) * upper + down * lower


@pytest.mark.parametrize(("angle", "mirrored"), [(0.0, False), (0.3, False), (-0.2, True)])
def test_warp__samples_where_the_geometry_says(angle: float, mirrored: bool) -> None:
    """By plain loops: the middle of the view looks at the middle of the crop, mirrored before it is turned."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    size, width = 16, 16.0
    made = looked_at(
        pixels, size, centre_x=12.0, centre_y=11.0, width=width, height=width, angle=angle, mirrored=mirrored
    )
    for row in range(size):
        for column in range(size):
            across, along = (column - (size - 1) / 2) * (-1 if mirrored else 1), row - (size - 1) / 2
            x = 11.5 + np.cos(angle) * across - np.sin(angle) * along
            y = 10.5 + np.sin(angle) * across + np.cos(angle) * along
            assert made[row, column] == pytest.approx(bilinear(pixels, x, y), abs=4)  # OpenCV's steps of 1/32 pixel


def test_warp__a_large_reduction_is_of_exact_halvings_first() -> None:
    """A checkerboard becomes even gray, where plain bilinear sampling would show an alias of it."""
    board = (np.indices((SIDE, SIDE)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(looked_at(board, 6).astype(int) - 128).max() <= 1
    assert geometry_of(unchanged([Canvas(board, SIDE, SIDE)]), [Canvas(board, SIDE, SIDE)], 6).levels == [2]
