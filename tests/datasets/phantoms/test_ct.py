from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from medmoco.datasets.phantoms.ct import (
    DIAMETER,
    FLUID,
    Effusion,
    Scan,
    acquire,
    draw_scan,
    render,
    scan_grid,
    smooth_field,
)
from medmoco.datasets.phantoms.thorax import Pose, build_thorax, draw_lesions, draw_person
from medmoco.datasets.phantoms.voxels import Grid, Shares


@pytest.fixture(scope="module")
def scan() -> Scan:
    """A patient with nodules alone."""
    for number in count(1):
        scan = draw_scan(draw_person(0, number), 1)
        if scan.nodules and not scan.effusions and not scan.opacities:
            return scan
    raise AssertionError


@pytest.fixture(scope="module")
def grid(scan) -> Grid:
    return scan_grid(scan, 96, 0.4, 0.4)


@pytest.fixture(scope="module")
def hu(scan, grid) -> Shares:
    return render(scan, grid)


def around(hu: Shares, grid: Grid, point: tuple[float, float, float], reach: float = 0.8) -> Shares:
    """Return the values within a cube around a point of the thorax (x to the left)."""
    masks = [np.abs(ticks - p) <= reach for ticks, p in zip(grid[:3], point, strict=True)]
    assert all(mask.any() for mask in masks)
    return hu[np.ix_(*masks)]


def test_render__values_of_known_points(scan, grid, hu):
    thorax = build_thorax(scan.person, scan.pose)
    shift, scale = scan.pose.shift[0], scan.person.scale
    for side in (-1, 1):
        assert -930 < np.median(around(hu, grid, (shift + side * 7.5 * scale, 0, 3 * scale))) < -730
    assert around(hu, grid, (grid.x[0], grid.y[-1], 0)) == pytest.approx(-1000)
    heart, liver = thorax.organs.centre[0], thorax.organs.centre[1] + (0, 0, 4)
    assert 25 < np.median(around(hu, grid, tuple(heart))) < 60
    assert 40 < np.median(around(hu, grid, tuple(liver))) < 80
    spine = around(hu, grid, tuple(thorax.organs.centre[4] + (0, 0.9, 4)), 1.2)
    assert 300 < np.percentile(spine, 90) < 1100
    trachea = around(hu, grid, (shift, 0.5 * scale, 9 * scale + scan.pose.shift[1]))
    assert trachea.min() < -850
    assert hu.max() < 1200


def test_render__left_and_right(scan, grid, hu):
    """The heart lies on the patient's left and the right dome of the diaphragm higher: x of RAS grows to the right."""
    assert (np.diff(grid.x) < 0).all()  # x of the thorax grows to the left
    middle = np.argmin(np.abs(grid.x - scan.pose.shift[0]))
    heart = build_thorax(scan.person, scan.pose).organs.centre[0]
    rows = np.ix_(range(len(grid.x)), np.abs(grid.y - heart[1]) < 1, np.abs(grid.z - heart[2]) < 1)
    reach = round(8 / grid.size[0])
    soft = (hu[rows] > -100).mean(axis=(1, 2))
    assert soft[middle - reach : middle].sum() > 1.5 * soft[middle : middle + reach].sum()
    behind = hu[:, np.abs(grid.y + 4 * scan.person.scale) < 1]  # the heart
    air = (behind < -500).mean(axis=1).sum(axis=1)
    x = (grid.x - scan.pose.shift[0]) / scan.person.scale
    assert air[np.abs(x - 6.5) < 2].mean() > air[np.abs(x + 6.5) < 2].mean()


def test_nodules__add_their_volume_where_they_are(scan, grid, hu):
    without = render(replace(scan, nodules=(), values=()), grid)
    added = hu - without
    assert added.min() > -60  # a nodule may lie on a vessel of nearly the same density
    lesions = build_thorax(scan.person, scan.pose, scan.nodules).lesions
    for (_, blobs), value in zip(lesions, scan.values, strict=True):
        part = around(added, grid, tuple(blobs.centre[0]), 2.2)
        volume = part.sum() * np.prod(grid.size) / (value + 850)
        diameter = 2 * (volume * 3 / 4 / np.pi) ** (1 / 3)
        assert 0.7 * DIAMETER[0] < diameter < 1.2 * DIAMETER[1]
        assert around(hu, grid, tuple(blobs.centre[0]), 0.3).max() > -300
    far = added.copy()
    for _, blobs in lesions:
        masks = [np.abs(ticks - p) <= 2.4 for ticks, p in zip(grid[:3], blobs.centre[0], strict=True)]
        far[np.ix_(*masks)] = 0
    assert not far.any()


def test_opacities__fill_the_air_of_a_lung_in_part(scan, grid, hu):
    person = scan.person
    opacities = next(found for study in count(1) if (found := draw_lesions(person, study)))
    filled = render(replace(scan, opacities=opacities), grid)
    added = filled - hu
    assert added.min() > -60  # where there were vessels
    assert np.percentile(filled[added > 400], 95) < FLUID[1] + 1  # the others are next to a rib
    litres = added.sum() * np.prod(grid.size) / 850 / 1000
    assert 0.02 < litres < 0.5
    lung = build_thorax(person, scan.pose, opacities).lesions[0][0]
    x, weight = grid.x - scan.pose.shift[0], added.sum(axis=(1, 2))
    assert weight[(x > 0) == (lung == 0)].sum() < 0.02 * weight.sum() or len({side for side, _ in opacities}) == 2


@pytest.mark.parametrize("side", [0, 1])
def test_effusions__lie_in_their_pleural_space_at_the_back(scan, grid, hu, side):
    effusion = Effusion(side, 4.0, 3.0, 1.0, 10.0)
    wet = render(replace(scan, effusions=(effusion,)), grid)
    added = wet - hu
    where = np.argwhere(np.abs(added) > 400)  # fluid, not the compressed lung above
    assert len(where) * np.prod(grid.size) > 50  # ml
    x, y, z = (ticks[where[:, axis]] for axis, ticks in enumerate(grid[:3]))
    assert (((x - scan.pose.shift[0]) > 0) == bool(side)).mean() > 0.99
    assert np.median(y) < -4
    assert y[z < -5].max() > y[z > 0].max()  # deeper at the base
    assert z.max() < 3.5 * scan.person.scale + scan.pose.shift[1] + 1
    fluid = wet[added > 600]
    assert FLUID[0] - 60 < np.median(fluid) < FLUID[1] + 30


def test_nodules__are_in_the_air_of_every_study():
    found = 0
    for number in range(1, 40):
        person = draw_person(2, number)
        one, two = draw_scan(person, 1), draw_scan(person, 2)
        assert one.values == two.values
        assert one.pose != two.pose
        deepest = replace(one, effusions=tuple(Effusion(side, 6.0, 7.0, 0.0, 0.0) for side in (0, 1)))
        thorax = build_thorax(person, Pose(breath=1.0), deepest.nodules)
        for _, blobs in thorax.lesions:
            centre = blobs.centre[0] / person.scale
            assert centre[1] > deepest.effusions[0].level(centre[2:])[0]
            found += 1
    assert found > 20


def test_draws__chances_of_the_labels():
    scans = [draw_scan(draw_person(1, number), 1) for number in range(1, 121)]
    for label in ("nodules", "opacities", "effusions"):
        assert 0.28 < np.mean([bool(getattr(scan, label)) for scan in scans]) < 0.58
    sides = {tuple(effusion.side for effusion in scan.effusions) for scan in scans}
    assert sides == {(), (0,), (1,), (0, 1)}


def test_acquire__noise_depends_on_kernel_and_slices():
    grid = Grid(*(np.arange(64, dtype=np.float32) * 0.3 for _ in range(3)), size=(0.3, 0.3, 0.3))
    water = np.zeros(grid.shape, np.float32)

    def noise(kernel: str, thickness: float) -> np.ndarray:
        size = (0.3, 0.3, thickness)
        return acquire(water, grid._replace(size=size), kernel, np.random.default_rng(0)).astype(float)

    def neighbours(image: np.ndarray) -> float:
        return float(np.corrcoef(image[1:].ravel(), image[:-1].ravel())[0, 1])

    soft, sharp = noise("soft", 0.3), noise("sharp", 0.3)
    assert 10 < soft.std() < 20 < 2 * soft.std() < sharp.std() < 70
    assert noise("soft", 0.6).std() == pytest.approx(soft.std() / np.sqrt(2), rel=0.05)
    assert neighbours(soft) > 0.4 > 0.1 > neighbours(sharp)


def test_smooth_field__is_fixed_in_space():
    ticks = np.arange(-20, 20, 0.5, dtype=np.float32)
    fine = smooth_field(np.random.default_rng(3), Grid(ticks, ticks, ticks, (0.5, 0.5, 0.5)), 1.5)
    coarse = smooth_field(np.random.default_rng(3), Grid(ticks[::2], ticks, ticks[::4], (1.0, 0.5, 2.0)), 1.5)
    assert np.allclose(fine[::2, :, ::4], coarse, atol=1e-5)
    assert fine.std() == pytest.approx(1, abs=0.05)


def test_table__lies_under_the_patient(scan, grid, hu):
    middle = np.argmin(np.abs(grid.x - scan.pose.shift[0]))
    line = hu[middle, :, len(grid.z) // 2]
    back = np.flatnonzero(line > -200)[0]  # y ascends from the back
    assert line[:back].max() > -900  # the shell of the table
    assert line[:back].min() == pytest.approx(-1000)
    assert line[-3:] == pytest.approx(-1000)  # air in front
