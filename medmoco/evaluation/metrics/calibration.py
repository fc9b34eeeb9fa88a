"""Calibration of scores to probabilities, fitted on validation, and measures of calibration.

A calibration is linear in log-odds and never decreasing, so it does not change the ranking or the AUROC.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

from medmoco.evaluation.metrics.auroc import Floats, Reals, or_none, undefined
from medmoco.evaluation.records import Bin, Reliability

Kind = Literal["platt", "temperature"]

_HAS_INTERCEPT: dict[Kind, bool] = {"platt": True, "temperature": False}
_LEAST_PROBABILITY = 1e-12  # the log-odds of 0 and 1 are infinite
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Calibration:
    """Log-odds of being positive as slope * score + intercept; nan if they could not be fitted."""

    slope: float
    intercept: float

    def logits(self, scores: Reals) -> Floats:
        """Return the log-odds of scores of any shape."""
        return np.asarray(self.slope * scores + self.intercept, np.float64)

    def probabilities(self, scores: Reals) -> Floats:
        """Return the probabilities of scores of any shape."""
        with np.errstate(invalid="ignore"):  # nan gives nan
            return np.exp(-np.logaddexp(0, -self.logits(scores)))


def fit_calibration(targets: Reals, scores: Reals, kind: Kind) -> Calibration:
    """Fit a calibration by maximum likelihood: Platt's slope and intercept, or only the slope, 1 / temperature.

    The targets are Platt's: (P + 1) / (P + 2) for each of P positives and 1 / (Q + 2) for each of Q negatives, so that
    the fit is finite even if the scores separate the classes. If the best slope is negative, it is set to 0, so that
    the ranking is not reversed: every case then gets the same probability.

    Source: Platt 1999, Probabilistic outputs for support vector machines, section 2.2; Guo et al. 2017
    (arXiv:1706.04599), section 4.2, whose temperature is fitted to targets of 0 and 1.

    Args:
        targets: (N,) of validation, 1, 0 or nan; if a class is missing, the calibration is nan.
        scores: (N,), finite; any unit for platt, log-odds for temperature.
        kind: platt or temperature.
    """
    if undefined(targets):
        return Calibration(math.nan, math.nan)
    has_intercept = _HAS_INTERCEPT[kind]
    positives, negatives = scores[targets == 1], scores[targets == 0]
    smooth = np.concatenate([
        np.full(positives.size, (positives.size + 1) / (positives.size + 2)),
        np.full(negatives.size, 1 / (negatives.size + 2)),
    ])  # fmt: skip
    slope, intercept = _fit_line(np.concatenate([positives, negatives]), smooth, has_intercept=has_intercept)
    if slope > 0:
        return Calibration(slope, intercept)
    share = float(smooth.mean())
    return Calibration(0.0, math.log(share / (1 - share)) if has_intercept else 0.0)


def _fit_line(values: Reals, shares: Floats, *, has_intercept: bool) -> tuple[float, float]:
    """Return slope and intercept of an unregularised logistic regression of shares (N,), 0 to 1, on values (N,)."""
    from sklearn.linear_model import LogisticRegression  # not at the top: applying a calibration does not need it

    values = values.astype(np.float64)
    centre = values.mean() if has_intercept else 0.0
    scale = np.sqrt(((values - centre) ** 2).mean())
    if scale == 0:
        return 0.0, math.nan
    both = np.tile((values - centre) / scale, 2)[:, None]  # each value as a weighted positive and negative
    is_positive = np.repeat([1, 0], values.size)
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8, fit_intercept=has_intercept)
    model.fit(both, is_positive, sample_weight=np.concatenate([shares, 1 - shares]))
    slope = float(model.coef_[0, 0] / scale)
    return slope, float(np.ravel(model.intercept_)[0]) - slope * float(centre)


def reliability(targets: Reals, probabilities: Reals, *, bins: int) -> Reliability:
    """Measure the agreement of probabilities with outcomes.

    Bins have equal numbers of cases, except that equal probabilities stay together. Their intervals are Wilson's of
    1927 (doi:10.1080/01621459.1927.10502953) for independent cases, which are too narrow with several images per
    patient. The slope is that of a logistic regression on the log-odds; the intercept, also called calibration in the
    large, is that of a regression with slope 1.

    Source: Van Calster et al. 2019 (doi:10.1186/s12916-019-1466-7); ECE: Naeini, Cooper and Hauskrecht 2015; Nixon et
    al. 2019 (arXiv:1904.01685) on equal counts.

    Args:
        targets: (N,), 1, 0 or nan; rows of nan are left out.
        probabilities: (N,), 0 to 1; all nan if no calibration could be fitted.
        bins: Largest number of bins.

    Returns:
        Values that are undefined are None: all without cases, slope and intercept with one class, and the slope also if
        the probabilities separate the classes.
    """
    known = ~np.isnan(targets) & ~np.isnan(probabilities)
    outcomes, expected = targets[known].astype(np.float64), probabilities[known].astype(np.float64)
    found = _bins(outcomes, expected, bins)
    slope, intercept = _recalibration(outcomes, expected)
    return Reliability(
        n=int((~np.isnan(targets)).sum()),
        brier=float(((outcomes - expected) ** 2).mean()) if found else None,
        ece=float(sum(gap for _, gap in found) / outcomes.size) if found else None,
        bins=tuple(each for each, _ in found),
        slope=or_none(slope),
        intercept=or_none(intercept),
    )


def _bins(outcomes: Floats, expected: Floats, bins: int) -> list[tuple[Bin, float]]:
    if not outcomes.size:
        return []
    starts = np.sort(expected)[np.arange(1, bins) * outcomes.size // bins]  # lowest value of every bin but the first
    numbers = np.searchsorted(np.unique(starts), expected, "right")
    return [_bin(outcomes[numbers == number], expected[numbers == number]) for number in np.unique(numbers)]


def _bin(outcomes: Floats, expected: Floats) -> tuple[Bin, float]:
    """Return a bin, and the difference between its predicted and observed number of positives."""
    predicted, observed = float(expected.mean()), float(outcomes.mean())
    low, high = _wilson(observed, outcomes.size)
    found = Bin(
        low=float(expected.min()), high=float(expected.max()), n=int(outcomes.size),
        predicted=predicted, observed=observed, observed_low=low, observed_high=high,
    )  # fmt: skip
    return found, outcomes.size * abs(predicted - observed)


def _wilson(share: float, cases: int) -> tuple[float, float]:
    squared = _Z**2 / cases
    centre, width = share + squared / 2, _Z * math.sqrt(share * (1 - share) / cases + squared / (4 * cases))
    return max(0.0, (centre - width) / (1 + squared)), min(1.0, (centre + width) / (1 + squared))


def _recalibration(outcomes: Floats, expected: Floats) -> tuple[float, float]:
    """Return slope and intercept, see `reliability`; nan if undefined."""
    if undefined(outcomes):
        return math.nan, math.nan
    inside = np.clip(expected, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    logits = np.log(inside) - np.log1p(-inside)
    positives, negatives = logits[outcomes == 1], logits[outcomes == 0]
    is_separated = positives.min() >= negatives.max() or positives.max() <= negatives.min()
    slope = math.nan if is_separated else _fit_line(logits, outcomes, has_intercept=True)[0]
    low, high = -100.0, 100.0  # bisection for the intercept with which as many positives are expected as observed
    for _ in range(60):
        middle = (low + high) / 2
        too_few = Calibration(1.0, middle).probabilities(logits).sum() < outcomes.sum()
        low, high = (middle, high) if too_few else (low, middle)
    return slope, (low + high) / 2
