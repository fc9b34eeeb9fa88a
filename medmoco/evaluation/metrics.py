"""AUROC and average precision per label, with intervals from a bootstrap over patients.

Every function leaves out rows whose target is missing (nan). A bootstrap is an array of D AUROCs, one per draw of
patients; equal patients and seed mean equal draws. So a difference of two scores is the difference of their arrays, a
mean over labels or over repeats is the mean of theirs, and both keep the pairing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Reals = NDArray[np.floating[Any]]

_BLOCK_CELLS = 2**22  # weights held at once, 32 MiB


class Interval(NamedTuple):
    """A 95 % percentile interval; nan where no draw is defined."""

    low: float
    high: float
    left_out: int
    """Draws that had one class only and could not be scored."""


def undefined(targets: Reals) -> str | None:
    """Return why these targets cannot be scored, or None where they can.

    Args:
        targets: (N,), 1, 0 or nan.
    """
    known = targets[~np.isnan(targets)]
    if not known.size:
        return "undefined (no labelled rows)"
    if not (known == 1).any():
        return "undefined (no positives)"
    if not (known == 0).any():
        return "undefined (no negatives)"
    return None


def auroc(targets: Reals, scores: Reals) -> float:
    """Return the chance that a positive scores above a negative, ties counting half; nan with one class.

    Source: Mann and Whitney 1947 (doi:10.1214/aoms/1177730491); Hanley and McNeil 1982.

    Args:
        targets: (N,), 1, 0 or nan.
        scores: (N,), any unit, higher is more positive.
    """
    positives, negatives = scores[targets == 1], np.sort(scores[targets == 0])
    if not positives.size or not negatives.size:
        return float("nan")
    below = np.searchsorted(negatives, positives, "left")
    below_or_equal = np.searchsorted(negatives, positives, "right")
    return float((below + below_or_equal).mean() / (2 * negatives.size))


def average_precision(targets: Reals, scores: Reals) -> float:
    """Return the average precision, not interpolated; nan with one class. Arguments as for `auroc`."""
    if undefined(targets):
        return float("nan")
    known = ~np.isnan(targets)
    return float(average_precision_score(targets[known], scores[known]))


def bootstrap_auroc(targets: Reals, scores: Reals, patients: Integers, *, draws: int, seed: int) -> Floats:
    """Return the AUROC of each of D draws of patients, with replacement; nan where a draw has one class.

    Patients are drawn, not rows: the images of one patient are not independent. A draw weights every row by how often
    its patient was drawn, so that two sorts serve all draws. All the patients given are drawn from, also those whose
    every target is missing, so that labels share their draws.

    Args:
        targets: (N,), 1, 0 or nan.
        scores: (N,), finite.
        patients: (N,) integers, equal for the rows of one patient.
        draws: D.
        seed: Of the draws.

    Returns:
        (D,) float64.
    """
    names, patients = np.unique(patients, return_inverse=True)
    result = np.full(draws, np.nan)
    if undefined(targets):
        return result
    positives, negatives = (rows[np.argsort(scores[rows], kind="stable")] for rows in _classes(targets))
    below = np.searchsorted(scores[negatives], scores[positives], "left")
    below_or_equal = np.searchsorted(scores[negatives], scores[positives], "right")
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_CELLS // targets.size)
    for start in range(0, draws, block):
        counts = _draw_patients(generator, min(block, draws - start), names.size)  # (b, patients)
        positive = counts[:, patients[positives]]  # (b, P)
        negative = counts[:, patients[negatives]]  # (b, Q)
        passed = np.zeros((len(counts), negatives.size + 1), np.int64)  # weight of the lowest 0..Q negatives
        np.cumsum(negative, axis=1, out=passed[:, 1:])
        wins = (positive * (passed[:, below] + passed[:, below_or_equal])).sum(axis=1)  # twice the Mann-Whitney U
        pairs = positive.sum(axis=1) * passed[:, -1]
        np.divide(wins, 2 * pairs, out=result[start : start + block], where=pairs > 0)
    return result


def _classes(targets: Reals) -> tuple[Integers, Integers]:
    return np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)


def _draw_patients(generator: np.random.Generator, draws: int, patients: int) -> Integers:
    """Draw patients with replacement; return how often each was drawn, (draws, patients)."""
    drawn = generator.integers(patients, size=(draws, patients))
    drawn += np.arange(draws)[:, None] * patients
    return np.bincount(drawn.ravel(), minlength=draws * patients).reshape(draws, patients)


def interval(bootstrap: Floats) -> Interval:
    """Return the 2.5th and 97.5th percentile of a bootstrap's defined draws.

    Source: Efron and Tibshirani 1993, chapter 13.

    Args:
        bootstrap: (D,), AUROCs or their differences.
    """
    defined = bootstrap[~np.isnan(bootstrap)]
    left_out = bootstrap.size - defined.size
    if not defined.size:
        return Interval(float("nan"), float("nan"), left_out)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(low), float(high), left_out)


def majority_flag(targets: Reals, scores: Reals, threshold: float) -> str | None:
    """Return a warning where a score may have learned nothing, else None.

    A constant score, or decisions whose accuracy is just the share of the larger class, look like a result and are
    none. With a rare label the second also happens to a score that ranks well: it is a reason to look, not a verdict.

    Args:
        targets: (N,), 1, 0 or nan.
        scores: (N,).
        threshold: Scores at or above it decide for positive.
    """
    known = ~np.isnan(targets)
    if not known.any():
        return None
    targets, scores = targets[known], scores[known]
    if (scores == scores[0]).all():
        return "all scores are equal"
    correct = int(((scores >= threshold) == (targets == 1)).sum())
    positives = int((targets == 1).sum())
    return "accuracy equals the majority share" if correct == max(positives, targets.size - positives) else None
