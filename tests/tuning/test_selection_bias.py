from __future__ import annotations

import numpy as np
import pytest

from medmoco.tuning.proposals import Trial
from medmoco.tuning.selection_bias import best_of, compare, line_of, optimism, table, words_of

TRIALS = [
    Trial(0, {"train.lr": 0.03}, 0.70, 0.6, 0.8, 12.3),
    Trial(1, {"train.lr": 0.1}, 0.75, 0.65, 0.85, 12.0),
    Trial(2, {"train.lr": 3.0}, failed="the last 20 steps had no finite gradient"),
    Trial(3, {"train.lr": 0.11}, 0.75, 0.65, 0.85, 12.0),
]
DRAWS = np.stack([TRIALS[0].score + np.array([-0.1, 0, 0.1]), np.array([0.8, 0.7, 0.81]), np.full(3, np.nan),
                  np.array([0.7, 0.75, 0.80])])  # fmt: skip


def test_best_of__is_the_first_of_equals_and_none_without_scores() -> None:
    assert best_of(TRIALS) is TRIALS[1]
    assert best_of(TRIALS[2:3]) is None
    assert compare(TRIALS[2:3], DRAWS[2:3]) is None


def test_optimism__is_what_a_plain_loop_finds() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(0.7, 0.02, 6)
    draws = scores[:, None] + generator.normal(0, 0.03, (6, 400))
    draws[2, 5] = np.nan
    plain = []
    for draw in range(400):
        if draw != 5:
            chosen = max(range(6), key=lambda trial: draws[trial, draw])
            plain.append(draws[chosen, draw] - scores[chosen])
    assert optimism(scores, draws) == pytest.approx(np.mean(plain))
    assert np.isnan(optimism(scores, np.full((6, 3), np.nan)))


def test_optimism__finds_most_of_the_bias_among_equals_and_none_where_one_is_clearly_best() -> None:
    """Of 20 equal trials the best scores 1.87 standard errors too high on average; one alone is chosen without bias."""
    generator = np.random.default_rng(1)
    found = []
    for _ in range(60):
        scores = generator.normal(0.7, 0.02, 20)
        found.append(optimism(scores, scores[:, None] + generator.normal(0, 0.02, (20, 500))))
    assert 0.6 < np.mean(found) / (1.87 * 0.02) < 0.8
    apart = np.array([0.5, 0.9])
    assert abs(optimism(apart, apart[:, None] + generator.normal(0, 0.02, (2, 2000)))) < 0.002


def test_compare__the_gain_is_paired() -> None:
    found = compare(TRIALS, DRAWS)
    assert found is not None
    assert (found["trial"], found["given"]) == (1, 0.70)
    assert found["gain"] == pytest.approx(0.05)
    differences = DRAWS[1] - DRAWS[0]
    assert (found["gain_low"], found["gain_high"]) == pytest.approx(tuple(np.percentile(differences, [2.5, 97.5])))
    alone = compare(TRIALS[:1], DRAWS[:1])
    assert alone is not None
    assert (alone["trial"], alone["gain"]) == (0, None)


def test_table__best_first_failed_last_and_what_to_make_of_it() -> None:
    lines = table(TRIALS, compare(TRIALS, DRAWS), "validation kNN AUROC").splitlines()
    assert [line.split()[0] for line in lines[2:6]] == ["1", "3", "0", "2"]
    assert "train.lr=0.03 (as given)" in lines[4]
    assert lines[5].endswith("train.lr=3.0  (the last 20 steps had no finite gradient)")
    text = "\n".join(lines)
    assert "The winner is trial 1: 0.750, compared with 0.700 for the settings as given: +0.050" in text
    assert "the best of 3 trials: about 0.0" in text
    assert "The interval contains 0" not in text
    assert "Only test is an unbiased score" in text


def test_table__no_winner_no_claim() -> None:
    assert "No trial scored better than the settings as given (1 trials" in table(
        TRIALS[:1], compare(TRIALS[:1], DRAWS[:1]), ""
    )
    assert table(TRIALS[2:3], None, "").endswith("No trial has a score.")
    worse = compare(TRIALS, np.stack([DRAWS[0], DRAWS[0] + [0.2, 0.05, -0.1], DRAWS[2], DRAWS[3]]))
    assert "The interval contains 0" in table(TRIALS, worse, "")
    first_failed = [Trial(0, {}, failed="diverged"), Trial(1, {"train.lr": 0.1}, 0.75, 0.65, 0.85)]
    assert "the settings as given have no score" in table(first_failed, compare(first_failed, DRAWS[[2, 1]]), "")


def test_words_of__are_what_the_command_line_takes() -> None:
    assert words_of({"train.lr": 1e-05, "model.backbone": "resnet18", "views.crop_scale": [0.2, 1.0]}) == (
        'train.lr=1e-05 model.backbone="resnet18" views.crop_scale=[0.2, 1.0]'
    )
    assert "no interval" in line_of(Trial(1, {}, 1.0))
