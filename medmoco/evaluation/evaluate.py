"""Score a frozen encoder against its controls: `medmoco evaluate`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from medmoco.config import RunSettings
from medmoco.data.loading import check_images
from medmoco.data.manifest import Split, load_manifest, present_splits, select_where
from medmoco.errors import SettingsError
from medmoco.evaluation import metrics
from medmoco.evaluation.features import Extracted, Features, Mirrored, extract, thumbnails
from medmoco.evaluation.leakage import compare_pixels, find_leaks, find_pretraining, refuse_leaks
from medmoco.evaluation.metrics import Floats
from medmoco.evaluation.probes import draw_patients, knn_scores, linear_probe, standardise
from medmoco.evaluation.table import MACRO, heading, layout
from medmoco.training.checkpoint import load_backbone
from medmoco.training.device import choose_device
from medmoco.training.runlog import write_json

Record = dict[str, Any]

SCORED_SPLITS = ("val", "test")
THRESHOLDS = {"linear": 0.0, "knn": 0.5}
"""At or above it, a score decides for positive: log-odds of the probe, share of positive neighbours of kNN."""

# What a difference repeats of the score it is about.
_SHARED = (
    "n", "n_positive", "n_patients", "undefined", "where", "label_fraction", "draws", "bootstrap", "seed", "leakage",
)  # fmt: skip


class Key(NamedTuple):
    """Which score: a label of a split, by a method, on an encoder's features."""

    label: str
    split: str
    method: str
    encoder: str


@dataclass(frozen=True)
class Lesson:
    """What one label's probes learn from: D draws of training targets (N,), none if they have one class."""

    draws: list[Floats]
    undefined: str | None


@dataclass(frozen=True)
class Answer:
    """What D fits, one per draw, say about a split.

    Attributes:
        scores: (D, N), see THRESHOLDS.
        strengths: D values of C; empty for kNN.
        notes: What was out of the ordinary in the fits.
    """

    scores: Floats
    strengths: list[float]
    notes: list[str]


@dataclass(frozen=True)
class Scored:
    """A record and the bootstrap behind its interval, (draws,), nan where a draw is undefined."""

    record: Record
    bootstrap: Floats


class Evaluation(NamedTuple):
    """What `evaluate` found; its files hold the same."""

    records: list[Record]
    differences: list[Record]
    table: str


def evaluate(settings: RunSettings, encoder: str, out: Path, say: Callable[[str], None] = lambda _: None) -> Evaluation:
    """Score an encoder's frozen features on val and test, beside its untrained self and raw pixels.

    Writes scores.json, differences.json, predictions.csv (rows by number) and table.txt to `out`.

    Args:
        settings: Of the data, the images' size and the protocol.
        encoder: A run folder, a weights file, or "random".
        out: Folder for the results; what an earlier evaluation wrote there is replaced.
        say: Told what is being done.

    Raises:
        SettingsError: no label is named or one is named macro, `out` cannot be written, or the run was fed differently.
        ManifestError: the manifest cannot be used, has no rows to learn from or to score, or a test split that shares
            patients or images with what was learned from, unless `evaluate.allow_leakage`.
        CheckpointError: the encoder cannot be loaded, or gives features that are not finite.
        DataError: an image cannot be used.
    """
    if not settings.data.labels:
        raise SettingsError("data.labels names no label to score; set it, such as data.labels=[Pneumonia]")
    if MACRO in settings.data.labels:
        raise SettingsError(f"data.labels: '{MACRO}' is the mean over labels in every table; rename that column")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{out} cannot be the folder of the results: {error.strerror}") from None
    splits, notes = _load_splits(settings)
    pretraining = find_pretraining(encoder)
    refuse_leaks(find_leaks(splits, pretraining), settings)  # by patient and file already, before the work
    encoders, source = _load_encoders(settings, encoder, say)
    extracted = _extract_all(encoders, splits, settings, say)
    leaks, unknown = compare_pixels(pretraining, splits, extracted, settings, say)
    refuse_leaks(leaks, settings)
    features = {name: {split: found.features[name] for split, found in extracted.items()} for name in encoders}
    lessons = {label: _lesson(splits["train"], label, settings) for label in settings.data.labels}
    answers: dict[Key, Answer] = {}
    for name in encoders:
        say(f"probes on {name}")
        answers |= _answer(name, features[name], splits, lessons, settings)
    scored = _score_all(list(encoders), answers, lessons, splits, settings)
    for key, entry in scored.items():
        entry.record["leakage"] = leaks[key.split]
    records = [entry.record for entry in scored.values()]
    differences = _differences(scored, list(encoders))
    width = next(iter(features.values()))["train"].shape[1]
    notes += [*pretraining.notes, *unknown, *_remarks(extracted)]
    table = layout(records, differences, heading(source, width, splits, settings), notes)
    _write(out, Evaluation(records, differences, table), answers, splits)
    return Evaluation(records, differences, table)


def _load_splits(settings: RunSettings) -> tuple[dict[str, Split], list[str]]:
    """Load train, and val and test as far as there are any, restricted by `evaluate.where`; notes say what is odd."""
    there = present_splits(settings.data)
    # With neither, the manifest's own refusal is the right one.
    present = [name for name in SCORED_SPLITS if name in there] or SCORED_SPLITS
    splits = load_manifest(settings.data, ("train", *present))
    if settings.evaluate.where:
        splits = {name: select_where(split, settings.evaluate.where) for name, split in splits.items()}
    splits = {name: check_images(split, settings.data) for name, split in splits.items()}
    absent = [
        f"{name}: the manifest has no {name} rows, nothing is scored there"
        for name in SCORED_SPLITS
        if name not in present
    ]
    return splits, absent + [notice for split in splits.values() for notice in split.notices]


def _load_encoders(
    settings: RunSettings, encoder: str, say: Callable[[str], None]
) -> tuple[dict[str, nn.Module], Record]:
    """Return the encoder, then its controls, and what the encoder is."""
    encoders: dict[str, nn.Module] = {}
    encoders["untrained"], source = load_backbone("random", settings)
    if encoder != "random":
        backbone, source = load_backbone(encoder, settings, say)
        encoders = {"run": backbone, **encoders}
    if settings.evaluate.mirror:
        encoders = {name: Mirrored(module) for name, module in encoders.items()}
    return {**encoders, "pixels": thumbnails()}, source


def _extract_all(
    encoders: Mapping[str, nn.Module], splits: Mapping[str, Split], settings: RunSettings, say: Callable[[str], None]
) -> dict[str, Extracted]:
    """Return the features of every split; each image is decoded once for all encoders."""
    device = choose_device(settings.train)
    for module in encoders.values():
        module.to(device)
        if settings.train.channels_last:
            module.to(memory_format=torch.channels_last)
    extracted = {}
    for name, split in splits.items():
        say(f"features of {name}: {len(split)} images")
        extracted[name] = extract(encoders, split, settings, device)
    return extracted


def _remarks(extracted: Mapping[str, Extracted]) -> list[str]:
    """Say what the image reader remarked on, split by split."""
    return [
        f"{name}: {len(found.notices)} remarks of the image reader, the first: {found.notices[0]}"
        for name, found in extracted.items()
        if found.notices
    ]


def _targets(split: Split, label: str) -> Floats:
    targets: Floats = split.labels[:, split.label_names.index(label)].astype(np.float64)
    return targets


def _lesson(train: Split, label: str, settings: RunSettings) -> Lesson:
    targets, fraction = _targets(train, label), settings.evaluate.label_fraction
    reason = metrics.undefined(targets)
    if reason:
        return Lesson([], reason.replace(")", " in train)"))
    draws = range(settings.evaluate.label_draws if fraction < 1 else 1)
    return Lesson(
        [draw_patients(train.patients, targets, fraction=fraction, seed=settings.seed, draw=draw) for draw in draws],
        None,
    )


def _answer(
    encoder: str,
    features: Mapping[str, Features],
    splits: Mapping[str, Split],
    lessons: Mapping[str, Lesson],
    settings: RunSettings,
) -> dict[Key, Answer]:
    """Fit both methods on one encoder's features and let them score every other split; no answer without a lesson."""
    taught = {label: lesson.draws for label, lesson in lessons.items() if lesson.draws}
    standard, strengths = standardise(features), settings.evaluate.strengths
    validation = {label: _targets(splits["val"], label) if "val" in splits else None for label in taught}
    probes = {
        label: [linear_probe(standard, drawn, validation[label], strengths) for drawn in draws]
        for label, draws in taught.items()
    }
    answers: dict[Key, Answer] = {}
    for split in (name for name in splits if name != "train"):
        neighbours = [
            knn_scores(features["train"], np.stack(targets, 1), features[split], settings.evaluate.neighbours)
            for targets in zip(*taught.values(), strict=True)
        ]
        for column, label in enumerate(taught):
            fits = probes[label]
            answers[Key(label, split, "linear", encoder)] = Answer(
                np.stack([fit.scores[split] for fit in fits]),
                [fit.strength for fit in fits],
                [note for fit in fits for note in fit.notes],
            )
            answers[Key(label, split, "knn", encoder)] = Answer(
                np.stack([scores[:, column] for scores in neighbours]), [], []
            )
    return answers


def _score_all(
    encoders: Sequence[str],
    answers: Mapping[Key, Answer],
    lessons: Mapping[str, Lesson],
    splits: Mapping[str, Split],
    settings: RunSettings,
) -> dict[Key, Scored]:
    """Score every label, and the macro average over labels, in the order of the table."""
    scored: dict[Key, Scored] = {}
    for split in (name for name in splits if name != "train"):
        for label, lesson in lessons.items():
            for key in (Key(label, split, method, encoder) for method in THRESHOLDS for encoder in encoders):
                scored[key] = _score(key, answers.get(key), lesson, splits, settings)
        for key in (Key(MACRO, split, method, encoder) for method in THRESHOLDS for encoder in encoders):
            parts = [scored[key._replace(label=label)] for label in lessons]
            scored[key] = _macro(key, parts, splits[split], settings)
    return scored


def _score(
    key: Key, answer: Answer | None, lesson: Lesson, splits: Mapping[str, Split], settings: RunSettings
) -> Scored:
    """Score one label: means over its draws, with one bootstrap of the split's patients for all of them."""
    split, chosen = splits[key.split], settings.evaluate
    targets = _targets(split, key.label)
    known = ~np.isnan(targets)
    reason = lesson.undefined or metrics.undefined(targets)
    scores = answer.scores if answer and not reason else np.empty((0, len(split)))
    each = [metrics.auroc(targets, row) for row in scores]
    bootstraps = [
        metrics.bootstrap_auroc(targets, row, split.patients, draws=chosen.bootstrap, seed=settings.seed)
        for row in scores
    ]
    bootstrap = np.mean(bootstraps, axis=0) if bootstraps else np.full(chosen.bootstrap, np.nan)
    flags = [flag for row in scores if (flag := metrics.majority_flag(targets, row, THRESHOLDS[key.method]))]
    taught = [~np.isnan(draw) for draw in lesson.draws]
    record = _record(key, settings, np.mean(each) if each else math.nan, bootstrap) | {
        "n": int(known.sum()),
        "n_positive": int((targets == 1).sum()),
        "n_patients": int(np.unique(split.patients[known]).size),
        "average_precision": _json(np.mean([metrics.average_precision(targets, row) for row in scores] or [math.nan])),
        "undefined": reason,
        "flag": _count_each(flags, len(scores)) or None,
        "note": _count_each(answer.notes, len(answer.scores)) or None if answer else None,
        "auroc_of_draws": each,
        "strength": answer.strengths if answer else [],
        "n_train": [int(rows.sum()) for rows in taught],
        "n_train_patients": [int(np.unique(splits["train"].patients[rows]).size) for rows in taught],
        "label_policy": settings.data.labels[key.label].model_dump(),
    }
    return Scored(record, bootstrap)


def _macro(key: Key, parts: Sequence[Scored], split: Split, settings: RunSettings) -> Scored:
    """Average the defined labels; its counts are of rows with any label and with any positive one."""
    defined = [part for part in parts if part.record["undefined"] is None]
    nothing = [np.full(settings.evaluate.bootstrap, np.nan)]
    bootstrap = np.mean([part.bootstrap for part in defined] or nothing, axis=0)
    values = {
        name: np.mean([part.record[name] for part in defined] or [math.nan]) for name in ("auroc", "average_precision")
    }
    known = ~np.isnan(split.labels).all(axis=1)
    record = _record(key, settings, values["auroc"], bootstrap) | {
        "n": int(known.sum()),
        "n_positive": int((split.labels == 1).any(axis=1).sum()),
        "n_patients": int(np.unique(split.patients[known]).size),
        "average_precision": _json(values["average_precision"]),
        "undefined": None if defined else "undefined (no label is defined)",
        "flag": None,
        "note": None,
        "n_labels": len(parts),
        "n_labels_defined": len(defined),
    }
    return Scored(record, bootstrap)


def _record(key: Key, settings: RunSettings, auroc: float | np.floating[Any], bootstrap: Floats) -> Record:
    interval, chosen = metrics.interval(bootstrap), settings.evaluate
    return {
        **key._asdict(),
        "auroc": _json(auroc),
        "auroc_low": _json(interval.low),
        "auroc_high": _json(interval.high),
        "size": chosen.size or settings.views.size,
        "bootstrap": chosen.bootstrap,
        "bootstrap_left_out": interval.left_out,
        "where": chosen.where,
        "label_fraction": chosen.label_fraction,
        "draws": chosen.label_draws if chosen.label_fraction < 1 else 1,
        "neighbours": chosen.neighbours if key.method == "knn" else None,
        "seed": settings.seed,
    }


def _json(value: float | np.floating[Any]) -> float | None:
    """Return a number as strict JSON has it: no nan."""
    return None if math.isnan(value) else float(value)


def _count_each(messages: Sequence[str], draws: int) -> str:
    """Join messages; where there are several draws, each says in how many of them."""
    counted = {message: messages.count(message) for message in messages}
    return "; ".join(f"{text} in {n} of {draws} draws" if draws > 1 else text for text, n in counted.items())


def _differences(scored: Mapping[Key, Scored], encoders: Sequence[str]) -> list[Record]:
    """Compare the first encoder with each of the others on the same rows and the same draws of patients."""
    first, *controls = encoders
    differences = []
    for key, entry in scored.items():
        for control in controls if key.encoder == first else ():
            other = scored[key._replace(encoder=control)]
            interval = metrics.interval(entry.bootstrap - other.bootstrap)
            is_defined = entry.record["auroc"] is not None and other.record["auroc"] is not None
            differences.append(
                {
                    **key._asdict(),
                    "control": control,
                    "difference": entry.record["auroc"] - other.record["auroc"] if is_defined else None,
                    "low": _json(interval.low),
                    "high": _json(interval.high),
                    "excludes_zero": bool(interval.low > 0 or interval.high < 0),
                    "bootstrap_left_out": interval.left_out,
                    **{name: entry.record[name] for name in _SHARED},
                }
            )
    return differences


def _write(out: Path, found: Evaluation, answers: Mapping[Key, Answer], splits: Mapping[str, Split]) -> None:
    write_json(out / "scores.json", found.records)
    write_json(out / "differences.json", found.differences)
    (out / "table.txt").write_text(found.table, encoding="utf-8")
    frames = []
    for key, answer in answers.items():
        split = splits[key.split]
        targets = _targets(split, key.label)
        known = ~np.isnan(targets)
        for draw, scores in enumerate(answer.scores):
            columns = {"row": split.rows, "draw": draw, "target": targets, "score": scores}
            frames.append(pd.DataFrame({**key._asdict(), **columns})[known].astype({"target": int}))
    order = ["split", "row", "label", "method", "encoder", "draw", "target", "score"]
    table = pd.concat(frames)[order] if frames else pd.DataFrame(columns=order)
    table.to_csv(out / "predictions.csv", index=False, float_format="%.9g")
