from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medmoco.config import DataSettings
from medmoco.data.image_io.formats.bands import OWN_RANGE, band_axis, levels_of, npy_header
from medmoco.data.image_io.images import read_as_set, read_canvas
from medmoco.data.image_io.intensity import Unreadable
from medmoco.errors import ImageError

RANDOM = np.random.default_rng(3)


def settings_of(channels: int, **other: Any) -> DataSettings:
    return DataSettings(manifest=Path(), root=".", channels=channels, canvas_size=16, **other)


def saved(folder: Path, values: np.ndarray[Any, Any]) -> Path:
    np.save(folder / "bands.npy", values)
    return folder / "bands.npy"


def refused(file: Path, **settings: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read_as_set(file, settings.pop("frame", 1), settings_of(**settings))
    message = str(caught.value)
    assert str(file) not in message
    assert len(message.splitlines()) <= 4
    return message


def logarithms(values: np.ndarray[Any, Any], low: float, high: float) -> np.ndarray[Any, Any]:
    """Log scaling of (C, H, W) in plain loops, to white 65535 and the channels last."""
    out = np.zeros((*values.shape[1:], len(values)), int)
    for band, row, column in np.ndindex(values.shape):
        value = min(max(float(values[band, row, column]), low), high)
        share = (np.log10(value) - np.log10(low)) / (np.log10(high) - np.log10(low))
        out[row, column, band] = round(share * 65535)
    return out


@pytest.mark.parametrize("last", [False, True])
def test_read_bands__log_scaling_is_that_of_plain_loops(tmp_path: Path, last: bool) -> None:
    values = 10 ** RANDOM.uniform(-3, 4, (5, 7, 9)).astype(np.float32)
    values[:, 2, 3] = -4.0
    file = saved(tmp_path, np.moveaxis(values, 0, 2) if last else values)
    image = read_as_set(file, 1, settings_of(5, scale="log", band_ranges=((0.1, 1000.0),)))
    assert image.pixels.shape == (7, 9, 5)
    assert image.notices == ()
    assert np.abs(image.pixels.astype(int) - logarithms(values, 0.1, 1000.0)).max() <= 1


def test_levels_of__own_range_band_by_band_with_a_notice() -> None:
    values = np.stack([np.linspace(-5, 5, 12).reshape(3, 4), np.linspace(100, 900, 12).reshape(3, 4)])
    image = levels_of(values, "linear", None)
    assert image.notices == (OWN_RANGE,)
    np.testing.assert_array_equal(image.pixels[..., 0], image.pixels[..., 1])
    assert image.pixels[..., 0].ravel().tolist() == [round(65535 * k / 11) for k in range(12)]


def test_levels_of__on_a_log_scale_the_own_range_is_that_of_positive_values() -> None:
    image = levels_of(np.array([[[-1.0, 0.0, 1.0, 10.0, 100.0]]]), "log", None)
    assert image.pixels.tolist() == [[0, 0, 0, 32768, 65535]]
    assert not levels_of(np.full((1, 2, 2), -3.0), "log", None).pixels.any()


def test_levels_of__bytes_stay_bytes_and_ranges_may_differ() -> None:
    values = RANDOM.integers(0, 256, (4, 6, 5), np.uint8)
    plain = levels_of(values, "linear", None)
    assert (plain.bits, plain.notices) == (8, ())
    np.testing.assert_array_equal(plain.pixels, values.transpose(1, 2, 0))
    ranged = levels_of(values[:2], "linear", [(0, 255), (0, 510)])
    np.testing.assert_array_equal(ranged.pixels[..., 0], values[0].astype(int) * 257)
    assert ranged.pixels[..., 1].max() <= 32768


def test_read_bands__a_band_too_many_or_too_few_or_either_way_is_refused(tmp_path: Path) -> None:
    assert "no axis of 5 bands" in refused(saved(tmp_path, np.ones((4, 20, 30))), channels=5)
    assert "no axis of 5 bands" in refused(saved(tmp_path, np.ones((20, 30))), channels=5)
    assert "first or last; pad or crop" in refused(saved(tmp_path, np.ones((5, 20, 5))), channels=5)
    assert "no axis of 1 bands" in refused(saved(tmp_path, np.ones((3, 20, 30))), channels=1)
    assert band_axis((20, 30), 1) is None
    assert (band_axis((5, 20, 30), 5), band_axis((20, 30, 5), 5), band_axis((20, 5, 5), 5)) == (0, 2, 2)


def test_read_bands__values_that_are_no_numbers_are_counted(tmp_path: Path) -> None:
    values = np.ones((2, 20, 30), np.float32)
    values[0, 0, 0], values[1, 5, 5] = np.nan, np.inf
    assert refused(saved(tmp_path, values), channels=2).startswith("2 of 1200 values are not finite")


def test_read_bands__what_is_no_plain_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}, []], object), allow_pickle=True)
    assert "object" in refused(tmp_path / "objects.npy", channels=2)
    assert "complex" in refused(saved(tmp_path, np.ones((2, 4, 4), complex)), channels=2)
    file = saved(tmp_path, np.ones((2, 40, 40)))
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    assert "ends inside" in refused(file, channels=2)
    file.write_bytes(whole[:6] + b"\x09" + whole[7:])
    assert "header" in refused(file, channels=2)
    assert "the pages of a file are its bands" in refused(file, channels=2, frame=2)
    file.write_bytes(whole)
    assert "data.max_pixels" in refused(file, channels=2, max_pixels=3000)


def test_npy_header__a_claim_of_more_than_the_file_holds_allocates_nothing(tmp_path: Path) -> None:
    file = tmp_path / "claim.npy"
    with file.open("wb") as stream:
        header = {"descr": "<f8", "fortran_order": False, "shape": (5, 10**6, 10**6)}
        np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(Unreadable, match="ends inside"):
        npy_header(file)


def test_read_bands__pages_of_a_tiff_are_bands(tmp_path: Path) -> None:
    values = RANDOM.normal(0, 9, (5, 12, 16)).astype(np.float32)
    first, *others = (Image.fromarray(band) for band in values)
    first.save(tmp_path / "bands.tif", save_all=True, append_images=others)
    found = read_as_set(tmp_path / "bands.tif", 1, settings_of(5, band_ranges=((-20, 20),)))
    expected = read_as_set(saved(tmp_path, values), 1, settings_of(5, band_ranges=((-20, 20),)))
    np.testing.assert_array_equal(found.pixels, expected.pixels)
    assert "5 pages for 4 bands" in refused(tmp_path / "bands.tif", channels=4)


def test_read_bands__samples_of_a_tiff_are_bands(tmp_path: Path) -> None:
    values = RANDOM.integers(0, 256, (12, 16, 4), np.uint8)
    Image.fromarray(values, "CMYK").save(tmp_path / "bands.tif")
    np.testing.assert_array_equal(read_as_set(tmp_path / "bands.tif", 1, settings_of(4)).pixels, values)
    assert "4 bands, not of 3" in refused(tmp_path / "bands.tif", channels=3)


def test_read_bands__other_kinds_of_file_say_what_to_set(tmp_path: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "photo.png")
    assert "set data.channels to gray or rgb" in refused(tmp_path / "photo.png", channels=3)


def test_read_canvas__one_band_is_a_plane_and_more_are_treated_alike(tmp_path: Path) -> None:
    values = RANDOM.random((6, 40, 30))
    many, _ = read_canvas(saved(tmp_path, values), 1, settings_of(6, band_ranges=((0, 1),)))
    assert many.pixels.shape == (16, 16, 6)
    assert (many.height, many.width, many.rgb) == (16, 12, False)
    for band in range(6):
        one, _ = read_canvas(saved(tmp_path, values[band]), 1, settings_of(1, band_ranges=((0, 1),)))
        np.testing.assert_array_equal(one.pixels, many.pixels[..., band])
