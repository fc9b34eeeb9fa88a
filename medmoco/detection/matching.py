"""Match detections with true boxes by COCO's own evaluation (pycocotools)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from medmoco.detection.boxes import Annotated, Corners, Integers
from medmoco.detection.learning import Detections

OVERLAPS = np.linspace(0.5, 0.95, 10)
"""Intersections over union at which a detection counts as a hit. Source: Lin et al. 2014 (arXiv:1405.0312)."""

MOST = 100  # detections per label and image; Source: as above


@dataclass(frozen=True)
class Matches:
    """D detections of one label in N images, from the highest score to the lowest.

    Attributes:
        images: (D,) position of each detection's image.
        scores: (D,)
        hits: (T, D) whether each matches a box that no detection of a higher score matches, at each of `OVERLAPS`.
        boxes: (N,) number of true boxes in each image.
    """

    images: Integers
    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    boxes: Integers


def match(annotated: Annotated, detections: Detections, labels: int) -> list[Matches]:
    """Match the detections and boxes of each label; return L results in order."""
    images = np.arange(len(annotated))
    truth = _as_coco(images, labels, annotated.images, annotated.corners, annotated.labels)
    found = _as_coco(
        images, labels, detections.images, detections.corners, detections.labels, detections.scores
    )  # fmt: skip
    with redirect_stdout(io.StringIO()):  # it prints its progress
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets, evaluation.params.iouThrs = [MOST], OVERLAPS
        evaluation.evaluate()
    by_label = [evaluation.evalImgs[label * len(images) : (label + 1) * len(images)] for label in range(labels)]
    return [
        _matches_of(entries, np.bincount(annotated.images[annotated.labels == label], minlength=len(images)))
        for label, entries in enumerate(by_label)
    ]


def _as_coco(
    images: Integers,
    labels: int,
    of_image: Integers,
    corners: Corners,
    of_label: Integers,
    scores: NDArray[np.float64] | None = None,
) -> COCO:
    sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    # IDs start at 1: pycocotools takes a match with ID 0 for none.
    boxes: list[dict[str, Any]] = [
        {"id": number, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for number, (image, label, box) in enumerate(
            zip(of_image.tolist(), of_label.tolist(), sides.tolist(), strict=True), start=1
        )
    ]
    if scores is not None:
        boxes = [{**box, "score": score} for box, score in zip(boxes, scores.tolist(), strict=True)]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": image} for image in images.tolist()],
        "categories": [{"id": label} for label in range(labels)],
        "annotations": boxes,
    }
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _matches_of(entries: Sequence[dict[str, Any] | None], boxes: Integers) -> Matches:
    """Sort the detections of all images by score, equal scores by image, as COCO does."""
    there = [entry for entry in entries if entry and len(entry["dtScores"])]
    if not there:
        return Matches(np.empty(0, np.int64), np.empty(0), np.empty((len(OVERLAPS), 0), bool), boxes)
    scores = np.concatenate([entry["dtScores"] for entry in there])
    images = np.concatenate([np.full(len(entry["dtScores"]), entry["image_id"]) for entry in there])
    hits = np.concatenate([entry["dtMatches"] > 0 for entry in there], axis=1)
    order = np.argsort(-scores, kind="mergesort")
    return Matches(images[order], scores[order], hits[:, order], boxes)
