"""Solids on a grid of voxels: which share of each voxel lies inside.

At the surface, a share follows from the distance between the centre of the voxel and the surface, in units of the
voxel's extent along the normal: the partial volume effect without supersampling.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medmoco.datasets.phantoms.solids import Array, Solids, pick

Shares = npt.NDArray[np.float32]
Indices = npt.NDArray[np.intp]
Region = tuple[slice, slice, slice]

BATCH = 2**16  # voxels that are computed together, few enough for the CPU cache


class Grid(NamedTuple):
    """Voxels whose axes are those of the thorax: equidistant centres, and the size of a voxel, in cm.

    Voxels of thick slices overlap.
    """

    x: Shares  # (X,)
    y: Shares  # (Y,)
    z: Shares  # (Z,)
    size: tuple[float, float, float]

    @property
    def shape(self) -> tuple[int, int, int]:
        """X, Y and Z."""
        return len(self.x), len(self.y), len(self.z)

    def within(self, region: Region) -> Grid:
        """Return the part of the grid that three slices select."""
        return Grid(self.x[region[0]], self.y[region[1]], self.z[region[2]], self.size)

    def columns(self) -> tuple[Shares, Shares, Shares]:
        """Return x, y and z with shapes that broadcast to that of the grid."""
        return self.x[:, None, None], self.y[None, :, None], self.z[None, None, :]


def _patches(solids: Solids, grid: Grid) -> tuple[Indices, Indices]:
    """Return the (N, 3) first voxels and the (N, 3) voxels after the last ones of the boxes around N solids."""
    first, after = [], []
    for axis, (ticks, size) in enumerate(zip(grid[:3], grid.size, strict=True)):
        step = (float(ticks[-1]) - float(ticks[0])) / (len(ticks) - 1)
        middle = (solids.centre[:, axis] - float(ticks[0])) / step
        reach = (solids.box[:, axis] + size) / abs(step)
        first.append(np.clip(np.floor(middle - reach), 0, len(ticks)))
        after.append(np.clip(np.ceil(middle + reach) + 1, 0, len(ticks)))
    return np.stack(first, axis=1).astype(np.intp), np.stack(after, axis=1).astype(np.intp)


def region_around(solids: Solids, grid: Grid) -> Region:
    """Return the voxels that any of the solids can touch."""
    first, after = _patches(solids, grid)
    x, y, z = (slice(int(low), int(high)) for low, high in zip(first.min(axis=0), after.max(axis=0), strict=True))
    return x, y, z


def shares_of(solids: Solids, grid: Grid) -> Iterator[tuple[int, Region, Shares]]:
    """Yield the number of each solid on the grid, a region around it, and its (X, Y, Z) share of each voxel there.

    Many solids are small: those whose regions have the same size are computed together.
    """
    first, after = _patches(solids, grid)
    sizes = np.minimum(-(-(after - first) // 3) * 3, grid.shape)
    first = np.minimum(first, np.array(grid.shape) - sizes)
    for size in np.unique(sizes[(sizes > 0).all(axis=1)], axis=0):
        members = np.flatnonzero((sizes == size).all(axis=1))
        for batch in np.array_split(members, min(-(-len(members) * int(size.prod()) // BATCH), len(members))):
            ticks = [t[first[batch, axis, None] + np.arange(size[axis])] for axis, t in enumerate(grid[:3])]
            shares = _shares(pick(solids, batch), ticks, np.array(grid.size))
            for index, start, share in zip(batch.tolist(), first[batch], shares, strict=True):
                x, y, z = (slice(int(low), int(low + count)) for low, count in zip(start, size, strict=True))
                yield index, (x, y, z), share


def _shares(solids: Solids, ticks: list[Shares], size: Array) -> Shares:
    """Return the (N, X, Y, Z) shares of N solids in voxels at (N, X), (N, Y) and (N, Z) positions."""

    def column(values: Array) -> Shares:
        return values.astype(np.float32)[:, None, None, None]

    where = [t - centre for t, centre in zip(ticks, solids.centre.T.astype(np.float32)[:, :, None], strict=True)]
    x, y, z = where[0][:, :, None, None], where[1][:, None, :, None], where[2][:, None, None, :]
    square = slope = np.float32(0)
    for axis, position in enumerate((x, y, z)):
        q = solids.quadric[:, axis]
        half_gradient = column(q[:, 0]) * x + column(q[:, 1]) * y + column(q[:, 2]) * z
        square = square + half_gradient * position
        half_gradient *= np.float32(size[axis])
        slope = slope + np.square(half_gradient, out=half_gradient)
    # The radius r = sqrt(square) is 1 on the surface and grows by sqrt(slope) / r per voxel.
    square = np.maximum(square, np.float32(1e-9))
    share: Shares = (np.sqrt(square) - square) / (np.sqrt(slope) + np.float32(1e-9)) + np.float32(0.5)
    share = np.clip(share, 0, 1, out=share)
    for normals, heights in zip(solids.normals.swapaxes(0, 1), solids.heights.T, strict=True):
        if normals.any():
            extent = np.linalg.norm(normals * size, axis=1)
            extent[extent == 0] = 1  # no plane, height 1
            n, limit = normals / extent[:, None], heights / extent + 0.5
            depth = ((column(limit) - column(n[:, 0]) * x) - column(n[:, 1]) * y) - column(n[:, 2]) * z
            share *= np.clip(depth, 0, 1, out=depth)
    return share


def cover(solids: Solids, grid: Grid) -> Shares:
    """Return the (X, Y, Z) largest share that any of the solids has in each voxel: their union."""
    total = np.zeros(grid.shape, np.float32)
    for _, region, share in shares_of(solids, grid):
        np.maximum(total[region], share, out=total[region])
    return total


def add_up(solids: Solids, weights: Shares, grid: Grid) -> Shares:
    """Return the (X, Y, Z) sum of the shares, multiplied by N weights; for solids that meet but do not overlap."""
    total = np.zeros(grid.shape, np.float32)
    for index, region, share in shares_of(solids, grid):
        total[region] += weights[index] * share
    return total


def resolved(solids: Solids, grid: Grid) -> tuple[Solids, Shares]:
    """Widen round tubes that are thinner than a voxel, and return them with weights that make up for it.

    Returns:
        The solids and (N,) weights, 1 for those that are thick enough.
    """
    radius = np.sqrt(2 / np.trace(solids.quadric, axis1=1, axis2=2))
    wide = np.maximum(radius, np.mean(grid.size) / 2)
    grown = np.square(radius / wide)
    box = solids.box + (wide - radius)[:, None]
    return solids._replace(quadric=solids.quadric * grown[:, None, None], box=box), grown.astype(np.float32)
