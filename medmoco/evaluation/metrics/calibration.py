"""Calibration of scores to probabilities, fitted on validation, and measures of calibration.

A calibration is a straight line in log-odds that never falls, so that it changes no ranking and no AUROC.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
from sklearn.linear_model import LogisticRegression

from medmoco.evaluation.metrics.auroc import Floats, Reals, or_none, undefined
from medmoco.evaluation.records import Bin, Reliability

Kind = Literal["platt", "temperature"]

_HAS_INTERCEPT: dict[Kind, bool] = {"platt": True, "temperature": False}
_LEAST_PROBABILITY = 1e-12  # log-odds of a probability of 0 or 1 are not finite
_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Calibration:
    """Log-odds of being positive as slope * score + intercept; nan where nothing could be fitted."""

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
    """Fit a calibration by maximum likelihood: Platt's slope and intercept, or the slope alone, 1 / temperature.

    The targets fitted are Platt's: (P + 1) / (P + 2) for each of P positives and 1 / (Q + 2) for each of Q negatives.
    So the fit is finite where scores part the classes without error. Where the best slope is negative, the best one
    that turns no ranking round is 0: every case then gets the same probability.

    Source: Platt 1999, Probabilistic outputs for support vector machines, section 2.2; Guo et al. 2017
    (arXiv:1706.04599), section 4.2, whose temperature is fitted to targets of 0 and 1.

    Args:
        targets: (N,) of validation, 1, 0 or nan.
        scores: (N,), finite; any unit for platt, log-odds for temperature.
        kind: platt or temperature.

    Returns:
        nan for both where a class is missing.
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
    values = values.astype(np.float64)
    centre = values.mean() if has_intercept else 0.0
    scale = np.sqrt(((values - centre) ** 2).mean())
    if scale == 0:
        return 0.0, math.nan
    both = np.tile((values - centre) / scale, 2)[:, None]  # each value as a positive and a negative, by weight
    is_positive = np.repeat([1, 0], values.size)
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8, fit_intercept=has_intercept)
    model.fit(both, is_positive, sample_weight=np.concatenate([shares, 1 - shares]))
    slope = float(model.coef_[0, 0] / scale)
    return slope, float(np.ravel(model.intercept_)[0]) - slope * float(centre)


def reliability(targets: Reals, probabilities: Reals, *, bins: int) -> Reliability:
    """Return how well probabilities agree with outcomes.

    Bins hold equal numbers of cases, as far as equal probabilities, which stay together, allow. A bin's interval is
    Wilson's 1927 (doi:10.1080/01621459.1927.10502953) and takes cases as independent; one of several images per
    patient is wider. The slope is that of a logistic regression on the log-odds, 1 at best; the intercept, 0 at best,
    is that of one whose slope is held at 1, also called calibration in the large.

    Source: Van Calster et al. 2019 (doi:10.1186/s12916-019-1466-7); ECE: Naeini, Cooper and Hauskrecht 2015; Nixon et
    al. 2019 (arXiv:1904.01685) on equal counts.

    Args:
        targets: (N,), 1, 0 or nan; rows of nan are left out.
        probabilities: (N,), 0 to 1; all nan where nothing could be fitted.
        bins: How many at most.

    Returns:
        None stands in it without cases or probabilities; for slope and intercept also with one class; for the slope
        also where probabilities separate the classes without error, as it has no bound there.
    """
    known = ~np.isnan(targets) & ~np.isnan(probabilities)
    happened, expected = targets[known].astype(np.float64), probabilities[known].astype(np.float64)
    found = _bins(happened, expected, bins)
    slope, intercept = _recalibration(happened, expected)
    return Reliability(
        n=int((~np.isnan(targets)).sum()),
        brier=float(((happened - expected) ** 2).mean()) if found else None,
        ece=float(sum(gap for _, gap in found) / happened.size) if found else None,
        bins=tuple(each for each, _ in found),
        slope=or_none(slope),
        intercept=or_none(intercept),
    )


def _bins(happened: Floats, expected: Floats, bins: int) -> list[tuple[Bin, float]]:
    if not happened.size:
        return []
    ordered = np.sort(expected)
    starts = ordered[np.arange(1, bins) * happened.size // bins]  # the lowest of every bin but the first
    place = np.searchsorted(np.unique(starts), expected, "right")
    return [_bin(happened[place == number], expected[place == number]) for number in np.unique(place)]


def _bin(happened: Floats, expected: Floats) -> tuple[Bin, float]:
    """Return a bin, and by how many positives its prediction is off."""
    predicted, observed = float(expected.mean()), float(happened.mean())
    low, high = _wilson(observed, happened.size)
    found = Bin(
        low=float(expected.min()), high=float(expected.max()), n=int(happened.size),
        predicted=predicted, observed=observed, observed_low=low, observed_high=high,
    )  # fmt: skip
    return found, happened.size * abs(predicted - observed)


def _wilson(share: float, cases: int) -> tuple[float, float]:
    squared = _Z**2 / cases
    centre, width = share + squared / 2, _Z * math.sqrt(share * (1 - share) / cases + squared / (4 * cases))
    return max(0.0, (centre - width) / (1 + squared)), min(1.0, (centre + width) / (1 + squared))


def _recalibration(happened: Floats, expected: Floats) -> tuple[float, float]:
    """Return slope and intercept, see `reliability`; nan where there is none."""
    if undefined(happened):
        return math.nan, math.nan
    inside = np.clip(expected, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    logits = np.log(inside) - np.log1p(-inside)
    ill, well = logits[happened == 1], logits[happened == 0]
    is_parted = ill.min() >= well.max() or ill.max() <= well.min()
    slope = math.nan if is_parted else _fit_line(logits, happened, has_intercept=True)[0]
    low, high = -100.0, 100.0  # the intercept that expects as many as happened, by bisection
    for _ in range(60):
        middle = (low + high) / 2
        too_few = Calibration(1.0, middle).probabilities(logits).sum() < happened.sum()
        low, high = (middle, high) if too_few else (low, middle)
    return slope, (low + high) / 2
