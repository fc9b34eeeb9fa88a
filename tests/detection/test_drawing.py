from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmoco.detection.boxes import load_annotations
from medmoco.detection.drawing import choose, draw_detections, paint
from medmoco.detection.learning import Detections
from medmoco.plotting.pictures import FOUND, TRUTH, enlarged
from tests.helpers.rectangles import make_settings, write_images


@pytest.mark.parametrize("bits", [8, 16])
def test_draw_detections__shows_both_kinds_of_boxes(tmp_path: Path, bits: int) -> None:
    settings = make_settings(write_images(tmp_path / "data"), "data.canvas_size=64", f"data.bit_depth={bits}")
    annotations = load_annotations(settings, ("train", "val"))
    found = Detections(np.array([1]), np.array([[2.0, 3, 40, 44]]), np.array([0]), np.array([0.9]))
    out = tmp_path / "boxes.png"
    draw_detections(annotations.splits["val"], found, annotations.labels, settings, out)
    pixels = np.asarray(Image.open(out).convert("RGB")).astype(int)
    for colour in (TRUTH, FOUND):
        assert (np.abs(pixels - colour).max(axis=2) < 40).sum() > 20


def test_choose__images_with_and_without_boxes(tmp_path: Path) -> None:
    annotated = load_annotations(make_settings(write_images(tmp_path / "data")), ("train", "val")).splits["train"]
    positions = choose(annotated)
    has_box = np.isin(positions, annotated.images)
    assert (len(set(positions.tolist())), has_box.sum()) == (8, 6)
    few = choose(
        type(annotated)(annotated.split, annotated.sizes[:3], np.array([1]), annotated.corners[:1], np.array([0]))
    )
    assert sorted(few.tolist()) == [0, 1, 2]


def test_paint__edges_are_those_of_the_box() -> None:
    picture = enlarged(np.zeros((10, 20), np.uint8))
    assert picture.shape == (120, 240, 3)
    paint(picture, np.array([[100.0, 20, 200, 90]]), FOUND)
    y, x = np.nonzero(picture.any(axis=2))
    assert (x.min(), x.max() + 1, y.min(), y.max() + 1) == (99, 201, 19, 91)  # the line is two pixels wide, and centred
