"""The geometry of a view on its canvas, and the single resampling that computes its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.data.augment.parameters import ViewParameters
from medmoco.data.image_io.images import Canvas
from medmoco.utils.portable_math import cos_sin

Pixels = NDArray[Any]  # uint8 or uint16; OpenCV's stubs cannot tell
Floats = NDArray[np.float64]


class Pyramid:
    """The valid part of a plane and its halvings, computed on first use and shared by the views."""

    def __init__(self, plane: Pixels) -> None:
        self._levels: list[Pixels] = [plane]
        self._floats: dict[int, Pixels] = {}

    def level(self, number: int) -> Pixels:
        """Return the image after this number of exact halvings with an area filter."""
        while len(self._levels) <= number:
            height, width = (side // 2 for side in self._levels[-1].shape)
            even = self._levels[-1][: 2 * height, : 2 * width]
            self._levels.append(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA))
        return self._levels[number]

    def floats(self, number: int) -> Pixels:
        """Return a level as float32."""
        if number not in self._floats:
            self._floats[number] = self.level(number).astype(np.float32)
        return self._floats[number]


@dataclass(frozen=True)
class Geometry:
    """The geometry of B views, in plain Python numbers: NumPy scalars take as long as a step on the pixels."""

    levels: list[int]  # of the pyramid
    rotated: list[bool]
    mirrored: list[bool]
    boxes: list[list[int]]  # x0 y0 x1 y1 on whole pixels of the level
    matrices: Floats  # (B, 2, 3), from pixels of the view to pixels of the level


def geometry_of(params: ViewParameters, canvases: Sequence[Canvas], size: int) -> Geometry:
    """Return pyramid levels, boxes and matrices of views.

    Bilinear sampling uses every source pixel up to a reduction by two. Larger reductions start with exact halvings.
    """
    sides = np.array([(canvas.width, canvas.height) for canvas in canvases])
    levels = np.maximum(whole_log2(np.maximum(params.width, params.height) / size), 0)
    levels = np.minimum(levels, whole_log2(sides.min(1)))  # a strip one pixel wide has no half
    shrink = 0.5**levels
    centres = np.stack([params.centre_x, params.centre_y], 1) * shrink[:, None]
    lengths = np.stack([params.width, params.height], 1) * shrink[:, None]

    limits = sides >> levels[:, None]
    starts = np.minimum(np.rint(centres - lengths / 2).astype(np.int64), limits - 1)
    stops = np.clip(np.rint(centres + lengths / 2).astype(np.int64), starts + 1, limits)

    steps = lengths / size * np.where(params.mirrored[:, None], (-1, 1), (1, 1))
    cos, sin = cos_sin(params.angle)
    rotations = np.stack([cos, -sin, sin, cos], 1).reshape(-1, 2, 2) * steps[:, None, :]
    # The centre of the view maps to the centre of the crop; pixel centres are at half-integers.
    offsets = centres - 0.5 - rotations.sum(2) * (size - 1) / 2
    return Geometry(
        levels.tolist(),
        (params.angle != 0).tolist(),
        params.mirrored.tolist(),
        np.concatenate([starts, stops], 1).tolist(),
        np.concatenate([rotations, offsets[:, :, None]], 2),
    )


def whole_log2(x: NDArray[Any]) -> NDArray[np.int64]:
    """Return the binary logarithm of positive numbers, rounded down."""
    exponents: NDArray[np.int64] = np.frexp(x)[1].astype(np.int64) - 1
    return exponents


def warp(pyramid: Pyramid, geometry: Geometry, i: int, out: Pixels, border: int = cv2.BORDER_REFLECT_101) -> None:
    """Crop, resize, flip and rotate in one bilinear resampling; without rotation, edges lie on whole pixels.

    The border is reflected, so that rotated corners show plausible anatomy instead of black wedges that reveal the
    angle.
    """
    size, level = out.shape[::-1], geometry.levels[i]
    if not geometry.rotated[i]:
        x0, y0, x1, y1 = geometry.boxes[i]
        cv2.resize(pyramid.level(level)[y0:y1, x0:x1], size, dst=out, interpolation=cv2.INTER_LINEAR)
        if geometry.mirrored[i]:
            cv2.flip(out, 1, dst=out)
        return
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if out.dtype == np.uint8:  # via float32, which is a fifth faster and rounds to the same values
        floats = cv2.warpAffine(pyramid.floats(level), geometry.matrices[i], size, flags=flags, borderMode=border)
        cv2.convertScaleAbs(floats, dst=out)
    else:
        cv2.warpAffine(pyramid.level(level), geometry.matrices[i], size, dst=out, flags=flags, borderMode=border)
