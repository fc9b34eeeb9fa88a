"""Decisions at a threshold chosen on validation: sensitivity, specificity and predictive values, with counts.

A score at or above the threshold decides for positive. Intervals hold for this threshold: they do not include how much
the threshold itself would vary with another validation split.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from medmoco.evaluation.metrics.auroc import Integers, Reals, draw_counts, or_none, ratio, share_interval
from medmoco.evaluation.records import Decisions

_OUTCOMES = ("tp", "fp", "tn", "fn")

# The share of the first among both.
_SHARES = {"sensitivity": ("tp", "fn"), "specificity": ("tn", "fp"), "ppv": ("tp", "fp"), "npv": ("tn", "fn")}


def threshold_at(targets: Reals, scores: Reals, specificity: float) -> float:
    """Return the lowest threshold at which at least this share of the negatives is decided for negative.

    It lies halfway to the next higher score, so that rounding elsewhere does not change a decision.

    Args:
        targets: (N,) of validation, 1, 0 or nan.
        scores: (N,), finite.
        specificity: Between 0 and 1.

    Returns:
        nan where there is no negative.
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
    """Return the counts and shares of a split's decisions, with 95 % intervals from draws of patients.

    Draws and intervals are those of `metrics.auroc`. A share of 0 or 1 varies in no draw; its interval is the exact
    one of Clopper and Pearson 1934 (doi:10.1093/biomet/26.4.404), with every patient as one case.

    Args:
        targets: (N,), 1, 0 or nan.
        scores: (N,), finite.
        patients: (N,) integers, equal for the rows of one patient.
        threshold: Of `threshold_at`; where it is nan nothing is decided.
        draws: D.
        seed: Of the draws.
    """
    names, codes = np.unique(patients, return_inverse=True)
    known = ~np.isnan(targets) if not math.isnan(threshold) else np.zeros(len(targets), bool)
    is_positive, is_called = targets[known] == 1, scores[known] >= threshold
    outcomes = np.select([is_positive & is_called, ~is_positive & is_called, ~is_positive], [0, 1, 2], 3)
    cells = np.bincount(4 * codes[known] + outcomes, minlength=4 * names.size).reshape(-1, 4)  # (patients, 4)
    drawn = np.empty((draws, 4))
    for block, counts in draw_counts(names.size, draws=draws, seed=seed, cells=names.size):
        drawn[block] = counts @ cells
    found: dict[str, Any] = dict(zip(_OUTCOMES, cells.sum(axis=0).tolist(), strict=True))
    for name, (one, other) in _SHARES.items():
        own, both = _OUTCOMES.index(one), [_OUTCOMES.index(one), _OUTCOMES.index(other)]
        share = float(ratio(cells[:, own].sum(), cells[:, both].sum()))
        low, high, _ = share_interval(share, ratio(drawn[:, own], drawn[:, both].sum(axis=1)))
        if share in (0, 1):
            low, high = _exact_edges(share, int(cells[:, both].any(axis=1).sum()))
        found |= {name: or_none(share), f"{name}_low": or_none(low), f"{name}_high": or_none(high)}
    return Decisions(threshold=or_none(threshold), **found)


def _exact_edges(share: float, cases: int) -> tuple[float, float]:
    """Return the exact 95 % interval of none or all of so many cases."""
    edge: float = 0.025 ** (1 / cases)
    return (edge, 1.0) if share else (0.0, 1 - edge)


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> tuple[float, float]:
    """Return PPV and NPV at a prevalence, by Bayes' rule; nan where no case is decided that way.

    Those of `decide` hold for the prevalence of the split, which is rarely that of a clinic.
    """
    ill, well = prevalence, 1 - prevalence
    called = sensitivity * ill + (1 - specificity) * well
    cleared = specificity * well + (1 - sensitivity) * ill
    return sensitivity * ill / called if called else math.nan, specificity * well / cleared if cleared else math.nan
