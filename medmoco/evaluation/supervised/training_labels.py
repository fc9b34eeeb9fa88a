"""The labels for fine-tuning: label columns or one column of classes, for a draw of patients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features.inputs import class_codes, class_names, load_splits
from medmoco.evaluation.features.probes import draw_classes, draw_patients
from medmoco.evaluation.leakage.leakage import find_leaks, find_pretraining, leak_lines, refuse_leaks
from medmoco.evaluation.metrics.auroc import undefined

Targets = NDArray[np.float32]  # (N, L), 1, 0 or nan


@dataclass(frozen=True)
class TrainingLabels:
    """The labels for training, and the rows of train that have them.

    Attributes:
        names: L labels or classes.
        classes: Column of the classes; None for labels.
        train: N rows with at least one drawn label, repeated if they are few.
        targets: (N, L) float32, 1, 0 or nan; for classes (N,) int64 class numbers.
        rows: Number of rows with each label, without repeats.
        patients: Number of patients with each label.
        repeats: Number of times that each row occurs in an epoch.
    """

    names: tuple[str, ...]
    classes: str | None
    train: Split
    targets: NDArray[Any]
    rows: dict[str, int]
    patients: dict[str, int]
    repeats: int

    @property
    def exclusive(self) -> bool:
        """Whether an image has exactly one of the labels."""
        return self.classes is not None


def load_training_labels(
    settings: RunSettings, encoder: str, others: Sequence[str] = ()
) -> tuple[dict[str, Split], TrainingLabels, list[str]]:
    """Load train, val and the other splits to score, filtered by `evaluate.where`.

    Returns:
        The splits, the labels for training, and notices for the log.

    Raises:
        SettingsError: there are no labels, or a column is missing.
        ManifestError: the manifest cannot be used, a label cannot be learned or validated, or test shares patients or
            images with training data, that of the encoder included.
    """
    columns = {} if settings.finetune.classes else settings.data.labels
    source = settings.model_copy(update={"data": settings.data.model_copy(update={"labels": columns})})
    splits = load_splits(source, ["train", "val", *others])
    pretraining = find_pretraining(encoder)
    leaks = find_leaks(splits, pretraining)
    refuse_leaks(leaks, settings)
    labels = choose_training_labels(splits["train"], settings)
    if all(undefined(column) for column in targets_of(splits["val"], labels).T):
        raise ManifestError(
            f"{splits['val'].csv.name}: no label has both positives and negatives in val, so the best epoch cannot be"
            " chosen"
        )
    notes = [notice for split in splits.values() for notice in split.notices]
    notes += [*leak_lines(leaks), *pretraining.notes, _describe(labels, len(splits["train"]))]
    return splits, labels, notes


def _describe(labels: TrainingLabels, rows: int) -> str:
    """Return the number of rows of train with labels, in words."""
    text = f"{len(labels.train) // labels.repeats} of {rows} training rows have labels"
    if len(labels.names) <= 5:
        each = [f"{name} {labels.rows[name]} from {labels.patients[name]} patients" for name in labels.names]
        text += f" ({', '.join(each)})"
    return text + (f"; each is used {labels.repeats} times per epoch" if labels.repeats > 1 else "")


def choose_training_labels(train: Split, settings: RunSettings) -> TrainingLabels:
    """Draw the patients whose labels are used, as in `evaluate`, and leave out rows without labels.

    Raises:
        SettingsError: there are no labels, or a column is missing.
        ManifestError: a label or class cannot be learned.
    """
    chosen = settings.finetune
    if not chosen.classes and not settings.data.labels:
        raise SettingsError("data.labels names no label to learn; set it, or finetune.classes")
    if chosen.classes:
        names = class_names(train, chosen.classes, "finetune.classes")
        drawn = draw_classes(
            train.patients, class_codes(train, chosen.classes, names, "finetune.classes"),
            fraction=chosen.label_fraction, seed=settings.seed, draw=chosen.label_draw,
        )  # fmt: skip
        targets: NDArray[Any] = drawn
        known: NDArray[np.bool_] = drawn >= 0
        masks = {name: drawn == number for number, name in enumerate(names)}
    else:
        names = train.label_names
        targets = np.stack([_drawn_label(train, number, settings) for number in range(len(names))], 1)
        known = ~np.isnan(targets).all(axis=1)
        masks = {name: ~np.isnan(targets[:, number]) for number, name in enumerate(names)}
    repeats = max(1, math.ceil(chosen.least_steps * chosen.global_batch_size / int(known.sum())))
    rows = np.tile(np.flatnonzero(known), repeats)
    return TrainingLabels(
        names=names,
        classes=chosen.classes,
        train=train.select(rows),
        targets=targets[rows],
        rows={name: int(mask.sum()) for name, mask in masks.items()},
        patients={name: int(np.unique(train.patients[mask]).size) for name, mask in masks.items()},
        repeats=repeats,
    )


def targets_of(split: Split, labels: TrainingLabels) -> Targets:
    """Return the targets of a split, (N, L), with a column for each label or class.

    Raises:
        ManifestError: it has classes that are not in train.
    """
    if labels.classes is None:
        return split.labels
    codes = class_codes(split, labels.classes, labels.names, "finetune.classes")[:, None]
    one_hot: Targets = np.where(codes < 0, np.nan, codes == np.arange(len(labels.names))).astype(np.float32)
    return one_hot


def _drawn_label(train: Split, number: int, settings: RunSettings) -> Targets:
    targets = train.labels[:, number].astype(np.float64)
    if reason := undefined(targets):
        raise ManifestError(
            f"{train.csv.name}: the label '{train.label_names[number]}' cannot be learned, it is {reason}.\n"
            "Remove it from data.labels, or change its policy for missing and uncertain cells."
        )
    chosen = settings.finetune
    drawn = draw_patients(
        train.patients, targets, fraction=chosen.label_fraction, seed=settings.seed, draw=chosen.label_draw
    )
    return drawn.astype(np.float32)
