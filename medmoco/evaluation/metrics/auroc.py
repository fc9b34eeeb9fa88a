"""AUROC and average precision per label, with intervals from a bootstrap over patients.

Rows with a missing target (nan) are left out. A bootstrap is an array of D AUROCs, one per draw of patients; with the
same patients and seed, the draws are the same. So the bootstrap of a difference is the difference of two arrays, that
of a mean over labels or repeats is the mean of their arrays, and the pairing is kept. `share_interval` is for values
between 0 and 1, `interval` for differences; docs/statistics.md has their empirical coverage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Counts = NDArray[np.int32]
Reals = NDArray[np.floating[Any]]

_Z = NormalDist().inv_cdf(0.975)
_BLOCK_CELLS = 2**16  # weights in memory at once, 256 KiB, to fit into the cache, which is two to three times faster


class Interval(NamedTuple):
    """A 95 % interval; nan if undefined."""

    low: float
    high: float
    left_out: int
    """Draws with only one class, which have no score."""


def or_none(value: float | np.floating[Any]) -> float | None:
    """Return a number for strict JSON: None for nan."""
    return None if np.isnan(value) else float(value)


def ratio(numerators: NDArray[Any], denominators: NDArray[Any]) -> Floats:
    """Divide arrays of counts of equal shape; nan where the denominator is 0."""
    result: Floats = np.full(numerators.shape, np.nan)
    np.divide(numerators, denominators, out=result, where=denominators > 0)
    return result


def as_scores(values: Reals) -> Floats:
    """Round scores to float32, before they are ranked or written.

    The last bits of float64 depend on the order of summation, as with another batch size, number of threads or CPU, and
    would rank images whose scores are equal. The nine digits in files distinguish all float32 numbers, so metrics
    computed from a file agree.
    """
    return values.astype(np.float32).astype(np.float64)


def undefined(targets: Reals) -> str | None:
    """Return why targets (N,), 1, 0 or nan, cannot be scored; None if they can."""
    known = targets[~np.isnan(targets)]
    if not known.size:
        return "undefined (no labelled rows)"
    if not (known == 1).any():
        return "undefined (no positives)"
    if not (known == 0).any():
        return "undefined (no negatives)"
    return None


def auroc(targets: Reals, scores: Reals) -> float:
    """Return the probability that a positive scores above a negative, ties counting half; nan with one class.

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
    """Return the average precision without interpolation; nan with one class. Arguments are those of `auroc`."""
    from sklearn.metrics import average_precision_score  # not at the top: scikit-learn takes a second to import

    if undefined(targets):
        return float("nan")
    known = ~np.isnan(targets)
    return float(average_precision_score(targets[known], scores[known]))


def bootstrap_auroc(targets: Reals, scores: Reals, patients: Integers, *, draws: int, seed: int) -> Floats:
    """Return the AUROC of D bootstrap draws of patients, (D,) float64; nan for draws with one class.

    Patients are drawn, since the images of one patient are not independent. A draw weights each row by how often its
    patient was drawn, so that rows are sorted only once for all draws. Patients without known targets are drawn too, so
    that all labels share the draws.

    Args:
        targets: (N,), 1, 0 or nan.
        scores: (N,), finite.
        patients: (N,) integers, equal for the rows of one patient.
        draws: Number of draws, D.
        seed: Random seed.
    """
    return _bootstrap(_auroc_of_draws, targets, scores, patients, draws, seed)


def bootstrap_average_precision(targets: Reals, scores: Reals, patients: Integers, *, draws: int, seed: int) -> Floats:
    """Return the average precision of D bootstrap draws of patients; see `bootstrap_auroc`."""
    return _bootstrap(_average_precision_of_draws, targets, scores, patients, draws, seed)


def draw_counts(patients: int, *, draws: int, seed: int, cells: int) -> Iterator[tuple[slice, Counts]]:
    """Draw patients with replacement, in blocks of draws, and count how often each was drawn.

    Args:
        patients: Number of patients, and of those in a draw.
        draws: Number of draws, D.
        seed: Random seed; the draws do not depend on the size of the blocks.
        cells: Numbers that the caller has in memory for each draw of a block, which limit its size.

    Yields:
        The slice of the D draws, and the counts (b, patients) int32.
    """
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK_CELLS // max(cells, patients))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        drawn = generator.integers(patients, size=(size, patients))
        drawn += np.arange(size)[:, None] * patients
        counts = np.bincount(drawn.ravel(), minlength=size * patients).reshape(size, patients)
        yield slice(start, start + size), counts.astype(np.int32)


def bootstrap_sums(columns: Reals, patients: Integers, *, draws: int, seed: int) -> Floats:
    """Return the sums of columns (N, k) over the rows of D bootstrap draws of patients, (D, k).

    The draws are those of `bootstrap_auroc`.
    """
    names, codes = np.unique(patients, return_inverse=True)
    totals = np.stack([np.bincount(codes, column, minlength=names.size) for column in columns.T], axis=1)
    sums = np.empty((draws, columns.shape[1]))
    for block, counts in draw_counts(names.size, draws=draws, seed=seed, cells=names.size):
        sums[block] = counts @ totals
    return sums


class _Ranks(NamedTuple):
    """The order of P positives and Q negatives, by ascending score."""

    positives: Integers
    """(P,) rows."""
    negatives: Integers
    """(Q,) rows."""
    positives_below: Integers
    """(P,) number of positives with a lower score than each positive."""
    below: Integers
    """(P,) number of negatives with a lower score than each positive."""
    below_or_equal: Integers
    """(P,)"""


def _rank(targets: Reals, scores: Reals) -> _Ranks:
    classes = (np.flatnonzero(targets == value) for value in (1, 0))
    positives, negatives = (rows[np.argsort(scores[rows], kind="stable")] for rows in classes)
    high, low = scores[positives], scores[negatives]
    counts = np.searchsorted(high, high), np.searchsorted(low, high), np.searchsorted(low, high, "right")
    return _Ranks(positives, negatives, *counts)


def _bootstrap(
    statistic: Callable[[_Ranks, Counts, Counts], Floats],
    targets: Reals,
    scores: Reals,
    patients: Integers,
    draws: int,
    seed: int,
) -> Floats:
    """Apply a statistic to the ranks and to blocks of weights, (b, P) of positives and (b, Q) of negatives."""
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
    """Average the precision at the score of every positive; rows with equal scores count together."""
    passed, passed_positive = _accumulate(negative), _accumulate(positive)
    true = passed_positive[:, -1:] - passed_positive.take(ranks.positives_below, axis=1)
    false = passed[:, -1:] - passed.take(ranks.below, axis=1)
    precision = true / np.maximum(true + false, 1)  # 0 of 0 rows were drawn: the weight is 0
    has_both = passed[:, -1] > 0  # without positives, the denominator is 0
    return ratio(np.einsum("bp,bp->b", positive, precision), np.where(has_both, passed_positive[:, -1], 0))


def _accumulate(weights: Counts) -> Counts:
    """Return the cumulative weight of the first 0 to n rows, (b, n + 1)."""
    passed = np.zeros((len(weights), weights.shape[1] + 1), np.int32)
    np.cumsum(weights, axis=1, out=passed[:, 1:])
    return passed


def interval(bootstrap: Floats) -> Interval:
    """Return the 2.5th and 97.5th percentile of the defined draws of a bootstrap (D,).

    Source: Efron and Tibshirani 1993, chapter 13.
    """
    defined = bootstrap[~np.isnan(bootstrap)]
    left_out = bootstrap.size - defined.size
    if not defined.size:
        return Interval(float("nan"), float("nan"), left_out)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(low), float(high), left_out)


def share_interval(value: float, bootstrap: Floats) -> Interval:
    """Return the interval of an AUROC, average precision or proportion, symmetric in log-odds around the value.

    Its width is the standard deviation of the draws' log-odds. Near 1 or with few patients, its empirical coverage is
    better than that of percentiles, which are too high there. Draws of 0 or 1 count as the most extreme of the others.

    Source: Efron and Tibshirani 1993, section 12.6, on transformed normal intervals; Pepe 2003, section 5.2.

    Args:
        value: Value for the sample; the interval is nan if it is 0, 1 or nan, since the draws do not vary.
        bootstrap: (D,) values for the draws, nan where undefined.
    """
    defined = bootstrap[~np.isnan(bootstrap)]
    left_out = bootstrap.size - defined.size
    inside = defined[(defined > 0) & (defined < 1)]
    if not inside.size or not 0 < value < 1:
        return Interval(float("nan"), float("nan"), left_out)
    width = _Z * float(np.std(_log_odds(np.clip(defined, inside.min(), inside.max()))))
    low, high = (float(1 / (1 + np.exp(-(_log_odds(value) + side)))) for side in (-width, width))
    return Interval(low, high, left_out)


def proportion_interval(value: float, bootstrap: Floats, patients: int) -> Interval:
    """Return `share_interval`, or an exact interval for a proportion of 0 or 1, which does not vary between draws.

    Source: Clopper and Pearson 1934 (doi:10.1093/biomet/26.4.404), with every patient as one case.
    """
    low, high, left_out = share_interval(value, bootstrap)
    if value in (0, 1):
        bound = 0.025 ** (1 / patients)
        low, high = (bound, 1.0) if value else (0.0, 1 - bound)
    return Interval(low, high, left_out)


def _log_odds(shares: Any) -> Any:
    return np.log(shares) - np.log1p(-shares)


def majority_flag(targets: Reals, scores: Reals, threshold: float | None) -> str | None:
    """Return a warning if nothing may have been learned, else None.

    Either all scores are equal, or the accuracy is exactly that of always predicting the majority class. For a rare
    label, the latter can also happen with scores that rank well, so it is a reason to check.

    Args:
        targets: (N,), 1, 0 or nan.
        scores: (N,).
        threshold: Scores at or above it are positive predictions; None if there is none, as for one of several classes.
    """
    known = ~np.isnan(targets)
    targets, scores = targets[known], scores[known]
    if not targets.size:
        return None
    if (scores == scores[0]).all():
        return "all scores are equal"
    if threshold is None:
        return None
    correct = int(((scores >= threshold) == (targets == 1)).sum())
    positives = int((targets == 1).sum())
    return "accuracy equals the majority share" if correct == max(positives, targets.size - positives) else None
