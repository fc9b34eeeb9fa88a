from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medmoco.segmentation.annotated.grids import Grid, largest, onto_canvas, onto_image


def one_hot(numbers: np.ndarray, classes: int) -> np.ndarray:
    return np.stack([(numbers == value).astype(np.float32) for value in range(classes)])


@given(arrays(np.uint8, (7, 5, 6), elements=st.integers(0, 3)))
def test_onto_canvas__on_the_same_grid_nothing_changes(numbers: np.ndarray) -> None:
    grid = Grid((7, 5, 6), (slice(1, 6), slice(0, 5), slice(2, 6)), (5, 5, 4))
    canvas = onto_canvas(numbers, grid, (5, 5, 4))
    np.testing.assert_array_equal(canvas, numbers[grid.box])
    back, outside = onto_image(one_hot(canvas, 4), grid), numbers.copy()
    outside[grid.box] = 0
    np.testing.assert_array_equal(back[grid.box], canvas)
    assert (back != 0).sum() == (canvas != 0).sum()


def test_onto_canvas__where_it_becomes_coarser_the_class_with_most_voxels_wins() -> None:
    numbers = np.zeros((4, 4, 4), np.uint8)
    numbers[:2, :2, :2] = 1
    numbers[0, 0, 0] = 2
    numbers[2:, 2:, 2:] = 255
    grid = Grid((4, 4, 4), (slice(0, 4),) * 3, (2, 2, 2))
    expected = np.zeros((2, 2, 2), np.uint8)
    expected[0, 0, 0], expected[1, 1, 1] = 1, 255
    np.testing.assert_array_equal(onto_canvas(numbers, grid, (2, 2, 2)), expected)


@pytest.mark.parametrize("factor", [2, 3])
def test_onto_image__a_box_comes_back_where_it_was(factor: int) -> None:
    """Coarser canvases round corners, but move no border."""
    numbers = np.zeros((24, 36), np.uint8)
    numbers[6:18, 12:24] = 1
    grid = Grid((24, 36), (slice(0, 24), slice(0, 36)), (24 // factor, 36 // factor))
    canvas = onto_canvas(numbers, grid, (16, 18))
    assert canvas[24 // factor :].max() == 0  # padding
    back = onto_image(np.pad(one_hot(canvas, 2), ((0, 0), (0, 4), (0, 4))), grid)
    assert (back != numbers).sum() <= 4 * (factor - 2)
    for axis in (0, 1):
        np.testing.assert_array_equal(back.any(axis), numbers.any(axis))


def test_largest__takes_the_first_of_equals() -> None:
    planes = [(0, np.array([1.0, 0.0, 2.0])), (3, np.array([1.0, 0.0, 3.0]))]
    assert largest(planes, (3,)).tolist() == [0, 0, 3]
