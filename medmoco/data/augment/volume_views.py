"""Make augmented views of volumes: the counterpart of `views.py`, with the same signatures.

A view shows a box of `size` times the drawn zoom voxels of the canvas. Crop, zoom, flips and rotation are one
resampling (`volume_warps.py`); then follow blur, brightness, contrast and gamma in one look-up table, simulated low
resolution and noise, as in nnU-Net (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z) except for their order.
Contrast changes about the mean of the view.

Two views of a volume overlap by at least `views.overlap`: the box of view 1 is drawn around that of view 0, which is
known from the counters. If the two views show different volumes of a patient, there is nothing to guarantee: view 1 is
then drawn around the view 0 that its own volume would have had.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.config import ViewSettings
from medmoco.data.augment.noise import add_noise, noise_windows
from medmoco.data.augment.parameters import VolumeViewParameters
from medmoco.data.augment.views import Tones, around_zero, between, blur, blur_kernel
from medmoco.data.augment.volume_warps import resized, warp
from medmoco.data.volume_io.volume import AXES, VolumeCanvas
from medmoco.utils.portable_math import POWER_STEP, exp, log
from medmoco.utils.rng import VIEW, uniform

Pixels = NDArray[Any]  # uint8 or uint16
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

# The number of a parameter is part of its random stream: append, never reorder.
_PARAMETERS = (
    "zoom", "x", "y", "z", "cut_1", "cut_2", "flip_x", "flip_y", "flip_z", "angle_x", "angle_y", "angle_z", "jitter",
    "brightness", "contrast", "gamma", "blur", "sigma", "low_resolution", "resolution", "noise", "noise_std", "noise_x",
    "noise_y",
)  # fmt: skip

_LOWEST_RESOLUTION = 0.5
"""Smallest relative resolution that is simulated. Source: nnU-Net."""

_SMALLEST_OVERLAP = 1e-4  # smaller ones are guaranteed as this, so that logarithms stay small; 0 is no guarantee

_WINDOW_OVERLAP = 0.25
"""Smallest overlap of neighbouring windows. Source: the default of MONAI's sliding_window_inference."""


def draw(
    settings: ViewSettings,
    canvases: Sequence[VolumeCanvas],
    *,
    seed: int,
    epoch: int,
    samples: NDArray[np.int64],
    view: int,
) -> VolumeViewParameters:
    """Return random parameters of one view for each of B canvases.

    Args:
        settings: Augmentation settings.
        canvases: The B volumes, of which only shape and slice axis are used.
        seed: Seed of the run.
        epoch: Epoch, counted from 0.
        samples: (B,) positions in the split.
        view: 0 for the query, 1 for the key.
    """
    u = _draw_numbers(seed, epoch, samples, view)
    shapes = np.array([canvas.shape for canvas in canvases])
    extent = _extents(settings, u)
    low, high = limits_of_boxes(shapes - extent)
    if view and settings.overlap:
        first = _draw_numbers(seed, epoch, samples, 0)
        others = _extents(settings, first)
        starts = _place(first, *limits_of_boxes(shapes - others))
        shared = _shared(settings, u, np.minimum(extent, others))
        low = np.maximum(low, starts + shared - extent)
        high = np.minimum(high, starts + others - shared)
    jittered = u["jitter"] < settings.jitter_probability
    blurred = u["blur"] < settings.blur_probability
    reduced = u["low_resolution"] < settings.low_resolution_probability
    noisy = u["noise"] < settings.noise_probability
    resolution = np.rint(between(u["resolution"], (_LOWEST_RESOLUTION, 1)) * settings.size).astype(np.int64)
    corners = np.stack([u["noise_x"], u["noise_y"]], 1) * noise_windows(settings.size)
    return VolumeViewParameters(
        start=_place(u, low, high),
        extent=extent,
        mirrored=_per_axis(u, "flip") < settings.flip_probability * np.isin(AXES, settings.flip_axes),
        angles=_angles(settings, canvases, u),
        brightness=1 + jittered * around_zero(u["brightness"], settings.brightness),
        contrast=1 + jittered * around_zero(u["contrast"], settings.contrast),
        gamma=np.rint(exp(jittered * around_zero(u["gamma"], settings.gamma)) / POWER_STEP) * POWER_STEP,
        sigma=np.where(blurred, between(u["sigma"], settings.blur_sigma), 0.0),
        resolution=np.where(reduced, resolution, 0),
        noise=np.where(noisy, u["noise_std"] * settings.noise, 0.0),
        noise_at=corners.astype(np.int64),
    )


def render(
    settings: ViewSettings,
    canvases: Sequence[VolumeCanvas],
    params: Sequence[VolumeViewParameters],
    places: Sequence[NDArray[np.int64]] | None = None,
) -> list[Pixels]:
    """Return V views of each canvas, or V sets of views of some canvases.

    Args:
        settings: Augmentation settings.
        canvases: N volumes with the same bit depth.
        params: V sets of parameters.
        places: For each set, the positions of its B canvases; by default all canvases.

    Returns:
        V arrays (B, 1, size, size, size) of the canvases' dtype.
    """
    if places is None:
        places = [np.arange(len(canvases))] * len(params)
    return [
        _render_set(settings.size, [canvases[i] for i in place], parameters)
        for parameters, place in zip(params, places, strict=True)
    ]


def whole_view(canvas: VolumeCanvas, size: int) -> Pixels:
    """Return the whole volume as one view, (size, size, size), as in evaluation with resized volumes.

    The aspect ratio is not kept, so that neither padding nor shape reveals a volume's origin.
    """
    view = np.empty((size, size, size), canvas.pixels.dtype)
    warp(canvas, unchanged([canvas]), 0, view)
    return view


def windows(canvas: VolumeCanvas, size: int) -> Pixels:
    """Return overlapping windows that cover the volume, (W, size, size, size), in the order of their positions.

    Neighbours overlap by at least a quarter and are evenly spaced, from one end of an axis to the other. A volume that
    is smaller than a window is in its middle, surrounded by black.
    """
    starts = [_window_starts(length, size) for length in canvas.shape]
    made = np.zeros((*map(len, starts), size, size, size), canvas.pixels.dtype)
    for place in np.ndindex(made.shape[:3]):
        start = [positions[number] for positions, number in zip(starts, place, strict=True)]
        x, y, z = (slice(max(at, 0), at + size) for at in start)
        inside = np.asarray(canvas.pixels[x, y, z])
        target = tuple(slice(max(-at, 0), max(-at, 0) + side) for at, side in zip(start, inside.shape, strict=True))
        made[place][target] = inside
    return made.reshape(-1, size, size, size)


def whole_volumes(
    canvases: Sequence[VolumeCanvas], samples: NDArray[np.int64], *, size: int, way: str
) -> Pixels | list[Pixels]:
    """Return volumes as evaluation shows them.

    Args:
        canvases: B volumes; one for "sliding".
        samples: (B,) positions in a split, which do not matter here.
        size: Side S of the network's input, in voxels.
        way: "resized" or "sliding", see `evaluate.volumes`.

    Returns:
        (B, 1, S, S, S); for "sliding" the windows (W, 1, S, S, S), and the whole volume (1, 1, S, S, S) for controls.
    """
    wholes: Pixels = np.stack([whole_view(canvas, size) for canvas in canvases])[:, None]
    if way == "resized":
        return wholes
    (canvas,) = canvases
    return [windows(canvas, size)[:, None], wholes]


def unchanged(canvases: Sequence[VolumeCanvas]) -> VolumeViewParameters:
    """Return the parameters of views that show B whole volumes without any augmentation."""
    number = len(canvases)
    zeros, ones = np.zeros(number), np.ones(number)
    return VolumeViewParameters(
        start=np.zeros((number, 3), np.int64), extent=np.array([canvas.shape for canvas in canvases]),
        mirrored=np.zeros((number, 3), bool), angles=np.zeros((number, 3)), brightness=ones, contrast=ones, gamma=ones,
        sigma=zeros, resolution=np.zeros(number, np.int64), noise=zeros, noise_at=np.zeros((number, 2), np.int64),
    )  # fmt: skip


def _draw_numbers(seed: int, epoch: int, samples: NDArray[np.int64], view: int) -> dict[str, Floats]:
    numbers = np.arange(len(_PARAMETERS))[:, None]
    return dict(zip(_PARAMETERS, uniform(seed, VIEW, epoch, samples, view, numbers), strict=True))


def _per_axis(u: dict[str, Floats], name: str) -> Floats:
    """Return numbers that are drawn for each axis, (B, 3)."""
    return np.stack([u[f"{name}_{axis}" if name else axis] for axis in "xyz"], axis=1)


def _extents(settings: ViewSettings, u: dict[str, Floats]) -> Integers:
    """Return sides of boxes in whole voxels, (B, 3): whole voxels need no interpolation at their edges."""
    side = np.maximum(np.rint(between(u["zoom"], settings.zoom) * settings.size), 1).astype(np.int64)
    return np.repeat(side[:, None], 3, axis=1)


def limits_of_boxes(space: Integers) -> tuple[Integers, Integers]:
    """Return the lowest and highest first voxels of boxes; one larger than the canvas is in its middle.

    Args:
        space: (B, 3) or (B, 2), how much longer the canvas is than the box.
    """
    return np.minimum(space // 2, 0), np.maximum(space, space // 2)


def _place(u: dict[str, Floats], low: Integers, high: Integers) -> Integers:
    """Return uniformly distributed first voxels of boxes, from `low` to `high`, (B, 3)."""
    return low + np.floor(_per_axis(u, "") * (high - low + 1)).astype(np.int64)


def _shared(settings: ViewSettings, u: dict[str, Floats], smaller: Integers) -> Integers:
    """Return how many voxels two boxes must share along each axis, (B, 3).

    Their product over the axes is at least `overlap` of the smaller box. How much each axis contributes is random: the
    logarithm of `overlap` is cut into three at two uniformly distributed places.
    """
    cuts = np.sort(np.stack([u["cut_1"], u["cut_2"]]), axis=0)
    parts = np.stack([cuts[0], cuts[1] - cuts[0], 1 - cuts[1]], axis=1)
    budget = log(np.array([max(settings.overlap, _SMALLEST_OVERLAP)]))
    shares = exp((budget * parts).ravel()).reshape(parts.shape)
    # A little more than the exact number, which rounding could have made too small.
    return np.minimum(np.ceil(shares * smaller + 1e-6).astype(np.int64), smaller)


def _angles(settings: ViewSettings, canvases: Sequence[VolumeCanvas], u: dict[str, Floats]) -> Floats:
    angles = np.deg2rad(around_zero(_per_axis(u, "angle"), settings.rotation))
    if settings.rotation_axes == "slice":
        angles = angles * (np.arange(3) == np.array([[canvas.slice_axis] for canvas in canvases]))
    return angles


def _render_set(size: int, canvases: Sequence[VolumeCanvas], params: VolumeViewParameters) -> Pixels:
    """Return a view of each of B canvases, (B, 1, size, size, size)."""
    dtype = canvases[0].pixels.dtype
    views = np.empty((len(canvases), 1, size, size, size), dtype)
    flat = views.reshape(len(canvases), size, size * size)  # as OpenCV takes it, the first axis being the rows
    for i, canvas in enumerate(canvases):
        warp(canvas, params, i, views[i, 0])
    means = np.array([cv2.mean(pixels)[0] for pixels in flat])
    tones = Tones(params, means, dtype)
    for i in range(len(canvases)):
        view, kernel = views[i, 0], blur_kernel(float(params.sigma[i]))
        if kernel is not None:
            for pixels in view:
                blur(pixels, kernel)
            cv2.sepFilter2D(flat[i], -1, np.ones(1), kernel, dst=flat[i])
        tones.apply(flat[i], i)
        if 0 < params.resolution[i] < size:
            view[...] = resized(resized(view, (params.resolution[i],) * 3), view.shape)
        if params.noise[i] > 0:
            for number, pixels in enumerate(view):
                add_noise(pixels, params.noise[i], params.noise_at[i], number)
    return views


def _window_starts(length: int, size: int) -> list[int]:
    """Return first voxels of windows along an axis; below 0 if the volume is smaller than a window."""
    if length <= size:
        return [(length - size) // 2]
    steps = int(np.ceil((length - size) / (size * (1 - _WINDOW_OVERLAP))))
    positions: list[int] = np.rint(np.linspace(0, length - size, steps + 1)).astype(int).tolist()
    return positions
