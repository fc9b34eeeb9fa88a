"""Compare encoders: p-values of a paired bootstrap, Holm's adjustment, and DeLong's test.

DeLong's test requires one case per patient: images of one patient are not independent, and intervals would be too
narrow. The bootstrap of `medmoco.evaluation.metrics.auroc` is valid in either case.

Source: DeLong, DeLong and Clarke-Pearson 1988 (doi:10.2307/2531595), computed from ranks in O(N log N) as shown by Sun
and Xu 2014 (doi:10.1109/LSP.2014.2337313).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from medmoco.evaluation.metrics.auroc import Floats, Interval, Reals

_Z = NormalDist().inv_cdf(0.975)


def bootstrap_p(differences: Floats) -> float:
    """Return the two-sided p-value of no difference, from draws (D,) of a paired difference; nan without draws.

    It is twice the fraction of draws on the less common side of 0, with draws at 0 on both sides: the smallest level
    whose percentile interval excludes 0. One draw is added to each side, so that p is never 0; the smallest p-value of
    D draws is 2 / (D + 1). Draws of nan are left out.

    Source: Davison and Hinkley 1997, Bootstrap Methods and their Application, equation 4.11.
    """
    defined = differences[~np.isnan(differences)]
    if not defined.size:
        return math.nan
    fewer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (fewer + 1) / (defined.size + 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust the p-values of several comparisons to control the family-wise error rate.

    Source: Holm 1979 (jstor.org/stable/4615733); valid for any dependence between the comparisons.

    Args:
        p_values: p-value of each comparison; None or nan if it could not be made, which does not count as one.

    Returns:
        The adjusted p-values in the same order; None for those that were missing.
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None and not math.isnan(p))
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = highest
    return adjusted


def delong(targets: Reals, scores: Reals) -> tuple[Floats, Floats]:
    """Return the AUROCs (E,) of E encoders and their covariance (E, E).

    They are nan if a class has no case; the covariance is also nan if it has only one.

    Args:
        targets: (N,), 1, 0 or nan; rows of nan are left out.
        scores: (E, N), finite, one row for each encoder.
    """
    positives, negatives = scores[:, targets == 1], scores[:, targets == 0]
    (encoders, cases), others = positives.shape, negatives.shape[1]
    if not cases or not others:
        return np.full(encoders, np.nan), np.full((encoders, encoders), np.nan)
    of_positives = np.stack([_share_below(*pair) for pair in zip(positives, negatives, strict=True)])
    of_negatives = np.stack([_share_below(*pair) for pair in zip(negatives, positives, strict=True)])
    covariance = np.full((encoders, encoders), np.nan)
    if min(cases, others) > 1:
        covariance = np.atleast_2d(np.cov(of_positives)) / cases + np.atleast_2d(np.cov(of_negatives)) / others
    return of_positives.mean(axis=1), covariance


def _share_below(scores: Reals, others: Reals) -> Floats:
    """Return the fraction of the other scores (n,) below each of the scores (m,), ties counting half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    return np.asarray(below / (2 * others.size))


def interval_of(auroc: float, variance: float) -> Interval:
    """Return the 95 % interval of an AUROC, symmetric in log-odds so that it lies between 0 and 1.

    It is nan without variance, as for perfect or constant scores.

    Source: Pepe 2003, The Statistical Evaluation of Medical Tests, section 5.2.

    Args:
        auroc: AUROC from `delong`.
        variance: Its variance, on the diagonal of the covariance.
    """
    if not variance > 0 or not 0 < auroc < 1:
        return Interval(math.nan, math.nan, 0)
    centre, width = math.log(auroc / (1 - auroc)), _Z * math.sqrt(variance) / (auroc * (1 - auroc))
    low, high = (math.exp(-np.logaddexp(0, -edge)) for edge in (centre - width, centre + width))
    return Interval(low, high, 0)


def difference_p(aurocs: Floats, covariance: Floats, i: int, j: int) -> float:
    """Return the two-sided p-value of no difference between AUROCs i and j of `delong`.

    It is 1 for equal AUROCs, and nan without variance.
    """
    difference = float(aurocs[i] - aurocs[j])
    if difference == 0:
        return 1.0
    variance = float(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j])
    return math.erfc(abs(difference) / math.sqrt(2 * variance)) if variance > 0 else math.nan
