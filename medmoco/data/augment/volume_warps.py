"""The geometry of a view of a volume, and the single resampling that computes its voxels.

A view shows a box of whole voxels, which may be flipped, and rotated about its centre. Each axis is interpolated once,
linearly. There are three ways to do so (benchmarks/volumes.py):

- no rotation: `cv2.resize` slice by slice, then along the first axis;
- rotation about one axis: the slices normal to it are the channels of one image, so that `cv2.warpAffine` computes the
  weights of a pixel once for all slices, which is twice as fast; then `cv2.resize` along the axis;
- other rotations: the affine matrix is factored into a warp of each slice and a pass along the first axis.

Values are rounded to the dtype of the canvas after each of the two steps. With float32 in between, an error of 0.36
grey levels (root mean square) would be one of 0.29, but views take up to 1.8 times as long, since four times the memory
is filled.

Voxels outside the canvas are black, which is air in CT and background in MR. Unlike images, volumes are not reflected
at their border: it is cut through the body, and a reflection would show organs twice, and on the wrong side.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.data.augment.parameters import VolumeViewParameters
from medmoco.data.augment.warps import whole_log2
from medmoco.data.volume_io.volume import VolumeCanvas
from medmoco.utils.portable_math import cos_sin

Pixels = NDArray[Any]  # uint8 or uint16; OpenCV's stubs cannot tell
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_CHANNELS = 128  # of one image in OpenCV 5; earlier versions allow 512
_FLAGS = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP  # beyond the border, the default is 0


def warp(canvas: VolumeCanvas, params: VolumeViewParameters, i: int, out: Pixels) -> None:
    """Crop, resize, flip and rotate in one linear resampling.

    Args:
        canvas: The volume of view i.
        params: Parameters of B views.
        i: Number of the view.
        out: (S, S, S) of the canvas's dtype, filled here.
    """
    turning = np.flatnonzero(params.angles[i])
    if not turning.size:
        values = _straight(canvas, params, i, out.shape)
    elif turning.size == 1:
        values = _turned_about(int(turning[0]), canvas, params, i, out.shape)
    else:
        values = _turned(canvas, params, i, out.shape)
    out[...] = values


def matrix_of(
    params: VolumeViewParameters, i: int, spacing: tuple[float, float, float], size: int
) -> tuple[Floats, Floats]:
    """Return matrix (3, 3) and offset (3,) from voxels of view i to voxels of its canvas; voxel centres are whole.

    Rotations are in mm: the matrix is S^-1 R S times the voxels of the canvas per voxel of the view, S being the
    spacing. Products are sums of plain products, since the rounding of BLAS depends on the CPU.
    """
    rotation = np.eye(3)
    for axis, (cos, sin) in enumerate(zip(*cos_sin(params.angles[i]), strict=True)):
        turn, (a, b) = np.eye(3), ((axis + 1) % 3, (axis + 2) % 3)
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = cos, -sin, sin, cos
        rotation = (turn[:, :, None] * rotation).sum(1)
    mm = np.array(spacing)
    steps = params.extent[i] / size * np.where(params.mirrored[i], -1, 1)
    matrix = rotation * mm / mm[:, None] * steps
    centre = params.start[i] + params.extent[i] / 2 - 0.5
    return matrix, centre - matrix.sum(1) * (size - 1) / 2


def resized(volume: Pixels, shape: tuple[int, ...]) -> Pixels:
    """Return a volume resized linearly, first slice by slice, then along the first axis."""
    depth, height, width = shape
    slices = np.empty((len(volume), height, width), volume.dtype)
    for before, after in zip(volume, slices, strict=True):
        cv2.resize(before, (width, height), dst=after)
    return cv2.resize(slices.reshape(len(volume), -1), (height * width, depth)).reshape(shape)


def _straight(canvas: VolumeCanvas, params: VolumeViewParameters, i: int, shape: tuple[int, ...]) -> Pixels:
    """Return a view without rotation; at its edges, voxels are repeated."""
    levels = _halvings(params.extent[i], shape[0])
    values = resized(_block(canvas, *_whole_box(params, i, levels), levels), shape)
    return values[tuple(slice(None, None, -1 if flip else 1) for flip in params.mirrored[i])]


def _turned_about(
    axis: int, canvas: VolumeCanvas, params: VolumeViewParameters, i: int, shape: tuple[int, ...]
) -> Pixels:
    """Return a view rotated about one axis."""
    size = shape[0]
    levels = _halvings(params.extent[i], size)
    matrix, offset = matrix_of(params, i, canvas.spacing, size)
    start, stop = _whole_box(params, i, levels)
    low, high = _bounds(matrix, offset, canvas, size, 0)
    low -= (low - start) % (1 << levels)  # the same voxels are averaged as without rotation
    low[axis], high[axis] = start[axis], stop[axis]
    block = _block(canvas, low, high, levels, axis)
    matrix, offset = _in_block(matrix, offset, low, levels)
    plane = [other for other in range(3) if other != axis]
    inside = _for_opencv(matrix[np.ix_(plane, plane)], offset[plane])
    groups = [
        cv2.warpAffine(np.ascontiguousarray(group), inside, (size, size), flags=_FLAGS).reshape(size * size, -1)
        for group in np.split(block, range(_CHANNELS, block.shape[-1], _CHANNELS), axis=-1)
    ]
    warped = groups[0] if len(groups) == 1 else np.concatenate(groups, axis=1)
    values = cv2.resize(warped, (size, size * size)).reshape(shape)
    return np.moveaxis(values[..., ::-1] if params.mirrored[i, axis] else values, -1, axis)


def _turned(canvas: VolumeCanvas, params: VolumeViewParameters, i: int, shape: tuple[int, ...]) -> Pixels:
    """Return a view rotated about several axes: a warp of each slice, then a pass along the first axis.

    With source coordinates x (first axis) and p (the other two), and a view's coordinates u and q, x = a u + b q + c
    and p = d u + E q + f. Slice x is warped to where the view's lines along u meet it: p = (E - d b / a) q + f +
    d / a (x - c). Then the view's voxels lie on columns, and u is interpolated between two slices. That differs from
    trilinear interpolation only in that the four voxels of both slices are not in the same place.
    """
    size = shape[0]
    levels = _halvings(params.extent[i], size)
    matrix, offset = matrix_of(params, i, canvas.spacing, size)
    # u is the axis of the view that is closest to x, in mm, so that a is far from 0.
    lead = int(np.argmax(np.abs(matrix[0]) / params.extent[i] / canvas.spacing))
    slopes = matrix[1:, lead] / matrix[0, lead]
    low, high = _bounds(matrix, offset, canvas, size, int(np.ceil(np.abs(slopes).max())))
    low -= (low - _whole_box(params, i, levels)[0]) % (1 << levels)  # as above
    block = _block(canvas, low, high, levels)
    matrix, offset = _in_block(matrix, offset, low, levels)
    matrix = np.roll(matrix, -lead, axis=1)
    slopes = matrix[1:, 0] / matrix[0, 0]
    plane = matrix[1:, 1:] - slopes[:, None] * matrix[0, 1:]
    warped = np.empty((len(block), size, size), block.dtype)
    for x, pixels in enumerate(block):
        moved = offset[1:] + slopes * (x - offset[0])
        cv2.warpAffine(pixels, _for_opencv(plane, moved), (size, size), dst=warped[x], flags=_FLAGS)
    values = np.empty(shape, block.dtype)
    (a, b, c), rows = matrix[0], np.array([[1.0, 0, 0], [0, 0, 0]])
    for q in range(size):
        rows[1] = c, a, b * q + offset[0]
        cv2.warpAffine(warped[:, q], rows, (size, size), dst=values[:, q], flags=_FLAGS)
    return values.transpose(np.roll(range(3), lead))


def _halvings(extent: Integers, size: int) -> Integers:
    """Return how often each axis is halved before it is interpolated, which uses every voxel up to a reduction by 2."""
    return np.maximum(whole_log2(extent / size), 0)


def _whole_box(params: VolumeViewParameters, i: int, levels: Integers) -> tuple[Integers, Integers]:
    """Return the ends of the box, (3,), without the rest, fewer voxels than are averaged into one."""
    whole = params.extent[i] >> levels << levels
    start = params.start[i] + (params.extent[i] - whole) // 2
    return start, start + whole


def _bounds(matrix: Floats, offset: Floats, canvas: VolumeCanvas, size: int, margin: int) -> tuple[Integers, Integers]:
    """Return the voxels of the canvas that a view needs, and a margin, (3,) from and (3,) up to."""
    reach = np.abs(matrix).sum(1) * (size - 1) / 2
    centre = offset + matrix.sum(1) * (size - 1) / 2
    low = np.maximum(np.floor(centre - reach).astype(np.int64) - margin, 0)
    high = np.minimum(np.ceil(centre + reach).astype(np.int64) + margin + 1, canvas.shape)
    return low, high


def _in_block(matrix: Floats, offset: Floats, low: Integers, levels: Integers) -> tuple[Floats, Floats]:
    """Return the map to voxels of a block that starts at `low` and has been halved."""
    shrink = 0.5**levels
    return matrix * shrink[:, None], (offset - low + 0.5) * shrink - 0.5


def _for_opencv(matrix: Floats, offset: Floats) -> Floats:
    """Return a map of the last two axes as OpenCV takes it, (2, 3): the second axis is x and comes first."""
    return np.concatenate([matrix[::-1, ::-1], offset[::-1, None]], axis=1)


def _block(canvas: VolumeCanvas, low: Integers, high: Integers, levels: Integers, last: int = 2) -> Pixels:
    """Return voxels, averaged over 2**levels along each axis.

    Args:
        canvas: The volume, outside of which voxels are 0.
        low: First voxel, (3,).
        high: End, (3,).
        levels: How often each axis is halved, (3,).
        last: The axis that becomes the last of the result, while the others keep their order.
    """
    start, stop = np.maximum(low, 0), np.minimum(high, canvas.shape)
    x, y, z = (slice(*ends) for ends in zip(start.tolist(), stop.tolist(), strict=True))
    inside = np.asarray(canvas.pixels[x, y, z])
    factors = 1 << levels
    shape = -(-(high - low) // factors) * factors
    if tuple(shape) == inside.shape:
        block = inside
    else:
        block = np.zeros(shape, inside.dtype)
        block[tuple(slice(*ends) for ends in zip(start - low, stop - low, strict=True))] = inside
    if levels.any():
        block = _averaged(block, factors)
    return np.moveaxis(block, last, -1)


def _averaged(volume: Pixels, factors: Integers) -> Pixels:
    """Return averages over blocks of voxels, slice by slice: a whole volume as float32 takes four times its memory."""
    depth, height, width = (volume.shape // factors).tolist()
    averaged = np.empty((depth, height, width), volume.dtype)
    for number, slices in enumerate(np.split(volume, depth)):
        planes = [
            cv2.resize(pixels.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) for pixels in slices
        ]
        averaged[number] = np.rint(np.mean(planes, axis=0))
    return averaged
