"""The margins of an image, in which there is little anatomy: their levels, and small bright structures in them.

Collimator edges, padding, markers and burned-in text differ between sources, so a label that margins predict may be
predicted by source. The docs of `medmoco check` have measurements.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.data.image_io.intensity import GrayImage

Margins = NDArray[np.uint8]

_SIDE = 256  # pixels to which every image is resized
_STROKE = 9  # width of the widest structure that counts as small, in these pixels
_CONTRAST = 64  # of 255 levels by which a small structure is brighter than its surroundings


def _ring(cells: int) -> NDArray[np.bool_]:
    """Return the mask of the outermost cells of a square of cells x cells."""
    ring = np.ones((cells, cells), bool)
    ring[1:-1, 1:-1] = False
    return ring


_BORDER, _MARKS = _ring(16), _ring(8)
N_BORDER, N_MARKS = int(_BORDER.sum()), int(_MARKS.sum())


def margins(image: GrayImage) -> Margins:
    """Return the levels of the 60 outermost of 16 x 16 cells, and the markings in the 28 outermost of 8 x 8.

    Markings are the share of pixels that are much brighter than what surrounds them within a few pixels, such as those
    of letters (white top-hat). Images of any shape are resized to a square; channels are averaged.

    Returns:
        (88,) uint8.
    """
    pixels = image.pixels
    if pixels.ndim == 3:
        pixels = pixels.mean(2, dtype=np.float32)
    while min(pixels.shape) >= 2 * _SIDE:  # halving is far faster than one fractional step
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        pixels = cv2.resize(pixels[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    square = cv2.resize(pixels, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    levels = cv2.convertScaleAbs(square, alpha=255 / (2**image.bits - 1))
    border = cv2.resize(levels, _BORDER.shape, interpolation=cv2.INTER_AREA)[_BORDER]
    bright = cv2.morphologyEx(levels, cv2.MORPH_TOPHAT, np.ones((_STROKE, _STROKE), np.uint8)) >= _CONTRAST
    shares = cv2.resize(bright.astype(np.float32), _MARKS.shape, interpolation=cv2.INTER_AREA)[_MARKS]
    return np.concatenate([border, np.rint(255 * np.sqrt(shares)).astype(np.uint8)])  # the root spreads small shares
