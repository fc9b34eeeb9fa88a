"""p of paired draws, Holm's adjustment, DeLong's covariance: against definitions, published values, plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from medmoco.evaluation.metrics.auroc import auroc, bootstrap_auroc, interval
from medmoco.evaluation.metrics.significance import bootstrap_p, delong, difference_p, holm, interval_of

Floats = NDArray[np.float64]

# Albumin, total protein, K-G score and outcome of the patients of DeLong et al. 1988 that have all three, as printed in
# the SAS/STAT User's Guide, "Comparing Receiver Operating Characteristic Curves".
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1
3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0
2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1
3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0
3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1
3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


def plain_delong(targets: Floats, scores: Floats) -> tuple[Floats, Floats]:
    """Equations 3 to 5 of DeLong et al. 1988, pair by pair."""
    encoders, positives, negatives = len(scores), np.flatnonzero(targets == 1), np.flatnonzero(targets == 0)
    wins = np.zeros((encoders, len(positives), len(negatives)))
    for r in range(encoders):
        for i, positive in enumerate(positives):
            for j, negative in enumerate(negatives):
                ours, theirs = scores[r, positive], scores[r, negative]
                wins[r, i, j] = 1.0 if ours > theirs else 0.5 if ours == theirs else 0.0
    aurocs, v10, v01 = wins.mean(axis=(1, 2)), wins.mean(axis=2), wins.mean(axis=1)
    covariance = np.zeros((encoders, encoders))
    for r in range(encoders):
        for s in range(encoders):
            s10 = sum((v10[r] - aurocs[r]) * (v10[s] - aurocs[s])) / (len(positives) - 1)
            s01 = sum((v01[r] - aurocs[r]) * (v01[s] - aurocs[s])) / (len(negatives) - 1)
            covariance[r, s] = s10 / len(positives) + s01 / len(negatives)
    return aurocs, covariance


def made(rows: int, *, seed: int = 0, ties: bool = False) -> tuple[Floats, Floats]:
    generator = np.random.default_rng([11, seed])
    targets = generator.choice([0.0, 1.0, np.nan], rows, p=[0.5, 0.3, 0.2])
    targets[:4] = 0, 1, 0, 1
    shared = generator.normal(size=rows)
    scores = shared + generator.normal(size=(3, rows)) + np.array([[1.5], [1.0], [0.0]]) * np.nan_to_num(targets)
    return targets, scores.round() if ties else scores


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_delong__equals_a_plain_loop_over_pairs(seed: int, ties: bool) -> None:
    targets, scores = made(60, seed=seed, ties=ties)
    aurocs, covariance = delong(targets, scores)
    expected = plain_delong(targets, scores)
    assert np.allclose(aurocs, expected[0], rtol=0, atol=1e-12)
    assert np.allclose(covariance, expected[1], rtol=0, atol=1e-12)
    assert aurocs == pytest.approx([auroc(targets, row) for row in scores], abs=1e-12)


def test_delong__gives_the_values_known_for_its_own_example() -> None:
    """Areas, standard errors, and the p of albumin against K-G score, to four decimals; and the plain loop."""
    albumin, protein, score, outcome = np.array(OVARIAN.split(), float).reshape(-1, 4).T
    targets, scores = 1 - outcome, -np.stack([albumin, 10 - score, protein])  # more of any is less of a risk
    aurocs, covariance = delong(targets, scores)
    assert np.round(aurocs, 4).tolist() == [0.7366, 0.7258, 0.6478]
    assert np.round(np.sqrt(np.diag(covariance)), 4).tolist() == [0.0927, 0.1028, 0.1000]
    assert round(difference_p(aurocs, covariance, 0, 1), 4) == 0.9102
    assert np.allclose(covariance, plain_delong(targets, scores)[1], rtol=0, atol=1e-12)


def test_delong__by_hand() -> None:
    """Positives 3, 1 and negatives 2, 0: the positives win 2 and 1 of 2 pairs, the negatives lose 1 and 2 of 2."""
    aurocs, covariance = delong(np.array([1.0, 1, 0, 0, np.nan]), np.array([[3.0, 1, 2, 0, 9]]))
    assert aurocs.tolist() == [0.75]
    assert covariance.tolist() == [[0.125 / 2 + 0.125 / 2]]


def test_delong__agrees_with_the_bootstrap_where_cases_are_independent() -> None:
    targets, scores = made(900)
    _, covariance = delong(targets, scores)
    draws = [
        bootstrap_auroc(targets, row, np.arange(900), draws=4000, seed=0) for row in scores
    ]  # the standard error of a covariance of 4,000 draws is some 2 to 3 %
    assert np.allclose(covariance, np.cov(draws), rtol=0.12, atol=0)


@pytest.mark.parametrize(("targets", "known"), [([1, 1, 1], 0), ([0, 0, np.nan], 0), ([1, 0, 0], 1)])
def test_delong__without_two_cases_of_each_class_there_is_no_variance(targets: list[float], known: int) -> None:
    aurocs, covariance = delong(np.array(targets, float), np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]))
    assert np.isfinite(aurocs).tolist() == [bool(known)] * 2
    assert np.isnan(covariance).all()
    assert covariance.shape == (2, 2)


def test_interval_of__is_symmetric_in_log_odds_and_inside_0_to_1() -> None:
    low, high, left_out = interval_of(0.9, 0.05**2)
    odds = [value / (1 - value) for value in (low, 0.9, high)]
    assert odds[1] / odds[0] == pytest.approx(odds[2] / odds[1]) == pytest.approx(math.exp(1.959964 * 0.05 / 0.09))
    assert left_out == 0
    assert interval_of(0.999, 0.01)[1] <= 1
    assert interval_of(0.001, 0.01)[0] >= 0


@pytest.mark.parametrize(("auroc", "variance"), [(1.0, 0.0), (0.0, 0.0), (0.5, 0.0), (math.nan, math.nan)])
def test_interval_of__nothing_that_varies_is_no_interval(auroc: float, variance: float) -> None:
    assert all(math.isnan(edge) for edge in interval_of(auroc, variance)[:2])


def test_difference_p__equal_scores_and_scores_without_variance() -> None:
    targets, scores = made(60)
    aurocs, covariance = delong(targets, np.stack([scores[0], scores[0], 2 * scores[0] - 7]))
    assert [difference_p(aurocs, covariance, 0, other) for other in (1, 2)] == [1, 1]
    perfect = np.nan_to_num(targets)
    aurocs, covariance = delong(targets, np.stack([perfect, -perfect]))
    assert math.isnan(difference_p(aurocs, covariance, 0, 1))


def test_difference_p__is_uniform_where_there_is_no_difference() -> None:
    """Over 400 made samples of two equally good scores, p is below 0.05 in 2 to 9 %."""
    low = 0
    for seed in range(400):
        targets, scores = made(150, seed=seed)
        first, second = np.random.default_rng(seed).normal(size=(2, 150)) + scores[2] + np.nan_to_num(targets)
        low += difference_p(*delong(targets, np.stack([first, second])), 0, 1) < 0.05
    assert 8 <= low <= 36


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], 0.2),  # none of 9 at or below 0: 2 / 10
        ([-1, 2, 3, 4, 5, 6, 7, 8, 9], 0.4),
        ([1, -2, -3, -4, -5, -6, -7, -8, -9], 0.4),
        ([-1, -1, 1, 1], 1.0),  # 2 * 3 / 5
        ([0, 0, 0, 0], 1.0),
        ([0, 1, 1, 1], 0.8),
        ([math.nan, 1, 2, 3], 0.5),
    ],
)
def test_bootstrap_p__by_hand(differences: list[float], p: float) -> None:
    assert bootstrap_p(np.array(differences, float)) == pytest.approx(p)


def test_bootstrap_p__of_no_draws_is_not_defined() -> None:
    assert math.isnan(bootstrap_p(np.array([math.nan, math.nan])))


@pytest.mark.parametrize("seed", range(20))
def test_bootstrap_p__is_below_a_twentieth_where_the_interval_leaves_0_out(seed: int) -> None:
    generator = np.random.default_rng(seed)
    differences = generator.normal(generator.uniform(1.5, 2.5), 1, 1999)
    low, high, _ = interval(differences)
    assert (bootstrap_p(differences) <= 0.05) == (low > 0 or high < 0)


def test_bootstrap_p__is_uniform_where_there_is_no_difference() -> None:
    """Over 200 made samples of two equally good scores of clustered images, p is below 0.05 in 2 to 9 %."""
    low = 0
    for seed in range(200):
        generator = np.random.default_rng([5, seed])
        patients = np.repeat(np.arange(100), 2)
        targets = (generator.random(200) < 0.4).astype(float)
        shared = generator.normal(size=100)[patients] + targets
        first, second = (
            bootstrap_auroc(targets, shared + generator.normal(size=200), patients, draws=300, seed=seed)
            for _ in range(2)
        )
        low += bootstrap_p(first - second) < 0.05
    assert 4 <= low <= 18


def test_holm__by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm__what_was_not_compared_does_not_count() -> None:
    assert holm([None, 0.02, math.nan, 0.03]) == [None, pytest.approx(0.04), None, pytest.approx(0.04)]
    assert holm([]) == []
    assert holm([None]) == [None]


def test_holm__never_exceeds_1_and_never_changes_the_order() -> None:
    p_values = np.random.default_rng(0).random(30)
    adjusted = np.array(holm(p_values.tolist()), float)
    assert adjusted.max() <= 1
    assert (adjusted >= p_values).all()
    assert (np.diff(adjusted[np.argsort(p_values)]) >= 0).all()
    assert holm([0.2]) == [0.2]
    assert holm([0.0, 0.5]) == [0.0, 0.5]
