"""Where a view looks on its canvas, and the one resampling that gets its pixels from there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.data.image_io.images import Canvas
from medmoco.utils.portable_math import cos_sin

Pixels = NDArray[Any]  # uint8 or uint16; OpenCV's stubs cannot tell
Floats = NDArray[np.float64]


class Looks(Protocol):
    """Of B views, what `views.ViewParameters` says of where they look; every array is (B,)."""

    @property
    def centre_x(self) -> Floats: ...  # noqa: D102 - as there

    @property
    def centre_y(self) -> Floats: ...  # noqa: D102

    @property
    def width(self) -> Floats: ...  # noqa: D102

    @property
    def height(self) -> Floats: ...  # noqa: D102

    @property
    def mirrored(self) -> NDArray[np.bool_]: ...  # noqa: D102

    @property
    def angle(self) -> Floats: ...  # noqa: D102


class Pyramid:
    """The valid part of a plane and its halvings, made when they are first asked for and shared by the views."""

    def __init__(self, plane: Pixels) -> None:
        self._levels: list[Pixels] = [plane]
        self._floats: dict[int, Pixels] = {}

    def level(self, number: int) -> Pixels:
        """Return the image after so many exact halvings by an area filter."""
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
    """Where B views look, in plain numbers: arithmetic on NumPy's scalars takes as long as a step on the pixels."""

    levels: list[int]  # of the pyramid
    turned: list[bool]
    mirrored: list[bool]
    boxes: list[list[int]]  # x0 y0 x1 y1 on whole pixels of the level
    matrices: Floats  # (B, 2, 3), from pixels of the view to pixels of the level


def geometry_of(drawn: Looks, canvases: Sequence[Canvas], size: int) -> Geometry:
    """Work out levels, boxes and matrices.

    Bilinear sampling reads every source pixel up to a shrinkage of two. Beyond that, exact halvings come first.
    """
    sides = np.array([(canvas.width, canvas.height) for canvas in canvases])
    levels = np.maximum(_whole_log2(np.maximum(drawn.width, drawn.height) / size), 0)
    levels = np.minimum(levels, _whole_log2(sides.min(1)))  # a strip one pixel wide has no half
    shrink = 0.5**levels
    centres = np.stack([drawn.centre_x, drawn.centre_y], 1) * shrink[:, None]
    lengths = np.stack([drawn.width, drawn.height], 1) * shrink[:, None]

    limits = sides >> levels[:, None]
    starts = np.minimum(np.rint(centres - lengths / 2).astype(np.int64), limits - 1)
    stops = np.clip(np.rint(centres + lengths / 2).astype(np.int64), starts + 1, limits)

    steps = lengths / size * np.where(drawn.mirrored[:, None], (-1, 1), (1, 1))
    cos, sin = cos_sin(drawn.angle)
    turns = np.stack([cos, -sin, sin, cos], 1).reshape(-1, 2, 2) * steps[:, None, :]
    # The middle of the view looks at the middle of the crop; pixel centres lie at half-integers.
    offsets = centres - 0.5 - turns.sum(2) * (size - 1) / 2
    return Geometry(
        levels.tolist(),
        (drawn.angle != 0).tolist(),
        drawn.mirrored.tolist(),
        np.concatenate([starts, stops], 1).tolist(),
        np.concatenate([turns, offsets[:, :, None]], 2),
    )


def _whole_log2(x: NDArray[Any]) -> NDArray[np.int64]:
    exponents: NDArray[np.int64] = np.frexp(x)[1].astype(np.int64) - 1
    return exponents


def warp(pyramid: Pyramid, look: Geometry, i: int, out: Pixels, border: int = cv2.BORDER_REFLECT_101) -> None:
    """Crop, resize, mirror and rotate in one bilinear resampling; without rotation with edges on whole pixels.

    Reflection at the border: rotated corners show plausible anatomy instead of black wedges that give the angle away.
    """
    size, level = out.shape[::-1], look.levels[i]
    if not look.turned[i]:
        x0, y0, x1, y1 = look.boxes[i]
        cv2.resize(pyramid.level(level)[y0:y1, x0:x1], size, dst=out, interpolation=cv2.INTER_LINEAR)
        if look.mirrored[i]:
            cv2.flip(out, 1, dst=out)
        return
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if out.dtype == np.uint8:  # by way of float32, which is a fifth faster and rounds to the same
        floats = cv2.warpAffine(pyramid.floats(level), look.matrices[i], size, flags=flags, borderMode=border)
        cv2.convertScaleAbs(floats, dst=out)
    else:
        cv2.warpAffine(pyramid.level(level), look.matrices[i], size, dst=out, flags=flags, borderMode=border)
