"""Orientation of volumes and positions of slices: numbers at the edges of every tolerance."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medmoco.data.image_io.intensity import Unreadable
from medmoco.data.volume_io.geometry import (
    GAP_MM,
    GAP_MOST,
    GAP_SHARE,
    TILT_DEGREES,
    check_affine,
    direction_faults,
    header_of,
    orientation_faults,
    position_faults,
    to_ras,
)
from medmoco.data.volume_io.headers import NO_ORIENTATION, StoredVolume

pytest.importorskip("nibabel")


def stored(affine: NDArray[Any], shape: tuple[int, int, int] = (2, 3, 4), **fields: Any) -> StoredVolume:
    return StoredVolume(shape, affine, lambda: np.zeros(shape, np.float32), **fields)


def test_to_ras__every_permutation_and_direction() -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    count = 0
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        for signs in np.ndindex(2, 2, 2):
            affine = np.eye(4)
            affine[:3, :3] = 0
            for own, ras in enumerate(order):
                affine[ras, own] = (1 - 2 * signs[own]) * (own + 1)
            affine[:3, 3] = 5, 6, 7
            volume = stored(affine)
            header, turned = header_of(volume), to_ras(volume, values)
            assert header.shape == turned.shape
            assert header.spacing == pytest.approx([order.index(ras) + 1 for ras in range(3)])
            for index, value in np.ndenumerate(values):
                x, y, z = np.rint(np.linalg.solve(header.affine, affine @ [*index, 1]))[:3].astype(int)
                assert turned[x, y, z] == value
            count += 1
    assert count == 48


def test_header_of__slice_axis() -> None:
    assert header_of(stored(np.diag([1.0, 1, 1, 1]))).slice_axis == 2
    assert header_of(stored(np.diag([3.0, 1, 1, 1]))).slice_axis == 0
    assert header_of(stored(np.diag([1, 3, 2.9999, 1]))).slice_axis == 2  # equal up to rounding
    turned = np.eye(4)[[1, 2, 0, 3]]
    assert header_of(stored(turned, slice_axis=0)).slice_axis == 2
    assert header_of(stored(turned, slice_axis=0)).slices == 2


def test_header_of__faults_come_before_warnings() -> None:
    header = header_of(stored(np.diag([1.0, 1, 30, 1]), (4, 4, 1), faults=(NO_ORIENTATION,)))
    assert [fault.kind for fault in header.faults] == ["single_slice", "no_orientation", "odd_spacing"]
    assert "1 x 1 x 30 mm" in header.faults[2].text


@pytest.mark.parametrize(("degrees", "count"), [(0.0, 0), (TILT_DEGREES - 0.05, 0), (TILT_DEGREES + 0.05, 1), (30, 1)])
def test_header_of__sheared_axes(degrees: float, count: int) -> None:
    affine = np.eye(4)
    affine[0, 2] = np.tan(np.radians(degrees))
    assert len(header_of(stored(affine)).faults) == count


@pytest.mark.parametrize(
    "matrix", [np.diag([1.0, 1, 0, 1]), np.full((4, 4), np.nan), np.ones((4, 4)), np.diag([1e300, 1, 1, 1])]
)
def test_check_affine__refuses_flat_matrices(matrix: NDArray[Any]) -> None:
    with np.errstate(over="ignore"), pytest.raises(Unreadable, match="three axes"):
        check_affine(matrix)


@pytest.mark.parametrize("usual", [0.05, 0.4, 1.0, 5.0])
def test_position_faults__tolerance(usual: float) -> None:
    tolerance = min(GAP_MM + GAP_SHARE * usual, GAP_MOST * usual)
    for sign in (1, -1):
        for share, expected in ((0.99, []), (1.01, ["uneven_spacing"])):
            gaps = np.full(20, usual)
            gaps[7] += sign * share * tolerance
            assert [fault.kind for fault in position_faults(np.cumsum(gaps))] == expected


@pytest.mark.parametrize("step", [0.5, 2.5, 7.0])
def test_position_faults__counts_of_removed_and_duplicated(step: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        whole = np.arange(30) * step
        removed = np.sort(rng.choice(np.arange(1, 29), rng.integers(1, 5), replace=False))
        copied = rng.choice(np.delete(np.arange(30), removed), rng.integers(1, 4))
        along = np.sort(np.concatenate([np.delete(whole, removed), whole[copied]]))
        duplicates, missing = position_faults(along)
        assert duplicates.text.startswith(f"{len(copied)} of its {len(along)} slices")
        assert missing.text.startswith(f"{len(removed)} slices are missing")
    assert position_faults(whole) == []


def test_position_faults__all_equal() -> None:
    assert [fault.kind for fault in position_faults(np.zeros(4))] == ["duplicate_slices"]


def test_orientation_faults__tolerance() -> None:
    cosines = np.tile([1.0, 0, 0, 0, 1, 0], (4, 1))
    cosines[2, 1] = 9e-4
    assert orientation_faults(cosines) == []
    cosines[2, 1] = 2e-3
    assert [fault.kind for fault in orientation_faults(cosines)] == ["mixed_orientations"]
    cosines[3] = 1, 0, 0, 0, 0, -1
    assert [fault.kind for fault in orientation_faults(cosines)] == ["localiser"]
    cosines[3] = -1, 0, 0, 0, 1, 0
    assert [fault.kind for fault in orientation_faults(cosines)] == ["mixed_orientations"]


def test_direction_faults__tilt_in_any_direction() -> None:
    normal = np.array([0.0, 0, 1])
    for around in np.linspace(0, 2 * np.pi, 7):
        for degrees, expected in ((TILT_DEGREES - 0.05, []), (TILT_DEGREES + 0.05, ["gantry_tilt"])):
            across = np.tan(np.radians(degrees))
            step = np.array([across * np.cos(around), across * np.sin(around), 1])
            positions = np.arange(100)[:, None] * step
            assert [fault.kind for fault in direction_faults(positions, normal, 1.0)] == expected


def test_direction_faults__shifts() -> None:
    positions = np.arange(6)[:, None] * np.array([0, 0, 2.0])
    positions[3, 0] = 0.49
    assert direction_faults(positions, np.array([0.0, 0, 1]), 1.0) == []
    positions[3, 0] = 0.51
    (fault,) = direction_faults(positions, np.array([0.0, 0, 1]), 1.0)
    assert fault.kind == "shifted_slices"
    assert fault.text.startswith("1 of its 6 slices")
