"""Geometry of the phantoms: ellipsoids and tubes, and in closed form the lengths of parallel rays inside them.

Lengths are in cm. x points to the right of the image, y along the rays, z up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Solids(NamedTuple):
    """N convex solids: points p with (p - c)' Q (p - c) <= 1 and n (p - c) <= h for each of two planes.

    A full-rank Q is an ellipsoid, a rank-2 Q an endless cylinder. A plane with n = 0 and h = 1 cuts nothing.
    """

    centre: Array  # (N, 3)
    quadric: Array  # (N, 3, 3)
    normals: Array  # (N, 2, 3)
    heights: Array  # (N, 2)
    box: Array  # (N, 3) half sides of a bounding box around the centre
    excess: Array  # (N,) attenuation in 1/cm minus that of the material which the solid replaces


def ellipsoid(
    centre: Sequence[float] | Array,
    semi_axes: Sequence[float] | Array,
    *,
    excess: float = 0.0,
    turn: Array | None = None,
    planes: Sequence[tuple[Sequence[float], float]] = (),
) -> Solids:
    """Return one ellipsoid, rotated by a (3, 3) matrix and cut by at most two planes (unit normal, height)."""
    rotation = np.eye(3) if turn is None else turn
    normals, heights = np.zeros((1, 2, 3)), np.ones((1, 2))
    for slot, (normal, height) in enumerate(planes):
        normals[0, slot], heights[0, slot] = normal, height
    squares = np.square(semi_axes)
    quadric = rotation @ np.diag(1 / squares) @ rotation.T
    box = np.sqrt(np.square(rotation) @ squares)
    return Solids(np.array([centre], float), quadric[None], normals, heights, box[None], np.array([excess]))


def segments(start: Array, end: Array, radius: Array, excess: float) -> Solids:
    """Return N straight tubes with flat ends.

    Args:
        start: (N, 3).
        end: (N, 3).
        radius: (N,).
        excess: 1/cm.
    """
    axis = end - start
    length = np.linalg.norm(axis, axis=1)
    axis = axis / length[:, None]
    across = np.eye(3) - axis[:, :, None] * axis[:, None, :]
    return Solids(
        (start + end) / 2,
        across / np.square(radius)[:, None, None],
        np.stack([-axis, axis], axis=1),
        np.stack([length / 2, length / 2], axis=1),
        np.abs(axis) * length[:, None] / 2 + np.sqrt(1 - np.square(axis)) * radius[:, None],
        np.full(len(axis), excess),
    )


def tube(points: Array, radius: float, excess: float) -> Solids:
    """Return a curved tube through (K, 3) points: K - 1 pieces with mitred joints, without gaps or overlaps."""
    pieces = segments(points[:-1], points[1:], np.full(len(points) - 1, radius), excess)
    axes = pieces.normals[:, 1]
    joints = axes[:-1] + axes[1:]
    joints /= np.linalg.norm(joints, axis=1, keepdims=True)
    cosine = np.sum(joints * axes[1:], axis=1).min(initial=1.0)
    pieces.normals[1:, 0], pieces.normals[:-1, 1] = -joints, joints
    for slot, ends in enumerate((points[:-1], points[1:])):
        pieces.heights[:, slot] = np.sum(pieces.normals[:, slot] * (ends - pieces.centre), axis=1)
    return pieces._replace(box=pieces.box + radius * np.sqrt(1 / cosine**2 - 1))  # the mitred ends stick out


def join(*parts: Solids) -> Solids:
    """Return all solids of all parts, in order."""
    return Solids(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def pick(solids: Solids, which: Any) -> Solids:
    """Return the solids that a slice, mask or index array selects."""
    return Solids(*(array[which] for array in solids))


def moved(solids: Solids, scale: float, rotation: Array, shift: Array) -> Solids:
    """Return the solids scaled around the origin, rotated by a (3, 3) matrix, then shifted by (3,) cm."""
    return Solids(
        scale * solids.centre @ rotation.T + shift,
        rotation @ solids.quadric @ rotation.T / scale**2,
        solids.normals @ rotation.T,
        solids.heights * np.where(solids.normals.any(-1), scale, 1),
        scale * solids.box @ np.abs(rotation).T,
        solids.excess,
    )


def holds(solids: Solids, points: Array) -> npt.NDArray[np.bool_]:
    """Return (P, N), whether each of (P, 3) points lies inside each solid."""
    d = points[:, None, :] - solids.centre
    within = np.einsum("pnj,pnj->pn", np.einsum("pni,nij->pnj", d, solids.quadric), d) <= 1
    between = (np.einsum("nsi,pni->pns", solids.normals, d) <= solids.heights).all(-1)
    inside: npt.NDArray[np.bool_] = np.logical_and(within, between)
    return inside


def intervals(solids: Solids, x: Array, z: Array) -> tuple[Array, Array]:
    """Return where rays along y enter and leave each solid.

    Args:
        solids: N solids.
        x: Positions of the rays in cm; x and z broadcast to (N, H, W).
        z: As x.

    Returns:
        Two (N, H, W) arrays of y in cm, equal where a ray misses the solid.
    """
    tiny = 1e-12  # a ray along a cylinder or in a plane gets an endless interval instead of a division by zero
    beyond = 1e15  # farther away than any plane

    def column(values: Array) -> Array:
        return values[:, None, None]

    u, w, q = x - column(solids.centre[:, 0]), z - column(solids.centre[:, 2]), solids.quadric
    a = q[:, 1, 1] + tiny
    # Along the ray the quadric is a (t^2 - 2 middle t + c) <= 0; terms in u or w alone are small arrays and come first.
    middle = column(-q[:, 0, 1] / a) * u - column(q[:, 1, 2] / a) * w
    c = (column(q[:, 0, 0] / a) * u * u - column(1 / a)) + column(q[:, 2, 2] / a) * w * w
    c += column(2 * q[:, 0, 2] / a) * u * w
    half = np.sqrt(np.maximum(middle * middle - c, 0))
    enter, leave = middle - half, middle + half
    for normal, height in zip(solids.normals.swapaxes(0, 1), solids.heights.T, strict=True):
        if not normal.any():
            continue
        slope = np.where(np.abs(normal[:, 1]) < tiny, tiny, normal[:, 1])
        across, up = column(height / slope) - column(normal[:, 0] / slope) * u, column(normal[:, 2] / slope) * w
        unless = np.where(slope > 0, [[beyond], [0.0]], [[0.0], [beyond]])  # a plane bounds one end only
        np.maximum(enter, (across - column(unless[0])) - up, out=enter)
        np.minimum(leave, (across + column(unless[1])) - up, out=leave)
    y = column(solids.centre[:, 1])
    return enter + y, np.maximum(enter, leave) + y


def union_length(enter: Array, leave: Array) -> Array:
    """Return the length of the union of intervals that are stacked along axis 0.

    With starts and ends sorted, there is a gap between the k-th end and the next start if that start is later.
    """
    starts, ends = _sort(enter), _sort(leave)
    length = ends[-1] - starts[0]
    for start, end in zip(starts[1:], ends[:-1], strict=True):
        length -= np.maximum(start - end, 0)
    return length


def _sort(stack: Array) -> list[Array]:
    """Sort along axis 0 by exchanges of whole arrays, which for few solids is twice as fast as np.sort."""
    rows = list(stack)
    for last in range(len(rows) - 1, 0, -1):
        for k in range(last):
            rows[k], rows[k + 1] = np.minimum(rows[k], rows[k + 1]), np.maximum(rows[k], rows[k + 1])
    return rows


def free_length(enter: Array, leave: Array, obstacles: tuple[Array, Array]) -> Array:
    """Return the length of (H, W) intervals outside the (N, H, W) intervals of obstacles."""
    return leave - enter - union_length(np.clip(obstacles[0], enter, leave), np.clip(obstacles[1], enter, leave))
