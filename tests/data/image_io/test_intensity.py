"""The mappings between grey ranges, against numbers worked out by hand from the DICOM standard's formulas."""

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medmoco.data.image_io.intensity import (
    WINDOWS,
    dtype_of,
    linear,
    linear_exact,
    quantise,
    rescale,
    sigmoid,
    spread,
)
from tests.helpers.dicom_files import window_oracle


def floats(*values: float) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


# Windows


@pytest.mark.parametrize(
    ("centre", "width", "values", "shares"),
    [
        (2048, 4096, (-1, 0, 819, 2047.5, 4095, 4096), (0, 0, 0.2, 0.5, 1, 1)),  # all of 12 bits: 0 black, 4095 white
        (40, 401, (-161, -160.5, -60.5, 39.5, 139.5, 239.5, 240), (0, 0, 0.25, 0.5, 0.75, 1, 1)),
        (10, 2, (8, 9, 9.5, 10, 11), (0, 0, 0.5, 1, 1)),
        (10, 1, (9, 9.25, 9.75, 10), (0, 0, 1, 1)),
        (10.5, 1, (9, 10, 11), (0, 0, 1)),  # the threshold itself is still black
    ],
)
def test_linear__by_hand(centre: float, width: float, values: tuple[float, ...], shares: tuple[float, ...]) -> None:
    np.testing.assert_allclose(linear(floats(*values), centre, width), shares, rtol=0, atol=1e-12)


@pytest.mark.parametrize("centre", [-20.0, 0.0, 7.5, 30.25])
@pytest.mark.parametrize("width", [1.0, 1.5, 2.0, 17.0, 90.0])
def test_linear__as_the_standard_words_it(centre: float, width: float) -> None:
    values = np.arange(-60, 60, 0.25)
    levels = quantise(linear(values, centre, width), 16).astype(int)
    assert np.abs(levels - window_oracle(values, centre, width)).max() <= 1  # the two ways round a half differently


def test_linear_exact__by_hand() -> None:
    shares = linear_exact(floats(-1, 0, 25, 50, 100, 101), 50, 100)
    np.testing.assert_allclose(shares, (0, 0, 0.25, 0.5, 1, 1), rtol=0, atol=1e-12)


def test_sigmoid__by_hand() -> None:
    third = 25 * math.log(3)  # exp(-4 * third / 100) is 1 / 3
    shares = sigmoid(floats(50 - third, 50, 50 + third), 50, 100)
    np.testing.assert_allclose(shares, (0.25, 0.5, 0.75), rtol=0, atol=1e-12)
    assert sigmoid(floats(-1e9, 1e9), 0, 1e-6).tolist() == [pytest.approx(0), 1]  # and no overflow


def test_windows__are_those_that_a_file_can_name() -> None:
    assert {"LINEAR": linear, "LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid} == WINDOWS


def test_spread__extremes_of_the_others() -> None:
    assert spread(floats(0, 10, 15, 20, 99), floats(20, 10, 12)).tolist() == [0, 0, 0.5, 1, 1]
    assert spread(floats(-4, -2, 0), floats(0, -4)).tolist() == [0, 0.5, 1]
    assert spread(floats(6, 7, 8), floats(7)).tolist() == [0, 0, 1]  # nothing to divide by


# Levels


def test_quantise__ends_rounding_and_types() -> None:
    for bits, dtype in ((8, np.uint8), (12, np.uint16), (16, np.uint16)):
        white = 2**bits - 1
        levels = quantise(floats(0, 0.499 / white, 0.501 / white, 1 - 0.501 / white, 1 - 0.499 / white, 1), bits)
        assert levels.tolist() == [0, 0, 1, white - 1, white, white]
        assert levels.dtype == dtype == dtype_of(bits)


@pytest.mark.parametrize("bits", [8, 16])
def test_quantise__inversion_is_the_complement_of_every_level(bits: int) -> None:
    white = 2**bits - 1
    shares = np.arange(2**bits) / white
    np.testing.assert_array_equal(quantise(shares, bits), np.arange(2**bits))
    np.testing.assert_array_equal(quantise(1 - shares, bits), white - np.arange(2**bits))


def test_rescale__16_to_8_bits_rounds_to_the_nearest() -> None:
    deep = np.arange(2**16, dtype=np.uint16)
    shallow = rescale(deep, 16, 8)
    assert shallow.dtype == np.uint8
    # 65535 is 255 x 257; half of 257 is no whole number, so there are no ties.
    np.testing.assert_array_equal(shallow, (deep.astype(int) + 128) // 257)
    assert shallow[[0, 128, 129, 385, 386, 65406, 65407, 65535]].tolist() == [0, 0, 1, 1, 2, 254, 255, 255]


@pytest.mark.parametrize(
    ("bits", "wanted", "pixels", "expected"),
    [
        (8, 16, [0, 1, 128, 255], [0, 257, 32896, 65535]),
        (12, 8, [0, 8, 9, 2048, 4095], [0, 0, 1, 128, 255]),
        (10, 16, [0, 1, 1022, 1023], [0, 64, 65471, 65535]),
        (1, 8, [0, 1], [0, 255]),
        (12, 8, [4096, 65535], [255, 255]),  # a lossy decoder that overshoots
    ],
)
def test_rescale__by_hand(bits: int, wanted: int, pixels: list[int], expected: list[int]) -> None:
    scaled = rescale(np.array(pixels, dtype_of(bits)), bits, wanted)
    assert scaled.tolist() == expected
    assert scaled.dtype == dtype_of(wanted)


@pytest.mark.parametrize("bits", [8, 16])
def test_rescale__to_the_same_depth_and_back_changes_nothing(bits: int) -> None:
    levels: NDArray[Any] = np.arange(256, dtype=dtype_of(bits)).reshape(16, 16)
    np.testing.assert_array_equal(rescale(levels, bits, bits), levels)
    np.testing.assert_array_equal(rescale(rescale(levels, 8, 16), 16, 8), levels)
