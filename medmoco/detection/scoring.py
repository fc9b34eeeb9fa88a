"""Scores of a detector with intervals, differences from another detector, and the table of both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.detection.average_precision import FALSE_POSITIVES, average_precisions, of_draws, of_images, sensitivities
from medmoco.detection.boxes import Annotated
from medmoco.detection.learning import Detections
from medmoco.detection.matching import OVERLAPS, Matches, match
from medmoco.evaluation.metrics.auroc import auroc, bootstrap_auroc, interval, or_none, share_interval
from medmoco.evaluation.record_files import SavedRecords, to_frame
from medmoco.evaluation.scoring.table import MACRO, span
from medmoco.evaluation.scoring.trained_records import DetectionDifference, DetectionScore

Floats = NDArray[np.float64]
Cell = tuple[float | None, float | None, float | None]  # value and interval

METRICS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "froc": "FROC", "auroc": "AUROC"}
_AT_75 = int(np.flatnonzero(np.isclose(OVERLAPS, 0.75))[0])


@dataclass(frozen=True)
class Score:
    """A score and its D bootstrap draws."""

    value: float
    draws: Floats


Scores = dict[str, dict[str, Score]]  # label -> metric -> score; MACRO is the mean over labels


def mean_average_precision(annotated: Annotated, detections: Detections, labels: int) -> tuple[float, Floats]:
    """Return the mean AP over labels with boxes, and the AP of each label, (L,), nan without boxes."""
    matches = match(annotated, detections, labels)
    by_label = np.array([of_images(average_precisions, each).mean() for each in matches])
    return float(np.nanmean(by_label)), by_label


def score(annotated: Annotated, detections: Detections, labels: Sequence[str], *, draws: int, seed: int) -> Scores:
    """Score the detections of a split by label and, if there are several, as the mean over labels with boxes.

    The D draws of patients are the same for every label and detector.
    """
    patients = annotated.split.patients
    scores = {
        label: _score_label(matches, patients, draws, seed)
        for label, matches in zip(labels, match(annotated, detections, len(labels)), strict=True)
    }
    if len(labels) > 1:
        metrics = next(iter(scores.values()))
        scores[MACRO] = {metric: _mean([own[metric] for own in scores.values()]) for metric in metrics}
    return scores


def _score_label(matches: Matches, patients: NDArray[np.int64], draws: int, seed: int) -> dict[str, Score]:
    value, found = of_images(average_precisions, matches), of_images(sensitivities, matches)
    drawn = of_draws(average_precisions, matches, patients, draws=draws, seed=seed)
    drawn_found = of_draws(sensitivities, matches, patients, draws=draws, seed=seed)
    targets = (matches.boxes > 0).astype(float)
    highest = np.zeros(len(targets))
    np.maximum.at(highest, matches.images, matches.scores)
    return {
        "ap": Score(float(value.mean()), drawn.mean(axis=1)),
        "ap50": Score(float(value[0]), drawn[:, 0]),
        "ap75": Score(float(value[_AT_75]), drawn[:, _AT_75]),
        "froc": Score(float(found.mean()), drawn_found.mean(axis=1)),
        "auroc": Score(
            auroc(targets, highest), bootstrap_auroc(targets, highest, patients, draws=draws, seed=seed)
        ),
        **{
            f"sensitivity_at_{limit:g}": Score(float(found[place]), drawn_found[:, place])
            for place, limit in enumerate(FALSE_POSITIVES)
        },
    }  # fmt: skip


def _mean(scores: Sequence[Score]) -> Score:
    """Return the mean over labels; in each draw, over the labels that have boxes in it."""
    defined = [each for each in scores if not np.isnan(each.value)]
    if not defined:
        return Score(float("nan"), np.full_like(scores[0].draws, np.nan))
    drawn = np.stack([each.draws for each in defined])
    known = ~np.isnan(drawn)
    means = np.where(known, drawn, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return Score(float(np.mean([each.value for each in defined])), np.where(known.any(axis=0), means, np.nan))


# Records and table


@dataclass(frozen=True, eq=False)
class Detected(SavedRecords):
    """Result of a detection run.

    Attributes:
        scores: Scores by split, label and metric, also of the other run in a comparison.
        differences: This run minus the other one.
        table: The table that `medmoco detect` prints.
    """

    _FILES = (("scores", "scores.json", DetectionScore), ("differences", "differences.json", DetectionDifference))

    scores: tuple[DetectionScore, ...]
    differences: tuple[DetectionDifference, ...]
    table: str

    def to_frame(self) -> pd.DataFrame:
        """Return one row per score."""
        return to_frame(self.scores)


def records_of(
    split: str, annotated: Annotated, labels: Sequence[str], scores: Scores, *, encoder: str, primary: bool = True
) -> list[DetectionScore]:
    """Return one record per label and metric; those of this run, not of the run in comparison, are primary."""
    counts = np.bincount(annotated.labels, minlength=len(labels))
    positive = [np.unique(annotated.images[annotated.labels == code]).size for code in range(len(labels))]
    records = []
    for label, by_metric in scores.items():
        places = [labels.index(label)] if label != MACRO else list(range(len(labels)))
        for metric, own in by_metric.items():
            low, high, left_out = share_interval(own.value, own.draws)
            records.append(DetectionScore(
                split=split, label=label, metric=metric, encoder=encoder, primary=primary, value=or_none(own.value),
                low=or_none(low), high=or_none(high), bootstrap=len(own.draws), bootstrap_left_out=left_out,
                n=len(annotated), n_patients=int(np.unique(annotated.split.patients).size),
                n_boxes=int(counts[places].sum()),
                n_positive=positive[places[0]] if len(places) == 1 else int(np.unique(annotated.images).size),
            ))  # fmt: skip
    return records


def differences_of(split: str, first: Scores, other: Scores, names: tuple[str, str]) -> list[DetectionDifference]:
    """Return first minus other for each label and metric, paired by draws.

    Args:
        split: Name of the split.
        first: Scores of one detector.
        other: Scores of another, on the same images and draws.
        names: Names of their encoders.
    """
    records = []
    for label, by_metric in first.items():
        for metric, own in by_metric.items():
            theirs = other[label][metric]
            low, high, left_out = interval(own.draws - theirs.draws)
            records.append(DetectionDifference(
                split=split, label=label, metric=metric, encoder=names[0], control=names[1],
                difference=or_none(own.value - theirs.value), low=or_none(low), high=or_none(high),
                bootstrap_left_out=left_out,
            ))  # fmt: skip
    return records


def layout(
    scores: Sequence[DetectionScore],
    differences: Sequence[DetectionDifference],
    head: Sequence[str],
    notes: Sequence[str],
) -> str:
    """Lay out a block per split and label, with two lines per encoder and difference."""

    def line(name: str, cells: Iterable[str]) -> str:
        return (f"  {name:<24}" + "".join(f"{cell:<18}" for cell in cells)).rstrip()

    def rows(name: str, cells: Mapping[str, Cell], sign: str = "") -> Iterator[str]:
        chosen = [cells[metric] for metric in METRICS]
        yield line(name, ["undefined" if value is None else f"{value:{sign}.3f}" for value, _, _ in chosen])
        yield line("", [span(low, high, sign) for _, low, high in chosen])

    lines = [*head, ""]
    for split, label in dict.fromkeys((score.split, score.label) for score in scores):
        own = [score for score in scores if (score.split, score.label) == (split, label)]
        counts = f"{own[0].n} images of {own[0].n_patients} patients, {own[0].n_boxes} boxes"
        lines.append(f"{split}: {label}  ({counts} in {own[0].n_positive} images)")
        lines.append(line("", METRICS.values()))
        for name in dict.fromkeys(score.encoder for score in own):
            cells = {score.metric: (score.value, score.low, score.high) for score in own if score.encoder == name}
            lines += rows(name, cells)
        there = [found for found in differences if (found.split, found.label) == (split, label)]
        if there:
            cells = {found.metric: (found.difference, found.low, found.high) for found in there}
            lines += rows(f"{there[0].encoder} minus {there[0].control}", cells, "+")
        lines.append("")
    return "\n".join([*lines, *notes]) + "\n"
