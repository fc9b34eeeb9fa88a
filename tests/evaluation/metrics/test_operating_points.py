"""Thresholds and the counts at them, against plain loops and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix

from medmoco.evaluation.metrics.auroc import share_interval
from medmoco.evaluation.metrics.operating_points import decide, predictive_values, threshold_at

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

SHARES = ("sensitivity", "specificity", "ppv", "npv")


def made(rows: int, *, seed: int = 0, ties: bool = False) -> tuple[Floats, Floats, Integers]:
    generator = np.random.default_rng([13, seed])
    targets = generator.choice([0.0, 1.0, np.nan], rows, p=[0.6, 0.3, 0.1])
    targets[:2] = 0, 1
    scores = generator.normal(size=rows) + np.nan_to_num(targets)
    return targets, scores.round(1) if ties else scores, generator.integers(rows // 3, size=rows)


def plain_shares(targets: Floats, scores: Floats, threshold: float) -> dict[str, float]:
    tn, fp, fn, tp = confusion_matrix(targets == 1, scores >= threshold, labels=[False, True]).ravel().tolist()
    pairs = {"sensitivity": (tp, tp + fn), "specificity": (tn, tn + fp), "ppv": (tp, tp + fp), "npv": (tn, tn + fn)}
    return {name: above / below if below else math.nan for name, (above, below) in pairs.items()}


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("wanted", [0.0, 0.5, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_threshold__reaches_the_specificity_and_the_next_lower_one_does_not(
    seed: int, wanted: float, ties: bool
) -> None:
    targets, scores, _ = made(97, seed=seed, ties=ties)
    negatives = scores[targets == 0]
    threshold = threshold_at(targets, scores, wanted)
    assert (negatives < threshold).mean() >= wanted
    lower = np.unique(negatives)[np.unique(negatives) < threshold]
    assert (negatives < lower[-1]).mean() < wanted or wanted == 0
    assert threshold not in scores


def test_threshold__by_hand() -> None:
    targets, scores = np.array([0.0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, np.nan]), np.array([*range(10), 8.5, 8.1])
    assert threshold_at(targets, scores, 0.9) == 8.25  # halfway from the ninth negative to the positive
    assert threshold_at(targets, scores, 0.91) == math.nextafter(9, 10)  # nothing scores higher
    assert threshold_at(targets, scores, 0.85) == 8.25


def test_threshold__shares_that_floating_point_overshoots() -> None:
    """0.07 * 100 is 7.000000000000001, and 7 of 100 negatives are enough."""
    assert threshold_at(np.zeros(100), np.arange(100.0), 0.07) == 6.5


def test_threshold__between_neighbouring_floats_still_decides_for_negative() -> None:
    low = 1.0
    high = math.nextafter(low, 2)
    assert low < threshold_at(np.array([0.0, 1.0]), np.array([low, high]), 0.9) <= high


def test_threshold__without_negatives_decides_nothing() -> None:
    targets, scores, patients = np.array([1.0, 1, np.nan]), np.array([1.0, 2, 3]), np.arange(3)
    threshold = threshold_at(targets, scores, 0.9)
    assert math.isnan(threshold)
    record = decide(targets, scores, patients, threshold, draws=50, seed=0)
    assert {record.tp, record.fp, record.tn, record.fn} == {0}
    assert {value for name, value in record if name not in ("tp", "fp", "tn", "fn")} == {None}


@pytest.mark.parametrize("ties", [False, True])
def test_record__equals_a_plain_loop_over_repeated_rows(ties: bool) -> None:
    targets, scores, patients = made(60, ties=ties)
    record = decide(targets, scores, patients, 0.8, draws=60, seed=4)
    known = ~np.isnan(targets)
    tn, fp, fn, tp = confusion_matrix(targets[known] == 1, scores[known] >= 0.8).ravel().tolist()
    assert [getattr(record, name) for name in ("threshold", "tp", "fp", "tn", "fn")] == [0.8, tp, fp, tn, fn]
    names, generator = np.unique(patients), np.random.default_rng(4)
    drawn = []
    for _ in range(60):
        chosen = generator.integers(len(names), size=len(names))
        rows = np.concatenate([np.flatnonzero((patients == names[one]) & known) for one in chosen])
        drawn.append(plain_shares(targets[rows], scores[rows], 0.8))
    for name, share in plain_shares(targets[known], scores[known], 0.8).items():
        low, high, _ = share_interval(share, np.array([one[name] for one in drawn]))
        assert getattr(record, name) == pytest.approx(share)
        assert [getattr(record, f"{name}_low"), getattr(record, f"{name}_high")] == pytest.approx([low, high])


def test_record__a_share_without_cases_is_none() -> None:
    targets, scores, patients = np.array([0.0, 0, 0, np.nan]), np.array([1.0, 2, 3, 9]), np.arange(4)
    record = decide(targets, scores, patients, 5, draws=100, seed=0)
    assert [getattr(record, name) for name in ("tp", "fp", "tn", "fn")] == [0, 0, 3, 0]
    assert [getattr(record, name) for name in SHARES] == [None, 1, None, 1]
    assert [getattr(record, f"{name}_{end}") for name in ("sensitivity", "ppv") for end in ("low", "high")] == [
        None
    ] * 4


def test_record__all_or_none_has_the_exact_interval_of_so_many_patients() -> None:
    """10 patients of 10 make 0.692 to 1, as Clopper and Pearson's table has it; their 5 images each add nothing."""
    patients = np.repeat(np.arange(20), 5)
    targets = (patients < 10).astype(float)
    right = decide(targets, targets, patients, 0.5, draws=100, seed=0)
    for name in SHARES:
        assert [getattr(right, name), getattr(right, f"{name}_high")] == [1, 1]
        assert getattr(right, f"{name}_low") == pytest.approx(0.6915, abs=5e-5)
    wrong = decide(targets, -targets, patients, -0.5, draws=100, seed=0)
    for name in SHARES:
        assert [getattr(wrong, name), getattr(wrong, f"{name}_low")] == [0, 0]
        assert getattr(wrong, f"{name}_high") == pytest.approx(0.3085, abs=5e-5)


def test_predictive_values__at_the_prevalence_of_the_split_are_those_of_its_counts() -> None:
    targets, scores, patients = made(300)
    record = decide(targets, scores, patients, 0.7, draws=10, seed=0)
    prevalence = (targets == 1).sum() / (~np.isnan(targets)).sum()
    values = predictive_values(record.sensitivity, record.specificity, prevalence)
    assert values == pytest.approx((record.ppv, record.npv))


def test_predictive_values__by_hand() -> None:
    """Of 1,000 people 10 are ill: 9 of them and 99 of the others are called, 1 and 891 are not."""
    assert predictive_values(0.9, 0.9, 0.01) == pytest.approx((9 / 108, 891 / 892))
    ppv, npv = predictive_values(0.0, 1.0, 0.2)
    assert math.isnan(ppv)
    assert npv == pytest.approx(0.8)
