"""Is one encoder better than another: p of a paired bootstrap, Holm's adjustment, and DeLong's test.

DeLong's test is only for cases of which no two share a patient: images of one patient are not independent, and would
make intervals too narrow. There the bootstrap of `medmoco.evaluation.metrics.auroc` is valid.

Source: DeLong, DeLong and Clarke-Pearson 1988 (doi:10.2307/2531595). Sun and Xu 2014 (doi:10.1109/LSP.2014.2337313)
showed that ranks give all of it in O(N log N); here they are found by searching one sorted class for the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from medmoco.evaluation.metrics.auroc import Floats, Interval, Reals

_Z = NormalDist().inv_cdf(0.975)


def bootstrap_p(differences: Floats) -> float:
    """Return the two-sided p of no difference, from draws of a paired difference.

    It is twice the share of draws on the less common side of 0, where draws at 0 are on both sides: the smallest
    level whose percentile interval leaves 0 out. One draw is added to each side, so that p is never 0; the smallest p
    of D draws is 2 / (D + 1).

    Source: Davison and Hinkley 1997, Bootstrap Methods and their Application, equation 4.11.

    Args:
        differences: (D,), nan where a draw is undefined.

    Returns:
        nan where no draw is defined.
    """
    defined = differences[~np.isnan(differences)]
    if not defined.size:
        return math.nan
    fewer = min(int((defined <= 0).sum()), int((defined >= 0).sum()))
    return min(1.0, 2 * (fewer + 1) / (defined.size + 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjust the p of several comparisons, so that the chance of any false alarm among them keeps its level.

    Source: Holm 1979 (jstor.org/stable/4615733); it holds whatever the dependence between the comparisons.

    Args:
        p_values: One for each; None or nan where a comparison could not be made, which does not count as one.

    Returns:
        In the same order; None where there was no p.
    """
    places = [place for place, p in enumerate(p_values) if p is not None and not math.isnan(p)]
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(places, key=lambda place: p_values[place] or 0.0)):
        highest = max(highest, min(1.0, (len(places) - rank) * (p_values[place] or 0.0)))
        adjusted[place] = highest
    return adjusted


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
