"""Forecast the scores of a label-efficiency curve for more labels, and the labels that its controls need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from medmoco.evaluation.forecast_records import Forecast, LabelsNeeded
from medmoco.evaluation.metrics.auroc import Floats, interval, or_none, share_interval
from medmoco.evaluation.metrics.learning_curve import PowerLaws, first_size, fit_power_laws, refusal
from medmoco.evaluation.scoring.scoring import Key, Scored
from medmoco.evaluation.scoring.table import MACRO

TIMES = (2.0, 5.0)
"""Multiples of the labels for which scores are forecast. Nothing is extrapolated beyond the last."""

_GRID = 400  # numbers of labels at which curves are compared with a score, about 2 % apart

Measured = Mapping[float, Mapping[Key, Scored]]
"""Scores by fraction of labels, in ascending order."""


@dataclass(frozen=True)
class Fitted:
    """The learning curve of one key, with its fit.

    Attributes:
        fractions: The S fractions with a score.
        sizes: (S,) labelled patients, mean over draws.
        errors: (1 + B, S) errors: first those of the scores, then those of the bootstrap.
        laws: The fits to each of them; None if there is none.
        undefined: Why there is none.
    """

    fractions: list[float]
    sizes: Floats
    errors: Floats
    laws: PowerLaws | None
    undefined: str | None


def forecast(measured: Measured, primary: str, seed: int) -> tuple[list[Forecast], list[LabelsNeeded]]:
    """Fit a curve to every label, split, method and encoder, and extrapolate it.

    Intervals are from bootstrap samples of both the draws of labels and the patients of the split, which are the same
    for all encoders; the curve is fitted again to each. A fraction with one draw varies as the others do.

    Args:
        measured: Scores by fraction.
        primary: Name of the primary encoder, whose scores the controls have to reach.
        seed: Seed of the bootstrap of draws.
    """
    fits = {key: fit(key, measured, seed) for key in next(iter(measured.values()), ())}
    forecasts = [found for key, fitted in fits.items() for found in _forecasts(key, fitted, key.encoder == primary)]
    needed = [
        found
        for key, fitted in fits.items()
        if key.encoder != primary
        for found in _needed(key._replace(encoder=primary), fits[key._replace(encoder=primary)], key.encoder, fitted)
    ]
    return forecasts, needed


def fit(key: Key, measured: Measured, seed: int) -> Fitted:
    """Fit the learning curve of a key, and those of the bootstrap; arguments are those of `forecast`."""
    scored = {fraction: scores[key] for fraction, scores in measured.items() if scores[key].score.auroc is not None}
    sizes = np.array([_patients(key, measured[fraction]) for fraction in scored])
    luck, columns = np.random.default_rng([seed, *"|".join(key).encode()]), list[Floats]()
    for entry, size in zip(scored.values(), sizes, strict=True):
        again = _resampled(entry.of_draws, seed)
        if len(entry.of_draws) == 1:  # all patients can be drawn only once, which shows no variation
            again = again + luck.normal(0, _spread(scored, sizes) / np.sqrt(size), again.size)
        columns.append(1 - np.append(entry.score.auroc or 0.0, np.minimum(again, 1)))
    errors = np.stack(columns, axis=1) if columns else np.empty((0, 0))
    errors = errors[~np.isnan(errors).any(axis=1)]  # draws of patients with only one class
    reason = refusal(sizes, errors[0] if columns else sizes)
    return Fitted(list(scored), sizes, errors, None if reason else fit_power_laws(sizes, errors), reason)


def _patients(key: Key, scored: Mapping[Key, Scored]) -> float:
    """Return the number of labelled patients, mean over draws, and for the macro average over labels."""
    labels = [own for own in scored if own.label != MACRO and own._replace(label=key.label) == key]
    counts = [scored[own].score.n_train_patients for own in labels if key.label in (own.label, MACRO)]
    return float(np.mean([np.mean(each) for each in counts if each]))


def _resampled(of_draws: Floats, seed: int) -> Floats:
    """Return the mean over draws of labels (D, B), drawn again with replacement for each of B draws of patients."""
    drawn = np.random.default_rng(seed).integers(len(of_draws), size=of_draws.shape)
    means: Floats = np.take_along_axis(of_draws, drawn, axis=0).mean(axis=0)
    return means


def _spread(scored: Mapping[float, Scored], sizes: Floats) -> float:
    """Return the standard deviation between draws of one labelled patient, if their variance is as 1 / n; 0 if unknown.

    It is that of the largest fraction with several draws, corrected for the patients that these draws share.
    """
    several = [
        np.nanmean(entry.of_draws, axis=1).var(ddof=1) * size / (1 - fraction)
        for (fraction, entry), size in zip(scored.items(), sizes, strict=True)
        if len(entry.of_draws) > 1
    ]
    return float(np.sqrt(several[-1])) if several else 0.0


def _forecasts(key: Key, fitted: Fitted, is_primary: bool) -> list[Forecast]:
    """Return a forecast for each of TIMES, or why there is none."""
    found = []
    for times in TIMES if fitted.fractions else ():
        size, last = times * fitted.sizes[-1], 1 - fitted.errors[:, -1]
        fields: dict[str, Any] = dict.fromkeys(("auroc", "auroc_low", "auroc_high"))
        if fitted.laws:
            scores = 1 - fitted.laws.errors(np.array([size]))[0]
            value = float(scores[:, 0].mean())
            low, high, _ = share_interval(value, scores[:, 1:].ravel())
            gain_low, gain_high, _ = interval((scores - last)[:, 1:].ravel())
            fields = {
                "auroc": value, "auroc_low": or_none(low), "auroc_high": or_none(high), "gain": value - last[0],
                "gain_low": or_none(gain_low), "gain_high": or_none(gain_high),
            }  # fmt: skip
        found.append(Forecast(
            **key._asdict(), **fields, primary=is_primary, undefined=fitted.undefined, times=times,
            fraction=times * fitted.fractions[-1], n_train_patients=size,
        ))  # fmt: skip
    return found


def _needed(key: Key, own: Fitted, control: str, fitted: Fitted) -> list[LabelsNeeded]:
    """Return the labels that a control needs for the score of the primary encoder with each fraction."""
    if not fitted.fractions:
        return []
    grid = np.geomspace(fitted.sizes[0], TIMES[-1] * fitted.sizes[-1], _GRID)
    curves = fitted.laws.errors(grid) if fitted.laws else None
    found = []
    for number, fraction in enumerate(own.fractions):
        errors, low, high, needed = own.errors[:, number], None, None, None
        if curves is not None:
            needed = float(first_size(curves[..., 0].mean(axis=1), errors[0], grid))
            low, high, _ = map(float, interval(first_size(curves[..., 1:], errors[1:], grid).ravel()))
        found.append(LabelsNeeded(
            **key._asdict(), control=control, fraction=fraction, n_train_patients=own.sizes[number],
            auroc=1 - errors[0], needed=needed, needed_low=low, needed_high=high, least=grid[0], most=grid[-1],
            undefined=fitted.undefined,
        ))  # fmt: skip
    return found
