from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmoco.plotting.pictures import FOUND, TRUTH
from medmoco.segmentation.annotated.annotations import load_annotations
from medmoco.segmentation.annotated.cases import truth_of
from medmoco.segmentation.drawing import _slices, _tile, choose, draw_contours
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
    draw_contours(val, dict(enumerate(moved)), settings.data, tmp_path / "picture.png")
    picture = np.asarray(Image.open(tmp_path / "picture.png"))[..., :3]
    assert of_colour(picture, TRUTH).sum() > 100
    assert of_colour(picture, FOUND).sum() > 100
    width, height = (4, 1) if dimensions == 2 else (3, 4)
    assert picture.shape[1] / picture.shape[0] == pytest.approx(width / height, rel=0.25)


def test_tile__contours_are_where_the_class_is() -> None:
    truth = np.zeros((24, 24), np.uint8)
    truth[6:12, 12:20] = 1
    tile = _tile(np.full((24, 24), 60, np.uint8), truth, np.zeros_like(truth), "row 2")
    rows, columns = np.nonzero(of_colour(tile.pixels, TRUTH))
    assert (rows.min(), rows.max() + 1) == pytest.approx((60, 120), abs=1)  # a line is two pixels wide
    assert (columns.min(), columns.max() + 1) == pytest.approx((120, 200), abs=1)
    assert not of_colour(tile.pixels, FOUND).any()


def test_slices__are_as_radiologists_view_them(tmp_path: Path) -> None:
    """The patient's right is on the left, the front at the top or on the left, and the head up."""
    manifest = write_blobs(tmp_path / "data", 3)
    settings = settings_of_run(make_settings(manifest, 3), tmp_path / "run")
    case = load_annotations(settings, "random", False).splits["val"].cases[0]
    axial, coronal, sagittal = _slices(case, case.numbers, settings.data)
    x, y, z = case.numbers.shape
    assert [one[1].shape for one in (axial, coronal, sagittal)] == [(y, x), (z, x), (z, y)]
    right, front, head = case.places[0].mean(0).astype(int).tolist()
    for place in ((0, 0, 0), (4, 0, 0), (0, 4, 0), (0, 0, 4)):  # voxels to the right, to the front and to the head
        i, j, k = (at + step for at, step in zip((right, front, head), place, strict=True))
        for number, volume in ((0, case.canvas.pixels), (1, case.numbers)):
            if k == head:
                assert axial[number][y - 1 - j, x - 1 - i] == volume[i, j, k]
            if j == front:
                assert coronal[number][z - 1 - k, x - 1 - i] == volume[i, j, k]
            if i == right:
                assert sagittal[number][z - 1 - k, y - 1 - j] == volume[i, j, k]


def test_choose__images_that_show_a_class(tmp_path: Path) -> None:
    manifest = write_blobs(tmp_path / "data", 2)
    val = load_annotations(settings_of_run(make_settings(manifest, 2), tmp_path / "run"), "random", False).splits["val"]
    assert choose(val) == [0, 1, 2, 3]
    without = replace(val.cases[1], places=())
    assert choose(replace(val, cases=(val.cases[0], without, *val.cases[2:]))) == [0, 2, 3]
    assert choose(replace(val, cases=(without,) * 20)) == [0, 2, 5, 8, 10, 13, 16, 19]
