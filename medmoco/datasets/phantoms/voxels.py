"""Solids on a grid of voxels: which share of each voxel lies inside.

At the surface, a share follows from the distance between the centre of the voxel and the surface, in units of the
voxel's extent along the normal: the partial volume effect without supersampling.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from medmoco.datasets.phantoms.solids import Solids, pick

Shares = npt.NDArray[np.float32]
Region = tuple[slice, slice, slice]
EVERYWHERE: Region = (slice(None), slice(None), slice(None))


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


def region_around(solids: Solids, grid: Grid) -> Region | None:
    """Return the voxels that solids can touch, None if all lie outside the grid."""
    low = (solids.centre - solids.box).min(axis=0)
    high = (solids.centre + solids.box).max(axis=0)
    found = []
    for axis in range(3):
        ticks, margin = grid[axis], grid.size[axis]
        hit = ((ticks > low[axis] - margin) & (ticks < high[axis] + margin)).nonzero()[0]
        if not len(hit):
            return None
        found.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return found[0], found[1], found[2]


def share_inside(solids: Solids, index: int, grid: Grid) -> Shares:
    """Return the (X, Y, Z) share of each voxel inside one solid, 0 to 1."""
    x, y, z = (
        ticks - np.float32(centre) for ticks, centre in zip(grid.columns(), solids.centre[index].tolist(), strict=True)
    )
    q = solids.quadric[index].astype(np.float32)
    size = np.array(grid.size, np.float32)
    along = [(row[0] * x + row[1] * y) + row[2] * z for row in q]
    square = along[0] * x
    square += along[1] * y
    square += along[2] * z
    np.maximum(square, np.float32(1e-9), out=square)
    for gradient, extent in zip(along, size, strict=True):
        gradient *= extent
        np.square(gradient, out=gradient)
    slope = np.sqrt(along[0] + along[1] + along[2])
    slope += np.float32(1e-9)
    # The radius r = sqrt(square) is 1 on the surface and grows by slope / r per voxel.
    share: Shares = (np.sqrt(square) - square) / slope + np.float32(0.5)
    for normal, height in zip(solids.normals[index], solids.heights[index], strict=True):
        if normal.any():
            n = (normal / np.linalg.norm(normal * size)).astype(np.float32)
            beyond = (n[0] * x + n[1] * y) + n[2] * z
            limit = np.float32(height / np.linalg.norm(normal * size) + 0.5)
            np.minimum(share, limit - beyond, out=share)
    return np.clip(share, 0, 1, out=share)


def shares_of(solids: Solids, grid: Grid) -> Iterator[tuple[int, Region, Shares]]:
    """Yield the number, the region and the share in its voxels of each solid that lies on the grid."""
    for index in range(len(solids.centre)):
        region = region_around(pick(solids, [index]), grid)
        if region is not None:
            yield index, region, share_inside(solids, index, grid.within(region))


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
    """Widen round tubes that are thinner than a voxel, and return them with weights that keep their volume.

    Returns:
        The solids and (N,) weights, 1 for those that are thick enough.
    """
    radius = np.sqrt(2 / np.trace(solids.quadric, axis1=1, axis2=2))
    wide = np.maximum(radius, np.mean(grid.size) / 2)
    grown = np.square(radius / wide)
    box = solids.box + (wide - radius)[:, None]
    return solids._replace(quadric=solids.quadric * grown[:, None, None], box=box), grown.astype(np.float32)
