import math

import numpy as np
import pytest

from medmoco.datasets.phantoms.solids import Solids, ellipsoid, holds, join, pick, segments, tube
from medmoco.datasets.phantoms.voxels import Grid, add_up, cover, region_around, resolved, shares_of

SIZE = (0.3, 0.3, 0.5)


@pytest.fixture(scope="module")
def grid() -> Grid:
    x, y, z = (np.arange(-4.1, 4.2, size, dtype=np.float32) for size in SIZE)
    return Grid(x[::-1].copy(), y, z, SIZE)


@pytest.fixture(scope="module")
def solids() -> Solids:
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    curve = np.cumsum(rng.normal(size=(6, 3)) * 0.3 + (1, 0.5, 0.2), axis=0) - (3, 1.5, 1)
    cut = ellipsoid((0, 0.2, 1), (2, 2.5, 2.2), planes=[((0.6, 0.8, 0.0), 0.5)])
    return join(ellipsoid((0.5, 0, 0), (1, 2, 3), turn=turn, excess=1.0), cut, tube(curve, 0.6, 2.0))


def sampled(solids: Solids, grid: Grid, steps: int = 5) -> np.ndarray:
    """Return the shares by testing many points in each voxel: slow, and without distances or boxes."""
    inner = (np.arange(steps) + 0.5) / steps - 0.5
    axes = [(ticks[:, None] + inner * size).ravel() for ticks, size in zip(grid[:3], grid.size, strict=True)]
    inside = np.zeros((len(solids.centre), *map(len, axes)), bool)
    for column, x in enumerate(axes[0]):
        points = np.stack(np.broadcast_arrays(x, axes[1][:, None], axes[2][None, :]), axis=-1).reshape(-1, 3)
        inside[:, column] = holds(solids, points).T.reshape(len(solids.centre), len(axes[1]), len(axes[2]))
    shape = [number for length in grid.shape for number in (length, steps)]
    return inside.reshape(len(inside), *shape).mean(axis=(2, 4, 6))


def test_shares__agree_with_points_in_each_voxel(grid, solids):
    truth = sampled(solids, grid)
    found = np.zeros_like(truth)
    for index, region, share in shares_of(solids, grid):
        found[index][region] = share
    assert np.abs(found - truth).max() < 0.2  # at edges, where a surface is not flat
    assert np.abs(found - truth)[(truth > 0) & (truth < 1)].mean() < 0.04
    assert np.allclose(found.sum(axis=(1, 2, 3)), truth.sum(axis=(1, 2, 3)), rtol=0.06)


def test_shares__do_not_depend_on_the_other_solids(grid, solids):
    together = {index: (region, share) for index, region, share in shares_of(solids, grid)}
    assert sorted(together) == list(range(len(solids.centre)))
    for index, (region, share) in together.items():
        ((_, alone, same),) = shares_of(pick(solids, [index]), grid)
        assert alone == region
        assert np.array_equal(share, same)


def test_cover__is_the_union(grid, solids):
    union = cover(solids, grid)
    assert union.min() == 0
    assert union.max() == 1
    for _, region, share in shares_of(solids, grid):
        assert (union[region] >= share).all()


def test_add_up__volume_by_hand(grid):
    ball = join(*(ellipsoid(centre, (1.1, 1.1, 1.1)) for centre in ((1.5, 0.1, 0), (-1.5, 0, 0.2))))
    total = add_up(ball, np.array([1, 2], np.float32), grid).sum() * math.prod(SIZE)
    assert total == pytest.approx(3 * 4 / 3 * math.pi * 1.1**3, rel=0.04)


def test_resolved__thin_tubes_keep_their_volume(grid):
    start, end, radius = (
        np.array([[-2.0, -1, 0], [0, 1, -2]]),
        np.array([[2.0, 1, 1], [1, 2, 2]]),
        np.array([0.05, 0.7]),
    )
    tubes = segments(start, end, radius, 1.0)
    wide, weights = resolved(tubes, grid)
    assert weights[0] < 0.1
    assert weights[1] == 1
    volume = [add_up(pick(wide, [k]), weights[[k]], grid).sum() * math.prod(SIZE) for k in (0, 1)]
    truth = math.pi * radius**2 * np.linalg.norm(end - start, axis=1)
    assert volume[0] == pytest.approx(truth[0], rel=0.45)  # a tube as wide as a voxel is counted too wide
    assert volume[1] == pytest.approx(truth[1], rel=0.06)


def test_region__clipped_at_the_edge_and_empty_outside(grid):
    x, y, z = region_around(ellipsoid((4, 0, 0), (1, 1, 1)), grid)
    assert x.start == 0  # x descends
    assert grid.x[x].min() <= 3
    assert grid.y[y].max() >= 1
    assert np.abs(grid.z[z]).max() >= 1
    assert not list(shares_of(ellipsoid((9, 0, 0), (1, 1, 1)), grid))
    assert not cover(ellipsoid((0, -9, 0), (1, 1, 1)), grid).any()


def test_within__is_the_same_part(grid, solids):
    region = region_around(solids, grid)
    assert np.array_equal(cover(solids, grid)[region], cover(solids, grid.within(region)))
