"""Accuracies of classes against scikit-learn, and their bootstrap against a loop over draws."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics

from medmoco.evaluation.metrics.auroc import draw_counts
from medmoco.evaluation.metrics.confusion import accuracies, bootstrap_accuracies, class_report, confusion_matrix

Floats = NDArray[np.float64]


def made(rows: int = 90, classes: int = 3, fits: int = 1) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Targets (N, C) of which some rows have none, scores (K, N, C), and patients of two rows each."""
    generator = np.random.default_rng(3)
    codes = generator.integers(classes, size=rows)
    targets = np.eye(classes)[codes]
    scores = targets + generator.normal(0, 0.8, (fits, rows, classes))
    targets[generator.random(rows) < 0.1] = np.nan
    return targets, scores, np.arange(rows) // 2


def test_confusion_matrix__report_and_accuracies_are_those_of_scikit_learn() -> None:
    targets, (scores,), _ = made()
    known = ~np.isnan(targets[:, 0])
    truth, predicted = targets[known].argmax(1), scores[known].argmax(1)
    confusion = confusion_matrix(targets, scores[None])
    np.testing.assert_array_equal(confusion, metrics.confusion_matrix(truth, predicted))
    expected = metrics.precision_recall_fscore_support(truth, predicted, zero_division=np.nan)
    np.testing.assert_allclose(class_report(confusion), expected)
    (top1,), (balanced,) = accuracies(np.diagonal(confusion)[None], confusion.sum(1)[None])
    assert top1 == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert balanced == pytest.approx(metrics.balanced_accuracy_score(truth, predicted))


def test_confusion_matrix__is_the_mean_over_fits() -> None:
    targets, scores, _ = made(fits=2)
    each = [confusion_matrix(targets, own[None]) for own in scores]
    np.testing.assert_allclose(confusion_matrix(targets, scores), (each[0] + each[1]) / 2)


def test_confusion_matrix__of_equal_scores_the_first_class_is_predicted() -> None:
    np.testing.assert_array_equal(confusion_matrix(np.eye(3), np.zeros((1, 3, 3)))[:, 0], [1, 1, 1])


def test_class_report__undefined_without_cases_as_in_scikit_learn() -> None:
    """Class 1 is never predicted, class 2 never true, class 3 neither."""
    truth, predicted = np.array([0, 0, 1, 1, 0]), np.array([0, 2, 0, 2, 0])
    confusion = confusion_matrix(np.eye(4)[truth], np.eye(4)[predicted][None])
    expected = metrics.precision_recall_fscore_support(truth, predicted, labels=range(4), zero_division=np.nan)
    found = class_report(confusion)
    np.testing.assert_allclose(found, expected)
    assert np.isnan([found.precision[1], found.recall[2], found.f1[3]]).all()
    assert found.f1[1] == 0
    _, (balanced,) = accuracies(np.diagonal(confusion)[None], confusion.sum(1)[None])
    assert balanced == pytest.approx((2 / 3 + 0) / 2)  # of the two classes that have images


def test_bootstrap_accuracies__are_those_of_a_loop_over_draws() -> None:
    targets, scores, patients = made(rows=40, fits=2)
    top1, balanced = bootstrap_accuracies(targets, scores, patients, draws=120, seed=1)
    ((_, counts),) = draw_counts(20, draws=120, seed=1, cells=40)
    known = ~np.isnan(targets[:, 0])
    truth = targets[known].argmax(1)
    for draw in range(120):
        weights = counts[draw][patients][known]
        each = [own[known].argmax(1) for own in scores]
        assert top1[draw] == pytest.approx(np.mean([np.average(own == truth, weights=weights) for own in each]))
        if set(truth[weights > 0]) == {0, 1, 2}:
            recalls = [metrics.balanced_accuracy_score(truth, own, sample_weight=weights) for own in each]
            assert balanced[draw] == pytest.approx(np.mean(recalls))
        else:
            assert np.isnan(balanced[draw])


def test_bootstrap_accuracies__a_draw_without_a_class_is_undefined() -> None:
    targets = np.eye(2)[[0] * 19 + [1]]
    top1, balanced = bootstrap_accuracies(targets, targets[None], np.arange(20), draws=200, seed=0)
    assert (top1 == 1).all()
    assert 0.2 < np.isnan(balanced).mean() < 0.5  # (19 / 20)^20
