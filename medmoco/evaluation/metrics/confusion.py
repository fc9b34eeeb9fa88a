"""Accuracies of classes, of which every image has one: confusion matrix, top-1 and balanced accuracy, report by class.

An image is predicted to be of the class with the highest score, of equal ones the first. Confusion matrices have a row
for each true class and a column for each predicted one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medmoco.evaluation.metrics.auroc import Floats, Integers, Reals, bootstrap_sums, ratio


class Report(NamedTuple):
    """Measures of C classes, nan where undefined: (C,) each."""

    precision: Floats
    """Fraction of the images predicted to be of the class that are; undefined if there are none."""
    recall: Floats
    """Fraction of the images of the class that are predicted to be; undefined if there are none."""
    f1: Floats
    """Harmonic mean of precision and recall, 2 TP / (2 TP + FP + FN); undefined without TP, FP and FN."""
    support: Floats
    """Images of the class."""


def confusion_matrix(targets: Reals, scores: Reals) -> Floats:
    """Return the confusion matrix (C, C), as mean over K fits, so that its cells may be fractions.

    Args:
        targets: (N, C), 1 for the class of a row and 0 for the others, or nan for a row without class.
        scores: (K, N, C), finite.
    """
    known = ~np.isnan(targets[:, 0])
    predicted = np.mean([_one_hot(own[known]) for own in scores], axis=0)
    confusion: Floats = targets[known].astype(np.float64).T @ predicted
    return confusion


def class_report(confusion: Floats) -> Report:
    """Return precision, recall, F1 and support of each class from a confusion matrix (C, C)."""
    correct, actual, predicted = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return Report(
        ratio(correct, predicted), ratio(correct, actual), ratio(2 * correct, actual + predicted), actual
    )  # fmt: skip


def accuracies(correct: Floats, actual: Floats) -> tuple[Floats, Floats]:
    """Return the top-1 accuracy, and the balanced one, which is the mean recall of the classes.

    Classes without images anywhere have no recall and are left out. A draw that lacks one of the others is undefined.

    Source: Brodersen et al. 2010 (doi:10.1109/ICPR.2010.764) for the balanced accuracy.

    Args:
        correct: (B, C) images of each class that were predicted to be, in each of B draws.
        actual: (B, C) images of each class.
    """
    present = actual.any(axis=0)
    recalls = ratio(correct[:, present], actual[:, present])
    balanced = recalls.mean(axis=1) if present.any() else np.full(len(actual), np.nan)
    return ratio(correct.sum(axis=1), actual.sum(axis=1)), balanced


def bootstrap_accuracies(
    targets: Reals, scores: Reals, patients: Integers, *, draws: int, seed: int
) -> tuple[Floats, Floats]:
    """Return the top-1 and balanced accuracy of D bootstrap draws of patients, (D,) each, nan where undefined.

    The draws are those of `bootstrap_auroc`, the other arguments those of `confusion_matrix`.
    """
    actual = np.nan_to_num(targets).astype(np.float64)
    correct = actual * np.mean([_one_hot(own) for own in scores], axis=0)
    sums = bootstrap_sums(np.concatenate([correct, actual], axis=1), patients, draws=draws, seed=seed)
    of_correct, of_actual = np.split(sums, 2, axis=1)
    return accuracies(of_correct, of_actual)


def _one_hot(scores: Reals) -> Floats:
    """Return 1 for the class that a row is predicted to be of and 0 for the others, (N, C)."""
    predicted: Floats = np.eye(scores.shape[1])[scores.argmax(axis=1)]
    return predicted
