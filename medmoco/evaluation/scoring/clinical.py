"""Clinical measures beyond the AUROC: operating points, calibrated probabilities, subgroups.

Thresholds and calibration are fitted on validation and applied to every split; their scores on validation are
optimistic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple

from medmoco.config import EvaluateSettings, RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.evaluation.metrics.auroc import Floats, undefined
from medmoco.evaluation.metrics.calibration import Calibration, fit_calibration, reliability
from medmoco.evaluation.metrics.operating_points import decide, threshold_at
from medmoco.evaluation.metrics.subgroups import score_groups
from medmoco.evaluation.records import CalibrationScore, OperatingPoint, Subgroup
from medmoco.evaluation.scoring.scoring import Key, Predictions, label_targets

UNCALIBRATED = Calibration(slope=1.0, intercept=0.0)
"""Uses scores as log-odds."""


class OperatingPoints(NamedTuple):
    """Calibration and thresholds of one label, fitted on validation.

    Attributes:
        calibration: Converts scores to calibrated log-odds.
        thresholds: Requested specificity -> threshold on the raw scores.
    """

    calibration: Calibration
    thresholds: dict[float, float]


class Clinical(NamedTuple):
    """Records of operating.json, calibration.json and subgroups.json."""

    operating_points: tuple[OperatingPoint, ...] = ()
    calibration: tuple[CalibrationScore, ...] = ()
    subgroups: tuple[Subgroup, ...] = ()


def fit_operating_points(targets: Floats, scores: Floats, chosen: EvaluateSettings) -> OperatingPoints | None:
    """Fit calibration and thresholds on validation; None if it has only one class.

    Args:
        targets: (N,), 1, 0 or nan.
        scores: (N,), log-odds.
        chosen: Specificities and the kind of calibration.
    """
    if undefined(targets):
        return None
    return OperatingPoints(
        fit_calibration(targets, scores, chosen.calibration),
        {specificity: threshold_at(targets, scores, specificity) for specificity in chosen.specificities},
    )


def describe_operating_points(points: Mapping[str, OperatingPoints | None], chosen: EvaluateSettings) -> dict[str, Any]:
    """Return "calibration" and "operating_points" by label, as in classifier.json.

    If validation had one class, scores are not calibrated and there are no thresholds.
    """
    described: dict[str, dict[str, Any]] = {"calibration": {}, "operating_points": {}}
    for label, own in points.items():
        calibration = own.calibration if own else UNCALIBRATED
        described["calibration"][label] = {
            "kind": chosen.calibration if own else "none",
            "slope": calibration.slope,
            "intercept": calibration.intercept,
        }
        described["operating_points"][label] = [
            {"specificity": specificity, "threshold": threshold}
            for specificity, threshold in (own.thresholds.items() if own else ())
        ]
    return described


def score_clinically(
    splits: Mapping[str, Split], predictions: Mapping[Key, Predictions], settings: RunSettings
) -> Clinical:
    """Score all predictions that are log-odds and come from one fit.

    Without a val split, there are no thresholds and no calibration.
    """
    parts = []
    for key, own in predictions.items():
        if key.method == "knn" or len(own.scores) != 1:
            continue
        validation, points = predictions.get(key._replace(split="val")), None
        if validation is not None:
            targets = label_targets(splits["val"], key.label)
            points = fit_operating_points(targets, validation.scores[0], settings.evaluate)
        parts.append(apply_operating_points(points, key, own.scores[0], splits[key.split], settings))
    return join(parts)


def apply_operating_points(
    points: OperatingPoints | None, key: Key, scores: Floats, split: Split, settings: RunSettings
) -> Clinical:
    """Score the log-odds (N,) of one label on a split; without operating points, only subgroups are scored."""
    targets, chosen, named = label_targets(split, key.label), settings.evaluate, key._asdict()
    if undefined(targets):
        return Clinical()
    groups = score_groups(targets, scores, split, chosen, seed=settings.seed)
    subgroups = tuple(Subgroup(**named, **dict(group)) for group in groups)
    if points is None:
        return Clinical(subgroups=subgroups)
    operating = [
        OperatingPoint(
            **named,
            specificity_wanted=specificity,
            **dict(decide(targets, scores, split.patients, threshold, draws=chosen.bootstrap, seed=settings.seed)),
        )
        for specificity, threshold in points.thresholds.items()
    ]
    before, after = (
        reliability(targets, calibration.probabilities(scores), bins=chosen.bins)
        for calibration in (UNCALIBRATED, points.calibration)
    )
    calibrated = CalibrationScore(**named, kind=chosen.calibration, before=before, after=after)
    return Clinical(tuple(operating), (calibrated,), subgroups)


def join(parts: Iterable[Clinical]) -> Clinical:
    """Return the records of all parts."""
    return Clinical(*(tuple(chain.from_iterable(records)) for records in zip(Clinical(), *parts, strict=True)))
