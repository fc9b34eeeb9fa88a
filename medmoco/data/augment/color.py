"""Saturation, hue and grayscale augmentation of one view, and channels as a displayable picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114])  # of red, green and blue. Source: ITU-R BT.601

Pixels = NDArray[Any]


def recolour(planes: Pixels, saturation: float, hue: float, *, grayscale: bool) -> None:
    """Change the colours of one image in place: saturation, hue, then grayscale.

    Source: torchvision's ColorJitter and RandomGrayscale.

    Args:
        planes: (3, S, S) red, green and blue, uint8 or uint16.
        saturation: Factor; 0 gives grayscale, above 1 colours become more saturated.
        hue: Shift as a fraction of the colour circle, -0.5 to 0.5.
        grayscale: Whether to convert to luma.
    """
    if saturation == 1 and hue == 0 and not grayscale:
        return
    image = cv2.merge(list(planes))
    if saturation != 1:  # blending with luma is a single matrix
        image = cv2.transform(image, saturation * np.eye(3) + (1 - saturation) * np.tile(LUMA_WEIGHTS, (3, 1)))
    if hue:
        image = _shift_hue(image, hue)
    if grayscale:
        planes[:] = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    else:
        planes[:] = image.transpose(2, 0, 1)


def _shift_hue(image: Pixels, hue: float) -> Pixels:
    """Return an image (S, S, 3) with its hue shifted, via float32: OpenCV's 8-bit hues are two degrees apart."""
    white = np.float32(np.iinfo(image.dtype).max)
    hsv = np.asarray(cv2.cvtColor(image.astype(np.float32) * (1 / white), cv2.COLOR_RGB2HSV), np.float32)
    hsv[..., 0] += np.float32(360 * (hue % 1))  # OpenCV wraps angles itself, ten times faster than NumPy
    shifted: Pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if image.dtype == np.uint8:
        return cv2.convertScaleAbs(shifted, alpha=255.0)
    rounded: Pixels = np.rint(shifted * white).astype(image.dtype)
    return rounded


def displayed(planes: Pixels, *, rgb: bool, at: Sequence[int] | None = None) -> Pixels:
    """Return channels (C, H, W) as a picture: (H, W, 3) for rgb, else (H, W), the channel or the mean of the bands.

    Volumes (1, S, S, S) become three slices that meet in the voxel `at`, (2 S, 2 S); see `orthogonal_slices`.
    """
    if planes.ndim == 4:
        return orthogonal_slices(planes[0], at)
    if rgb:
        return np.ascontiguousarray(planes.transpose(1, 2, 0))
    picture: Pixels = planes[0] if len(planes) == 1 else np.rint(planes.mean(0)).astype(planes.dtype)
    return picture


def orthogonal_slices(volume: Pixels, at: Sequence[int] | None = None) -> Pixels:
    """Return three slices of a volume (S, S, S) with the axes of RAS, as radiologists view them, (2 S, 2 S).

    The slices are those of `three_slices`. The axial slice is above the sagittal one, and the coronal one to the right
    of it.
    """
    axial, coronal, sagittal = three_slices(volume, at)
    picture: Pixels = np.block([[axial, coronal], [sagittal, np.zeros_like(sagittal)]])
    return picture


def three_slices(volume: Pixels, at: Sequence[int] | None = None) -> tuple[Pixels, Pixels, Pixels]:
    """Return the axial (Y, X), coronal (Z, X) and sagittal slice (Z, Y) of a volume (X, Y, Z) with the axes of RAS.

    The slices meet in the voxel `at`, by default in the middle. As radiologists view them, the patient's right is on
    the left, and the front at the top or on the left.
    """
    x, y, z = [side // 2 for side in volume.shape] if at is None else at
    seen = volume[::-1, ::-1, ::-1]
    return seen[:, :, -1 - z].T, seen[:, -1 - y].T, seen[-1 - x].T
