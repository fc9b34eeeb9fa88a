from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from medmoco import config
from medmoco.data.augment.normalisation import to_float
from medmoco.data.loading.loading import evaluation_batches
from medmoco.data.loading.preprocessing import NO_DATA, Preprocessing
from medmoco.data.manifest.manifest import load_manifest
from medmoco.errors import ImageError
from tests.helpers.dicom_files import RAMP12, save_dicom
from tests.helpers.supervised import make_settings, write_images


def make(**changes: Any) -> Preprocessing:
    given = {"canvas_size": 40, "bit_depth": 8, "window": "voi", "mean": 0.5, "std": 0.25, "size": 32}
    return Preprocessing(**(given | changes))


def noise(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def test_apply_to__gives_settings_back_and_says_what_changes(tmp_path: Path) -> None:
    own = make_settings(tmp_path, "views.mean=0.4", "data.window=full", "evaluate.size=48", "evaluate.mirror=true")
    preprocessing = Preprocessing.of(own)
    assert (preprocessing.size, preprocessing.mirror, preprocessing.window) == (48, True, "full")
    assert preprocessing.apply_to(own) == (own, [])
    found, changes = preprocessing.apply_to(make_settings(tmp_path, "data.canvas_size=64"))
    assert Preprocessing.of(found) == preprocessing
    assert changes == [
        "data.canvas_size is 32, as in training, not 64", "data.window is full, as in training, not voi",
        "views.mean is 0.4, as in training, not 0.5", "evaluate.mirror is True, as in training, not False",
        "evaluate.size is 48, as in training, not 32",
    ]  # fmt: skip


def test_settings__prepare_the_same_way_and_name_no_data() -> None:
    preprocessing = make(channels="rgb", mean=(0.1, 0.2, 0.3), std=(0.2, 0.2, 0.4))
    assert Preprocessing.of(preprocessing.settings) == preprocessing
    assert preprocessing.settings.data.manifest == NO_DATA


@pytest.mark.parametrize("depth", [8, 16])
def test_prepare__is_what_evaluation_feeds_the_network(tmp_path: Path, depth: int) -> None:
    manifest = write_images(tmp_path / "data")
    settings = make_settings(manifest, f"data.bit_depth={depth}", "evaluate.size=48", "data.canvas_size=56")
    split = load_manifest(settings.data, ("test",))["test"]
    batches = [batch.views[0] for batch in evaluation_batches(split, settings, 48)]
    expected = to_float(torch.cat(batches), settings.views, torch.device("cpu"), channels_last=False).numpy()
    preprocessing = Preprocessing.of(settings)
    found = np.stack([preprocessing.prepare(Path(file)) for file in split.files])
    np.testing.assert_array_equal(found, expected)


def test_prepare__reads_dicom(tmp_path: Path) -> None:
    save_dicom(tmp_path / "a.dcm", RAMP12)
    found = make(canvas_size=256, size=64).prepare(tmp_path / "a.dcm")
    assert found.shape == (1, 64, 64)
    assert found.dtype == np.float32
    assert np.ptp(found) > 3.5  # from black, -2, to white, 2


@pytest.mark.parametrize("window", ["voi", (30000.0, 20000.0)])
@pytest.mark.parametrize(("shape", "dtype"), [((50, 44), np.uint8), ((50, 44), np.uint16), ((50, 44, 3), np.uint8)])
@pytest.mark.parametrize("channels", ["gray", "rgb"])
def test_prepare__an_array_is_read_as_its_png_file(
    tmp_path: Path, channels: str, shape: tuple[int, ...], dtype: Any, window: Any
) -> None:
    pixels = noise(*shape, dtype=dtype)
    cv2.imwrite(str(tmp_path / "a.png"), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    preprocessing = make(channels=channels, window=window)
    np.testing.assert_array_equal(preprocessing.prepare(pixels), preprocessing.prepare(tmp_path / "a.png"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_prepare__floats_are_shares_of_white(dtype: Any) -> None:
    pixels = noise(50, 44, dtype=dtype)
    shares = pixels.astype(np.float32) / np.iinfo(dtype).max
    level = 1 / 255 / 0.25 if dtype == np.uint8 else 0  # they are scaled with 16 bits
    np.testing.assert_allclose(make().prepare(shares), make().prepare(pixels), atol=1.01 * level, rtol=0)
    np.testing.assert_array_equal(make(window=(100.0, 50.0)).prepare(shares), make().prepare(shares))


def test_prepare__an_array_of_bands_is_read_as_its_file(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(5, 2, (4, 50, 44)).astype(np.float32)
    np.save(tmp_path / "a.npy", values)
    preprocessing = make(channels=4, band_ranges=((0.0, 10.0),))
    expected = preprocessing.prepare(tmp_path / "a.npy")
    assert expected.shape == (4, 32, 32)
    np.testing.assert_array_equal(preprocessing.prepare(values), expected)
    np.testing.assert_array_equal(preprocessing.prepare(values.transpose(1, 2, 0)), expected)


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (np.zeros((3, 4), np.int64), "an array of int64; give uint8, uint16, or floats"),
        (np.full((3, 4), 1.5), "floats must be fractions of white, from 0 to 1"),
        (np.full((3, 4), -0.1), "floats must be fractions of white"),
        (np.full((3, 4), np.nan), "not finite"),
        (np.zeros(4, np.uint8), r"shape \(4,\) is not an image"),
        (np.zeros((0, 4), np.uint8), "is not an image"),
        (np.zeros((5, 4, 2), np.uint8), "neither 1 nor 3 channels"),
        ([[0, "a"]], "an array of <U"),
    ],
)
def test_prepare__other_arrays_are_refused(pixels: Any, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        make().prepare(pixels)


def test_prepare__a_missing_file_is_refused_without_its_name(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist") as caught:
        make().prepare(tmp_path / "DOE-JANE.png")
    assert "DOE" not in str(caught.value)


def test_preprocessing__refuses_unknown_keys() -> None:
    with pytest.raises(ValueError, match="Extra inputs"):
        make(canvas=3)
    assert config.Settings in Preprocessing.__mro__


def test_input__size_and_normalisation_in_words() -> None:
    gray = Preprocessing(canvas_size=64, bit_depth=8, window="voi", mean=127 / 255, std=128 / 255, size=32)
    assert gray.input == "32 x 32 pixels, mean 0.498, std 0.502"
    rgb = gray.model_copy(update={"channels": "rgb", "mean": (0.485, 0.456, 0.406), "std": 0.25})
    assert rgb.input == "32 x 32 pixels, mean 0.485/0.456/0.406, std 0.250"
