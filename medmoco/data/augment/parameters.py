"""The drawn parameters of views: what makes a view, apart from its image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class ToneParameters(Protocol):
    """What changes grey levels, of images and of volumes; every array is (B,)."""

    @property
    def brightness(self) -> Floats: ...  # noqa: D102 - described below

    @property
    def contrast(self) -> Floats: ...  # noqa: D102

    @property
    def gamma(self) -> Floats: ...  # noqa: D102


@dataclass(frozen=True)
class ViewParameters:
    """The drawn parameters of B views; every array is (B,)."""

    centre_x: Floats  # pixels of the canvas
    centre_y: Floats
    width: Floats
    height: Floats
    mirrored: NDArray[np.bool_]
    angle: Floats  # radians
    brightness: Floats  # factor
    contrast: Floats  # factor, about the image's mean
    gamma: Floats  # exponent, a multiple of POWER_STEP
    sigma: Floats  # pixels of the view, 0 is no blur
    noise: Floats  # standard deviation as a fraction of white, 0 is none
    noise_at: NDArray[np.int64]  # (B, 2), corner of the window in the noise tile
    cutout: NDArray[np.int64]  # (B, 4), x0 y0 x1 y1 in pixels of the view, all 0 is none
    saturation: Floats  # factor; this and the next two for rgb only
    hue: Floats  # fraction of the colour circle
    grayscale: NDArray[np.bool_]


@dataclass(frozen=True)
class VolumeViewParameters:
    """The drawn parameters of B views of volumes; every array is (B,), or (B, 3) with one value for each axis."""

    start: NDArray[np.int64]  # (B, 3), first voxel of the box in the canvas; below 0 where the box is larger than it
    extent: NDArray[np.int64]  # (B, 3), sides of the box in voxels of the canvas
    mirrored: NDArray[np.bool_]  # (B, 3)
    angles: Floats  # (B, 3), radians about each axis, applied in the order of the axes
    brightness: Floats  # factor
    contrast: Floats  # factor, about the view's mean
    gamma: Floats  # exponent, a multiple of POWER_STEP
    sigma: Floats  # voxels of the view, 0 is no blur
    resolution: NDArray[np.int64]  # side in voxels to which the view is reduced before it is enlarged again, 0 is none
    noise: Floats  # standard deviation as a fraction of white, 0 is none
    noise_at: NDArray[np.int64]  # (B, 2), corner of the first slice's window in the noise tile
