"""R2 and mean absolute error against scikit-learn, and their bootstrap against a loop over draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import mean_absolute_error, r2_score

from medmoco.evaluation.metrics.auroc import draw_counts
from medmoco.evaluation.metrics.regression import bootstrap_errors, errors_of, undefined_values

Floats = NDArray[np.float64]


def made(rows: int = 60, fits: int = 1, offset: float = 50.0) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Ages of which some are missing, predictions (K, N), and patients of two rows each."""
    generator = np.random.default_rng(7)
    targets = offset + 15 * generator.normal(size=rows)
    predictions = targets + generator.normal(0, 8, (fits, rows))
    targets[generator.random(rows) < 0.1] = np.nan
    return targets, predictions, np.arange(rows) // 2


@pytest.mark.parametrize("offset", [0.0, 50.0, 1e7])
def test_errors_of__are_those_of_scikit_learn(offset: float) -> None:
    targets, predictions, _ = made(fits=3, offset=offset)
    known = ~np.isnan(targets)
    r2, mae = errors_of(targets, predictions)
    assert r2 == pytest.approx(np.mean([r2_score(targets[known], own[known]) for own in predictions]))
    assert mae == pytest.approx(np.mean([mean_absolute_error(targets[known], own[known]) for own in predictions]))


def test_errors_of__the_mean_of_the_targets_has_r2_0_and_worse_is_negative() -> None:
    targets, _, _ = made()
    assert errors_of(targets, np.full((1, 60), np.nanmean(targets)))[0] == pytest.approx(0)
    assert errors_of(targets, np.full((1, 60), 200.0))[0] < -10


@pytest.mark.parametrize(
    ("targets", "reason"),
    [([math.nan, math.nan], "undefined (no rows with a value)"), ([3.3, 3.3], "undefined (all values are equal)")],
)
def test_errors_of__undefined_without_variance(targets: list[float], reason: str) -> None:
    r2, mae = errors_of(np.array(targets), np.array([[1.3, 1.3]]))
    assert undefined_values(np.array(targets)) == reason
    assert math.isnan(r2)
    assert mae == pytest.approx(2) or math.isnan(targets[0])
    assert undefined_values(np.array([1.0, math.nan, 2.0])) is None


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_bootstrap_errors__are_those_of_a_loop_over_draws(offset: float) -> None:
    targets, predictions, patients = made(fits=2, offset=offset)
    r2, mae = bootstrap_errors(targets, predictions, patients, draws=100, seed=4)
    ((_, counts),) = draw_counts(30, draws=100, seed=4, cells=60)
    known = ~np.isnan(targets)
    for draw in range(100):
        rows = np.repeat(np.flatnonzero(known), counts[draw][patients][known])
        each = [(r2_score(targets[rows], own[rows]), mean_absolute_error(targets[rows], own[rows]))
                for own in predictions]  # fmt: skip
        assert (r2[draw], mae[draw]) == pytest.approx(np.mean(each, axis=0), rel=1e-6)


def test_bootstrap_errors__a_draw_of_equal_values_has_no_r2() -> None:
    """Although their sum of squares is not exactly 0."""
    targets = np.array([0.1] * 8 + [0.7])
    r2, mae = bootstrap_errors(targets, np.full((1, 9), 0.4), np.arange(9), draws=300, seed=0)
    ((_, counts),) = draw_counts(9, draws=300, seed=0, cells=9)
    equal = counts[:, 8] == 0
    assert equal.any()
    np.testing.assert_array_equal(np.isnan(r2), equal)
    assert mae == pytest.approx(0.3)
