"""COCO's average precision and the FROC, of the images themselves and of draws of patients.

A draw weights each image by how often its patient was drawn. Detections are matched with boxes inside their image, so
a draw changes no match, and the matches are accumulated anew instead of being sought again: that gives what COCO's
evaluation gives for a data set in which the drawn images stand as often as they were drawn (detections of exactly equal
scores in one image aside, which COCO takes in the order in which they come).
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
"""At which precision is averaged. Source: Lin et al. 2014 (arXiv:1405.0312)."""

FALSE_POSITIVES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Per image, at which the FROC is read. Source: Setio et al. 2017 (doi:10.1016/j.media.2017.06.015)."""


def of_images(statistic: Statistic, matches: Matches) -> Floats:
    """Return a statistic of the images as they are."""
    value: Floats = statistic(matches, np.ones((1, len(matches.boxes)), np.int32))[0]
    return value


def of_draws(statistic: Statistic, matches: Matches, patients: NDArray[np.int64], *, draws: int, seed: int) -> Floats:
    """Return a statistic of each of D draws of patients, (D, ...); nan where no box was drawn.

    Args:
        statistic: `average_precisions` or `sensitivities`.
        matches: Of one label.
        patients: (N,) integers, equal for the images of one patient. Equal patients and seed mean equal draws.
        draws: D.
        seed: Of the draws.
    """
    names, codes = np.unique(patients, return_inverse=True)
    cells = max(len(matches.images), len(matches.boxes))
    blocks = draw_counts(names.size, draws=draws, seed=seed, cells=cells)
    return np.concatenate([statistic(matches, counts.take(codes, axis=1)) for _, counts in blocks])


def average_precisions(matches: Matches, weights: Counts) -> Floats:
    """Return the average precision at each of `OVERLAPS`, (b, T).

    Precision at a recall is the highest at that recall or above; it is averaged over `RECALLS`.

    Args:
        matches: D detections and the boxes of N images.
        weights: (b, N) how often each image counts.
    """
    boxes = weights @ matches.boxes  # (b,)
    of_detections = weights.take(matches.images, axis=1)  # (b, D)
    passed = np.cumsum(of_detections, axis=1)
    result = np.zeros((len(weights), len(matches.hits)))
    for overlap, hits in enumerate(matches.hits):
        at = np.flatnonzero(hits)  # recall and the highest precision change nowhere else
        true = np.cumsum(of_detections[:, at], axis=1)  # (b, H)
        precision = ratio(true, passed[:, at])
        np.nan_to_num(precision, copy=False)  # nothing was drawn so far
        highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        for draw, count in enumerate(boxes):
            if len(at) and count:
                places = np.searchsorted(true[draw] / count, RECALLS, "left")
                reached = places[places < len(at)]
                result[draw, overlap] = highest[draw, reached].sum() / len(RECALLS)
    result[boxes == 0] = np.nan
    return result


def sensitivities(matches: Matches, weights: Counts) -> Floats:
    """Return the share of boxes found at each of `FALSE_POSITIVES` per image, (b, F), at the first of `OVERLAPS`.

    It is that of the lowest threshold with no more false positives. Source: Bunch et al. 1977 (doi:10.1117/12.955926).

    Args:
        matches: D detections and the boxes of N images.
        weights: (b, N) how often each image counts.
    """
    boxes, images = weights @ matches.boxes, weights.sum(axis=1)
    of_detections = weights.take(matches.images, axis=1)
    hits = matches.hits[0]
    # Detections of equal scores count together: a threshold cannot part them.
    ends = np.flatnonzero(np.diff(matches.scores, append=-np.inf))
    false = np.cumsum(np.where(hits, 0, of_detections), axis=1)[:, ends]
    true = np.cumsum(np.where(hits, of_detections, 0), axis=1)[:, ends]
    found = np.zeros((len(weights), len(FALSE_POSITIVES)))
    for draw, limit in enumerate(np.outer(images, FALSE_POSITIVES)):
        places = np.searchsorted(false[draw], limit, "right")
        found[draw] = np.concatenate([[0], true[draw]])[places]
    return ratio(found, np.broadcast_to(boxes[:, None], found.shape))
