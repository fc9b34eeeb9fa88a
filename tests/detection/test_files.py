from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medmoco.detection.boxes import Annotations, load_annotations
from medmoco.detection.files import DETECTIONS, FACTS, read_detections, write_detections
from medmoco.detection.learning import Detections
from medmoco.errors import CheckpointError, SettingsError
from tests.helpers.rectangles import SECRET, make_settings, write_images

FOUND = Detections(
    np.array([0, 0, 3]), np.array([[0.5, 1, 2, 3], [4, 5, 6, 7], [1 / 3, 0, 9, 9]]), np.array([1, 0, 1]),
    np.array([0.25, 0.5, 1 / 3]),
)  # fmt: skip


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    return load_annotations(make_settings(write_images(tmp_path / "data")), ("train", "val"))


def test_detections__are_read_as_they_were_written(annotations: Annotations, tmp_path: Path) -> None:
    write_detections(tmp_path, {"val": FOUND}, annotations, {"kind": "random"})
    lines = (tmp_path / DETECTIONS).read_text().splitlines()
    assert lines[0] == "split,row,label,score,x_min,y_min,x_max,y_max"
    assert lines[1] == "val,2,Nodule,0.25,0.5,1,2,3"
    again, kind = read_detections(tmp_path, annotations, ["val"])
    assert kind == "random"
    assert again["val"].images.tolist() == FOUND.images.tolist()
    assert again["val"].labels.tolist() == FOUND.labels.tolist()
    np.testing.assert_allclose(again["val"].corners, FOUND.corners, rtol=1e-8)
    np.testing.assert_allclose(again["val"].scores, FOUND.scores, rtol=1e-8)
    for file in (DETECTIONS, FACTS):
        assert SECRET not in (tmp_path / file).read_text()


def test_read_detections__refuses_others_images_boxes_and_labels(annotations: Annotations, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="name the folder of a finished detection run"):
        read_detections(tmp_path, annotations, ["val"])
    write_detections(tmp_path, {"val": FOUND}, annotations, {"kind": "random"})
    facts = json.loads((tmp_path / FACTS).read_text())
    for change in ({"labels": ["Mass"]}, {"boxes_sha256": "0"}, {"splits": {}}):
        (tmp_path / FACTS).write_text(json.dumps(facts | change))
        with pytest.raises(SettingsError, match="was evaluated on other images, boxes or labels"):
            read_detections(tmp_path, annotations, ["val"])
    (tmp_path / FACTS).write_text(json.dumps(facts))
    text = (tmp_path / DETECTIONS).read_text()
    (tmp_path / DETECTIONS).write_text(text.replace("val,2,", "val,999,"))
    with pytest.raises(CheckpointError, match=r"detections\.csv is damaged"):
        read_detections(tmp_path, annotations, ["val"])
