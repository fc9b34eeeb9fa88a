"""What a clinic asks beyond the AUROC: operating points, calibrated probabilities, subgroups.

Thresholds and calibration are fitted on validation and applied to every split; on validation itself they flatter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from medmoco.config import EvaluateSettings, RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.evaluation.metrics import auroc as metrics
from medmoco.evaluation.metrics.auroc import Floats
from medmoco.evaluation.metrics.calibration import Calibration, calibration_record, fit_calibration
from medmoco.evaluation.metrics.operating_points import operating_record, threshold_at
from medmoco.evaluation.metrics.subgroups import subgroup_records
from medmoco.evaluation.scoring.scoring import Answer, Key, label_targets

Record = dict[str, Any]

UNCALIBRATED = Calibration(slope=1.0, intercept=0.0)
"""Log-odds taken at their word."""


class Judgement(NamedTuple):
    """What validation says about one label's scores.

    Attributes:
        calibration: Scores to log-odds that can be believed.
        thresholds: Wanted specificity -> threshold of the raw scores.
    """

    calibration: Calibration
    thresholds: dict[float, float]


class Clinical(NamedTuple):
    """Records of operating.json, calibration.json and subgroups.json."""

    operating: list[Record]
    calibration: list[Record]
    subgroups: list[Record]


def judge(targets: Floats, scores: Floats, chosen: EvaluateSettings) -> Judgement | None:
    """Fit calibration and thresholds on validation; None where it has one class only.

    Args:
        targets: (N,), 1, 0 or nan.
        scores: (N,), log-odds.
        chosen: Of the protocol.
    """
    if metrics.undefined(targets):
        return None
    return Judgement(
        fit_calibration(targets, scores, chosen.calibration),
        {specificity: threshold_at(targets, scores, specificity) for specificity in chosen.specificities},
    )


def describe_judgements(judgements: Mapping[str, Judgement | None], chosen: EvaluateSettings) -> Record:
    """Return "calibration" and "operating_points" by label, as a classifier folder has them.

    Where validation could not tell, scores are taken at their word and there are no thresholds.
    """
    described: Record = {"calibration": {}, "operating_points": {}}
    for label, judgement in judgements.items():
        calibration = judgement.calibration if judgement else UNCALIBRATED
        described["calibration"][label] = {
            "kind": chosen.calibration if judgement else "none",
            "slope": calibration.slope,
            "intercept": calibration.intercept,
        }
        described["operating_points"][label] = [
            {"specificity": specificity, "threshold": threshold}
            for specificity, threshold in (judgement.thresholds.items() if judgement else ())
        ]
    return described


def clinical_records(splits: Mapping[str, Split], answers: Mapping[Key, Answer], settings: RunSettings) -> Clinical:
    """Look at every answer that gives log-odds and comes from one fit.

    Args:
        splits: val and what else is scored; without val there are neither thresholds nor calibration.
        answers: Of all encoders.
        settings: Of the protocol.
    """
    found = Clinical([], [], [])
    for key, answer in answers.items():
        if key.method == "knn" or len(answer.scores) != 1:
            continue
        split, scores = splits[key.split], answer.scores[0]
        targets = label_targets(split, key.label)
        if metrics.undefined(targets):
            continue
        for record in subgroups_of(targets, scores, split, settings):
            found.subgroups.append(key._asdict() | record)
        validation = answers.get(key._replace(split="val"))
        if validation is None:
            continue
        judgement = judge(label_targets(splits["val"], key.label), validation.scores[0], settings.evaluate)
        if judgement:
            found.operating.extend(
                key._asdict() | r for r in operating_records(targets, scores, split, judgement, settings)
            )
            found.calibration.append(key._asdict() | calibration_of(targets, scores, judgement, settings.evaluate))
    return found


def operating_records(
    targets: Floats, scores: Floats, split: Split, judgement: Judgement, settings: RunSettings
) -> Iterator[Record]:
    """Yield what each threshold does on a split."""
    for specificity, threshold in judgement.thresholds.items():
        record = operating_record(
            targets, scores, split.patients, threshold, draws=settings.evaluate.bootstrap, seed=settings.seed
        )
        yield {"specificity_wanted": specificity, **record}


def calibration_of(targets: Floats, scores: Floats, judgement: Judgement, chosen: EvaluateSettings) -> Record:
    """Return how well probabilities fit what happened, before and after calibration."""
    return {
        "kind": chosen.calibration,
        **{
            when: calibration_record(targets, calibration.probabilities(scores), bins=chosen.bins)
            for when, calibration in (("before", UNCALIBRATED), ("after", judgement.calibration))
        },
    }


def subgroups_of(targets: Floats, scores: Floats, split: Split, settings: RunSettings) -> list[Record]:
    """Score the subgroups that `evaluate.subgroups` names; none where it names none."""
    chosen = settings.evaluate
    if not chosen.subgroups:
        return []
    return subgroup_records(
        targets,
        scores,
        split,
        columns=chosen.subgroups,
        age_bands=chosen.age_bands,
        least=chosen.least_patients,
        draws=chosen.bootstrap,
        seed=settings.seed,
    )
