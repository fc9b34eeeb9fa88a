"""Fast metrics against plain loops and scikit-learn."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from medmoco.evaluation.metrics import auroc as module
from medmoco.evaluation.metrics.auroc import (
    as_scores,
    auroc,
    average_precision,
    bootstrap_auroc,
    bootstrap_average_precision,
    draw_counts,
    interval,
    majority_flag,
    or_none,
    ratio,
    share_interval,
    undefined,
)

Floats = NDArray[np.float64]


def plain_auroc(targets: Floats, scores: Floats) -> float:
    """Count pairs, one by one."""
    wins, pairs = 0.0, 0
    for target, score in zip(targets, scores, strict=True):
        for other_target, other_score in zip(targets, scores, strict=True):
            if target == 1 and other_target == 0:
                pairs += 1
                wins += 1.0 if score > other_score else 0.5 if score == other_score else 0.0
    return wins / pairs


def plain_bootstrap(targets: Floats, scores: Floats, patients: NDArray[np.int64], draws: int, seed: int) -> list[float]:
    """Repeat the rows of every patient drawn and score the repeated rows with scikit-learn."""
    names = np.unique(patients)
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        rows: list[int] = []
        for patient in generator.integers(len(names), size=len(names)):
            rows += [row for row in np.flatnonzero(patients == names[patient]) if not np.isnan(targets[row])]
        drawn = targets[rows]
        values.append(roc_auc_score(drawn, scores[rows]) if 0 < drawn.sum() < len(drawn) else math.nan)
    return values


def plain_weighted(targets: Floats, scores: Floats, patients: NDArray[np.int64], draws: int, seed: int) -> list[float]:
    """Keep the rows, and let scikit-learn's average precision weigh each by how often its patient was drawn."""
    names = np.unique(patients)
    known = ~np.isnan(targets)
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        drawn = generator.integers(len(names), size=len(names)).tolist()
        weights = np.array([drawn.count(place) for place in np.searchsorted(names, patients[known])])
        if len(set(targets[known][weights > 0])) < 2:
            values.append(math.nan)
            continue
        values.append(float(average_precision_score(targets[known], scores[known], sample_weight=weights)))
    return values


def made(
    rows: int, *, patients: int, seed: int = 0, ties: bool = False, missing: float = 0.0, share: float = 0.4
) -> tuple[Floats, Floats, NDArray[np.int64]]:
    generator = np.random.default_rng([7, seed])
    targets = (generator.random(rows) < share).astype(float)
    targets[:2] = 0, 1
    scores = generator.normal(size=rows) + targets
    if ties:
        scores = scores.round()
    targets[2:][generator.random(rows - 2) < missing] = np.nan
    return targets, scores, 3 * generator.integers(patients, size=rows) + 5


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_auroc__equals_a_plain_double_loop(seed: int, ties: bool) -> None:
    targets, scores, _ = made(60, patients=60, seed=seed, ties=ties, missing=0.2)
    assert auroc(targets, scores) == pytest.approx(plain_auroc(targets, scores), abs=1e-12)


def test_auroc__ties_count_half_and_order_is_all() -> None:
    targets = np.array([0.0, 0.0, 1.0, 1.0])
    assert auroc(targets, np.zeros(4)) == 0.5
    assert auroc(targets, np.array([0.0, 1.0, 1.0, 2.0])) == 0.875
    assert auroc(targets, np.array([3.0, 2.0, 1.0, 0.0])) == 0.0
    assert auroc(targets, np.array([0.0, 1e-300, 1e300, np.inf])) == 1.0


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision__equals_scikit_learn_on_the_labelled_rows(ties: bool) -> None:
    targets, scores, _ = made(200, patients=200, ties=ties, missing=0.3)
    known = ~np.isnan(targets)
    expected = average_precision_score(targets[known], scores[known])
    assert average_precision(targets, scores) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("targets", "reason"),
    [
        ([0, 0, np.nan], "undefined (no positives)"),
        ([1, 1, np.nan], "undefined (no negatives)"),
        ([np.nan, np.nan, np.nan], "undefined (no labelled rows)"),
        ([0, 1, np.nan], None),
    ],
)
def test_undefined__says_why_and_nothing_is_scored(targets: list[float], reason: str | None) -> None:
    labels, scores, patients = np.array(targets, float), np.array([0.1, 0.2, 0.3]), np.arange(3)
    assert undefined(labels) == reason
    if reason:
        assert math.isnan(auroc(labels, scores))
        assert math.isnan(average_precision(labels, scores))
        for function in (bootstrap_auroc, bootstrap_average_precision):
            bootstrap = function(labels, scores, patients, draws=100, seed=0)
            assert bootstrap.shape == (100,)
            assert np.isnan(bootstrap).all()
            assert interval(bootstrap).left_out == 100
            assert share_interval(0.7, bootstrap).left_out == 100


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("missing", [0.0, 0.3])
def test_bootstrap__equals_a_plain_loop_over_repeated_rows(ties: bool, missing: float) -> None:
    targets, scores, patients = made(80, patients=25, ties=ties, missing=missing)
    fast = bootstrap_auroc(targets, scores, patients, draws=150, seed=3)
    assert fast == pytest.approx(plain_bootstrap(targets, scores, patients, 150, 3), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("share", [0.1, 0.9])
def test_bootstrap_average_precision__equals_scikit_learn_with_weights(
    share: float, missing: float, ties: bool
) -> None:
    targets, scores, patients = made(80, patients=25, ties=ties, missing=missing, share=share)
    fast = bootstrap_average_precision(targets, scores, patients, draws=100, seed=3)
    assert fast == pytest.approx(plain_weighted(targets, scores, patients, 100, 3), abs=1e-12, nan_ok=True)


def test_bootstrap_average_precision__of_equal_scores_is_the_share_of_positives_drawn() -> None:
    targets, scores, patients = np.array([1.0, 1, 0, 0]), np.zeros(4), np.array([0, 0, 1, 2])
    fast = bootstrap_average_precision(targets, scores, patients, draws=200, seed=0)
    # One of three patients twice, or each once: 2 of 4, 4 of 5 or 2 of 4 rows; nan without either class.
    assert set(fast[~np.isnan(fast)].round(12)) == {0.5, 0.8}
    assert np.isnan(fast).any()


def test_bootstrap__draws_are_shared_by_both_metrics() -> None:
    """A draw without a class has neither value, and the draws of both are those of `draw_counts`."""
    targets, scores, patients = made(30, patients=8, share=0.0)
    first = bootstrap_auroc(targets, scores, patients, draws=200, seed=0)
    second = bootstrap_average_precision(targets, scores, patients, draws=200, seed=0)
    assert np.array_equal(np.isnan(first), np.isnan(second))
    place = np.searchsorted(np.unique(patients), patients[targets == 1])
    blocks = list(draw_counts(np.unique(patients).size, draws=200, seed=0, cells=2**18))
    assert len(blocks) > 1
    assert all((counts.sum(axis=1) == np.unique(patients).size).all() for _, counts in blocks)
    counts = np.concatenate([counts for _, counts in blocks])
    assert np.array_equal(np.isnan(first), (counts[:, place] == 0).all(axis=1))


def test_bootstrap__draws_of_one_class_are_left_out_and_counted() -> None:
    targets, scores, patients = made(30, patients=8, share=0.0)  # one positive
    fast = bootstrap_auroc(targets, scores, patients, draws=200, seed=0)
    plain = np.array(plain_bootstrap(targets, scores, patients, 200, 0))
    assert 0 < np.isnan(fast).sum() < 200
    assert interval(fast).left_out == np.isnan(plain).sum()
    low, high = np.percentile(plain[~np.isnan(plain)], [2.5, 97.5])
    assert interval(fast)[:2] == pytest.approx((low, high))


def test_bootstrap__does_not_depend_on_the_size_of_its_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, scores, patients = made(90, patients=31)
    whole = bootstrap_auroc(targets, scores, patients, draws=100, seed=1)
    precision = bootstrap_average_precision(targets, scores, patients, draws=100, seed=1)
    for cells in (1, 7 * 90):
        monkeypatch.setattr(module, "_BLOCK_CELLS", cells)
        assert np.array_equal(bootstrap_auroc(targets, scores, patients, draws=100, seed=1), whole)
        assert np.array_equal(bootstrap_average_precision(targets, scores, patients, draws=100, seed=1), precision)


def test_bootstrap__seed_and_patients_alone_choose_the_draws() -> None:
    targets, scores, patients = made(90, patients=31)
    first = bootstrap_auroc(targets, scores, patients, draws=100, seed=1)
    assert np.array_equal(bootstrap_auroc(targets, np.exp(scores), patients, draws=100, seed=1), first)
    assert np.allclose(bootstrap_auroc(targets, -scores, patients, draws=100, seed=1), 1 - first)
    assert not np.array_equal(bootstrap_auroc(targets, scores, patients, draws=100, seed=2), first)


def test_bootstrap__patients_with_many_images_widen_the_interval() -> None:
    """Copies of a row add no information: by rows the interval would shrink, by patients it must not."""
    targets, scores, _ = made(60, patients=60)
    patients = np.arange(60)
    copies = [np.repeat(values, 9) for values in (targets, scores, patients)]
    single = bootstrap_auroc(targets, scores, patients, draws=400, seed=0)
    assert np.allclose(bootstrap_auroc(*copies, draws=400, seed=0), single)  # type: ignore[arg-type]
    by_rows = interval(bootstrap_auroc(copies[0], copies[1], np.arange(540), draws=400, seed=0))
    by_patients = interval(single)
    assert by_rows.high - by_rows.low < 0.5 * (by_patients.high - by_patients.low)


def test_interval__of_a_difference_keeps_the_pairing() -> None:
    targets, scores, patients = made(300, patients=100)
    better = scores + 0.4 * targets
    first, second = (bootstrap_auroc(targets, values, patients, draws=500, seed=0) for values in (better, scores))
    difference = interval(first - second)
    assert difference.low > 0
    assert difference.low < auroc(targets, better) - auroc(targets, scores) < difference.high
    unpaired = interval(first - np.random.default_rng(0).permutation(second))
    assert difference.high - difference.low < 0.5 * (unpaired.high - unpaired.low)
    assert interval(first - first) == (0, 0, 0)


def test_share_interval__by_hand() -> None:
    """Draws whose log-odds are -1, 0 and 1 have a standard deviation of sqrt(2 / 3)."""
    draws = 1 / (1 + np.exp(-np.array([-1.0, 0.0, 1.0])))
    low, high, left_out = share_interval(0.8, np.append(draws, [np.nan, np.nan]))
    width = 1.959964 * math.sqrt(2 / 3)
    assert [low, high] == pytest.approx([1 / (1 + 0.25 * math.exp(width)), 1 / (1 + 0.25 * math.exp(-width))])
    assert left_out == 2
    lowest, highest, _ = share_interval(0.8, np.append(draws, [0.0, 1.0]))  # as two more of the outer ones
    assert lowest < low
    assert high < highest < 1


@pytest.mark.parametrize(
    ("value", "draws"), [(1.0, [0.9, 1.0]), (0.0, [0.0, 0.1]), (math.nan, [math.nan]), (0.5, [0, 1])]
)
def test_share_interval__what_did_not_vary_has_none(value: float, draws: list[float]) -> None:
    assert all(math.isnan(edge) for edge in share_interval(value, np.array(draws))[:2])


def test_share_interval__nears_the_percentiles_in_large_samples() -> None:
    targets, scores, patients = made(5000, patients=2500)
    for value, draws in (
        (auroc(targets, scores), bootstrap_auroc(targets, scores, patients, draws=2000, seed=0)),
        (
            average_precision(targets, scores),
            bootstrap_average_precision(targets, scores, patients, draws=2000, seed=0),
        ),
    ):
        assert share_interval(value, draws)[:2] == pytest.approx(interval(draws)[:2], abs=0.002)


def test_ratio__of_nothing_is_nan() -> None:
    assert ratio(np.array([1, 0, 3]), np.array([2, 0, 4])) == pytest.approx([0.5, math.nan, 0.75], nan_ok=True)
    assert [or_none(value) for value in (math.nan, 0.5)] == [None, 0.5]


def test_bootstrap__is_fast_at_a_hundred_thousand_rows() -> None:
    """The size of NIH ChestX-ray14: no loop over rows or patients could do 20 draws in this time."""
    targets, scores, patients = made(100_000, patients=30_000, share=0.1)
    start = time.process_time()
    bootstrap = bootstrap_auroc(targets, scores, patients, draws=20, seed=0)
    assert np.isfinite(bootstrap).all()
    assert np.ptp(bootstrap) < 0.03
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("scores", "flag"),
    [
        ([0.7, 0.7, 0.7, 0.7, 0.7], "all scores are equal"),
        ([0.1, 0.2, 0.3, 0.4, 0.45], "accuracy equals the majority share"),
        ([0.9, 0.2, 0.3, 0.6, 0.4], "accuracy equals the majority share"),  # 3 of 5 right, and 3 of 5 negative
        ([0.1, 0.2, 0.3, 0.6, 0.4], None),
        ([0.1, 0.2, 0.3, 0.6, 0.9], None),
    ],
)
def test_majority_flag__marks_scores_that_may_have_learned_nothing(scores: list[float], flag: str | None) -> None:
    targets = np.array([0, 0, 0, 1, 1, np.nan])
    assert majority_flag(targets, np.array([*scores, 0.99]), 0.5) == flag


def test_as_scores__what_differs_by_rounding_alone_is_a_tie_and_files_tell_all_others_apart() -> None:
    thirds = np.array([1 / 3, 1 / 3 + 1e-16, 1 / 3 - 1e-15, 0.9999999999999998, 1.0000000000000002])
    assert len(set(as_scores(thirds))) == 2
    assert set(as_scores(thirds)[3:]) == {1.0}
    neighbours = np.float32(0.7) + np.arange(-50, 50) * np.spacing(np.float32(0.7))
    written = [float(f"{score:.9g}") for score in as_scores(neighbours)]
    assert len(set(written)) == 100
    assert written == sorted(written)
