"""Probes against plain loops and scikit-learn; draws of patients are nested and hold both classes."""

from __future__ import annotations

import itertools
import math
import time
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import r2_score, roc_auc_score

from medmoco.evaluation.features import probes
from medmoco.evaluation.features.features import Features
from medmoco.evaluation.features.probes import (
    draw_classes,
    draw_patients,
    draw_values,
    knn_auroc,
    knn_scores,
    linear_probe,
    ridge_probe,
    softmax_probe,
    standardise,
)
from medmoco.evaluation.metrics.auroc import auroc
from medmoco.evaluation.metrics.regression import errors_of

Floats = NDArray[np.float64]
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def made(rows: int, width: int, *, seed: int = 0, signal: float = 1.0) -> tuple[Features, Floats]:
    generator = np.random.default_rng([11, seed])
    targets = (generator.random(rows) < 0.4).astype(float)
    targets[:2] = 0, 1
    values = generator.normal(size=(rows, width))
    values[:, 0] += signal * targets
    return (3 + 0.2 * values).astype(np.float32), targets


def splits(width: int = 10, signal: float = 1.0) -> tuple[dict[str, Features], dict[str, Floats]]:
    parts = {
        name: made(rows, width, seed=seed, signal=signal)
        for seed, (name, rows) in enumerate({"train": 120, "val": 80, "test": 80}.items())
    }
    return {name: part[0] for name, part in parts.items()}, {name: part[1] for name, part in parts.items()}


def test_standardise__uses_train_alone() -> None:
    features, _ = splits()
    features["test"] = features["test"] * 50
    standard = standardise(features).features
    mean, std = features["train"].mean(0, dtype=float), features["train"].std(0, dtype=float)
    for name, values in standard.items():
        assert values.dtype == np.float32
        assert np.allclose(values, (features[name] - mean) / std, atol=1e-4)


@pytest.mark.parametrize("block", [70, 2**20])
@pytest.mark.parametrize("constant", [7, 0.1, 1e6 / 3])
def test_standardise__a_constant_feature_does_no_harm(
    constant: float, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "_BLOCK_CELLS", block)
    features, _ = splits()
    for values in features.values():
        values[:, 3] = constant
    assert all(
        np.isfinite(values).all() and not values[:, 3].any() for values in standardise(features).features.values()
    )


def test_standardise__and_probe_hold_no_copies_in_double_precision() -> None:
    values, targets = made(30_000, 64)
    features = {"train": values, "val": values[:20_000]}
    tracemalloc.start()
    standard = standardise(features).features
    held = tracemalloc.get_traced_memory()[1]
    linear_probe(standard, targets, targets[:20_000], [0.1])
    more = tracemalloc.get_traced_memory()[1] - held
    tracemalloc.stop()
    block = 8 * probes._BLOCK_CELLS
    assert held < sum(each.nbytes for each in standard.values()) + 3 * block
    assert more < 2 * block


def test_linear_probe__equals_scikit_learn_at_the_strength_best_on_validation() -> None:
    features, targets = splits(width=60)
    targets["train"][5:15] = np.nan
    standard = standardise(features).features
    known = ~np.isnan(targets["train"])
    by_hand = {}
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=5000, tol=1e-8)
        model.fit(standard["train"][known].astype(float), targets["train"][known])
        by_hand[strength] = {name: model.decision_function(standard[name]) for name in ("val", "test")}
    validation = {s: roc_auc_score(targets["val"], scores["val"]) for s, scores in by_hand.items()}
    best = max(validation, key=lambda strength: validation[strength])
    assert len(set(validation.values())) > 1

    probe = linear_probe(standard, targets["train"], targets["val"], STRENGTHS)
    assert probe.strength == best
    assert probe.notes == ()
    assert probe.scores.keys() == {"val", "test"}
    assert np.allclose(probe.scores["test"], by_hand[best]["test"], atol=0.1)


def test_linear_probe__never_looks_at_test() -> None:
    features, targets = splits(width=60)
    standard = standardise(features).features
    probe = linear_probe(standard, targets["train"], targets["val"], STRENGTHS)
    spoilt = linear_probe({**standard, "test": -standard["test"]}, targets["train"], targets["val"], STRENGTHS)
    assert spoilt.strength == probe.strength
    assert np.array_equal(spoilt.scores["val"], probe.scores["val"])


def test_linear_probe__missing_labels_of_validation_are_left_out() -> None:
    features, targets = splits(width=60)
    standard = standardise(features).features
    known = np.arange(80) % 2 == 0
    half = {**standard, "val": standard["val"][known]}
    masked = linear_probe(standard, targets["train"], np.where(known, targets["val"], np.nan), STRENGTHS)
    assert masked.strength == linear_probe(half, targets["train"], targets["val"][known], STRENGTHS).strength


def test_linear_probe__equal_validation_takes_the_strongest_regularisation() -> None:
    features, targets = splits(width=1, signal=0.5)  # one feature: its sign is all that the order depends on
    probe = linear_probe(standardise(features).features, targets["train"], targets["val"], (1.0, 0.01, 0.1))
    assert probe.strength == 0.01


@pytest.mark.parametrize(
    ("validation", "reason"), [(None, "no such split"), (np.zeros(80), "undefined (no positives)")]
)
def test_linear_probe__without_a_usable_validation_says_so(validation: Floats | None, reason: str) -> None:
    features, targets = splits()
    probe = linear_probe(standardise(features).features, targets["train"], validation, STRENGTHS)
    assert probe.strength == 0.01
    assert probe.notes == (f"strength not chosen on val: {reason}",)


def test_linear_probe__says_when_it_did_not_converge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_MAX_ITERATIONS", 1)
    features, targets = splits()
    probe = linear_probe(standardise(features).features, targets["train"], targets["val"], STRENGTHS)
    assert probe.notes == ("not converged in 1 iterations",)


def plain_knn(bank: Features, targets: Floats, query: NDArray[np.float32], neighbours: int) -> float:
    votes = []
    for key, target in zip(bank.astype(float), targets, strict=True):
        if not np.isnan(target):
            votes.append((key @ query / math.sqrt(key @ key) / math.sqrt(query @ query), target))
    nearest = sorted(votes, reverse=True)[:neighbours]
    weights = [math.exp(cosine / 0.07) for cosine, _ in nearest]
    return sum(w * target for w, (_, target) in zip(weights, nearest, strict=True)) / sum(weights)


@pytest.mark.parametrize(("cells", "block"), [(1, 1), (120 * 7, 50), (2**24, 2**20)])
def test_knn_scores__equal_a_plain_loop_with_missing_labels(
    cells: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "_BLOCK_CELLS", block)
    monkeypatch.setattr(probes, "_CHUNK_CELLS", cells)
    monkeypatch.setattr(probes, "_LEAST_CHUNK", 1)
    features, _ = splits()
    generator = np.random.default_rng(0)
    targets = (generator.random((120, 4)) < 0.4).astype(float)
    targets[generator.random(120) < 0.5, 1] = np.nan
    targets[generator.random(120) < 0.9, 2] = np.nan  # fewer rows than neighbours
    targets[:, 3] = np.nan
    scores = knn_scores(features["train"], targets, features["test"][:15], 20)
    plain = [[plain_knn(features["train"], targets[:, label], query, 20) for label in range(3)]
             for query in features["test"][:15].astype(float)]  # fmt: skip
    assert np.allclose(scores[:, :3], plain, atol=1e-4)
    assert np.isnan(scores[:, 3]).all()


def exact_share(cosines: list[Fraction], votes: list[int], count: int) -> Fraction:
    """The share of positives among neighbours that are all equally near, by whole numbers: places are shared."""
    last = sorted(cosines, reverse=True)[count - 1]
    above = [vote for cosine, vote in zip(cosines, votes, strict=True) if cosine > last]
    tied = [vote for cosine, vote in zip(cosines, votes, strict=True) if cosine == last]
    assert not above
    return Fraction(sum(tied), len(tied))


@pytest.mark.parametrize("vote", [0.0, 1.0])
def test_knn_scores__neighbours_of_one_class_are_exactly_all_or_none(vote: float) -> None:
    features, targets = splits()
    scores = knn_scores(features["train"], np.full((120, 1), vote), features["val"], 20)
    assert (scores == vote).all()
    assert auroc(targets["val"], scores[:, 0]) == 0.5


@pytest.mark.parametrize("copies", ["copies", "brighter", "all zero"])
def test_knn_scores__of_images_that_are_all_alike_is_the_share_of_positives(copies: str) -> None:
    """Their directions are equal, so that whoever else is as near as the last neighbour counts as much."""
    one = np.random.default_rng(0).normal(size=512)
    strengths = np.linspace(0.3, 3, 90) if copies == "brighter" else np.full(90, float(copies == "copies"))
    same = np.outer(strengths, one).astype(np.float32)
    votes = [int(number % 7 in (0, 3)) for number in range(90)]
    for count in (1, 20, 90, 200):
        exact = exact_share([Fraction(1)] * 90, votes, min(count, 90))
        scores = knn_scores(same, np.array(votes, float)[:, None], same[:37], count)
        assert set(scores[:, 0]) == {float(np.float32(exact))}


def test_knn_scores__depend_neither_on_the_order_of_rows_nor_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    bank = np.repeat(generator.normal(size=(40, 64)), 3, axis=0).astype(np.float32)  # three copies of each image
    targets = (generator.random((120, 3)) < 0.4).astype(float)  # which do not agree on their labels
    targets[generator.random(120) < 0.3, 2] = np.nan
    queries = np.concatenate([generator.normal(size=(30, 64)).astype(np.float32)] * 2)
    scores = knn_scores(bank, targets, queries, 10)
    np.testing.assert_array_equal(scores[:30], scores[30:])
    order = generator.permutation(120)
    for cells, block in ((1, 2**20), (120 * 7, 64 * 7), (2**22, 50)):
        monkeypatch.setattr(probes, "_BLOCK_CELLS", block)
        monkeypatch.setattr(probes, "_CHUNK_CELLS", cells)
        monkeypatch.setattr(probes, "_LEAST_CHUNK", 1)
        np.testing.assert_array_equal(knn_scores(bank[order], targets[order], queries, 10), scores)


def test_knn_scores__without_labels_are_nan() -> None:
    features, _ = splits()
    assert np.isnan(knn_scores(features["train"], np.full((120, 2), np.nan), features["val"], 20)).all()


def test_knn_scores__places_that_are_left_are_shared_by_those_who_are_as_near() -> None:
    """Query and bank are unit vectors along axes: one copy, then three at a right angle for two places."""
    bank, query = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[:1]
    far = math.exp(-1 / 0.07)
    for votes in itertools.product((0.0, 1.0), repeat=4):
        expected = (votes[0] + 2 / 3 * sum(votes[1:]) * far) / (1 + 2 * far)
        assert knn_scores(bank, np.array(votes)[:, None], query, 3)[0, 0] == pytest.approx(expected, rel=1e-6)


def test_linear_probe__equal_images_score_the_same_wherever_they_are() -> None:
    """A matrix product rounds the rows of its last, smaller block otherwise than the same rows before."""
    features, targets = splits(width=512)
    standard = standardise(features).features
    patterns = standard["val"][:20]
    repeated = {**standard, "val": np.tile(patterns, (6, 1))[:103], "test": np.repeat(patterns, 7, axis=0)[3:]}
    answers = np.random.default_rng(2).integers(2, size=103).astype(float)
    scores = linear_probe(repeated, targets["train"], answers, STRENGTHS).scores
    assert len(set(scores["val"])) == len(set(scores["test"])) == 20
    place = {score: rank for rank, score in enumerate(sorted(set(scores["val"])))}
    ranks = [place[score] for score in scores["val"]]
    pairs = [
        Fraction(int(a > b) + int(a >= b), 2)
        for a, mine in zip(ranks, answers, strict=True)
        for b, other in zip(ranks, answers, strict=True)
        if mine > other
    ]
    assert auroc(answers, scores["val"]) == pytest.approx(float(sum(pairs) / len(pairs)), abs=1e-12)


def test_knn_auroc__is_per_label_and_nan_where_undefined() -> None:
    features, targets = splits()
    bank = np.stack([targets["train"], np.ones(120), targets["train"], np.full(120, np.nan)], 1)
    answers = np.stack([targets["val"], targets["val"], np.zeros(80), targets["val"]], 1)
    scores = knn_scores(features["train"], bank, features["val"], 20)
    found = knn_auroc(scores, bank, answers)
    assert found[0] == auroc(targets["val"], scores[:, 0]) > 0.5
    assert np.isnan(found[1:]).all()


def patients_and_targets() -> tuple[NDArray[np.int64], Floats]:
    generator = np.random.default_rng(5)
    patients = generator.integers(1000, size=2500) * 2 + 7
    return patients, (patients % 3 == 0).astype(float)


def kept(fraction: float, *, seed: int = 0, draw: int = 0, targets: Floats | None = None) -> set[int]:
    patients, given = patients_and_targets()
    drawn = draw_patients(patients, given if targets is None else targets, fraction=fraction, seed=seed, draw=draw)
    inside = ~np.isnan(drawn)
    assert np.array_equal(drawn[inside], (given if targets is None else targets)[inside])
    assert not set(patients[inside]) & set(patients[~inside])  # whole patients
    return set(patients[inside].tolist())


def test_draw_patients__takes_whole_patients_nested_by_share() -> None:
    total = len(set(patients_and_targets()[0]))
    draws = [kept(fraction) for fraction in (0.01, 0.05, 0.1, 0.5, 1.0)]
    assert [len(draw) for draw in draws] == [round(f * total) for f in (0.01, 0.05, 0.1, 0.5, 1.0)]
    assert all(small < large for small, large in itertools.pairwise(draws))


def test_draw_patients__seed_and_draw_choose_and_repeat() -> None:
    assert kept(0.1) == kept(0.1)
    assert kept(0.1) != kept(0.1, draw=1)
    assert kept(0.1) != kept(0.1, seed=1)
    overlap = len(kept(0.5) & kept(0.5, draw=1)) / len(kept(0.5))
    assert 0.4 < overlap < 0.6  # independent, not nested


def test_draw_patients__adds_the_next_until_both_classes_are_there() -> None:
    patients, _ = patients_and_targets()
    everyone = set(patients.tolist())
    positive = sorted(everyone - kept(0.3))[0]  # a patient the order places late
    targets = (patients == positive).astype(float)
    drawn = kept(0.01, targets=targets)
    assert positive in drawn
    assert len(drawn) > 0.3 * len(everyone)
    assert kept(0.01) < drawn
    assert drawn - {positive} == kept((len(drawn) - 1) / len(everyone))


def test_draw_patients__missing_labels_do_not_count_as_a_class() -> None:
    patients, targets = patients_and_targets()
    targets[targets == 0] = np.nan
    targets[np.flatnonzero(np.isnan(targets))[0]] = 0
    drawn = draw_patients(patients, targets, fraction=0.01, seed=0, draw=0)
    assert {0.0, 1.0} <= set(drawn.tolist())


def test_probe__is_fast_at_the_size_of_the_development_set() -> None:
    generator = np.random.default_rng(0)
    targets = (generator.random(2801) < 0.5).astype(float)
    features = generator.normal(size=(2801, 512)).astype(np.float32) + 0.1 * targets[:, None].astype(np.float32)
    start = time.process_time()
    linear_probe({"train": features, "val": features[:600]}, targets, targets[:600], STRENGTHS)
    knn_scores(features, targets[:, None], features[:600], 20)
    assert time.process_time() - start < 15


# ---- classes ----


def classes(rows: int, seed: int, count: int = 3) -> tuple[Features, Floats]:
    """Features that tell `count` classes apart, and one-hot targets; some rows have no class."""
    generator = np.random.default_rng([21, seed])
    codes = np.concatenate([np.arange(count), generator.integers(count, size=rows - count)])
    values = generator.normal(size=(rows, 8))
    values[:, :count] += np.eye(count)[codes]
    targets = np.eye(count)[codes]
    targets[count:][generator.random(rows - count) < 0.1] = np.nan
    return values.astype(np.float32), targets


def class_splits(count: int = 3) -> tuple[dict[str, Features], dict[str, Floats]]:
    parts = {name: classes(rows, seed, count) for seed, (name, rows) in enumerate({"train": 150, "val": 90}.items())}
    return {name: part[0] for name, part in parts.items()}, {name: part[1] for name, part in parts.items()}


def test_softmax_probe__scores_are_the_log_odds_of_scikit_learns_probabilities() -> None:
    features, targets = class_splits()
    found = softmax_probe(features, targets["train"], targets["val"], [0.1])
    known = ~np.isnan(targets["train"][:, 0])
    model = LogisticRegression(C=0.1, max_iter=2000).fit(features["train"][known], targets["train"][known].argmax(1))
    p = model.predict_proba(features["val"])
    np.testing.assert_allclose(np.stack([probe.scores["val"] for probe in found], 1), np.log(p / (1 - p)), atol=1e-3)
    assert [probe.strength for probe in found] == [0.1] * 3


def test_softmax_probe__two_classes_are_the_binary_probe() -> None:
    features, targets = class_splits(2)
    negative, positive = softmax_probe(features, targets["train"], targets["val"], STRENGTHS)
    binary = linear_probe(features, targets["train"][:, 1], targets["val"][:, 1], STRENGTHS)
    assert positive.strength == binary.strength
    np.testing.assert_allclose(positive.scores["val"], binary.scores["val"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(negative.scores["val"], -binary.scores["val"], rtol=1e-5, atol=1e-6)


def test_softmax_probe__strength_is_the_best_by_mean_auroc_on_val() -> None:
    features, targets = class_splits()
    targets["val"][targets["val"][:, 2] == 1] = np.nan  # class 2 has no AUROC there, and does not count
    aurocs = []
    for strength in STRENGTHS:
        probes_ = softmax_probe(features, targets["train"], targets["val"], [strength])
        aurocs.append(np.mean([auroc(targets["val"][:, c], probes_[c].scores["val"]) for c in (0, 1)]))
    chosen = softmax_probe(features, targets["train"], targets["val"], STRENGTHS)[0]
    assert chosen.strength == STRENGTHS[int(np.argmax(aurocs))]
    assert not chosen.notes


def test_softmax_probe__without_val_the_strength_is_the_middle_one() -> None:
    features, targets = class_splits()
    for validation, reason in ((None, "no such split"), (np.full((90, 3), np.nan), "undefined (no labelled rows)")):
        probe = softmax_probe(features, targets["train"], validation, STRENGTHS)[0]
        assert probe.strength == 1e-2
        assert probe.notes == (f"strength not chosen on val: {reason}",)


def test_draw_classes__keeps_the_share_of_every_class_and_grows() -> None:
    generator = np.random.default_rng(0)
    patients = np.arange(600) // 2
    codes = np.repeat(generator.choice([0, 1, 2], p=[0.8, 0.15, 0.05], size=300), 2)
    codes[generator.random(600) < 0.1] = -1
    before: set[int] = set()
    for fraction in (0.01, 0.1, 0.5):
        drawn = draw_classes(patients, codes, fraction=fraction, seed=2, draw=1)
        np.testing.assert_array_equal(drawn[drawn >= 0], codes[drawn >= 0])
        kept = set(patients[drawn >= 0].tolist())
        assert before <= kept
        before = kept
        np.testing.assert_array_equal(drawn[np.isin(patients, [*kept])], codes[np.isin(patients, [*kept])])
        for number in range(3):
            own = np.unique(patients[codes == number]).size
            assert np.unique(patients[drawn == number]).size == max(1, round(fraction * own))
    assert draw_classes(patients, codes, fraction=1, seed=2, draw=1) is codes
    other = draw_classes(patients, codes, fraction=0.5, seed=2, draw=0)
    assert (other != drawn).any()


# ---- regression ----


def numbers(rows: int, seed: int) -> tuple[Features, Floats]:
    generator = np.random.default_rng([31, seed])
    values = generator.normal(size=(rows, 6)).astype(np.float32)
    targets = 40 + 10 * values[:, 0] + 5 * generator.normal(size=rows)
    targets[generator.random(rows) < 0.1] = np.nan
    return values, targets


def test_ridge_probe__is_the_closed_form_at_the_strength_that_is_best_on_val() -> None:
    (train, y), (val, truth) = numbers(80, 0), numbers(60, 1)
    features, known = {"train": train, "val": val}, ~np.isnan(y)
    x = np.column_stack([train[known].astype(float), np.ones(known.sum())])
    best = -math.inf
    for strength in STRENGTHS:
        penalty = np.diag([1 / strength] * 6 + [0])
        *weights, bias = np.linalg.solve(x.T @ x + penalty, x.T @ y[known])
        predicted = val @ weights + bias
        one = ridge_probe(features, y, truth, [strength])
        np.testing.assert_allclose(one.scores["val"], predicted, rtol=1e-5)
        best = max(best, r2_score(truth[~np.isnan(truth)], predicted[~np.isnan(truth)]))
    chosen = ridge_probe(features, y, truth, STRENGTHS)
    assert errors_of(truth, chosen.scores["val"][None])[0] == pytest.approx(best, rel=1e-5)
    assert not chosen.notes


def test_ridge_probe__many_rows_of_similar_features_lose_no_digits() -> None:
    generator = np.random.default_rng(0)
    x = (generator.normal(size=(20000, 1)) + 0.02 * generator.normal(size=(20000, 8))).astype(np.float32)
    y = x[:, 0] - x[:, 1] + 0.01 * generator.normal(size=20000)
    wide = np.column_stack([x.astype(float), np.ones(20000)])
    *weights, bias = np.linalg.solve(wide.T @ wide + np.diag([1.0] * 8 + [0]), wide.T @ y)
    found = ridge_probe({"train": x}, y, None, [1.0])
    np.testing.assert_allclose([*found.weights, found.bias], [*weights, bias], rtol=1e-6, atol=1e-9)


def test_ridge_probe__without_val_the_strength_is_the_middle_one() -> None:
    values, targets = numbers(50, 0)
    probe = ridge_probe({"train": values, "test": values}, targets, None, STRENGTHS)
    assert (probe.strength, probe.notes) == (1e-2, ("strength not chosen on val: no such split",))
    probe = ridge_probe({"train": values, "val": values}, targets, np.ones(50), STRENGTHS)
    assert probe.notes == ("strength not chosen on val: undefined (all values are equal)",)


def test_draw_values__draws_the_patients_of_labels_and_different_numbers() -> None:
    patients, targets = np.arange(100) // 2, np.full(100, 5.0)
    targets[[7, 40]] = 90, np.nan
    for draw in range(5):
        drawn = draw_values(patients, targets, fraction=0.02, seed=0, draw=draw)
        known = ~np.isnan(drawn)
        np.testing.assert_array_equal(drawn[known], targets[known])
        assert len(set(drawn[known])) == 2
    labels = np.where(np.arange(100) % 4 < 2, 0.0, 1.0)
    same = draw_patients(patients, labels, fraction=0.3, seed=0, draw=0)
    np.testing.assert_array_equal(draw_values(patients, labels, fraction=0.3, seed=0, draw=0), same)
