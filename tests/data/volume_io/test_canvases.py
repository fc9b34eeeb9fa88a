from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from medmoco.data.image_io.intensity import CONSTANT
from medmoco.data.volume_io import canvases
from medmoco.data.volume_io.canvases import (
    NO_BODY,
    body,
    read_volume_canvas,
    recommended_spacing,
    resample,
    to_volume_canvas,
)
from medmoco.data.volume_io.volume import Volume
from medmoco.errors import ImageError
from tests.helpers.volume_packs import REAL, data_for, needs_real, provide_reader, read_nifti, write_nifti

HERE = Path(".")
SOFT = (40.0, 400.0)


def volume(values: Any, spacing: tuple[float, float, float] = (1, 1, 1), **options: Any) -> Volume:
    return Volume(np.asarray(values, np.float32), np.diag([*spacing, 1.0]), **options)


def noise(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(0, 100, shape).astype(np.float32)


# Resampling


def resized_slowly(line: NDArray[Any], side: int) -> NDArray[Any]:
    """Resample one line: averages over intervals where it becomes coarser, else between the two nearest centres."""
    old, scale = len(line), len(line) / side
    out = np.zeros(side)
    for new in range(side):
        if side < old:
            for at in range(old):
                overlap = min(at + 1, (new + 1) * scale) - max(at, new * scale)
                out[new] += line[at] * max(0.0, overlap) / scale
        else:
            place = min(max((new + 0.5) * scale - 0.5, 0), old - 1)
            below = int(place)
            above = min(below + 1, old - 1)
            out[new] = line[below] * (1 - place + below) + line[above] * (place - below)
    return out


@pytest.mark.parametrize("target", [(2.0, 2.0, 2.0), (0.7, 0.8, 1.0), (1.5, 0.6, 1.7), (1.0, 3.9, 9.0)])
def test_resample__is_what_plain_loops_give(target: tuple[float, float, float]) -> None:
    values, spacing = noise(17, 14, 9), (0.9, 1.0, 2.5)
    found, _ = resample(values, spacing, target, 10**6)
    expected = values.astype(np.float64)
    for axis in range(3):
        side = max(1, round(values.shape[axis] * spacing[axis] / target[axis]))
        expected = np.apply_along_axis(resized_slowly, axis, expected, side)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_resample__keeps_the_extent_and_states_the_true_spacing() -> None:
    values, spacing = resample(noise(20, 30, 7), (1.0, 1.0, 5.0), (1.5, 0.4, 2.0), 10**6)
    assert values.shape == (13, 75, 18)
    np.testing.assert_allclose(np.multiply(values.shape, spacing), (20, 30, 35))


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("target", [0.4, 3.0])
def test_resample__centres_stay_in_place(axis: int, target: float) -> None:
    shape, targets = [5, 5, 5], [1.0, 1.0, 1.0]
    shape[axis], targets[axis] = 24, target
    places = np.moveaxis(np.broadcast_to(np.arange(24) + 0.5, (5, 5, 24)), 2, axis).astype(np.float32)  # in mm
    found, spacing = resample(np.ascontiguousarray(places), (1.0, 1.0, 1.0), tuple(targets), 10**6)
    inner = np.moveaxis(found, axis, 2)[2, 2, 2:-2]
    np.testing.assert_allclose(inner, (np.arange(len(inner)) + 2.5) * spacing[axis], rtol=1e-5)


def test_resample__does_not_alias() -> None:
    stripes = np.broadcast_to(100 * (np.arange(48) % 2), (4, 4, 48)).astype(np.float32)
    found, _ = resample(stripes, (1.0, 1.0, 1.0), (1.0, 1.0, 4.0), 10**6)
    assert (found == 50).all()


def test_resample__does_not_depend_on_threads() -> None:
    values, threads = noise(70, 60, 50), cv2.getNumThreads()
    found = []
    for count in (1, 4):
        cv2.setNumThreads(count)
        found.append(resample(values, (1, 1, 1), (1.7, 0.8, 2.2), 10**6)[0])
    cv2.setNumThreads(threads)
    np.testing.assert_array_equal(*found)


def test_resample__a_header_with_a_wrong_spacing_does_not_fill_the_memory() -> None:
    with pytest.raises(ImageError, match=r"4000 x 4000 x 4000 voxels, more than data\.max_voxels = 600000000"):
        to_volume_canvas(volume(noise(4, 4, 4), (1000, 1000, 1000)), data_for(HERE, spacing=(1, 1, 1)))


# The body


def patient() -> NDArray[np.float32]:
    """Return a CT of a body with lungs, on a table that it does not touch."""
    ct = np.full((90, 80, 40), -1000, np.float32)
    x, y, _ = np.ogrid[:90, :80, :40]
    ct[np.broadcast_to(((x - 45) / 30) ** 2 + ((y - 45) / 20) ** 2 < 1, ct.shape)] = 40
    for side in (33, 57):
        ct[np.broadcast_to(((x - side) / 8) ** 2 + ((y - 45) / 10) ** 2 < 1, ct.shape)] = -850
    ct[5:85, 8:11] = 100
    return ct


def test_canvas__ct_is_cropped_to_the_body_without_the_table() -> None:
    ct = patient()
    canvas = to_volume_canvas(volume(ct), data_for(HERE, window=SOFT))
    inside = np.argwhere((ct == 40) & (np.arange(80) > 20)[:, None])
    low, high = inside.min(axis=0), inside.max(axis=0)
    assert canvas.shape == (*(high - low + 5)[:2].tolist(), 40)  # a margin of 2, and the whole of the last axis
    np.testing.assert_array_equal(canvas.pixels == 128, ct[low[0] - 2 : high[0] + 3, low[1] - 2 : high[1] + 3] == 40)


def test_body__holes_belong_to_it_and_a_second_leg_too_but_not_a_speck() -> None:
    legs = np.full((60, 30, 20), -1000, np.float32)
    legs[5:25, 5:25] = legs[35:55, 5:25] = 40
    legs[12:18, 12:18, 5:15] = -900
    legs[58, 28, 3] = 500
    found = body(legs, is_ct=True)
    expected = np.zeros_like(found)
    expected[5:25, 5:25] = expected[35:55, 5:25] = True
    np.testing.assert_array_equal(found, expected)


def test_body__of_mr_is_found_in_noise_whatever_the_unit() -> None:
    rng = np.random.default_rng(0)
    mr = np.abs(rng.normal(0, 4, (50, 50, 30)))
    mr[10:40, 15:35] += 200
    mr[20, 20, 20] = 10_000  # one bright voxel
    expected = np.zeros(mr.shape, bool)
    expected[10:40, 15:35] = True
    for unit in (0.001, 1, 5000):
        np.testing.assert_array_equal(body((unit * mr).astype(np.float32), is_ct=False), expected)


@pytest.mark.parametrize(
    ("modality", "window", "side"), [("", SOFT, 24), ("CT", SOFT, 24), ("CT", "percentiles", 24), ("MR", SOFT, 50)]
)
def test_canvas__a_window_in_hu_means_ct_unless_the_file_says_otherwise(modality: str, window: Any, side: int) -> None:
    values = np.full((50, 50, 50), -1000, np.float32)
    values[15:35, 15:35, 15:35] = np.linspace(-400, 1000, 20)
    values[:, :, 0] = -600  # not body for CT, but for MR, where it is 0.2 of the range
    values[0] = values[-1] = -600
    values[:, 0] = values[:, -1] = -600
    found = to_volume_canvas(volume(values, modality=modality), data_for(HERE, window=window))
    assert found.shape[0] == side


def test_canvas__large_volumes_are_cropped_as_coarsely_as_stated() -> None:
    ct = np.full((300, 140, 20), -1000, np.float32)
    ct[101:200, 41:100] = 40
    found = to_volume_canvas(volume(ct), data_for(HERE, window=SOFT))
    for side, extent, step in zip(found.shape[:2], (99, 59), (3, 2), strict=True):
        assert extent + 2 * step <= side <= extent + 6 * step
    assert (found.pixels == 128).sum() == 99 * 59 * 20


def test_canvas__without_a_body_is_the_whole_volume_with_a_notice() -> None:
    air = np.full((40, 40, 40), -1000, np.float32)
    air[3, 3, 3] = -480
    canvas, notices = canvases.canvas_of(volume(air), data_for(HERE, window=(-900, 400)))
    assert (canvas.shape, notices) == ((40, 40, 40), (NO_BODY,))


@pytest.mark.parametrize("window", [SOFT, "percentiles"])
def test_canvas__a_constant_volume_is_black_with_a_notice(window: Any) -> None:
    canvas, notices = canvases.canvas_of(volume(np.full((9, 8, 7), -300)), data_for(HERE, window=window))
    assert notices == (CONSTANT,)
    assert canvas.shape == (9, 8, 7)
    assert not canvas.pixels.any()


# The window


def test_canvas__a_window_is_linear_from_black_to_white() -> None:
    values = np.broadcast_to(np.array([-2000, -160, -60, 40, 140, 240, 3000], np.float32), (8, 8, 7))
    for bits, levels in ((8, [0, 0, 64, 128, 191, 255, 255]), (16, [0, 0, 16384, 32768, 49151, 65535, 65535])):
        pixels = to_volume_canvas(volume(values), data_for(HERE, window=SOFT, bit_depth=bits)).pixels
        assert pixels.dtype == f"uint{bits}"
        np.testing.assert_array_equal(pixels[0, 0, -6:], levels[-6:])


def test_canvas__percentiles_are_those_of_the_body() -> None:
    mr = np.zeros((60, 60, 60), np.float32)
    mr[20:40, 20:40, 20:40] = np.random.default_rng(0).uniform(500, 1500, (20, 20, 20))
    pixels = to_volume_canvas(volume(mr), data_for(HERE)).pixels
    low, high = np.percentile(mr[mr > 0], (0.5, 99.5))
    expected = np.rint(255 * np.clip((mr[18:42, 18:42, 18:42] - low) / (high - low), 0, 1))
    np.testing.assert_array_equal(pixels, expected)


def test_canvas__keeps_what_the_volume_states_and_any_layout_of_its_array() -> None:
    made = volume(noise(30, 20, 10), (1, 2, 3), slice_axis=1)
    data = data_for(HERE, spacing=(1.3, 1.3, 3))
    expected = to_volume_canvas(made, data)
    assert expected.slice_axis == 1
    assert not expected.rgb
    for values in (np.asfortranarray(made.values), np.ascontiguousarray(made.values[::-1, :, ::-1])[::-1, :, ::-1]):
        np.testing.assert_array_equal(to_volume_canvas(replace(made, values=values), data).pixels, expected.pixels)


# Spacing


@pytest.mark.parametrize(
    ("spacings", "expected"),
    [
        ([[0.7, 0.7, 1.0], [0.8, 0.8, 1.25], [0.9, 0.9, 5.0]], (0.8, 0.8, 1.2)),  # the median
        ([[0.78125, 0.78125, 2.0]] * 3, (0.78, 0.78, 2.0)),
        ([[0.5, 0.5, 5.0]] * 8 + [[0.5, 0.5, 2.0]] * 2, (0.5, 0.5, 2.0)),  # thick slices: the 10th percentile
        ([[4.0, 1.0, 1.0]] * 5 + [[0.6, 1.0, 1.0]] * 4, (1.0, 1.0, 1.0)),  # but not finer than the next axis
    ],
)
def test_recommended_spacing__is_that_of_nnunet(spacings: list[list[float]], expected: tuple[float, ...]) -> None:
    assert recommended_spacing(np.array(spacings)) == expected


# Real volumes


def test_read_volume_canvas__adds_notices_and_reads_with_the_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provide_reader(monkeypatch)
    write_nifti(tmp_path / "a.nii.gz", np.full((12, 11, 10), 3, np.int16))
    canvas, notices = read_volume_canvas(tmp_path / "a.nii.gz", "", data_for(tmp_path))
    assert canvas.shape == (12, 11, 10)
    assert notices == (CONSTANT,)


@needs_real
def test_canvas__of_a_real_ct_contains_the_whole_body() -> None:
    ct = read_nifti(REAL / "example_ct.nii.gz")
    canvas = to_volume_canvas(ct, data_for(HERE, window=(-600, 1500), spacing=(3, 3, 3)))
    labels, _ = ndimage.label(ct.values > -500)
    largest = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    boxes = ndimage.find_objects(largest.astype(int))[0]
    for side, part, whole in zip(canvas.shape, boxes, ct.values.shape, strict=True):
        assert part.stop - part.start <= side <= whole
    assert canvas.shape < ct.values.shape


@needs_real
def test_canvas__of_real_mr_crops_keeps_them_whole_and_uses_the_range() -> None:
    for file in sorted((REAL / "hippocampus/images").glob("*.nii.gz"))[:12]:
        mr = read_nifti(file)
        canvas = to_volume_canvas(mr, data_for(HERE))
        assert np.prod(canvas.shape) > 0.9 * mr.values.size
        shares = np.bincount(canvas.pixels.ravel(), minlength=256) / canvas.pixels.size
        assert shares[255] < 0.02
        assert shares[0] < 0.1
        assert 60 < canvas.pixels.mean() < 200


@needs_real
def test_canvas__of_real_binary_shapes_keeps_all_of_them() -> None:
    shapes = np.load(REAL / "adrenal/adrenalmnist3d_64.npz")["train_images"][:12]
    for shape in shapes:
        canvas = to_volume_canvas(volume(shape), data_for(HERE))
        labels, _ = ndimage.label(shape)
        sizes = np.bincount(labels.ravel())[1:]
        assert set(np.unique(canvas.pixels)) == {0, 255}
        assert (canvas.pixels == 255).sum() >= sizes[sizes >= sizes.max() / 4].sum()
