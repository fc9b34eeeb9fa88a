from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmoco.config import RunSettings
from medmoco.data.loading.loading import read_canvases
from medmoco.errors import ImageError
from medmoco.evaluation.features.inputs import load_splits
from medmoco.segmentation.annotated.cases import Annotated, read_cases, truth_of
from medmoco.segmentation.masks.mask_rows import masked_rows
from medmoco.segmentation.masks.masks import IGNORED, Classes
from medmoco.segmentation.segment import settings_of_run
from tests.helpers.blobs import LARGE, SECRET, SMALL, SPACING, UNSURE, make_settings, write_blobs

CLASSES = Classes(("large", "small"), (LARGE, SMALL), UNSURE)


def read(settings: RunSettings) -> Annotated:
    split = load_splits(settings, ["train"])["train"]
    return read_cases(masked_rows(split, settings.data), CLASSES, settings.data)


@pytest.fixture(scope="module", params=[2, 3])
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    manifest = write_blobs(tmp_path_factory.mktemp("blobs") / "data", request.param)
    return settings_of_run(make_settings(manifest, request.param), Path("run"))


def test_read_cases__canvases_are_those_of_training(settings: RunSettings) -> None:
    annotated = read(settings)
    canvases, _ = read_canvases(annotated.rows.split, np.arange(len(annotated)), settings)
    for case, canvas in zip(annotated.cases, canvases, strict=True):
        np.testing.assert_array_equal(case.canvas.pixels, canvas.pixels)
        assert case.numbers.shape == case.canvas.pixels.shape


def test_read_cases__classes_lie_where_the_image_is_bright(settings: RunSettings) -> None:
    for case in read(settings).cases:
        pixels = np.asarray(case.canvas.pixels, float)
        assert pixels[case.numbers == 1].mean() > 1.8 * pixels[case.numbers == 0].mean()
        for value, places in zip((v for v in case.values if v not in (0, IGNORED)), case.places, strict=True):
            assert set(case.numbers[tuple(places.T)]) == {value}
        assert IGNORED in case.values


def test_read_cases__number_of_threads_does_not_matter(settings: RunSettings) -> None:
    threads = settings.model_copy(update={"data": settings.data.model_copy(update={"workers": 3})})
    for one, other in zip(read(settings).cases, read(threads).cases, strict=True):
        np.testing.assert_array_equal(one.numbers, other.numbers)


def test_truth_of__is_on_the_grid_of_the_image(settings: RunSettings) -> None:
    annotated = read(settings)
    for position, case in enumerate(annotated.cases):
        truth = truth_of(annotated, position, CLASSES, settings.data)
        assert truth.shape == case.grid.shape
        assert case.image.shape == case.grid.shape
        assert case.image.spacing == (SPACING if truth.ndim == 3 else None)
        share = (truth == 1).mean() / (case.numbers[tuple(map(slice, case.grid.size))] == 1).mean()
        assert share == pytest.approx(1, abs=0.15)


def test_read_cases__places_are_limited_and_spread(settings: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(settings).cases[0].places[0]
    monkeypatch.setattr("medmoco.segmentation.annotated.cases._MOST_PLACES", 10)
    few = read(settings).cases[0].places[0]
    assert len(few) <= 10 < len(whole)
    assert np.ptp(few, axis=0).min() > 0


def test_read_cases__names_the_row_and_no_path(settings: RunSettings, tmp_path: Path) -> None:
    annotated = read(settings)
    split = annotated.rows.split
    broken = tmp_path / f"{SECRET}.png"
    broken.write_bytes(b"not an image")
    files = np.array([*split.files[:2], str(broken)], dtype=split.files.dtype)
    rows = replace(annotated.rows, split=replace(split.select(np.arange(3)), files=files))
    with pytest.raises(ImageError, match=r"^train\.csv row 4: ") as caught:
        read_cases(rows, CLASSES, settings.data)
    assert SECRET not in str(caught.value)


def test_read_cases__a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    manifest = write_blobs(tmp_path / "data", 2)
    Image.fromarray(np.zeros((36, 28), np.uint8)).save(manifest / "train" / f"{SECRET}-1-mask.png")
    with pytest.raises(ImageError, match=r"^train\.csv row 3, column Mask: the mask has 28 x 36 pixels, but its image"):
        read(settings_of_run(make_settings(manifest, 2), Path("run")))
