from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from medmoco.segmentation.scores.metrics import IGNORED, Measures, score_case, stack

ANISOTROPIC = (0.7, 1.1, 2.5)
Mask = NDArray[np.uint8]


def box(shape: Sequence[int], *sides: tuple[int, int]) -> Mask:
    mask = np.zeros(shape, np.uint8)
    mask[tuple(slice(*side) for side in sides)] = 1
    return mask


def elements(mask: Mask, spacing: Sequence[float]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return position and area of the surface elements by a loop over the corners of voxels.

    Areas of 2-D shapes are those of marching squares; in 3-D, only of the corners, edges and faces of boxes.
    """
    padded = np.pad(mask.astype(bool), 1)
    positions, areas = [], []
    for corner in itertools.product(*(range(length - 1) for length in padded.shape)):
        cell = padded[tuple(slice(place, place + 2) for place in corner)]
        inside = cell if cell.sum() <= cell.size // 2 else ~cell
        if inside.any():
            positions.append(np.multiply(corner, spacing))
            areas.append(area_of(inside, spacing))
    return np.array(positions), np.array(areas)


def area_of(inside: NDArray[Any], spacing: Sequence[float]) -> float:
    """Return the area of the surface that cuts the voxels inside off at the middle of the edges of a cell."""
    first, last = (np.argwhere(inside)[place] for place in (0, -1))
    half = np.array(spacing) / 2
    along = [axis for axis in range(inside.ndim) if first[axis] != last[axis]]  # of the voxels inside
    across = [axis for axis in range(inside.ndim) if axis not in along]
    if inside.ndim == 2:
        if inside.sum() == 1 or len(along) == 2:
            return float(np.linalg.norm(half) * inside.sum())
        return 2 * float(half[along[0]])
    if inside.sum() == 1:
        a, b, c = np.diag(half)
        return float(np.linalg.norm(np.cross(b - a, c - a)) / 2)
    if inside.sum() == 2 and len(along) == 1:
        return 2 * float(half[along[0]] * np.linalg.norm(half[across]))
    assert inside.sum() == 4
    assert len(along) == 2
    return 4 * float(half[along[0]] * half[along[1]])


def by_loops(ours: Mask, theirs: Mask, spacing: Sequence[float], tolerance: float) -> tuple[float, float]:
    """Return surface Dice and HD95 from the distances between all pairs of elements."""
    (p, p_areas), (t, t_areas) = elements(ours, spacing), elements(theirs, spacing)
    between = np.linalg.norm(p[:, None] - t[None], axis=-1)
    directed = [(between.min(axis=1), p_areas), (between.min(axis=0), t_areas)]
    agreeing = sum(areas[away <= tolerance + 1e-6].sum() for away, areas in directed)
    farthest = []
    for away, areas in directed:
        for limit in np.unique(away):
            if areas[away <= limit].sum() >= 0.95 * areas.sum() - 1e-9:
                farthest.append(limit)
                break
    return float(agreeing / (p_areas.sum() + t_areas.sum())), float(max(farthest))


def only(measures: Measures) -> list[float]:
    assert all(column.shape == (1,) for column in measures)
    return [float(column[0]) for column in measures]


@given(st.data())
def test_score_case__agrees_with_loops_on_boxes_with_anisotropic_voxels(data: st.DataObject) -> None:
    shape = (6, 5, 7)
    drawn = []
    for _ in range(2):
        starts = [data.draw(st.integers(0, length - 2)) for length in shape]
        # Sides of two voxels and more: a thin box has other elements than corners, edges and faces.
        sides = [
            (start, data.draw(st.integers(start + 2, length))) for start, length in zip(starts, shape, strict=True)
        ]
        drawn.append(box(shape, *sides))
    tolerance = data.draw(st.sampled_from([0, 0.7, 1.4, 2.5, 3]))
    dice, surface_dice, hd95, volume, truth = only(score_case(drawn[0], drawn[1], ANISOTROPIC, 1, tolerance))
    assert dice == pytest.approx(2 * (drawn[0] & drawn[1]).sum() / (drawn[0].sum() + drawn[1].sum()))
    assert (surface_dice, hd95) == pytest.approx(by_loops(drawn[0], drawn[1], ANISOTROPIC, tolerance), abs=1e-6)
    assert (volume, truth) == pytest.approx(tuple(mask.sum() * 0.7 * 1.1 * 2.5 / 1000 for mask in drawn))


@given(st.integers(0, 10_000))
def test_score_case__agrees_with_loops_on_any_2d_shape(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drawn = [(rng.random((6, 8)) < share).astype(np.uint8) for share in (0.3, 0.6)]
    if not all(mask.any() for mask in drawn):
        return
    spacing, tolerance = (0.5, 1.7), float(rng.choice([0.0, 0.5, 1.0, 1.7]))
    found = only(score_case(drawn[0], drawn[1], spacing, 1, tolerance))
    assert found[1:3] == pytest.approx(by_loops(drawn[0], drawn[1], spacing, tolerance), abs=1e-6)
    assert found[3:] == pytest.approx([mask.sum() * 0.5 * 1.7 for mask in drawn])  # mm2


def test_score_case__a_shift_by_thick_slices_is_measured_in_mm() -> None:
    for axis, mm in enumerate(ANISOTROPIC):
        sides = [(2, 8)] * 3
        mask = box((12, 12, 12), *sides)
        moved = np.roll(mask, 2, axis)
        assert only(score_case(moved, mask, ANISOTROPIC, 1, 2 * mm))[1:3] == pytest.approx([1, 2 * mm])
        assert only(score_case(moved, mask, ANISOTROPIC, 1, 1.99 * mm))[1] < 1


def test_score_case__rounding_does_not_decide_whether_a_distance_is_tolerated() -> None:
    mask = box((12, 12), (2, 8), (2, 8))
    assert only(score_case(np.roll(mask, 3, 0), mask, (0.1, 0.1), 1, 0.3))[1] == 1
    assert 3 * 0.1 > 0.3


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), ANISOTROPIC])
def test_score_case__is_monais_dice_and_surface_dice(spacing: tuple[float, ...]) -> None:
    from monai.metrics import compute_dice
    from monai.metrics.utils import get_mask_edges, get_surface_distance

    rng = np.random.default_rng(3)
    predicted, truth = (rng.integers(0, 3, (9, 8, 7)).astype(np.uint8) for _ in range(2))
    predicted[:2], truth[:, :3] = 0, 0
    found = score_case(predicted, truth, spacing, 2, 0.7)
    hot = [torch.from_numpy(np.stack([mask == place for place in (1, 2)])[None]) for mask in (predicted, truth)]
    np.testing.assert_allclose(found.dice, compute_dice(hot[0].float(), hot[1].float()).numpy()[0], rtol=1e-6)
    for place in range(2):  # compute_surface_dice itself passes an argument that MONAI deprecates
        edges: tuple[Any, ...] = get_mask_edges(*(mask[0, place] for mask in hot), spacing=spacing)
        edge: list[Any] = [edges[0], edges[1]]
        away = [np.asarray(get_surface_distance(pair[0], pair[1], spacing=spacing)) for pair in (edge, edge[::-1])]
        areas = [edges[2 + first][edges[first].bool()].numpy() for first in (0, 1)]
        agreeing = sum(area[near <= 0.7001].sum() for area, near in zip(areas, away, strict=True))
        assert found.surface_dice[place] == pytest.approx(agreeing / sum(area.sum() for area in areas), rel=1e-5)


def test_score_case__has_no_scores_for_a_class_in_neither_mask_and_the_worst_for_one_in_only_one() -> None:
    shape, spacing = (4, 6, 5), (1.0, 2.0, 3.0)
    ours, theirs = box(shape, (1, 3), (1, 3), (1, 3)), 3 * box(shape, (1, 2), (4, 6), (1, 4))
    found = score_case(ours, theirs, spacing, 3, 100)  # not even a large tolerance helps
    assert found.dice[[0, 2]].tolist() == found.surface_dice[[0, 2]].tolist() == [0, 0]
    np.testing.assert_allclose(found.hd95[[0, 2]], np.sqrt(4**2 + 12**2 + 15**2))
    np.testing.assert_allclose(found.volume[[0, 2]], [8 * 6 / 1000, 0])
    np.testing.assert_allclose(found.truth[[0, 2]], [0, 6 * 6 / 1000])
    assert all(np.isnan(column[1]) for column in found)
    empty = np.zeros(shape, np.uint8)
    assert all(np.isnan(column).all() for column in score_case(empty, empty, spacing, 3, 1))


def test_score_case__ignored_voxels_are_neither_right_nor_wrong() -> None:
    shape = (8, 8, 8)
    truth = box(shape, (1, 5), (1, 5), (1, 5))
    unknown = truth.copy()
    unknown[4:, :, :] = IGNORED
    for inside in (0, 1, 2):
        predicted = truth.copy()
        predicted[4:, :, :] = inside
        found = score_case(predicted, unknown, ANISOTROPIC, 2, 0)
        assert [float(column[0]) for column in found[:3]] == [1, 1, 0]
        assert found.volume[0] == found.truth[0] == pytest.approx(3 * 16 * np.prod(ANISOTROPIC) / 1000)
        assert np.isnan(found.dice[1])
    everywhere = np.full(shape, IGNORED, np.uint8)
    assert np.isnan(score_case(truth, everywhere, ANISOTROPIC, 1, 0).dice).all()


def test_score_case__space_around_the_masks_does_not_matter_and_the_border_is_surface() -> None:
    rng = np.random.default_rng(5)
    ours, theirs = (rng.integers(0, 3, (6, 5, 4)).astype(np.uint8) for _ in range(2))
    near = score_case(ours, theirs, ANISOTROPIC, 2, 1)
    wide = [np.pad(mask, ((3, 9), (0, 5), (7, 1))) for mask in (ours, theirs)]
    far = score_case(wide[0], wide[1], ANISOTROPIC, 2, 1)
    for one, other in zip(near, far, strict=True):
        np.testing.assert_array_equal(one, other)
    # A mask that fills the image and one that leaves out its first slice differ there.
    whole = np.ones((6, 6, 6), np.uint8)
    assert score_case(box(whole.shape, (1, 6), (0, 6), (0, 6)), whole, ANISOTROPIC, 1, 0).surface_dice[0] < 1


def test_score_case__hd95_ignores_a_twentieth_of_the_surface() -> None:
    mask = box((40, 40, 40), (10, 30), (10, 30), (10, 30))
    speck = mask.copy()
    speck[0, 0, 0] = 1
    assert score_case(speck, mask, (1, 1, 1), 1, 0).hd95[0] == 0
    assert score_case(speck, mask, (1, 1, 1), 1, 0).surface_dice[0] > 0.99


def test_stack__is_by_image_and_class() -> None:
    cases = [
        score_case(box((4, 4), (0, 2), (0, size)), box((4, 4), (0, 2), (0, 2)), (1, 1), 2, 1) for size in (1, 2, 3)
    ]
    stacked = stack(cases)
    assert stacked.dice.shape == stacked.truth.shape == (3, 2)
    np.testing.assert_allclose(stacked.dice[:, 0], [2 * 2 / 6, 1, 2 * 4 / 10])
    assert stacked.volume[:, 0].tolist() == [2, 4, 6]


def test_score_case__of_real_masks(shared: Path) -> None:
    folder = shared / "data/volumes/hippocampus/labels"
    if not folder.is_dir():
        pytest.skip("needs the masks of the hippocampus")
    read: Any = nibabel.load
    for file in sorted(folder.glob("*.nii.gz"))[:3]:
        image = read(file)
        truth = np.asarray(image.dataobj).astype(np.uint8)
        spacing = [float(mm) for mm in image.header.get_zooms()]
        perfect = score_case(truth, truth, spacing, 2, 1)
        assert perfect.dice.tolist() == perfect.surface_dice.tolist() == [1, 1]
        assert perfect.hd95.tolist() == [0, 0]
        assert (perfect.volume > 0.5).all()  # a hippocampus has about 3 mL
        assert (perfect.volume < 4).all()
        moved = score_case(np.roll(truth, 1, 0), truth, spacing, 2, 0.99)
        assert (moved.hd95 == spacing[0]).all()
        assert (moved.surface_dice < 1).all()
        assert (score_case(np.roll(truth, 1, 0), truth, spacing, 2, 1).surface_dice == 1).all()
