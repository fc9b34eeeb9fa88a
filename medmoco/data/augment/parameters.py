"""The drawn parameters of views: what makes a view, apart from its image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


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
