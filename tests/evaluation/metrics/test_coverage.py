"""95 % intervals and tests on made patients with several images each, whose true values are known.

A patient's images share part of their score and of what makes them positive. Given its label a score is normal, so
that the true AUROC is Phi(shift / sqrt 2), and the true average precision an integral over the positives' scores.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from medmoco.evaluation.metrics.auroc import (
    auroc,
    average_precision,
    bootstrap_auroc,
    bootstrap_average_precision,
    interval,
    share_interval,
    undefined,
)
from medmoco.evaluation.metrics.operating_points import decide
from medmoco.evaluation.metrics.significance import bootstrap_p, delong, difference_p, interval_of

Floats = NDArray[np.float64]

NORMAL = NormalDist()
DRAWS, SAMPLES = 500, 1000


class World(NamedTuple):
    """How samples are made: how many patients, how often an image is positive, how far it moves either score."""

    patients: int
    prevalence: float
    shifts: tuple[float, float]
    most_images: int = 5


def sample(world: World, seed: int) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Return targets (N,), two scores (2, N) and patients (N,)."""
    generator = np.random.default_rng([23, *map(ord, str(world)), seed])
    images = generator.integers(1, world.most_images + 1, size=world.patients)
    patients = np.repeat(np.arange(world.patients), images)

    def draw(clustered: float) -> Floats:
        own, shared = generator.normal(size=patients.size), generator.normal(size=world.patients)[patients]
        mixed: Floats = math.sqrt(clustered) * shared + math.sqrt(1 - clustered) * own
        return mixed

    targets = (draw(0.7) > NORMAL.inv_cdf(1 - world.prevalence)).astype(float)
    common = draw(0.5)
    scores = np.stack(
        [shift * targets + math.sqrt(0.6) * common + math.sqrt(0.4) * draw(0.5) for shift in world.shifts]
    )
    return targets, scores, patients


def true_auroc(shift: float) -> float:
    return NORMAL.cdf(shift / math.sqrt(2))


def true_average_precision(shift: float, prevalence: float) -> float:
    cuts = [
        shift + NORMAL.inv_cdf((place + 0.5) / 20_000) for place in range(20_000)
    ]  # of the positives, equally likely
    above = [prevalence * (1 - NORMAL.cdf(cut - shift)) for cut in cuts]
    return float(
        np.mean(
            [true / (true + (1 - prevalence) * (1 - NORMAL.cdf(cut))) for true, cut in zip(above, cuts, strict=True)]
        )
    )


def held(world: World, samples: int, draws: int = DRAWS) -> dict[str, float]:
    """Return how often each interval held its truth, and how often p was below 0.05 where nothing differs."""
    first, second = (true_auroc(shift) for shift in world.shifts)
    threshold = NORMAL.inv_cdf(0.9)
    truths = {
        "AUROC": first,
        "average precision": true_average_precision(world.shifts[0], world.prevalence),
        "difference": first - second,
        "sensitivity": 1 - NORMAL.cdf(threshold - world.shifts[0]),
        "specificity": 0.9,
        "AUROC, percentiles": first,
        "average precision, percentiles": true_average_precision(world.shifts[0], world.prevalence),
    }
    hits: dict[str, list[bool]] = {name: [] for name in truths}
    for seed in range(samples):
        targets, scores, patients = sample(world, seed)
        if undefined(targets):
            continue
        intervals = _intervals(targets, scores, patients, threshold, draws, seed)
        for name, truth in truths.items():
            low, high = intervals[name]
            hits[name].append(low <= truth <= high)
    return {name: float(np.mean(values)) for name, values in hits.items()}


def _intervals(
    targets: Floats, scores: Floats, patients: NDArray[np.int64], threshold: float, draws: int, seed: int
) -> dict[str, tuple[float, float]]:
    options = {"draws": draws, "seed": seed}
    aurocs = [bootstrap_auroc(targets, row, patients, **options) for row in scores]
    precisions = bootstrap_average_precision(targets, scores[0], patients, **options)
    record = decide(targets, scores[0], patients, threshold, **options)
    return {
        "AUROC": share_interval(auroc(targets, scores[0]), aurocs[0])[:2],
        "average precision": share_interval(average_precision(targets, scores[0]), precisions)[:2],
        "difference": interval(aurocs[0] - aurocs[1])[:2],
        "sensitivity": (record.sensitivity_low, record.sensitivity_high),
        "specificity": (record.specificity_low, record.specificity_high),
        "AUROC, percentiles": interval(aurocs[0])[:2],
        "average precision, percentiles": interval(precisions)[:2],
    }


def test_truths__are_those_of_a_very_large_sample() -> None:
    world = World(200_000, 0.3, (1.0, 0.5))
    targets, scores, _ = sample(world, 0)
    for row, shift in zip(scores, world.shifts, strict=True):
        assert auroc(targets, row) == pytest.approx(true_auroc(shift), abs=0.003)
        expected = true_average_precision(shift, 0.3)
        assert average_precision(targets, row) == pytest.approx(expected, abs=0.004)
    assert targets.mean() == pytest.approx(0.3, abs=0.003)


def test_coverage__of_a_few_samples() -> None:
    """Of 150 samples, 95 % intervals miss in 1 to 9 %; those that take images for patients miss far more often."""
    world = World(200, 0.3, (1.0, 0.7))
    for name, share in held(world, 150, draws=200).items():
        assert 0.9 <= share <= 0.99, name
    missed = 0
    for seed in range(150):
        targets, scores, patients = sample(world, seed)
        draws = bootstrap_auroc(targets, scores[0], np.arange(patients.size), draws=200, seed=seed)
        low, high, _ = share_interval(auroc(targets, scores[0]), draws)
        missed += not low <= true_auroc(1.0) <= high
    assert missed > 18


@pytest.mark.slow
@pytest.mark.parametrize(
    "world", [World(200, 0.3, (1.0, 0.7)), World(200, 0.3, (2.3, 2.0)), World(600, 0.1, (1.0, 0.7))], ids=str
)
def test_coverage__is_95_percent_within_two(world: World) -> None:
    """The standard error of a coverage is 0.7 %."""
    found = held(world, SAMPLES)
    print(world, found)
    for name in ("AUROC", "average precision", "difference", "sensitivity", "specificity"):
        assert 0.93 <= found[name] <= 0.97, (name, found[name])


@pytest.mark.slow
def test_coverage__of_delong_where_every_patient_has_one_image() -> None:
    world = World(150, 0.3, (1.0, 1.0), most_images=1)
    hits, low_p, low_bootstrap_p = 0, 0, 0
    for seed in range(SAMPLES):
        targets, scores, patients = sample(world, seed)
        aurocs, covariance = delong(targets, scores)
        low, high, _ = interval_of(float(aurocs[0]), float(covariance[0, 0]))
        hits += low <= true_auroc(1.0) <= high
        low_p += difference_p(aurocs, covariance, 0, 1) < 0.05
        first, second = (bootstrap_auroc(targets, row, patients, draws=DRAWS, seed=seed) for row in scores)
        low_bootstrap_p += bootstrap_p(first - second) < 0.05
    print(world, hits / SAMPLES, low_p / SAMPLES, low_bootstrap_p / SAMPLES)
    assert 0.93 <= hits / SAMPLES <= 0.97
    assert 0.03 <= low_p / SAMPLES <= 0.07
    assert 0.03 <= low_bootstrap_p / SAMPLES <= 0.07
