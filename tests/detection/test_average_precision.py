"""COCO's numbers by pycocotools itself, of the images and of data sets in which drawn images stand several times."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from medmoco.detection.average_precision import (
    FALSE_POSITIVES,
    average_precisions,
    of_draws,
    of_images,
    sensitivities,
)
from medmoco.detection.boxes import Annotated
from medmoco.detection.learning import Detections
from medmoco.detection.matching import OVERLAPS, Matches, _as_coco, match
from tests.helpers.rectangles import made_up


def by_coco(annotated: Annotated, found: Detections, images: int) -> np.ndarray:
    """Return pycocotools' own average precision of label 0 at each overlap."""
    every = np.arange(images)
    truth = _as_coco(every, 2, annotated.images, annotated.corners, annotated.labels)
    results = _as_coco(every, 2, found.images, found.corners, found.labels, found.scores)
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, results, "bbox")
        evaluation.params.iouThrs = OVERLAPS
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, 0, -1].mean(axis=1)


def repeated(annotated: Annotated, found: Detections, counts: np.ndarray) -> tuple[Annotated, Detections, int]:
    """Return a data set in which each image stands as often as a draw has it, side by side."""
    copies = np.repeat(np.arange(len(counts)), counts)
    own = [np.flatnonzero(annotated.images == image) for image in copies]
    theirs = [np.flatnonzero(found.images == image) for image in copies]
    places, boxes = np.repeat(np.arange(len(copies)), [len(each) for each in own]), np.concatenate(own)
    where, rows = np.repeat(np.arange(len(copies)), [len(each) for each in theirs]), np.concatenate(theirs)
    return (
        Annotated(
            annotated.split, np.full((len(copies), 2), 100), places, annotated.corners[boxes], annotated.labels[boxes]
        ),
        Detections(where, found.corners[rows], found.labels[rows], found.scores[rows]),
        len(copies),
    )


@pytest.mark.parametrize("seed", range(3))
def test_average_precisions__of_images_are_pycocotools(seed: int) -> None:
    annotated, found = made_up(seed)
    ours = of_images(average_precisions, match(annotated, found, 2)[0])
    np.testing.assert_allclose(ours, by_coco(annotated, found, 30), atol=1e-12)
    assert ours[0] > 0.1


def test_average_precisions__of_draws_are_pycocotools_on_repeated_images() -> None:
    annotated, found = made_up(3)
    matches = match(annotated, found, 2)[0]
    drawn = of_draws(average_precisions, matches, annotated.split.patients, draws=6, seed=7)
    generator = np.random.default_rng(7)
    for draw, patients in zip(drawn, generator.integers(10, size=(6, 10)), strict=True):
        counts = np.bincount(patients, minlength=10)[annotated.split.patients]
        np.testing.assert_allclose(draw, by_coco(*repeated(annotated, found, counts)), atol=1e-12)


def plain_sensitivity(matches: Matches, weights: np.ndarray, limit: float) -> float:
    best = 0.0
    for threshold in [np.inf, *matches.scores]:
        above = matches.scores >= threshold
        false = weights[matches.images[above & ~matches.hits[0]]].sum() / weights.sum()
        if false <= limit:
            best = max(best, weights[matches.images[above & matches.hits[0]]].sum() / (weights @ matches.boxes))
    return best


def test_sensitivities__equal_a_plain_loop_over_thresholds() -> None:
    annotated, found = made_up(4)
    matches = match(annotated, found, 2)[1]
    weights = np.random.default_rng(0).integers(0, 3, (4, 30)).astype(np.int32)
    ours = sensitivities(matches, weights)
    for own, given in zip(ours, weights, strict=True):
        assert own.tolist() == pytest.approx([plain_sensitivity(matches, given, limit) for limit in FALSE_POSITIVES])
    assert (np.diff(ours) >= 0).all()
    assert ours[0, 0] < ours[0, -1]


def test_draws__without_a_box_are_undefined() -> None:
    matches = Matches(np.array([0]), np.array([0.5]), np.ones((10, 1), bool), np.array([1, 0]))
    weights = np.array([[0, 2], [1, 1], [2, 0]], np.int32)
    assert np.isnan(average_precisions(matches, weights)[0]).all()
    assert average_precisions(matches, weights)[1:].tolist() == [[1.0] * 10] * 2
    assert np.isnan(sensitivities(matches, weights)[0]).all()
    assert sensitivities(matches, weights)[1:].tolist() == [[1.0] * 7] * 2


def test_statistics__of_nothing_found_are_zero() -> None:
    matches = Matches(np.empty(0, np.int64), np.empty(0), np.empty((10, 0), bool), np.array([1, 0]))
    assert of_images(average_precisions, matches).tolist() == [0.0] * 10
    assert of_images(sensitivities, matches).tolist() == [0.0] * 7
