from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmoco.segmentation.annotated.annotations import load_annotations
from medmoco.segmentation.annotated.cases import truth_of
from medmoco.segmentation.drawing import _FOUND, _TRUTH, _slices, _tile, draw_contours
from medmoco.segmentation.segment import settings_of_run
from tests.helpers.blobs import make_settings, write_blobs


def of_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (np.abs(picture.astype(int) - colour) < 12).all(-1)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_draw_contours__writes_lines_around_the_classes(tmp_path: Path, dimensions: int) -> None:
    manifest = write_blobs(tmp_path / "data", dimensions)
    settings = settings_of_run(make_settings(manifest, dimensions), tmp_path / "run")
    annotations = load_annotations(settings, "random", False)
    val = annotations.splits["val"]
    truths = [truth_of(val, position, annotations.classes, settings.data) for position in range(len(val))]
    moved = [np.roll(np.where(truth == 255, 0, truth), 3, axis=0) for truth in truths]
    draw_contours(val, moved, settings.data, tmp_path / "picture.png")
    picture = np.asarray(Image.open(tmp_path / "picture.png"))[..., :3]
    assert of_colour(picture, _TRUTH).sum() > 100
    assert of_colour(picture, _FOUND).sum() > 100
    width, height = (4, 1) if dimensions == 2 else (3, 4)
    assert picture.shape[1] / picture.shape[0] == pytest.approx(width / height, rel=0.25)


def test_tile__contours_are_where_the_class_is() -> None:
    truth = np.zeros((24, 24), np.uint8)
    truth[6:12, 12:20] = 1
    tile = _tile(np.full((24, 24), 60, np.uint8), truth, np.zeros_like(truth), "row 2")
    rows, columns = np.nonzero(of_colour(tile.pixels, _TRUTH))
    assert (rows.min(), rows.max() + 1) == pytest.approx((60, 120), abs=1)  # a line is two pixels wide
    assert (columns.min(), columns.max() + 1) == pytest.approx((120, 200), abs=1)
    assert not of_colour(tile.pixels, _FOUND).any()


def test_slices__the_head_is_up_and_the_front_too(tmp_path: Path) -> None:
    manifest = write_blobs(tmp_path / "data", 3)
    settings = settings_of_run(make_settings(manifest, 3), tmp_path / "run")
    case = load_annotations(settings, "random", False).splits["val"].cases[0]
    sagittal, coronal, axial = _slices(case, case.numbers, settings.data)
    x, y, z = case.numbers.shape
    assert [one[1].shape for one in (sagittal, coronal, axial)] == [(z, y), (z, x), (y, x)]
    at = case.places[0].mean(0).astype(int)
    assert sagittal[1][z - 1 - at[2], at[1]] == case.numbers[tuple(at)]
    assert axial[1][y - 1 - at[1], at[0]] == case.numbers[tuple(at)]
