"""Scores of classes: those of one softmax probe, as scikit-learn computes them from the predictions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, roc_auc_score

from medmoco.evaluation.scoring.classes import score_classes
from medmoco.evaluation.scoring.scoring import (
    Key,
    Predictions,
    differences_of,
    draw_labels,
    predict_knn,
    predict_linear,
    score_all,
)
from medmoco.evaluation.scoring.table import MACRO
from tests.helpers.studies import CLASSES, SKILL, made_settings, made_study

METHODS = ("linear", "knn")


def scored(tmp_path: Path, study: Any, *more: str) -> tuple[dict[Key, Predictions], dict[Key, Any], Sequence[Any]]:
    settings = made_settings(tmp_path, *more)
    draws = draw_labels(study.splits["train"], settings)
    predictions: dict[Key, Predictions] = {}
    for name in study.encoders:
        predictions |= predict_linear(study, name, draws, settings) | predict_knn(study, name, draws, settings)
    scores = score_all(study, METHODS, study.encoders, predictions, draws, settings)
    return predictions, scores, score_classes(study, METHODS, study.encoders, predictions, settings)


def test_score_classes__are_those_of_scikit_learn(tmp_path: Path) -> None:
    study = made_study()
    predictions, scores, found = scored(tmp_path, study)
    assert [(s.split, s.method, s.encoder) for s in found] == [
        (split, method, encoder) for split in ("val", "test") for method in METHODS for encoder in SKILL
    ]
    for score in found:
        labels = study.splits[score.split].labels
        known = ~np.isnan(labels[:, 0])
        key = Key("", score.split, score.method, score.encoder)
        own = np.stack([predictions[key._replace(label=name)].scores[0] for name in CLASSES], 1)
        truth, predicted = labels[known].argmax(1), own[known].argmax(1)
        assert (score.label, score.n) == ("Class", known.sum())
        assert score.top1 == pytest.approx(accuracy_score(truth, predicted))
        assert score.balanced_accuracy == pytest.approx(balanced_accuracy_score(truth, predicted))
        assert score.confusion == tuple(map(tuple, confusion_matrix(truth, predicted).tolist()))
        assert 0 < score.top1_low < score.top1 < score.top1_high < 1
        assert score.balanced_accuracy_low < score.balanced_accuracy < score.balanced_accuracy_high
        assert [report.name for report in score.classes] == list(CLASSES)
        assert sum(report.support for report in score.classes) == score.n
        aurocs = [scores[key._replace(label=name)].score.auroc for name in CLASSES]
        for number, auroc in enumerate(aurocs):
            assert auroc == pytest.approx(roc_auc_score(truth == number, own[known][:, number]))
        macro = scores[key._replace(label=MACRO)].score
        assert macro.auroc == pytest.approx(np.mean(aurocs))
        assert (macro.class_column, macro.n_labels) == ("Class", 3)
    assert [s.primary for s in found[:3]] == [True, False, False]


def test_score_classes__differences_are_those_of_labels(tmp_path: Path) -> None:
    _, scores, _ = scored(tmp_path, made_study())
    found = differences_of(scores, [("run", "untrained"), ("run", "pixels")])
    assert len(found) == 4 * 2 * 2 * 2  # classes and macro, splits, methods, controls
    macro = [d for d in found if (d.label, d.split, d.method, d.control) == (MACRO, "test", "linear", "pixels")]
    assert macro[0].excludes_zero
    assert macro[0].difference > 0
    assert all(d.p_holm >= d.p for d in found)


def test_score_classes__draws_are_averaged_and_hold_every_class(tmp_path: Path) -> None:
    study = made_study()
    predictions, scores, found = scored(tmp_path, study, "evaluate.label_fraction=0.05", "evaluate.label_draws=3")
    key = Key("Viral", "test", "linear", "run")
    score = scores[key].score
    patients = [
        np.unique(study.splits["train"].patients[column == 1]).size for column in study.splits["train"].labels.T
    ]
    assert score.n_train_patients == (sum(max(1, round(0.05 * count)) for count in patients),) * 3
    assert score.auroc == pytest.approx(np.mean(score.auroc_of_draws))
    labels = study.splits["test"].labels
    known = ~np.isnan(labels[:, 0])
    own = np.stack([predictions[key._replace(label=name)].scores for name in CLASSES], 2)
    each = [accuracy_score(labels[known].argmax(1), draw[known].argmax(1)) for draw in own]
    record = next(s for s in found if (s.split, s.method, s.encoder) == key[1:])
    assert record.top1 == pytest.approx(np.mean(each))
    assert sum(map(sum, record.confusion)) == pytest.approx(record.n)
    assert (record.draws, record.label_fraction, record.fraction) == (3, 0.05, 0.05)


def test_score_classes__a_class_without_rows_to_score_is_undefined(tmp_path: Path) -> None:
    study = made_study()
    labels = study.splits["test"].labels
    labels[labels[:, 2] == 1] = np.nan
    _, scores, found = scored(tmp_path, study)
    assert scores[Key("Viral", "test", "knn", "run")].score.undefined == "undefined (no positives)"
    macro = scores[Key(MACRO, "test", "knn", "run")].score
    assert (macro.n_labels_defined, macro.undefined) == (2, None)
    record = next(s for s in found if s.split == "test")
    assert (record.classes[2].support, record.classes[2].recall) == (0, None)
    assert record.balanced_accuracy == pytest.approx(np.mean([c.recall for c in record.classes[:2]]))


def test_score_classes__without_classes_there_is_nothing(tmp_path: Path) -> None:
    study = made_study()
    study.splits["test"].labels[:] = np.nan
    _, scores, found = scored(tmp_path, study)
    record = next(s for s in found if s.split == "test")
    assert (record.undefined, record.top1, record.n) == ("undefined (no rows with a class)", None, 0)
    assert scores[Key("Viral", "test", "knn", "run")].score.undefined == "undefined (no labelled rows)"
    assert score_classes(study, METHODS, study.encoders, {}, made_settings(tmp_path, "evaluate.classes=null")) == []


def test_score_classes__only_constant_scores_are_flagged(tmp_path: Path) -> None:
    """No class of many has to reach a probability of one half."""
    study = made_study()
    study.features["pixels"] = {name: np.ones((len(split), 2), np.float32) for name, split in study.splits.items()}
    _, scores, found = scored(tmp_path, study)
    assert {entry.score.flag for key, entry in scores.items() if key.encoder == "pixels" and key.label != MACRO} == {
        "all scores are equal"
    }
    assert not any(entry.score.flag for key, entry in scores.items() if key.encoder != "pixels")
    assert next(s for s in found if s.encoder == "pixels").balanced_accuracy == pytest.approx(1 / 3)
