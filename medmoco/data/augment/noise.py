"""Gaussian noise for views, taken from windows of one fixed tile."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.utils.rng import VIEW, uniform

Pixels = NDArray[Any]

_TILE, _TILE_STD = 1024, 32.0  # side and standard deviation of the tile
_APART = 251  # pixels between the windows of two channels, on both axes


def noise_windows(size: int) -> int:
    """Return the number of positions of a window on each axis."""
    return max(_TILE - size, 0) + 1


@lru_cache(maxsize=1)
def noise_tile() -> Pixels:
    """Return fixed Gaussian noise around 128; a window at a random position costs a tenth of drawing each pixel."""
    u = uniform(VIEW, 0, np.arange(_TILE * _TILE)), uniform(VIEW, 1, np.arange(_TILE * _TILE))
    normal = np.sqrt(-2 * np.log1p(-u[0])) * np.cos(2 * np.pi * u[1])  # Box and Muller 1958
    tile: Pixels = np.clip(np.rint(128 + _TILE_STD * normal), 0, 255).astype(np.uint8).reshape(_TILE, _TILE)
    return tile


def add_noise(pixels: Pixels, share: float, at: NDArray[np.int64], channel: int) -> None:
    """Add noise in place.

    Args:
        pixels: (S, S) uint8 or uint16.
        share: Standard deviation as a fraction of white.
        at: (2,) x and y of the window of channel 0.
        channel: Number of the channel; each uses another window, so that the noise differs.
    """
    size = pixels.shape[0]
    x, y = (at + _APART * channel) % noise_windows(size) if channel else at
    if size <= _TILE:
        window = noise_tile()[y : y + size, x : x + size]
    else:  # the tile is repeated
        window = noise_tile().take(range(size), 0, mode="wrap").take(range(size), 1, mode="wrap")
    scale = share * float(np.iinfo(pixels.dtype).max) / _TILE_STD
    window = window.astype(pixels.dtype, copy=False)
    cv2.addWeighted(pixels, 1.0, window, scale, -128.0 * scale, dst=pixels)
