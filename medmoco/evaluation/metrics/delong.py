"""AUROCs of scores on the same independent cases, their covariance, and a test of their difference.

Only for cases of which no two share a patient: images of one patient are not independent, and would make intervals too
narrow. There the bootstrap of `medmoco.evaluation.metrics.auroc` holds.

Source: DeLong, DeLong and Clarke-Pearson 1988 (doi:10.2307/2531595). Sun and Xu 2014 (doi:10.1109/LSP.2014.2337313)
showed that ranks give all of it in O(N log N); here they are found by searching one sorted class for the other.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from medmoco.evaluation.metrics.auroc import Floats, Interval, Reals

_Z = NormalDist().inv_cdf(0.975)


def delong(targets: Reals, scores: Reals) -> tuple[Floats, Floats]:
    """Return the AUROC of each score and their covariance.

    Args:
        targets: (N,), 1, 0 or nan; rows of nan are left out.
        scores: (E, N), finite, one row for each of E encoders.

    Returns:
        (E,) and (E, E); nan where a class has no case, and a covariance of nan where it has only one.
    """
    positives, negatives = scores[:, targets == 1], scores[:, targets == 0]
    (encoders, cases), others = positives.shape, negatives.shape[1]
    if not cases or not others:
        return np.full(encoders, np.nan), np.full((encoders, encoders), np.nan)
    of_positives = np.stack([_beaten(ours, theirs) for ours, theirs in zip(positives, negatives, strict=True)])
    of_negatives = np.stack([_beaten(ours, theirs) for ours, theirs in zip(negatives, positives, strict=True)])
    covariance = np.full((encoders, encoders), np.nan)
    if min(cases, others) > 1:
        covariance = np.atleast_2d(np.cov(of_positives)) / cases + np.atleast_2d(np.cov(of_negatives)) / others
    return of_positives.mean(axis=1), covariance


def _beaten(ours: Reals, theirs: Reals) -> Floats:
    """Return the share of theirs (n,) that each of ours (m,) scores above, ties counting half."""
    ordered = np.sort(theirs)
    shares: Floats = (np.searchsorted(ordered, ours, "left") + np.searchsorted(ordered, ours, "right")) / (
        2 * theirs.size
    )
    return shares


def interval_of(auroc: float, variance: float) -> Interval:
    """Return a 95 % interval that is symmetric in log-odds and so stays between 0 and 1.

    Source: Pepe 2003, The Statistical Evaluation of Medical Tests, section 5.2.

    Args:
        auroc: One of `delong`.
        variance: Its place on the diagonal of the covariance.

    Returns:
        nan to nan where classes that are told apart without error, or all alike, leave no variance.
    """
    if not variance > 0 or not 0 < auroc < 1:
        return Interval(math.nan, math.nan, 0)
    centre, width = math.log(auroc / (1 - auroc)), _Z * math.sqrt(variance) / (auroc * (1 - auroc))
    low, high = (math.exp(-np.logaddexp(0, -edge)) for edge in (centre - width, centre + width))
    return Interval(low, high, 0)


def difference_p(aurocs: Floats, covariance: Floats, i: int, j: int) -> float:
    """Return the two-sided p of no difference between two AUROCs; 1 for equal ones, nan where nothing varies.

    Args:
        aurocs: (E,) of `delong`.
        covariance: (E, E) of `delong`.
        i: One of the two.
        j: The other.
    """
    difference = float(aurocs[i] - aurocs[j])
    if difference == 0:
        return 1.0
    variance = float(covariance[i, i] + covariance[j, j] - 2 * covariance[i, j])
    return math.erfc(abs(difference) / math.sqrt(2 * variance)) if variance > 0 else math.nan
