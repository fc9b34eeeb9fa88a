"""Volumes of smooth noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medmoco.data.volume_io.volume import VolumeCanvas


def make_canvas(
    shape: tuple[int, ...],
    *,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    slice_axis: int = 2,
    dtype: type = np.uint8,
    seed: int = 0,
    sigma: float = 2.0,
) -> VolumeCanvas:
    """Return a canvas from black to white, blurred by `sigma` voxels."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), sigma)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    return VolumeCanvas(np.rint(smooth * np.iinfo(dtype).max).astype(dtype), spacing, slice_axis)
