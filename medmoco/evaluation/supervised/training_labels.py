"""What fine-tuning learns from: label columns or one column of classes, of the patients that were drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.config import FinetuneSettings, RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features.inputs import load_splits
from medmoco.evaluation.features.probes import draw_patients
from medmoco.evaluation.leakage.leakage import find_leaks, find_pretraining, leak_lines, refuse_leaks
from medmoco.evaluation.metrics.auroc import undefined

Targets = NDArray[np.float32]  # (N, L), 1, 0 or nan

_NAMING = ("Path", "PatientID", "StudyID")  # classes are printed, these never


@dataclass(frozen=True)
class Lesson:
    """The labels, and the rows of train that teach them.

    Attributes:
        names: L labels, or classes.
        classes: The column that names them; None for labels.
        train: N rows with at least one label that was drawn, all of them repeated where they are few.
        targets: (N, L) float32, 1, 0 or nan; of classes (N,) int64, which it is.
        rows: How many teach each label, before they are repeated.
        patients: How many these are of.
        repeats: How often each row is in an epoch.
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


def load_lesson(
    settings: RunSettings, encoder: str, wanted: Sequence[str] = ()
) -> tuple[dict[str, Split], Lesson, list[str]]:
    """Load train, val and what else is to be scored.

    Args:
        settings: `evaluate.where` restricts all rows.
        encoder: As `load_backbone` takes it; what it was pretrained on must not be in test.
        wanted: More splits.

    Returns:
        The splits, what is learned from train, and what the user should know.

    Raises:
        SettingsError: there are no labels, or no such column.
        ManifestError: the manifest cannot be used, a label cannot be learned or validated, or test shares patients or
            images with what was learned from.
    """
    labels = {} if settings.finetune.classes else settings.data.labels
    source = settings.model_copy(update={"data": settings.data.model_copy(update={"labels": labels})})
    splits = load_splits(source, ["train", "val", *wanted])
    pretraining = find_pretraining(encoder)
    leaks = find_leaks(splits, pretraining)
    refuse_leaks(leaks, settings)
    lesson = choose_lesson(splits["train"], settings)
    if all(undefined(column) for column in targets_of(splits["val"], lesson).T):
        raise ManifestError(
            f"{splits['val'].csv.name}: no label has positives and negatives in val, so that the best epoch cannot be"
            " chosen"
        )
    notes = [notice for split in splits.values() for notice in split.notices]
    notes += [*leak_lines(leaks), *pretraining.notes, _taught(lesson, len(splits["train"]))]
    return splits, lesson, notes


def _taught(lesson: Lesson, rows: int) -> str:
    """Say how many rows of train there is something to learn from."""
    text = f"{len(lesson.train) // lesson.repeats} of {rows} training rows have labels to learn from"
    if len(lesson.names) <= 5:
        each = [f"{name} {lesson.rows[name]} from {lesson.patients[name]} patients" for name in lesson.names]
        text += f" ({', '.join(each)})"
    return text + (f"; each comes {lesson.repeats} times an epoch" if lesson.repeats > 1 else "")


def choose_lesson(train: Split, settings: RunSettings) -> Lesson:
    """Draw the patients whose labels are used, the same as `evaluate` draws, and leave out rows without any.

    Raises:
        SettingsError: there are no labels, or no such column.
        ManifestError: a label or class cannot be learned.
    """
    chosen = settings.finetune
    if not chosen.classes and not settings.data.labels:
        raise SettingsError("data.labels names no label to learn; set it, or finetune.classes")
    if chosen.classes:
        names = _class_names(train, chosen.classes)
        codes = _codes(train, chosen.classes, names)
        drawn = _drawn_classes(train, codes, len(names), settings)
        targets: NDArray[Any] = drawn
        known: NDArray[np.bool_] = drawn >= 0
        masks = {name: drawn == number for number, name in enumerate(names)}
    else:
        names = train.label_names
        targets = np.stack([_drawn_label(train, number, settings) for number in range(len(names))], 1)
        known = ~np.isnan(targets).all(axis=1)
        masks = {name: ~np.isnan(targets[:, number]) for number, name in enumerate(names)}
    repeats = _repeats(int(known.sum()), chosen)
    rows = np.tile(np.flatnonzero(known), repeats)
    return Lesson(
        names=names,
        classes=chosen.classes,
        train=train.select(rows),
        targets=targets[rows],
        rows={name: int(mask.sum()) for name, mask in masks.items()},
        patients={name: int(np.unique(train.patients[mask]).size) for name, mask in masks.items()},
        repeats=repeats,
    )


def targets_of(split: Split, lesson: Lesson) -> Targets:
    """Return the targets of another split, (N, L); of classes, whether it is each of them.

    Raises:
        ManifestError: it has classes that train has not.
    """
    if lesson.classes is None:
        return split.labels
    codes = _codes(split, lesson.classes, lesson.names)[:, None]
    one_hot: Targets = np.where(codes < 0, np.nan, codes == np.arange(len(lesson.names))).astype(np.float32)
    return one_hot


def _repeats(rows: int, chosen: FinetuneSettings) -> int:
    """Return how often an epoch goes over so many rows."""
    return max(1, math.ceil(chosen.least_steps * chosen.global_batch_size / rows))


def _drawn_label(train: Split, number: int, settings: RunSettings) -> Targets:
    targets = train.labels[:, number].astype(np.float64)
    if reason := undefined(targets):
        raise ManifestError(
            f"{train.csv.name}: the label '{train.label_names[number]}' cannot be learned, it is {reason}.\n"
            "Take it out of data.labels, or change its policy for missing and uncertain cells."
        )
    drawn: Targets = _draw(train, targets, settings).astype(np.float32)
    return drawn


def _draw(train: Split, targets: NDArray[np.float64], settings: RunSettings) -> NDArray[np.float64]:
    chosen = settings.finetune
    return draw_patients(
        train.patients, targets, fraction=chosen.label_fraction, seed=settings.seed, draw=chosen.label_draw
    )


def _class_cells(split: Split, column: str) -> pd.Series[str]:
    if column not in split.table.columns:
        raise SettingsError(f"finetune.classes: {split.csv.name} has no column '{column}'")
    if column in _NAMING:
        raise SettingsError(f"finetune.classes: '{column}' names patients or images, not classes")
    return split.table[column].astype(str).str.strip()


def _class_names(train: Split, column: str) -> tuple[str, ...]:
    names = tuple(sorted(set(_class_cells(train, column)) - {""}))
    if len(names) < 2:
        raise ManifestError(f"{train.csv.name}: the column '{column}' names {len(names)} classes; 2 or more are needed")
    return names


def _codes(split: Split, column: str, names: tuple[str, ...]) -> NDArray[np.int64]:
    """Return which class each row is of, (N,); -1 where the cell is blank."""
    cells = _class_cells(split, column)
    known: Mapping[str, int] = {"": -1, **{name: number for number, name in enumerate(names)}}
    unknown = ~cells.isin(known).to_numpy()
    if unknown.any():
        raise ManifestError(
            f"{split.csv.name} row {split.rows[unknown.argmax()]}: its '{column}' is a class that train has not,"
            f" as in {unknown.sum()} rows in all"
        )
    return np.array([known[cell] for cell in cells], np.int64)


def _drawn_classes(train: Split, codes: NDArray[np.int64], classes: int, settings: RunSettings) -> NDArray[np.int64]:
    """Keep the classes of a share of the patients, at least so many that every class is among them."""
    if settings.finetune.label_fraction == 1:
        return codes
    kept = np.zeros(len(codes), bool)
    for number in range(classes):
        targets = np.where(codes < 0, np.nan, codes == number)
        kept |= ~np.isnan(_draw(train, targets, settings))
    drawn: NDArray[np.int64] = np.where(kept, codes, -1).astype(np.int64)
    return drawn
