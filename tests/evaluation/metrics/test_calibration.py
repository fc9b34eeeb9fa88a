"""Calibration against plain loops, general-purpose optimisers and data whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from medmoco.evaluation.metrics.auroc import auroc
from medmoco.evaluation.metrics.calibration import Calibration, Kind, fit_calibration, reliability
from medmoco.evaluation.records import Reliability

Floats = NDArray[np.float64]


def made(rows: int, *, slope: float = 0.5, intercept: float = -1.0, seed: int = 0) -> tuple[Floats, Floats]:
    """Scores whose true log-odds are slope * score + intercept; a tenth has no label."""
    generator = np.random.default_rng([17, seed])
    scores = 3 * generator.normal(size=rows)
    targets = (generator.random(rows) < Calibration(slope, intercept).probabilities(scores)).astype(float)
    targets[generator.random(rows) < 0.1] = np.nan
    return targets, scores


def plain_fit(targets: Floats, scores: Floats, kind: Kind) -> list[float]:
    """Minimise the negative log-likelihood of Platt's targets, written out."""
    positives, negatives = (targets == 1).sum(), (targets == 0).sum()

    def loss(parameters: Floats) -> float:
        slope, intercept = (*parameters, 0.0)[:2]
        total = 0.0
        for target, score in zip(targets, scores, strict=True):
            if math.isnan(target):
                continue
            aim = (positives + 1) / (positives + 2) if target == 1 else 1 / (negatives + 2)
            logit = slope * score + intercept
            total += aim * math.log1p(math.exp(-logit)) + (1 - aim) * math.log1p(math.exp(logit))
        return total

    start = np.array([0.1, 0.0] if kind == "platt" else [0.1])
    found = minimize(loss, start, method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12})
    return [*found.x, 0.0][:2]


@pytest.mark.parametrize("kind", ["platt", "temperature"])
def test_fit__equals_a_general_purpose_optimiser(kind: Kind) -> None:
    targets, scores = made(150)
    found = fit_calibration(targets, scores, kind)
    assert [found.slope, found.intercept] == pytest.approx(plain_fit(targets, scores, kind), abs=1e-5)


def test_fit__finds_the_truth() -> None:
    targets, scores = made(30_000)
    found = fit_calibration(targets, scores, "platt")
    assert [found.slope, found.intercept] == pytest.approx([0.5, -1.0], abs=0.05)
    targets, scores = made(30_000, slope=0.25, intercept=0)
    assert fit_calibration(targets, scores, "temperature").slope == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("kind", ["platt", "temperature"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_fit__does_not_mind_the_unit_of_the_scores(kind: Kind, scale: float) -> None:
    targets, scores = made(500)
    expected = fit_calibration(targets, scores, kind).probabilities(scores)
    assert np.allclose(fit_calibration(targets, scale * scores, kind).probabilities(scale * scores), expected)


@pytest.mark.parametrize("kind", ["platt", "temperature"])
@pytest.mark.parametrize("rows", [2, 10, 1000])
def test_fit__of_classes_parted_without_error_stays_finite_and_short_of_certain(kind: Kind, rows: int) -> None:
    targets = (np.arange(rows) >= rows // 2).astype(float)
    found = fit_calibration(targets, np.where(targets == 1, 2.0, -2.0), kind)
    assert found.probabilities(np.array([-2.0, 2.0])) == pytest.approx([1 / (rows / 2 + 2), 1 - 1 / (rows / 2 + 2)])
    spread = fit_calibration(targets, np.arange(rows) - (rows - 1) / 2, kind)
    assert 0 < spread.slope < 50


@pytest.mark.parametrize("kind", ["platt", "temperature"])
def test_fit__never_turns_the_ranking_round(kind: Kind) -> None:
    targets, scores = made(300)
    found = fit_calibration(targets, -scores, kind)
    share = (targets == 1).sum() / (~np.isnan(targets)).sum()
    expected = share if kind == "platt" else 0.5
    assert found.slope == 0
    assert found.probabilities(scores) == pytest.approx(np.full(300, expected), abs=0.005)


@pytest.mark.parametrize("score", [0.0, 3.0])
def test_fit__of_equal_scores_gives_the_share_of_positives(score: float) -> None:
    targets = np.repeat([0.0, 1.0], [60, 20])
    found = fit_calibration(targets, np.full(80, score), "platt")
    assert found.probabilities(np.array([score])) == pytest.approx([0.25], abs=0.01)


@pytest.mark.parametrize("targets", [[1, 1, np.nan], [0, 0, 0], [np.nan] * 3])
def test_fit__of_one_class_is_undefined_and_so_is_all_that_follows(targets: list[float]) -> None:
    answers, scores = np.array(targets, float), np.array([1.0, 2, 3])
    found = fit_calibration(answers, scores, "platt")
    assert math.isnan(found.slope)
    assert math.isnan(found.intercept)
    record = reliability(answers, found.probabilities(scores), bins=10)
    known = int((~np.isnan(answers)).sum())
    assert record == Reliability(n=known, brier=None, ece=None, bins=(), slope=None, intercept=None)


def test_fit__changes_no_auroc() -> None:
    targets, scores = made(300)
    probabilities = fit_calibration(targets, scores, "platt").probabilities(scores)
    assert auroc(targets, probabilities) == auroc(targets, scores)


def test_probabilities__far_out_neither_overflow_nor_vanish() -> None:
    found = Calibration(1.0, 0.0).probabilities(np.array([-1e4, -700.0, 0.0, 40.0, 1e4]))
    assert found.tolist() == [0, pytest.approx(math.exp(-700)), 0.5, 1, 1]
    assert Calibration(2.0, 1.0).logits(np.ones((2, 3), np.float32)).tolist() == [[3.0] * 3] * 2


def test_record__agrees_with_scikit_learn_and_with_a_plain_loop() -> None:
    targets, scores = made(600)
    answers, seen = (
        values[~np.isnan(targets)][:500] for values in (targets, Calibration(0.7, 0).probabilities(scores))
    )
    record = reliability(np.append(answers, np.nan), np.append(seen, 0.4), bins=10)
    assert record.n == 500
    assert record.brier == pytest.approx(brier_score_loss(answers, seen))
    ece = 0.0
    for entry, rows in zip(record.bins, np.array_split(np.argsort(seen), 10), strict=True):
        assert entry.n == 50
        assert [entry.low, entry.high] == [seen[rows].min(), seen[rows].max()]
        assert [entry.predicted, entry.observed] == pytest.approx([seen[rows].mean(), answers[rows].mean()])
        ece += abs(seen[rows].mean() - answers[rows].mean()) / 10
    assert record.ece == pytest.approx(ece)
    observed, predicted = calibration_curve(answers, seen, n_bins=10, strategy="quantile")
    assert [entry.predicted for entry in record.bins] == pytest.approx(predicted.tolist(), abs=0.01)
    assert [entry.observed for entry in record.bins] == pytest.approx(observed.tolist(), abs=0.05)


def test_record__by_hand() -> None:
    targets, probabilities = np.array([0, 0, 1, 0, 1, 1, np.nan]), np.array([0.1, 0.1, 0.3, 0.6, 0.8, 0.9, 0.5])
    record = reliability(targets, probabilities, bins=2)
    low, high = record.bins
    assert [low.n, low.low, low.high, low.observed] == [3, 0.1, 0.3, pytest.approx(1 / 3)]
    assert [high.n, high.low, high.high, high.observed] == [3, 0.6, 0.9, pytest.approx(2 / 3)]
    assert record.ece == pytest.approx((abs(0.5 / 3 - 1 / 3) + abs(2.3 / 3 - 2 / 3)) / 2)
    assert record.brier == pytest.approx((0.01 + 0.01 + 0.49 + 0.36 + 0.04 + 0.01) / 6)


def test_record__bins_intervals_are_wilsons() -> None:
    targets, scores = made(203)
    record = reliability(targets, Calibration(1.0, 0.0).probabilities(scores), bins=7)
    for entry in record.bins:
        expected = binomtest(round(entry.n * entry.observed), entry.n).proportion_ci(method="wilson")
        assert [entry.observed_low, entry.observed_high] == pytest.approx([expected.low, expected.high])


def test_record__equal_probabilities_share_a_bin() -> None:
    targets = np.random.default_rng(0).integers(0, 2, 100).astype(float)
    record = reliability(targets, np.repeat([0.2, 0.4], [90, 10]), bins=10)
    assert [entry.n for entry in record.bins] == [90, 10]
    assert [entry.n for entry in reliability(targets, np.full(100, 0.3), bins=10).bins] == [100]
    assert [entry.n for entry in reliability(targets[:3], np.array([0.1, 0.2, 0.3]), bins=10).bins] == [1] * 3


def test_record__slope_and_intercept_tell_what_is_wrong() -> None:
    """Log-odds twice too far apart have slope 0.5; too low by 1 throughout, intercept 1; right ones, 1 and 0."""
    targets, scores = made(20_000, slope=1.0, intercept=0.0)
    for made_with, slope, intercept in ((Calibration(2.0, 0.0), 0.5, 0.0), (Calibration(1.0, -1.0), 1.0, 1.0)):
        record = reliability(targets, made_with.probabilities(scores), bins=10)
        assert [record.slope, record.intercept] == pytest.approx([slope, intercept], abs=0.06)
    before = reliability(targets, Calibration(2.0, 1.0).probabilities(scores), bins=10)
    after = reliability(targets, fit_calibration(targets, scores, "platt").probabilities(scores), bins=10)
    assert after.ece < 0.02 < before.ece
    assert after.brier < before.brier
    assert [after.slope, after.intercept] == pytest.approx([1, 0], abs=0.01)


def test_record__without_a_finite_slope_has_none() -> None:
    parted = reliability(np.array([0.0, 0, 1, 1]), np.array([0.1, 0.2, 0.2, 0.7]), bins=2)
    assert parted.slope is None
    assert parted.intercept is not None
    one_class = reliability(np.zeros(4), np.array([0.1, 0.2, 0.2, 0.7]), bins=2)
    assert [one_class.slope, one_class.intercept] == [None, None]
    assert one_class.brier is not None


def test_record__certain_probabilities_do_no_harm() -> None:
    record = reliability(np.array([0.0, 1, 0, 1, 1]), np.array([0.0, 1.0, 1.0, 0.0, 0.5]), bins=3)
    assert all(math.isfinite(getattr(record, name)) for name in ("slope", "intercept", "brier", "ece"))
