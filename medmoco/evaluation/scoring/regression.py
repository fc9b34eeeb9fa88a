"""Ridge regression of numeric targets, such as the age, compared with the controls and the mean of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medmoco.config import RunSettings
from medmoco.evaluation.features.probes import draw_values, ridge_probe, standardise
from medmoco.evaluation.metrics.auroc import Floats, as_scores, interval, or_none
from medmoco.evaluation.metrics.regression import bootstrap_errors, errors_of, undefined_values
from medmoco.evaluation.scoring.scoring import (
    Key,
    LabelDraws,
    Predictions,
    adjusted,
    compare,
    count_draws,
    count_each,
    protocol_of,
)
from medmoco.evaluation.scoring.study import Study
from medmoco.evaluation.target_records import RIDGE, TRAINING_MEAN, RegressionDifference, RegressionScore

METRICS = ("r2", "mae")


class Regression(NamedTuple):
    """What was predicted, and the records of regression.json and regression_differences.json."""

    predictions: dict[Key, Predictions]
    scores: tuple[RegressionScore, ...]
    differences: tuple[RegressionDifference, ...]


class _Scored(NamedTuple):
    score: RegressionScore
    bootstrap: dict[str, Floats]  # by metric, (draws,)


def evaluate_targets(study: Study, settings: RunSettings) -> Regression:
    """Predict and score every target of `evaluate.targets` with the features of every encoder."""
    predictions: dict[Key, Predictions] = {}
    scored: dict[Key, _Scored] = {}
    for target in settings.evaluate.targets:
        draws = _draw(target, study, settings)
        for encoder in (*study.encoders, TRAINING_MEAN):
            predictions |= _predict(target, encoder, study, draws, settings)
        for split in study.scored:
            for encoder in (*study.encoders, TRAINING_MEAN):
                key = Key(target, split, RIDGE, encoder)
                scored[key] = _score(key, predictions.get(key), draws, study, settings)
    order = sorted(scored, key=lambda key: study.scored.index(key.split))
    return Regression(
        predictions, tuple(scored[key].score for key in order), tuple(_differences(scored, order, study))
    )  # fmt: skip


def _draw(target: str, study: Study, settings: RunSettings) -> LabelDraws:
    targets, reason = study.values[target]["train"], undefined_values(study.values[target]["train"])
    return LabelDraws(
        [
            draw_values(
                study.splits["train"].patients, targets,
                fraction=settings.evaluate.label_fraction, seed=settings.seed, draw=draw,
            )
            for draw in range(0 if reason else count_draws(settings))
        ],
        reason and reason.replace(")", " in train)"),
    )  # fmt: skip


def _predict(
    target: str, encoder: str, study: Study, draws: LabelDraws, settings: RunSettings
) -> dict[Key, Predictions]:
    """Return the predictions for every split; none if the target cannot be learned."""
    values, fits = study.values[target], []
    if not draws.targets:
        return {}
    if encoder == TRAINING_MEAN:
        means = as_scores(np.array([np.nanmean(own) for own in draws.targets]))
        rows = {split: np.tile(means[:, None], len(values[split])) for split in study.scored}
    else:
        features = standardise(study.features[encoder]).features
        fits = [ridge_probe(features, own, values.get("val"), settings.evaluate.strengths) for own in draws.targets]
        rows = {split: np.stack([fit.scores[split] for fit in fits]) for split in study.scored}
    notes = [note for fit in fits for note in fit.notes]
    return {Key(target, split, RIDGE, encoder): Predictions(own, fits, notes) for split, own in rows.items()}


def _score(
    key: Key, predictions: Predictions | None, draws: LabelDraws, study: Study, settings: RunSettings
) -> _Scored:
    """Score a target: means over its draws, with the same bootstrap of the split's patients for all of them."""
    split, train, chosen = study.splits[key.split], study.splits["train"], settings.evaluate
    targets = study.values[key.label][key.split]
    known = ~np.isnan(targets)
    bootstrap = dict.fromkeys(METRICS, np.full(chosen.bootstrap, np.nan))
    errors: dict[str, Any] = dict.fromkeys(f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high"))
    if predictions:
        values = errors_of(targets, predictions.scores)
        drawn = bootstrap_errors(
            targets, predictions.scores, split.patients, draws=chosen.bootstrap, seed=settings.seed
        )
        bootstrap = dict(zip(METRICS, drawn, strict=True))
        for metric, value in zip(METRICS, values, strict=True):
            if not np.isnan(value):
                low, high, _ = interval(bootstrap[metric])
                errors |= {metric: value, f"{metric}_low": or_none(low), f"{metric}_high": or_none(high)}
    used = [~np.isnan(own) for own in draws.targets]
    score = RegressionScore(
        **protocol_of(key, study, settings),
        n=int(known.sum()),
        n_patients=int(np.unique(split.patients[known]).size),
        **errors,
        bootstrap_left_out=interval(bootstrap["r2"]).left_out,
        undefined=draws.undefined or undefined_values(targets),
        note=count_each(predictions.notes, len(predictions.scores)) or None if predictions else None,
        strength=tuple(fit.strength for fit in predictions.fits) if predictions else (),
        n_train=tuple(int(rows.sum()) for rows in used),
        n_train_patients=tuple(int(np.unique(train.patients[rows]).size) for rows in used),
    )
    return _Scored(score, bootstrap)


def _differences(scored: Mapping[Key, _Scored], order: Sequence[Key], study: Study) -> list[RegressionDifference]:
    """Compare the primary encoder with all others, on the same rows and the same draws of patients."""
    primary = study.encoders[0]
    found = []
    for key in order:
        if key.encoder == primary:
            continue
        own, other = scored[key._replace(encoder=primary)], scored[key]
        shared = ("bootstrap", "where", "label_fraction", "draws", "seed", "leakage")
        for metric in METRICS:
            value, control = (getattr(entry.score, metric) for entry in (own, other))
            found.append(RegressionDifference(
                **key._replace(encoder=primary)._asdict(),
                metric=metric,
                control=key.encoder,
                **compare(value, control, own.bootstrap[metric] - other.bootstrap[metric]),
                **{name: getattr(own.score, name) for name in shared},
            ))  # fmt: skip
    return adjusted(found)
