"""AUROC and average precision per label, with intervals from a bootstrap over patients.

Every function leaves out rows whose target is missing (nan). A bootstrap is an array of D AUROCs, one per draw of
patients; equal patients and seed mean equal draws. So a difference of two scores is the difference of their arrays, a
mean over labels or over repeats is the mean of theirs, and both keep the pairing. `share_interval` is for what lies
between 0 and 1, `interval` for differences; docs/statistics.md has their measured coverage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Counts = NDArray[np.int32]
Reals = NDArray[np.floating[Any]]

_Z = NormalDist().inv_cdf(0.975)
_BLOCK_CELLS = 2**16  # weights held at once, 256 KiB: what does not fit the cache takes two to three times as long


class Interval(NamedTuple):
    """A 95 % interval; nan where there is none."""

    low: float
    high: float
    left_out: int
    """Draws that had one class only and could not be scored."""


def or_none(value: float | np.floating[Any]) -> float | None:
    """Return a number as strict JSON has it: None for nan."""
    return None if np.isnan(value) else float(value)


def ratio(numerators: NDArray[Any], denominators: NDArray[Any]) -> Floats:
    """Divide arrays of counts of equal shape; nan where there is nothing to divide by."""
    result: Floats = np.full(numerators.shape, np.nan)
    np.divide(numerators, denominators, out=result, where=denominators > 0)
    return result


def as_scores(values: Reals) -> Floats:
    """Round what ranks images to float32, before anything ranks it or writes it down.

    Sums in another order, as with another batch size, number of threads or CPU, differ in the last bits of float64.
    Those would count as an order of images whose scores are equal. Nine digits, as files have them, tell any two
    float32 numbers apart, so that a score and what is computed from the file agree.
    """
    return values.astype(np.float32).astype(np.float64)


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
    return _bootstrap(_auroc_of_draws, targets, scores, patients, draws, seed)


def bootstrap_average_precision(targets: Reals, scores: Reals, patients: Integers, *, draws: int, seed: int) -> Floats:
    """Return the average precision of each of D draws of patients. Everything else is as for `bootstrap_auroc`."""
    return _bootstrap(_average_precision_of_draws, targets, scores, patients, draws, seed)


def draw_counts(patients: int, *, draws: int, seed: int, cells: int) -> Iterator[tuple[slice, Counts]]:
    """Draw patients with replacement, a block of draws at a time, and count how often each was drawn.

    Args:
        patients: How many there are, and how many a draw takes.
        draws: D.
        seed: Of the draws, which do not depend on the size of the blocks.
        cells: What the caller holds for each draw of a block, in numbers; it limits the block.

    Yields:
        Which of the D draws, and (b, patients) int32.
    """
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_CELLS // max(cells, patients))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        drawn = generator.integers(patients, size=(size, patients))
        drawn += np.arange(size)[:, None] * patients
        counts = np.bincount(drawn.ravel(), minlength=size * patients).reshape(size, patients)
        yield slice(start, start + size), counts.astype(np.int32)


class _Ranks(NamedTuple):
    """The order of P positives and Q negatives, each from the lowest score to the highest."""

    positives: Integers
    """(P,) rows."""
    negatives: Integers
    """(Q,) rows."""
    positives_below: Integers
    """(P,): how many of the positives score below each."""
    below: Integers
    """(P,): how many of the negatives score below each positive."""
    below_or_equal: Integers
    """(P,)"""


def _rank(targets: Reals, scores: Reals) -> _Ranks:
    classes = (np.flatnonzero(targets == value) for value in (1, 0))
    positives, negatives = (rows[np.argsort(scores[rows], kind="stable")] for rows in classes)
    sought = scores[positives]
    return _Ranks(
        positives,
        negatives,
        np.searchsorted(sought, sought, "left"),
        np.searchsorted(scores[negatives], sought, "left"),
        np.searchsorted(scores[negatives], sought, "right"),
    )


def _bootstrap(
    statistic: Callable[[_Ranks, Counts, Counts], Floats],
    targets: Reals,
    scores: Reals,
    patients: Integers,
    draws: int,
    seed: int,
) -> Floats:
    """Apply a statistic to the ranks and the weights of b draws: (b, P) of positives, (b, Q) of negatives."""
    result = np.full(draws, np.nan)
    if undefined(targets):
        return result
    names, codes = np.unique(patients, return_inverse=True)
    ranks = _rank(targets, scores)
    of_positives, of_negatives = codes[ranks.positives], codes[ranks.negatives]
    for block, counts in draw_counts(names.size, draws=draws, seed=seed, cells=targets.size):
        weights = counts.take(of_positives, axis=1), counts.take(of_negatives, axis=1)
        result[block] = statistic(ranks, *weights)
    return result


def _auroc_of_draws(ranks: _Ranks, positive: Counts, negative: Counts) -> Floats:
    passed = _accumulate(negative)
    wins = passed.take(ranks.below, axis=1).astype(np.int64) + passed.take(ranks.below_or_equal, axis=1)
    twice_u = np.einsum("bp,bp->b", positive, wins)  # of Mann and Whitney
    pairs = positive.sum(axis=1) * passed[:, -1].astype(np.int64)
    return ratio(twice_u, 2 * pairs)


def _average_precision_of_draws(ranks: _Ranks, positive: Counts, negative: Counts) -> Floats:
    """Every positive adds the precision at its score, at or above which rows of equal scores count together."""
    passed, passed_positive = _accumulate(negative), _accumulate(positive)
    true = passed_positive[:, -1:] - passed_positive.take(ranks.positives_below, axis=1)
    false = passed[:, -1:] - passed.take(ranks.below, axis=1)
    precision = true / np.maximum(true + false, 1)  # 0 of 0 rows: none of them was drawn, and weighs nothing
    has_both = passed[:, -1] > 0  # without positives there is nothing to divide by
    return ratio(np.einsum("bp,bp->b", positive, precision), np.where(has_both, passed_positive[:, -1], 0))


def _accumulate(weights: Counts) -> Counts:
    """Return (b, n + 1): the weight of the first 0 to n."""
    passed = np.zeros((len(weights), weights.shape[1] + 1), np.int32)
    np.cumsum(weights, axis=1, out=passed[:, 1:])
    return passed


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


def share_interval(value: float, bootstrap: Floats) -> Interval:
    """Return the interval of an AUROC, average precision or share: symmetric in log-odds around the value itself.

    Its width is the standard deviation of the draws' log-odds. Near 1 or with few patients its empirical coverage is
    better than that of percentiles, which lie too high there. Draws of 0 or 1 count as the most extreme of the others.

    Source: Efron and Tibshirani 1993, section 12.6, on transformed normal intervals; Pepe 2003, section 5.2.

    Args:
        value: Of the sample itself.
        bootstrap: (D,) draws of it, nan where undefined.

    Returns:
        nan to nan where the value is 0, 1 or nan, as the draws do not vary.
    """
    defined = bootstrap[~np.isnan(bootstrap)]
    left_out = bootstrap.size - defined.size
    inside = defined[(defined > 0) & (defined < 1)]
    if not inside.size or not 0 < value < 1:
        return Interval(float("nan"), float("nan"), left_out)
    width = _Z * float(np.std(_log_odds(np.clip(defined, inside.min(), inside.max()))))
    low, high = (float(1 / (1 + np.exp(-(_log_odds(value) + side)))) for side in (-width, width))
    return Interval(low, high, left_out)


def _log_odds(shares: Any) -> Any:
    return np.log(shares) - np.log1p(-shares)


def majority_flag(targets: Reals, scores: Reals, threshold: float) -> str | None:
    """Return a warning where a score may have learned nothing, else None.

    A constant score, or decisions with exactly the accuracy of always choosing the larger class, are not a result.
    With a rare label the second also happens to a score that ranks well: it is a reason to check, not a verdict.

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
