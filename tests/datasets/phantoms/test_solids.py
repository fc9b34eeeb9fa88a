import math

import numpy as np
import pytest

from medmoco.datasets.phantoms.solids import (
    ellipsoid,
    free_length,
    holds,
    intervals,
    join,
    moved,
    pick,
    segments,
    tube,
    union_length,
)

TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # x to y


def chord(solids, x: float, z: float) -> np.ndarray:
    enter, leave = intervals(solids, np.full((1, 1, 1), x), np.full((1, 1, 1), z))
    return (leave - enter)[:, 0, 0]


def test_ellipsoid__chord_by_hand():
    # (x/3)^2 + (y/4)^2 + (z/5)^2 = 1 at x = 1.5, z = 2: y = 4 sqrt(1 - 0.25 - 0.16)
    assert chord(ellipsoid((0, 0, 0), (3, 4, 5)), 1.5, 2.0) == pytest.approx([8 * math.sqrt(0.59)])
    assert chord(ellipsoid((1, 7, -2), (3, 4, 5)), 1.0, -2.0) == pytest.approx([8])
    assert chord(ellipsoid((0, 0, 0), (3, 4, 5)), 3.1, 0.0) == pytest.approx([0])


def test_ellipsoid__turned_and_cut():
    assert chord(ellipsoid((0, 0, 0), (3, 4, 5), turn=TURN), 0.0, 0.0) == pytest.approx([6])
    front = ellipsoid((0, 1, 0), (3, 4, 5), planes=[((0, -1, 0), -1.5)])  # only what lies 1.5 in front of the centre
    assert chord(front, 0.0, 0.0) == pytest.approx([2.5])
    side = ellipsoid((0, 0, 0), (3, 4, 5), planes=[((1, 0, 0), 0.5)])
    assert chord(side, 0.4, 0.0) > 7
    assert chord(side, 0.6, 0.0) == pytest.approx([0])


def test_segments__chord_by_hand():
    across = segments(np.array([[-2.0, 0, 0]]), np.array([[2.0, 0, 0]]), np.array([0.5]), 1.0)
    assert chord(across, 1.0, 0.3) == pytest.approx([0.8])
    assert chord(across, 2.1, 0.0) == pytest.approx([0])
    along = segments(np.array([[0, -2.0, 0]]), np.array([[0, 2.0, 0]]), np.array([0.5]), 1.0)
    assert chord(along, 0.3, 0.3) == pytest.approx([4])
    assert chord(along, 0.4, 0.4) == pytest.approx([0])


def test_tube__pieces_meet_without_gap_or_overlap():
    angle = np.linspace(0, np.pi / 2, 9)
    ring = tube(np.stack([5 * np.cos(angle), 0 * angle, 5 * np.sin(angle)], axis=1), 0.5, 1.0)
    for theta in (0.3, 0.6, 0.98175, 1.1):  # one of them on a joint
        assert chord(ring, 4.99 * math.cos(theta), 4.99 * math.sin(theta)).sum() == pytest.approx(1.0, abs=0.02)


def test_moved__grows_turns_and_shifts():
    solid = moved(ellipsoid((1, 0, 0), (3, 4, 5), planes=[((0, 0, 1), 0.5)]), 2.0, TURN, np.array([0.0, 0.0, 3.0]))
    assert solid.centre.tolist() == [[0, 2, 3]]
    assert chord(solid, 0.0, 3.9) == pytest.approx([12 * math.sqrt(1 - 0.09**2)])
    assert chord(solid, 0.0, 4.1) == pytest.approx([0])


def test_box__holds_the_solid():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    curve = np.cumsum(rng.normal(size=(6, 3)) * 0.3 + (1, 0.5, 0.2), axis=0)
    solids = join(ellipsoid((0, 0, 0), (1, 2, 3), turn=turn), tube(curve, 0.4, 1.0))
    solids = moved(solids, 1.3, np.linalg.qr(rng.normal(size=(3, 3)))[0], np.ones(3))
    for index in range(len(solids.centre)):
        one = pick(solids, [index])
        points = one.centre + rng.uniform(-6, 6, (200_000, 3))
        inside = points[holds(one, points)[:, 0]]
        assert len(inside) > 50
        assert (np.abs(inside - one.centre) <= one.box).all()


def test_lengths__overlaps_count_once():
    enter, leave = np.array([[[0.0]], [[5.0]], [[1.0]], [[5.5]]]), np.array([[[2.0]], [[7.0]], [[3.0]], [[6.0]]])
    assert union_length(enter, leave) == pytest.approx(5)
    assert free_length(np.array([[2.5]]), np.array([[6.5]]), (enter, leave)) == pytest.approx(2)


def test_union_length__agrees_with_a_plain_loop():
    rng = np.random.default_rng(1)
    enter = rng.uniform(0, 10, (5, 30, 1))
    leave = enter + rng.uniform(0, 3, enter.shape)
    ticks = np.linspace(0, 13, 26_001)
    for ray, length in enumerate(union_length(enter, leave)[:, 0]):
        covered = np.zeros(len(ticks), bool)
        for solid in range(5):
            covered |= (ticks >= enter[solid, ray, 0]) & (ticks < leave[solid, ray, 0])
        assert covered.sum() * 0.0005 == pytest.approx(length, abs=0.005)
