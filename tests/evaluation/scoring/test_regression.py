"""Scores of numeric targets, as scikit-learn computes them from the predictions, and their differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, r2_score

from medmoco.evaluation.metrics.regression import bootstrap_errors
from medmoco.evaluation.metrics.significance import holm
from medmoco.evaluation.scoring.regression import Regression, evaluate_targets
from medmoco.evaluation.scoring.scoring import Key
from medmoco.evaluation.target_records import TRAINING_MEAN
from tests.helpers.studies import SKILL, made_settings, made_study

ENCODERS = (*SKILL, TRAINING_MEAN)


def record_of(found: Regression, split: str, encoder: str) -> Any:
    return next(s for s in found.scores if (s.split, s.encoder) == (split, encoder))


def test_evaluate_targets__scores_are_those_of_scikit_learn(tmp_path: Path) -> None:
    study = made_study()
    found = evaluate_targets(study, made_settings(tmp_path))
    assert [(s.split, s.encoder) for s in found.scores] == [(s, e) for s in ("val", "test") for e in ENCODERS]
    for score in found.scores:
        targets = study.values["Age"][score.split]
        known = ~np.isnan(targets)
        predicted = found.predictions[Key("Age", score.split, "ridge", score.encoder)].scores[0]
        assert (score.label, score.method, score.n) == ("Age", "ridge", known.sum())
        assert score.r2 == pytest.approx(r2_score(targets[known], predicted[known]))
        assert score.mae == pytest.approx(mean_absolute_error(targets[known], predicted[known]))
        assert score.r2_low < score.r2 < score.r2_high + 1e-9
        assert score.mae_low < score.mae < score.mae_high
        assert (score.n_train, score.undefined) == ((int((~np.isnan(study.values["Age"]["train"])).sum()),), None)
        assert score.primary == (score.encoder == "run")
    assert [record_of(found, "test", name).r2 for name in SKILL] == sorted(
        (record_of(found, "test", name).r2 for name in SKILL), reverse=True
    )
    mean = found.predictions[Key("Age", "test", "ridge", TRAINING_MEAN)].scores
    assert mean == pytest.approx(np.nanmean(study.values["Age"]["train"]))


def test_evaluate_targets__differences_are_paired_and_adjusted(tmp_path: Path) -> None:
    study = made_study()
    found = evaluate_targets(study, made_settings(tmp_path))
    assert [(d.metric, d.control) for d in found.differences if d.split == "test"] == [
        (metric, control) for control in ("untrained", "pixels", TRAINING_MEAN) for metric in ("r2", "mae")
    ]
    for d in found.differences:
        own, other = (record_of(found, d.split, name) for name in ("run", d.control))
        assert d.difference == pytest.approx(getattr(own, d.metric) - getattr(other, d.metric))
        draws = [
            bootstrap_errors(
                study.values["Age"][d.split], found.predictions[Key("Age", d.split, "ridge", name)].scores,
                study.splits[d.split].patients, draws=200, seed=0,
            )[("r2", "mae").index(d.metric)]
            for name in ("run", d.control)
        ]  # fmt: skip
        assert (d.low, d.high) == pytest.approx(np.percentile(draws[0] - draws[1], [2.5, 97.5]))
        assert d.excludes_zero == (d.low > 0 or d.high < 0)
        family = [other for other in found.differences if (other.split, other.metric) == (d.split, d.metric)]
        assert d.p_holm == holm([other.p for other in family])[family.index(d)]


def test_evaluate_targets__draws_are_averaged(tmp_path: Path) -> None:
    study = made_study()
    settings = made_settings(tmp_path, "evaluate.label_fraction=0.1", "evaluate.label_draws=3")
    found = evaluate_targets(study, settings)
    score = record_of(found, "test", "run")
    targets = study.values["Age"]["test"]
    known = ~np.isnan(targets)
    each = [r2_score(targets[known], own[known])
            for own in found.predictions[Key("Age", "test", "ridge", "run")].scores]  # fmt: skip
    assert len(set(each)) == 3
    assert score.r2 == pytest.approx(np.mean(each))
    assert max(score.n_train_patients) == 12  # a tenth; some have no age
    assert min(score.n_train_patients) > 8
    assert (score.draws, score.fraction, len(score.strength)) == (3, 0.1, 3)
    assert score.r2 < record_of(evaluate_targets(study, made_settings(tmp_path)), "test", "run").r2


@pytest.mark.parametrize(
    ("split", "value", "reason", "is_learned"),
    [
        ("train", 40.0, "undefined (all values are equal in train)", False),
        ("train", np.nan, "undefined (no rows with a value in train)", False),
        ("test", 40.0, "undefined (all values are equal)", True),
        ("test", np.nan, "undefined (no rows with a value)", True),
    ],
)
def test_evaluate_targets__undefined(tmp_path: Path, split: str, value: float, reason: str, is_learned: bool) -> None:
    study = made_study()
    study.values["Age"][split][:] = value
    found = evaluate_targets(study, made_settings(tmp_path))
    score = record_of(found, "test", "run")
    assert (score.undefined, score.r2, score.r2_low, score.r2_high) == (reason, None, None, None)
    assert (score.mae is not None) == (is_learned and value == 40)
    difference = next(d for d in found.differences if (d.split, d.metric) == ("test", "r2"))
    assert (difference.difference, difference.p, difference.p_holm) == (None, None, None)


def test_evaluate_targets__without_val_the_strength_is_not_chosen(tmp_path: Path) -> None:
    found = evaluate_targets(made_study({"train": 80, "test": 60}), made_settings(tmp_path))
    assert record_of(found, "test", "run").note == "strength not chosen on val: no such split"
    assert record_of(found, "test", TRAINING_MEAN).note is None
