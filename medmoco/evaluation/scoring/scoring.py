"""Probes' answers -> scores with intervals, and differences between encoders on the same rows and draws.

The records are what scores.json and differences.json hold: no nan, None where a number is undefined.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.evaluation.features.probes import Probe, draw_patients, knn_scores, linear_probe, standardise
from medmoco.evaluation.metrics import auroc as metrics
from medmoco.evaluation.metrics.auroc import Floats
from medmoco.evaluation.metrics.comparisons import bootstrap_p, holm
from medmoco.evaluation.metrics.delong import delong, difference_p, interval_of
from medmoco.evaluation.scoring.study import Study
from medmoco.evaluation.scoring.table import MACRO

Record = dict[str, Any]

THRESHOLDS = {"linear": 0.0, "knn": 0.5, "finetune": 0.0}
"""Per method: at or above it, a score decides for positive. Log-odds, and kNN's share of positive neighbours."""

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
class LabelDraws:
    """What one label's probes learn from: D draws of training targets (N,), none if they have one class."""

    targets: list[Floats]
    undefined: str | None


@dataclass(frozen=True)
class Answer:
    """What D fits, one per draw, say about a split.

    Attributes:
        scores: (D, N), see THRESHOLDS.
        fits: The D probes; empty where the method has none.
        notes: What was out of the ordinary in the fits.
    """

    scores: Floats
    fits: list[Probe]
    notes: list[str]


@dataclass(frozen=True)
class Scored:
    """A record, and what is behind its interval and its tests.

    Attributes:
        record: See the module's docstring.
        bootstrap: (draws,) AUROCs, nan where a draw is undefined.
        independent: Targets (N,) and scores (N,) of the labelled rows where they allow DeLong's test: one fit, and one
            row for each patient.
    """

    record: Record
    bootstrap: Floats
    independent: tuple[Floats, Floats] | None = None


def label_targets(split: Split, label: str) -> Floats:
    """Return (N,) 1, 0 or nan."""
    targets: Floats = split.labels[:, split.label_names.index(label)].astype(np.float64)
    return targets


def draw_labels(train: Split, settings: RunSettings) -> dict[str, LabelDraws]:
    """Draw the patients whose labels are used, for every label."""
    return {label: _draws_of(train, label, settings) for label in settings.data.labels}


def _draws_of(train: Split, label: str, settings: RunSettings) -> LabelDraws:
    targets, fraction = label_targets(train, label), settings.evaluate.label_fraction
    reason = metrics.undefined(targets)
    if reason:
        return LabelDraws([], reason.replace(")", " in train)"))
    draws = range(settings.evaluate.label_draws if fraction < 1 else 1)
    return LabelDraws(
        [draw_patients(train.patients, targets, fraction=fraction, seed=settings.seed, draw=draw) for draw in draws],
        None,
    )


def linear_answers(
    study: Study, encoder: str, drawn: Mapping[str, LabelDraws], settings: RunSettings
) -> dict[Key, Answer]:
    """Fit probes on one encoder's features and let them score every split; none where a label cannot be learned."""
    standard, splits = standardise(study.features[encoder]), study.splits
    answers: dict[Key, Answer] = {}
    for label, draws in drawn.items():
        validation = label_targets(splits["val"], label) if "val" in splits else None
        fits = [
            linear_probe(standard.features, targets, validation, settings.evaluate.strengths)
            for targets in draws.targets
        ]
        for split in study.scored if fits else ():
            answers[Key(label, split, "linear", encoder)] = Answer(
                np.stack([fit.scores[split] for fit in fits]), fits, [note for fit in fits for note in fit.notes]
            )
    return answers


def knn_answers(
    study: Study, encoder: str, drawn: Mapping[str, LabelDraws], settings: RunSettings
) -> dict[Key, Answer]:
    """Let the nearest labelled images of train vote on every split; none for a label that cannot be learned."""
    features, taught = study.features[encoder], {label: draws.targets for label, draws in drawn.items()}
    taught = {label: targets for label, targets in taught.items() if targets}
    answers: dict[Key, Answer] = {}
    for split in study.scored:
        votes = [
            knn_scores(features["train"], np.stack(targets, 1), features[split], settings.evaluate.neighbours)
            for targets in zip(*taught.values(), strict=True)
        ]
        for column, label in enumerate(taught):
            scores = np.stack([vote[:, column] for vote in votes])
            answers[Key(label, split, "knn", encoder)] = Answer(scores, [], [])
    return answers


def score_all(
    study: Study,
    methods: Sequence[str],
    encoders: Sequence[str],
    answers: Mapping[Key, Answer],
    drawn: Mapping[str, LabelDraws],
    settings: RunSettings,
) -> dict[Key, Scored]:
    """Score every label, and the macro average over labels, in the order of the table."""
    scored: dict[Key, Scored] = {}
    for split in study.scored:
        for label, draws in drawn.items():
            for key in (Key(label, split, method, encoder) for method in methods for encoder in encoders):
                scored[key] = _score(key, answers.get(key), draws, study.splits, settings)
        for key in (Key(MACRO, split, method, encoder) for method in methods for encoder in encoders):
            parts = [scored[key._replace(label=label)] for label in drawn]
            scored[key] = _macro(key, parts, study.splits[split], settings)
    for key, entry in scored.items():
        entry.record["leakage"] = study.leaks[key.split]
    return scored


def _score(
    key: Key, answer: Answer | None, draws: LabelDraws, splits: Mapping[str, Split], settings: RunSettings
) -> Scored:
    """Score one label: means over its draws, with one bootstrap of the split's patients for all of them."""
    split = splits[key.split]
    targets = label_targets(split, key.label)
    known = ~np.isnan(targets)
    reason = draws.undefined or metrics.undefined(targets)
    scores = answer.scores if answer and not reason else np.empty((0, len(split)))
    bootstrap = _mean_bootstrap(metrics.bootstrap_auroc, targets, scores, split, settings)
    precisions = _mean_bootstrap(metrics.bootstrap_average_precision, targets, scores, split, settings)
    value = float(np.mean([metrics.average_precision(targets, row) for row in scores] or [math.nan]))
    precision = metrics.share_interval(value, precisions)
    each = [metrics.auroc(targets, row) for row in scores]
    flags = [flag for row in scores if (flag := metrics.majority_flag(targets, row, THRESHOLDS[key.method]))]
    taught = [~np.isnan(row) for row in draws.targets]
    n_patients = int(np.unique(split.patients[known]).size)
    independent = (targets[known], scores[0][known]) if len(scores) == 1 and n_patients == known.sum() else None
    record = _record(key, settings, np.mean(each) if each else math.nan, bootstrap) | {
        "n": int(known.sum()),
        "n_positive": int((targets == 1).sum()),
        "n_patients": n_patients,
        "average_precision": metrics.or_none(value),
        "ap_low": metrics.or_none(precision.low),
        "ap_high": metrics.or_none(precision.high),
        **_delong_interval(independent),
        "undefined": reason,
        "flag": _count_each(flags, len(scores)) or None,
        "note": _count_each(answer.notes, len(answer.scores)) or None if answer else None,
        "auroc_of_draws": each,
        "strength": [fit.strength for fit in answer.fits] if answer else [],
        "n_train": [int(rows.sum()) for rows in taught],
        "n_train_patients": [int(np.unique(splits["train"].patients[rows]).size) for rows in taught],
        "label_policy": settings.data.labels[key.label].model_dump(),
    }
    return Scored(record, bootstrap, independent)


def _mean_bootstrap(measure: Any, targets: Floats, scores: Floats, split: Split, settings: RunSettings) -> Floats:
    """Average a metric over fits, draw of patients by draw of patients."""
    draws = settings.evaluate.bootstrap
    each = [measure(targets, row, split.patients, draws=draws, seed=settings.seed) for row in scores]
    return np.mean(each, axis=0) if each else np.full(draws, np.nan)


def _delong_interval(independent: tuple[Floats, Floats] | None) -> Record:
    if independent is None:
        return {"delong_low": None, "delong_high": None}
    targets, scores = independent
    aurocs, covariance = delong(targets, scores[None])
    interval = interval_of(aurocs[0], covariance[0, 0])
    return {"delong_low": metrics.or_none(interval.low), "delong_high": metrics.or_none(interval.high)}


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
        "average_precision": metrics.or_none(values["average_precision"]),
        "undefined": None if defined else "undefined (no label is defined)",
        "flag": None,
        "note": None,
        "n_labels": len(parts),
        "n_labels_defined": len(defined),
    }
    return Scored(record, bootstrap)


def _record(key: Key, settings: RunSettings, auroc: float | np.floating[Any], bootstrap: Floats) -> Record:
    interval, chosen = metrics.share_interval(float(auroc), bootstrap), settings.evaluate
    return {
        **key._asdict(),
        "auroc": metrics.or_none(auroc),
        "auroc_low": metrics.or_none(interval.low),
        "auroc_high": metrics.or_none(interval.high),
        "size": chosen.size or settings.views.size,
        "bootstrap": chosen.bootstrap,
        "bootstrap_left_out": interval.left_out,
        "where": chosen.where,
        "label_fraction": chosen.label_fraction,
        "draws": chosen.label_draws if chosen.label_fraction < 1 else 1,
        "neighbours": chosen.neighbours if key.method == "knn" else None,
        "seed": settings.seed,
    }


def _count_each(messages: Sequence[str], draws: int) -> str:
    """Join messages; where there are several draws, each says in how many of them."""
    counted = {message: messages.count(message) for message in messages}
    return "; ".join(f"{text} in {n} of {draws} draws" if draws > 1 else text for text, n in counted.items())


def differences_of(scored: Mapping[Key, Scored], pairs: Sequence[tuple[str, str]]) -> list[Record]:
    """Compare encoders on the same rows and the same draws of patients.

    p is of the bootstrap and delong_p of DeLong's test; p_holm adjusts p for all comparisons of the same split and
    method, those of macro averages apart.

    Args:
        scored: Of all encoders.
        pairs: (encoder, control).
    """
    differences = [
        _difference(key, entry, control, scored[key._replace(encoder=control)])
        for key, entry in scored.items()
        for encoder, control in pairs
        if key.encoder == encoder and key._replace(encoder=control) in scored
    ]
    families: dict[tuple[Any, ...], list[Record]] = {}
    for record in differences:
        families.setdefault((record["split"], record["method"], record["label"] == MACRO), []).append(record)
    for family in families.values():
        for record, adjusted in zip(family, holm([record["p"] for record in family]), strict=True):
            record["p_holm"] = adjusted
    return differences


def _difference(key: Key, entry: Scored, control: str, other: Scored) -> Record:
    draws = entry.bootstrap - other.bootstrap
    interval = metrics.interval(draws)
    is_defined = entry.record["auroc"] is not None and other.record["auroc"] is not None
    exact = None
    if entry.independent and other.independent:
        aurocs, covariance = delong(entry.independent[0], np.stack([entry.independent[1], other.independent[1]]))
        exact = metrics.or_none(difference_p(aurocs, covariance, 0, 1))
    return {
        **key._asdict(),
        "control": control,
        "difference": entry.record["auroc"] - other.record["auroc"] if is_defined else None,
        "low": metrics.or_none(interval.low),
        "high": metrics.or_none(interval.high),
        "excludes_zero": bool(interval.low > 0 or interval.high < 0),
        "p": metrics.or_none(bootstrap_p(draws)) if is_defined else None,
        "delong_p": exact,
        "bootstrap_left_out": interval.left_out,
        **{name: entry.record[name] for name in _SHARED},
    }
