"""Score the predictions of probes, with intervals, and compare encoders on the same rows and draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.evaluation.features.probes import (
    Probe,
    draw_classes,
    draw_patients,
    knn_scores,
    linear_probe,
    softmax_probe,
    standardise,
)
from medmoco.evaluation.metrics.auroc import (
    Floats,
    auroc,
    average_precision,
    bootstrap_auroc,
    bootstrap_average_precision,
    interval,
    majority_flag,
    or_none,
    share_interval,
    undefined,
)
from medmoco.evaluation.metrics.significance import bootstrap_p, delong, difference_p, holm, interval_of
from medmoco.evaluation.records import Difference, Score
from medmoco.evaluation.scoring.study import Study
from medmoco.evaluation.scoring.table import MACRO, family
from medmoco.evaluation.target_records import RegressionDifference

THRESHOLDS = {"linear": 0.0, "knn": 0.5, "finetune": 0.0}
"""Threshold of each method's scores: log-odds, or for kNN the share of positive neighbours."""

# Fields of a score that its differences repeat.
_SHARED = (
    "n", "n_positive", "n_patients", "undefined", "where", "label_fraction", "draws", "bootstrap", "seed", "leakage",
)  # fmt: skip


class Key(NamedTuple):
    """Identifies a score by label, split, method and encoder."""

    label: str
    split: str
    method: str
    encoder: str


@dataclass(frozen=True)
class LabelDraws:
    """D draws of one label's training targets (N,); none if they have one class."""

    targets: list[Floats]
    undefined: str | None


@dataclass(frozen=True)
class Predictions:
    """Scores of a split's rows by D fits, one for each draw of labels.

    Attributes:
        scores: (D, N), see THRESHOLDS.
        fits: The D linear probes; empty for other methods.
        notes: Remarks on the fits.
    """

    scores: Floats
    fits: list[Probe]
    notes: list[str]


@dataclass(frozen=True)
class Scored:
    """A score with its bootstrap.

    Attributes:
        score: Record of scores.json.
        bootstrap: (draws,) AUROCs, nan if undefined.
        independent: Targets (N,) and scores (N,) of the labelled rows, if DeLong's test is valid: for one fit, and one
            row per patient.
        of_draws: (D, draws) AUROCs of each draw of labels, of which `bootstrap` is the mean.
    """

    score: Score
    bootstrap: Floats
    independent: tuple[Floats, Floats] | None = None
    of_draws: Floats = field(default_factory=lambda: np.empty((0, 0)))


def label_targets(split: Split, label: str) -> Floats:
    """Return (N,) 1, 0 or nan."""
    targets: Floats = split.labels[:, split.label_names.index(label)].astype(np.float64)
    return targets


def draw_labels(train: Split, settings: RunSettings) -> dict[str, LabelDraws]:
    """Draw the patients whose labels are used, for every label, or for all classes together."""
    fraction, seed, drawn = settings.evaluate.label_fraction, settings.seed, {}
    if settings.evaluate.classes:
        known = ~np.isnan(train.labels[:, 0])
        codes = np.where(known, train.labels.argmax(axis=1), -1).astype(np.int64)
        kept = [
            draw_classes(train.patients, codes, fraction=fraction, seed=seed, draw=draw)
            for draw in range(count_draws(settings))
        ]
        return {
            name: LabelDraws([np.where(own < 0, np.nan, own == number) for own in kept], None)
            for number, name in enumerate(train.label_names)
        }
    for label in settings.data.labels:
        targets = label_targets(train, label)
        reason = undefined(targets)
        draws = range(0 if reason else count_draws(settings))
        drawn[label] = LabelDraws(
            [draw_patients(train.patients, targets, fraction=fraction, seed=seed, draw=draw) for draw in draws],
            reason and reason.replace(")", " in train)"),
        )
    return drawn


def count_draws(settings: RunSettings) -> int:
    """Return the number of draws of patients; all patients can be drawn only once."""
    return settings.evaluate.label_draws if settings.evaluate.label_fraction < 1 else 1


def predict_linear(
    study: Study, encoder: str, draws: Mapping[str, LabelDraws], settings: RunSettings
) -> dict[Key, Predictions]:
    """Fit linear probes on the features of an encoder and apply them to every split; none for labels of one class.

    There is one probe for each label, or one softmax probe for all classes.
    """
    features, strengths = standardise(study.features[encoder]).features, settings.evaluate.strengths
    validation = study.splits.get("val")
    found: dict[str, list[Probe]] = {}
    if settings.evaluate.classes:
        known = None if validation is None else validation.labels.astype(np.float64)
        for targets in zip(*(own.targets for own in draws.values()), strict=True):
            for label, fit in zip(draws, softmax_probe(features, np.stack(targets, 1), known, strengths), strict=True):
                found.setdefault(label, []).append(fit)
    else:
        for label, own in draws.items():
            known = None if validation is None else label_targets(validation, label)
            found[label] = [linear_probe(features, targets, known, strengths) for targets in own.targets]
    predictions: dict[Key, Predictions] = {}
    for label, fits in found.items():
        for split in study.scored if fits else ():
            predictions[Key(label, split, "linear", encoder)] = Predictions(
                np.stack([fit.scores[split] for fit in fits]), fits, [note for fit in fits for note in fit.notes]
            )
    return predictions


def predict_knn(
    study: Study, encoder: str, draws: Mapping[str, LabelDraws], settings: RunSettings
) -> dict[Key, Predictions]:
    """Predict every split from the nearest labelled images of train; none for labels of one class."""
    features, known = study.features[encoder], {label: own.targets for label, own in draws.items() if own.targets}
    predictions: dict[Key, Predictions] = {}
    for split in study.scored:
        votes = [
            knn_scores(features["train"], np.stack(targets, 1), features[split], settings.evaluate.neighbours)
            for targets in zip(*known.values(), strict=True)
        ]
        for column, label in enumerate(known):
            scores = np.stack([vote[:, column] for vote in votes])
            predictions[Key(label, split, "knn", encoder)] = Predictions(scores, [], [])
    return predictions


def score_all(
    study: Study,
    methods: Sequence[str],
    encoders: Sequence[str],
    predictions: Mapping[Key, Predictions],
    draws: Mapping[str, LabelDraws],
    settings: RunSettings,
) -> dict[Key, Scored]:
    """Score every label, and the macro average over labels, in the order of the table.

    Splits without predictions, such as those that fine-tuning was not asked for, have undefined scores.
    """
    scored: dict[Key, Scored] = {}
    for split in study.scored:
        for label, own in draws.items():
            for key in (Key(label, split, method, encoder) for method in methods for encoder in encoders):
                scored[key] = _score(key, predictions.get(key), own, study, settings)
        for key in (Key(MACRO, split, method, encoder) for method in methods for encoder in encoders if draws):
            parts = [scored[key._replace(label=label)] for label in draws]
            scored[key] = _macro(key, parts, study, settings)
    return scored


def _score(key: Key, predictions: Predictions | None, draws: LabelDraws, study: Study, settings: RunSettings) -> Scored:
    """Score one label: means over its draws, with the same bootstrap of the split's patients for all of them."""
    split, train = study.splits[key.split], study.splits["train"]
    targets = label_targets(split, key.label)
    known = ~np.isnan(targets)
    reason = draws.undefined or undefined(targets) or (None if predictions else "undefined (not predicted)")
    scores = predictions.scores if predictions and not reason else np.empty((0, len(split)))
    of_draws = _bootstrap(bootstrap_auroc, targets, scores, split, settings)
    bootstrap = of_draws.mean(axis=0)
    precisions = _bootstrap(bootstrap_average_precision, targets, scores, split, settings).mean(axis=0)
    precision = float(np.mean([average_precision(targets, row) for row in scores] or [math.nan]))
    low, high, _ = share_interval(precision, precisions)
    each = [auroc(targets, row) for row in scores]
    policy: dict[str, Any] = {}
    threshold = None
    if not settings.evaluate.classes:
        policy, threshold = {"label_policy": settings.data.labels[key.label].policy}, THRESHOLDS[key.method]
    flags = [flag for row in scores if (flag := majority_flag(targets, row, threshold))]
    used = [~np.isnan(row) for row in draws.targets]
    n_patients = int(np.unique(split.patients[known]).size)
    independent = (targets[known], scores[0][known]) if len(scores) == 1 and n_patients == known.sum() else None
    exact_low, exact_high = _delong_interval(independent)
    score = Score(
        **_area(key, study, settings, np.mean(each) if each else math.nan, bootstrap),
        n=int(known.sum()),
        n_positive=int((targets == 1).sum()),
        n_patients=n_patients,
        average_precision=or_none(precision),
        ap_low=or_none(low),
        ap_high=or_none(high),
        delong_low=exact_low,
        delong_high=exact_high,
        undefined=reason,
        flag=count_each(flags, len(scores)) or None,
        note=count_each(predictions.notes, len(predictions.scores)) or None if predictions else None,
        auroc_of_draws=tuple(each),
        strength=tuple(fit.strength for fit in predictions.fits) if predictions else (),
        n_train=tuple(int(rows.sum()) for rows in used),
        n_train_patients=tuple(int(np.unique(train.patients[rows]).size) for rows in used),
        **policy,
    )
    return Scored(score, bootstrap, independent, of_draws)


def _bootstrap(
    measure: Callable[..., Floats], targets: Floats, scores: Floats, split: Split, settings: RunSettings
) -> Floats:
    """Return the bootstrap of a metric for each of D fits, (D, draws); nan without fits, (1, draws)."""
    draws = settings.evaluate.bootstrap
    each = [measure(targets, row, split.patients, draws=draws, seed=settings.seed) for row in scores]
    return np.stack(each or [np.full(draws, np.nan)])


def _delong_interval(independent: tuple[Floats, Floats] | None) -> tuple[float | None, float | None]:
    if independent is None:
        return None, None
    targets, scores = independent
    aurocs, covariance = delong(targets, scores[None])
    low, high, _ = interval_of(aurocs[0], covariance[0, 0])
    return or_none(low), or_none(high)


def _macro(key: Key, parts: Sequence[Scored], study: Study, settings: RunSettings) -> Scored:
    """Average the defined labels; the counts are those of rows with any known label and any positive one."""
    split = study.splits[key.split]
    defined = [part for part in parts if part.score.undefined is None]
    nothing = [np.full(settings.evaluate.bootstrap, np.nan)]
    bootstrap = np.mean([part.bootstrap for part in defined] or nothing, axis=0)
    of_draws = np.mean([part.of_draws for part in defined] or [np.stack(nothing)], axis=0)
    aurocs, precisions = (
        [getattr(part.score, name) for part in defined] or [math.nan] for name in ("auroc", "average_precision")
    )
    known = ~np.isnan(split.labels).all(axis=1)
    score = Score(
        **_area(key, study, settings, np.mean(aurocs), bootstrap),
        n=int(known.sum()),
        n_positive=int((split.labels == 1).any(axis=1).sum()),
        n_patients=int(np.unique(split.patients[known]).size),
        average_precision=or_none(np.mean(precisions)),
        undefined=None if defined else "undefined (no label is defined)",
        flag=None,
        note=None,
        n_labels=len(parts),
        n_labels_defined=len(defined),
    )
    return Scored(score, bootstrap, of_draws=of_draws)


def _area(
    key: Key, study: Study, settings: RunSettings, value: float | np.floating[Any], bootstrap: Floats
) -> dict[str, Any]:
    """Return the fields of every score: its key, its AUROC, and the protocol."""
    (low, high, left_out), chosen = share_interval(float(value), bootstrap), settings.evaluate
    other = study.others.get(key.encoder)
    return {
        **protocol_of(key, study, settings),
        "auroc": or_none(value),
        "auroc_low": or_none(low),
        "auroc_high": or_none(high),
        "size": other.size if other else chosen.size or settings.views.size,
        "bootstrap_left_out": left_out,
        "neighbours": chosen.neighbours if key.method == "knn" else None,
        **({"class_column": chosen.classes} if chosen.classes else {}),
    }


def protocol_of(key: Key, study: Study, settings: RunSettings) -> dict[str, Any]:
    """Return the fields that scores of labels, classes and numeric targets have in common."""
    chosen, other = settings.evaluate, study.others.get(key.encoder)
    return {
        **key._asdict(),
        "primary": key.encoder == study.encoders[0],
        "bootstrap": chosen.bootstrap,
        "where": chosen.where,
        "label_fraction": chosen.label_fraction,
        "draws": count_draws(settings),
        "seed": settings.seed,
        "leakage": study.leaks[key.split],
        **({"preprocessing": other.input} if other else {}),
    }


def count_each(messages: Sequence[str], draws: int) -> str:
    """Join messages, with the number of draws in which each occurs if there are several."""
    counted = {message: messages.count(message) for message in messages}
    return "; ".join(f"{text} in {n} of {draws} draws" if draws > 1 else text for text, n in counted.items())


def differences_of(scored: Mapping[Key, Scored], pairs: Sequence[tuple[str, str]]) -> list[Difference]:
    """Compare encoders on the same rows and the same draws of patients.

    `p_holm` adjusts for all comparisons of the same split and method, separately for macro averages.

    Args:
        scored: Scores of all encoders.
        pairs: Pairs of encoder and control.
    """
    differences = [
        _difference(key, entry, control, scored[key._replace(encoder=control)])
        for key, entry in scored.items()
        for encoder, control in pairs
        if key.encoder == encoder and key._replace(encoder=control) in scored
    ]
    return adjusted(differences)


AnyDifference = TypeVar("AnyDifference", Difference, RegressionDifference)


def adjusted(differences: Sequence[AnyDifference]) -> list[AnyDifference]:
    """Return the differences with p-values adjusted by Holm's method within each family."""
    result, families = list(differences), dict[Hashable, list[int]]()
    for index, found in enumerate(result):
        families.setdefault(family(found), []).append(index)
    for members in families.values():
        for index, p_holm in zip(members, holm([result[index].p for index in members]), strict=True):
            result[index] = result[index].model_copy(update={"p_holm": p_holm})
    return result


def compare(value: float | None, control: float | None, draws: Floats) -> dict[str, Any]:
    """Return the fields of a paired difference, with draws (D,) of it."""
    low, high, left_out = interval(draws)
    difference = None if value is None or control is None else value - control
    return {
        "difference": difference,
        "low": or_none(low),
        "high": or_none(high),
        "excludes_zero": bool(low > 0 or high < 0),
        "p": None if difference is None else or_none(bootstrap_p(draws)),
        "bootstrap_left_out": left_out,
    }


def _difference(key: Key, entry: Scored, control: str, other: Scored) -> Difference:
    exact = None
    if entry.independent and other.independent:
        aurocs, covariance = delong(entry.independent[0], np.stack([entry.independent[1], other.independent[1]]))
        exact = or_none(difference_p(aurocs, covariance, 0, 1))
    return Difference(
        **key._asdict(),
        control=control,
        **compare(entry.score.auroc, other.score.auroc, entry.bootstrap - other.bootstrap),
        delong_p=exact,
        **{name: getattr(entry.score, name) for name in _SHARED},
    )
