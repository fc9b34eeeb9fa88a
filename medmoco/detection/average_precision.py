"""COCO's average precision and the FROC, for all images and for bootstrap draws of patients.

A draw weights each image by how often its patient was drawn. Detections are matched with boxes within their image, so a
draw does not change the matches; they are only accumulated again. The result is that of COCO's evaluation on a data set
with copies of the drawn images (except for detections of equal scores in one image, whose order COCO keeps).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from medmoco.detection.matching import Matches
from medmoco.evaluation.metrics.auroc import draw_counts, ratio

Floats = NDArray[np.float64]
Counts = NDArray[np.int32]
Statistic = Callable[[Matches, Counts], Floats]  # of weights (b, N) of the images, (b, ...)

RECALLS = np.linspace(0.0, 1.0, 101)
"""Recalls at which precision is averaged. Source: Lin et al. 2014 (arXiv:1405.0312)."""

FALSE_POSITIVES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per image at which the FROC is read. Source: Setio et al. 2017 (doi:10.1016/j.media.2017.06.015)."""


def of_images(statistic: Statistic, matches: Matches) -> Floats:
    """Return a statistic of all images, unweighted."""
    value: Floats = statistic(matches, np.ones((1, len(matches.boxes)), np.int32))[0]
    return value


def of_draws(statistic: Statistic, matches: Matches, patients: NDArray[np.int64], *, draws: int, seed: int) -> Floats:
    """Return a statistic of each of D draws of patients, (D, ...); nan if no box was drawn.

    Args:
        statistic: `average_precisions` or `sensitivities`.
        matches: Matches of one label.
        patients: (N,) integers, equal for images of one patient. Equal patients and seed give equal draws.
        draws: D.
        seed: Seed of the draws.
    """
    names, codes = np.unique(patients, return_inverse=True)
    cells = max(len(matches.images), len(matches.boxes))
    blocks = draw_counts(names.size, draws=draws, seed=seed, cells=cells)
    return np.concatenate([statistic(matches, counts.take(codes, axis=1)) for _, counts in blocks])


def average_precisions(matches: Matches, weights: Counts) -> Floats:
    """Return the average precision at each of `OVERLAPS`, (b, T), for weights (b, N) of the images.

    Precision at a recall is the highest at that recall or above; it is averaged over `RECALLS`.
    """
    boxes = weights @ matches.boxes  # (b,)
    of_detections = weights.take(matches.images, axis=1)  # (b, D)
    passed = np.cumsum(of_detections, axis=1)
    result = np.zeros((len(weights), len(matches.hits)))
    for overlap, hits in enumerate(matches.hits):
        at = np.flatnonzero(hits)  # recall and highest precision change only there
        true = np.cumsum(of_detections[:, at], axis=1)  # (b, H)
        precision = ratio(true, passed[:, at])
        np.nan_to_num(precision, copy=False)  # no detection was drawn yet
        highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        for draw, count in enumerate(boxes):
            if len(at) and count:
                places = np.searchsorted(true[draw] / count, RECALLS, "left")
                reached = places[places < len(at)]
                result[draw, overlap] = highest[draw, reached].sum() / len(RECALLS)
    result[boxes == 0] = np.nan
    return result


def sensitivities(matches: Matches, weights: Counts) -> Floats:
    """Return the sensitivity at each of `FALSE_POSITIVES` per image, (b, F), for weights (b, N) of the images.

    The overlap is the first of `OVERLAPS`, the threshold the lowest one without more false positives.

    Source: Bunch et al. 1977 (doi:10.1117/12.955926).
    """
    boxes, images = weights @ matches.boxes, weights.sum(axis=1)
    of_detections = weights.take(matches.images, axis=1)
    hits = matches.hits[0]
    # Detections of equal scores count together, because no threshold separates them.
    ends = np.flatnonzero(np.diff(matches.scores, append=-np.inf))
    false = np.cumsum(np.where(hits, 0, of_detections), axis=1)[:, ends]
    true = np.cumsum(np.where(hits, of_detections, 0), axis=1)[:, ends]
    found = np.zeros((len(weights), len(FALSE_POSITIVES)))
    for draw, limit in enumerate(np.outer(images, FALSE_POSITIVES)):
        places = np.searchsorted(false[draw], limit, "right")
        found[draw] = np.concatenate([[0], true[draw]])[places]
    return ratio(found, np.broadcast_to(boxes[:, None], found.shape))
