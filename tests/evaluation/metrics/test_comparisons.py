"""p of paired draws and Holm's adjustment against definitions and examples worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from medmoco.evaluation.metrics import auroc as metrics
from medmoco.evaluation.metrics.comparisons import bootstrap_p, holm


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
    low, high, _ = metrics.interval(differences)
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
            metrics.bootstrap_auroc(targets, shared + generator.normal(size=200), patients, draws=300, seed=seed)
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
