"""Accuracies of classes, of which every image has one: top-1, balanced accuracy, confusion matrix, report by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medmoco.config import RunSettings
from medmoco.evaluation.metrics.auroc import or_none, proportion_interval, share_interval
from medmoco.evaluation.metrics.confusion import accuracies, bootstrap_accuracies, class_report, confusion_matrix
from medmoco.evaluation.scoring.scoring import Key, Predictions, protocol_of
from medmoco.evaluation.scoring.study import Study
from medmoco.evaluation.target_records import ClassReport, ClassScore


def score_classes(
    study: Study,
    methods: Sequence[str],
    encoders: Sequence[str],
    predictions: Mapping[Key, Predictions],
    settings: RunSettings,
) -> list[ClassScore]:
    """Score the classes together, in the order of the table; nothing for labels."""
    column = settings.evaluate.classes
    if column is None:
        return []
    return [
        _score(Key(column, split, method, encoder), study, predictions, settings)
        for split in study.scored
        for method in methods
        for encoder in encoders
    ]


def _score(key: Key, study: Study, predictions: Mapping[Key, Predictions], settings: RunSettings) -> ClassScore:
    split, chosen = study.splits[key.split], settings.evaluate
    targets = split.labels.astype(np.float64)
    known = ~np.isnan(targets[:, 0])
    scores = np.stack([predictions[key._replace(label=name)].scores for name in split.label_names], axis=2)  # (D, N, C)
    confusion = confusion_matrix(targets, scores)
    (top1,), (balanced,) = accuracies(np.diagonal(confusion)[None], confusion.sum(axis=1)[None])
    draws = bootstrap_accuracies(targets, scores, split.patients, draws=chosen.bootstrap, seed=settings.seed)
    n_patients = int(np.unique(split.patients[known]).size)
    top1_low, top1_high, _ = proportion_interval(float(top1), draws[0], n_patients)
    balanced_low, balanced_high, left_out = share_interval(float(balanced), draws[1])
    return ClassScore(
        **protocol_of(key, study, settings),
        n=int(known.sum()),
        n_patients=n_patients,
        top1=or_none(top1),
        top1_low=or_none(top1_low),
        top1_high=or_none(top1_high),
        balanced_accuracy=or_none(balanced),
        balanced_accuracy_low=or_none(balanced_low),
        balanced_accuracy_high=or_none(balanced_high),
        bootstrap_left_out=left_out,
        undefined=None if known.any() else "undefined (no rows with a class)",
        classes=tuple(
            ClassReport(
                name=name, precision=or_none(precision), recall=or_none(recall), f1=or_none(f1), support=int(support)
            )
            for name, precision, recall, f1, support in zip(split.label_names, *class_report(confusion), strict=True)
        ),
        confusion=tuple(map(tuple, confusion.tolist())),
    )
