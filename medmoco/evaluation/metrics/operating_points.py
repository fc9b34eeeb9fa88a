"""Decisions at a threshold chosen on validation: sensitivity, specificity and predictive values, with counts.

Scores at or above the threshold are positive predictions. Intervals are for a fixed threshold: they do not include its
variation between validation splits.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from medmoco.evaluation.metrics.auroc import Integers, Reals, draw_counts, or_none, proportion_interval, ratio
from medmoco.evaluation.records import Decisions

_OUTCOMES = ("tp", "fp", "tn", "fn")

# Each rate is the fraction of the first among both.
_SHARES = {"sensitivity": ("tp", "fn"), "specificity": ("tn", "fp"), "ppv": ("tp", "fp"), "npv": ("tn", "fn")}


def threshold_at(targets: Reals, scores: Reals, specificity: float) -> float:
    """Return the lowest threshold with at least this specificity; nan without negatives.

    It is halfway to the next higher score, so that rounding elsewhere does not change decisions.

    Args:
        targets: (N,) of validation, 1, 0 or nan.
        scores: (N,), finite.
        specificity: Required specificity, between 0 and 1.
    """
    negatives = np.sort(scores[targets == 0])
    if not negatives.size:
        return math.nan
    below = math.ceil(specificity * negatives.size - 1e-9)  # 0.07 * 100 is a little more than 7
    last = float(negatives[max(below, 1) - 1])
    higher = scores[~np.isnan(targets) & (scores > last)]
    following = float(higher.min()) if higher.size else last
    return max(last + (following - last) / 2, math.nextafter(last, math.inf))


def decide(targets: Reals, scores: Reals, patients: Integers, threshold: float, *, draws: int, seed: int) -> Decisions:
    """Return the confusion matrix of a split and its rates, with 95 % bootstrap intervals.

    Draws and intervals are those of `metrics.auroc`, see `proportion_interval`.

    Args:
        targets: (N,), 1, 0 or nan.
        scores: (N,), finite.
        patients: (N,) integers, equal for the rows of one patient.
        threshold: See `threshold_at`; if it is nan, there are no decisions.
        draws: Number of draws, D.
        seed: Random seed.
    """
    names, codes = np.unique(patients, return_inverse=True)
    known = ~np.isnan(targets) if not math.isnan(threshold) else np.zeros(len(targets), bool)
    is_positive, is_predicted = targets[known] == 1, scores[known] >= threshold
    outcomes = np.where(is_positive, np.where(is_predicted, 0, 3), np.where(is_predicted, 1, 2))
    cells = np.bincount(4 * codes[known] + outcomes, minlength=4 * names.size).reshape(-1, 4)  # (patients, 4)
    drawn = np.empty((draws, 4))
    for block, counts in draw_counts(names.size, draws=draws, seed=seed, cells=names.size):
        drawn[block] = counts @ cells
    found: dict[str, Any] = dict(zip(_OUTCOMES, cells.sum(axis=0).tolist(), strict=True))
    for name, (one, other) in _SHARES.items():
        own, both = _OUTCOMES.index(one), [_OUTCOMES.index(one), _OUTCOMES.index(other)]
        rate = float(ratio(cells[:, own].sum(), cells[:, both].sum()))
        cases = int(cells[:, both].any(axis=1).sum())
        low, high, _ = proportion_interval(rate, ratio(drawn[:, own], drawn[:, both].sum(axis=1)), cases)
        found |= {name: or_none(rate), f"{name}_low": or_none(low), f"{name}_high": or_none(high)}
    return Decisions(threshold=or_none(threshold), **found)


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> tuple[float, float]:
    """Return PPV and NPV at a prevalence, by Bayes' rule; nan if no case is predicted so.

    Those of `decide` are for the prevalence of the split, which usually differs from that of a clinic.
    """
    ill, well = prevalence, 1 - prevalence
    positive = sensitivity * ill + (1 - specificity) * well
    negative = specificity * well + (1 - sensitivity) * ill
    return (
        sensitivity * ill / positive if positive else math.nan,
        specificity * well / negative if negative else math.nan,
    )
