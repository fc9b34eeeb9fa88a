"""Make the canvas of a volume: crop it to the body, resample it, and window it to 8 or 16 bits.

Every rule depends on the volume alone, so a volume gives the same canvas in training, in a pack and in an export.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.config import DataSettings
from medmoco.data.image_io.intensity import CONSTANT, Pixels, dtype_of, linear_exact, quantise
from medmoco.data.image_io.limits import limits_of
from medmoco.data.volume_io.reading import read_volume
from medmoco.data.volume_io.volume import Volume, VolumeCanvas
from medmoco.errors import ImageError

Mask = NDArray[np.bool_]
Values = NDArray[np.float32]
Box = tuple[slice, slice, slice]

NO_BODY = "no body was found, so the volume is not cropped; if it is CT, its values may not be in HU"

BODY_HU = -500.0
"""Voxels above are body or table. Source: halfway between air (-1000 HU) and water (0 HU)."""

PERCENTILES = (0.5, 99.5)
"""Black and white of `data.window: percentiles`, of the voxels in the body. Source: nnU-Net, Isensee et al. 2021
(doi:10.1038/s41592-020-01008-z), which clips CT to the same."""

_BODY_SHARE = (
    0.1  # of the range of intensities, above which a voxel without a unit is body; noise of MR is a few percent
)
_PART = 0.25  # size of further parts of the body, relative to the largest: the other leg, but not the table
_TINY = 0.001  # share of the volume below which a body is not believed
_COARSE = 128  # voxels per side at which the body is sought
_MARGIN = 2  # coarse voxels around it; one is lost by seeking it coarsely

_ANISOTROPIC = 3.0
"""Ratio of the largest spacing to the next above which a data set is anisotropic. Source: nnU-Net, ANISO_THRESHOLD."""


class CanvasRules(Protocol):
    """The data settings that determine the canvas of a volume."""

    @property
    def window(self) -> Literal["voi", "full", "percentiles"] | tuple[float, float]: ...  # noqa: D102 - as in settings

    @property
    def spacing(self) -> tuple[float, float, float] | None: ...  # noqa: D102

    @property
    def bit_depth(self) -> Literal[8, 16]: ...  # noqa: D102

    @property
    def max_voxels(self) -> int: ...  # noqa: D102


def read_volume_canvas(path: str | Path, series: str, data: DataSettings) -> tuple[VolumeCanvas, tuple[str, ...]]:
    """Decode a volume to a canvas according to the settings, as used in training and stored in packs.

    Args:
        path: A file, or the folder of a DICOM series.
        series: SeriesInstanceUID of the series to read, if the folder has several; blank if it has one.
        data: Data settings.

    Returns:
        The canvas, and the notices of the reader and about the canvas.

    Raises:
        ImageError: the volume cannot be read, or its canvas would be too large.
    """
    volume = read_volume(path, series=series, limits=limits_of(data))
    canvas, notices = canvas_of(volume, data)
    return canvas, tuple(dict.fromkeys([*volume.notices, *notices]))  # the reader may have noticed the same


def to_volume_canvas(volume: Volume, data: CanvasRules) -> VolumeCanvas:
    """Return a volume cropped to the body, resampled to `data.spacing`, and windowed to `data.bit_depth`.

    Raises:
        ImageError: it would have more than `data.max_voxels` voxels.
    """
    return canvas_of(volume, data)[0]


def recommended_spacing(spacings: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return the spacing to which a data set should be resampled: the median of each axis.

    If the largest median is more than three times the next, slices are thick, and resampling thick slices to the
    median interpolates half of the volumes. So that axis gets its 10th percentile, but not less than the next axis.
    Source: nnU-Net, Isensee et al. 2021, supplementary note 2 (doi:10.1038/s41592-020-01008-z). It also requires that
    the axis has few voxels, which spacings do not tell.

    Args:
        spacings: (N, 3) distances between voxels, in mm.

    Returns:
        Three distances in mm, rounded to two significant digits.
    """
    medians = np.median(spacings, axis=0)
    *_, following, largest = np.argsort(medians, kind="stable").tolist()
    if medians[largest] > _ANISOTROPIC * medians[following]:
        medians[largest] = max(medians[following], np.percentile(spacings[:, largest], 10))
    x, y, z = (float(f"{spacing:.2g}") for spacing in medians)
    return x, y, z


def canvas_of(volume: Volume, data: CanvasRules) -> tuple[VolumeCanvas, tuple[str, ...]]:
    """Return the canvas of a volume, see `to_volume_canvas`, and notices about it."""
    canvas, notices, _ = canvas_and_box(volume, data)
    return canvas, notices


def canvas_and_box(volume: Volume, data: CanvasRules) -> tuple[VolumeCanvas, tuple[str, ...], Box]:
    """Return the canvas of a volume, notices about it, and the part of the volume that it shows."""
    steps = tuple(-(-side // _COARSE) for side in volume.values.shape)
    coarse = volume.values[:: steps[0], :: steps[1], :: steps[2]]
    mask = body(coarse, is_ct=_is_ct(volume, data))
    found = mask.sum() >= max(1.0, _TINY * mask.size)
    mask = mask if found else np.ones_like(mask)
    window = _black_and_white(coarse, mask, data)
    box = _box(mask, steps, volume.values.shape)
    values, spacing = resample(volume.values[box], volume.spacing, data.spacing, data.max_voxels)
    pixels = _windowed(values, window, data.bit_depth)
    canvas = VolumeCanvas(pixels, spacing, volume.slice_axis)
    if pixels.min() == pixels.max():
        return canvas, (CONSTANT,), box
    return canvas, () if found else (NO_BODY,), box


def _is_ct(volume: Volume, data: CanvasRules) -> bool:
    """Return whether values are in HU; a file that does not tell, such as NIfTI, is CT if the window is in HU."""
    return volume.modality == "CT" or (not volume.modality and isinstance(data.window, tuple))


# The body


def body(values: Values, *, is_ct: bool) -> Mask:
    """Return which voxels are in the body, (X, Y, Z) bool, with its holes filled; the table is left out.

    The body is the largest connected region above a threshold, with others at least a quarter as large, such as the
    second leg. The threshold is -500 HU for CT. Otherwise it is a tenth of the way from the 1st percentile of all
    values to the 99th of those above it, so that neither the size of the background nor a few bright voxels matter:
    crops without background and binary shapes work too.
    """
    from scipy import ndimage

    inside = values > (BODY_HU if is_ct else _threshold(values))
    labels, _ = ndimage.label(inside)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    mask = (sizes >= max(1.0, _PART * sizes.max()))[labels]
    return _without_holes(mask)


def _threshold(values: Values) -> float:
    low = float(np.percentile(values, 1))
    above = values[values > low]
    return low + _BODY_SHARE * (float(np.percentile(above, 99)) - low) if above.size else np.inf


def _without_holes(mask: Mask) -> Mask:
    """Return a mask with its holes, the regions outside it that do not touch the border; lungs and ventricles are dark.

    Ten times as fast as scipy.ndimage.binary_fill_holes, which grows the outside voxel by voxel.
    """
    from scipy import ndimage

    labels, count = ndimage.label(~mask)
    open_ = np.zeros(count + 1, bool)
    for axis in range(3):
        open_[labels.take([0, -1], axis)] = True
    open_[0] = False
    filled: Mask = ~open_[labels]
    return filled


def _box(mask: Mask, steps: tuple[int, ...], shape: tuple[int, ...]) -> Box:
    """Return the part of a volume that contains the body and a margin, of which `mask` has every `steps`-th voxel."""
    parts = []
    for axis, (step, side) in enumerate(zip(steps, shape, strict=True)):
        others = tuple(other for other in range(3) if other != axis)
        first, *_, last = np.flatnonzero(mask.any(axis=others))[[0, -1]].tolist()
        parts.append(slice(max(0, first - _MARGIN) * step, min((last + _MARGIN + 1) * step, side)))
    x, y, z = parts
    return x, y, z


# Resampling


def resample(
    values: Values, spacing: tuple[float, float, float], target: tuple[float, float, float] | None, max_voxels: int
) -> tuple[Values, tuple[float, float, float]]:
    """Return a volume at another spacing, and its spacing, which differs slightly as the extent is kept.

    Each axis in turn is interpolated linearly where it becomes finer, and averaged over the new voxels where it becomes
    coarser, so that structures finer than the new voxels do not alias. Source: of scipy, PyTorch, OpenCV and sparse
    matrices, OpenCV is the fastest that averages; see `benchmarks/volume_packs.py`.

    Args:
        values: (X, Y, Z).
        spacing: Its distances between voxels, in mm.
        target: Requested distances; None keeps them.
        max_voxels: Largest number of voxels.

    Raises:
        ImageError: the result would have more voxels.
    """
    if target is None:
        return values, spacing
    old = values.shape
    new = [max(1, round(n * at / to)) for n, at, to in zip(old, spacing, target, strict=True)]
    if new[0] * new[1] * new[2] > max_voxels:
        raise ImageError(
            f"at data.spacing it would have {new[0]} x {new[1]} x {new[2]} voxels, more than data.max_voxels ="
            f" {max_voxels};\ncheck the spacing in its header, or set a larger data.spacing"
        )
    x, y, z = (at * n / m for at, n, m in zip(spacing, old, new, strict=True))
    return resize(values, new), (x, y, z)


def resize(values: Values, shape: Sequence[int]) -> Values:
    """Return a volume with other numbers of voxels and the same extent, see `resample`."""
    old = values.shape
    for axis in sorted(range(3), key=lambda axis: shape[axis] / old[axis]):  # first where voxels become fewer
        values = _resized(values, axis, shape[axis]) if shape[axis] != old[axis] else values
    return values


def _resized(values: Values, axis: int, side: int) -> Values:
    """Return a volume with another number of voxels along an axis; plane by plane, which needs no copy of it."""
    shape = list(values.shape)
    method = cv2.INTER_AREA if side < shape[axis] else cv2.INTER_LINEAR
    shape[axis] = side
    resized = np.empty(shape, np.float32)
    across = 1 if axis == 0 else 0
    for plane, target in zip(np.moveaxis(values, across, 0), np.moveaxis(resized, across, 0), strict=True):
        target[:] = cv2.resize(plane, (target.shape[1], target.shape[0]), interpolation=method)
    return resized


# The window


def _black_and_white(values: Values, mask: Mask, data: CanvasRules) -> tuple[float, float]:
    """Return the values that become black and white."""
    if isinstance(data.window, tuple):
        centre, width = data.window
        return centre - width / 2, centre + width / 2
    low, high = np.percentile(values[mask], PERCENTILES).tolist()
    # A binary shape has one value within it; then what is outside is black.
    return (low, high) if low < high else (float(values.min()), float(values.max()))


def _windowed(values: Values, window: tuple[float, float], bits: int) -> Pixels:
    """Return (X, Y, Z) grey levels; black if there is nothing between the limits. Source: DICOM PS3.3 C.11.2.1.3.2."""
    low, high = window
    pixels = np.zeros(values.shape, dtype_of(bits))
    if low < high:
        for plane, levels in zip(values, pixels, strict=True):  # one at a time, as they are calculated in 64 bits
            levels[:] = quantise(linear_exact(plane.astype(np.float64), (low + high) / 2, high - low), bits)
    return pixels
