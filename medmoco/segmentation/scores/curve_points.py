"""Points of a label-efficiency curve of segmentation: scores and differences as means over draws of the patients.

A draw of the training patients gives one run. Its scores are bootstrapped by patients of the scored split, with the
same draws for all runs, and then averaged over the runs. So intervals are for the mean over runs, and reflect which
patients are scored, not which were trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from medmoco.evaluation.metrics.auroc import interval, or_none, share_interval
from medmoco.evaluation.scoring.table import MACRO, name_width, span
from medmoco.evaluation.scoring.trained_records import SegmentationCurveDifference, SegmentationPoint
from medmoco.segmentation.scores.metrics import Measures
from medmoco.segmentation.scores.records import Integers
from medmoco.segmentation.scores.scoring import SHARES, Score, Scores, by_label, mean_of_defined, score

METHOD = "segment"


@dataclass(frozen=True)
class Scored:
    """What is scored, and how.

    Attributes:
        classes: Names of the C classes.
        patients: (N,) patient of each image, by split.
        tolerance: Distance up to which surfaces agree.
        unit: Its unit.
        bootstrap: Number of bootstrap draws.
        seed: Random seed.
    """

    classes: tuple[str, ...]
    patients: Mapping[str, Integers]
    tolerance: float
    unit: str
    bootstrap: int
    seed: int


@dataclass(frozen=True)
class Trained:
    """Runs of one encoder with a fraction of the masks, one for each draw of the patients.

    Attributes:
        encoder: Name of the encoder.
        primary: Whether it is the primary one.
        fraction: Fraction of the patients.
        n_train: Training images, mean over draws.
        n_train_patients: Patients of these images, mean over draws.
        measures: Scores (N, C) by split, of each draw.
    """

    encoder: str
    primary: bool
    fraction: float
    n_train: float
    n_train_patients: float
    measures: Sequence[Mapping[str, Measures]]


def points_of(trained: Trained, scored: Scored) -> Iterator[SegmentationPoint]:
    """Yield a point for each split and class."""
    for split, patients in scored.patients.items():
        draws, found = [own[split] for own in trained.measures], _scores_of(trained, split, scored)
        known = by_label(np.any([~np.isnan(own.dice) for own in draws], axis=0), scored.classes)
        missed = [by_label(own.missed, scored.classes) for own in draws]
        false = [by_label(own.false, scored.classes) for own in draws]
        for label in found[0]:
            cells: dict[str, Any] = {}
            for metric in SHARES:
                mean = _mean([each[label][metric] for each in found])
                low, high, _ = share_interval(mean.value, mean.draws)
                values = {"": mean.value, "_low": low, "_high": high}
                cells |= {f"{metric}{end}": or_none(value) for end, value in values.items()}
            yield SegmentationPoint(
                label=label, split=split, method=METHOD, encoder=trained.encoder, primary=trained.primary,
                fraction=trained.fraction, draws=len(draws), n_train=trained.n_train,
                n_train_patients=trained.n_train_patients, tolerance=scored.tolerance, tolerance_unit=scored.unit,
                bootstrap=scored.bootstrap, n=int(known[label].sum()),
                n_patients=int(np.unique(patients[known[label]]).size),
                n_missed=float(np.mean([own[label].sum() for own in missed])),
                n_false=float(np.mean([own[label].sum() for own in false])), **cells,
            )  # fmt: skip


def differences_between(trained: Trained, control: Trained, scored: Scored) -> Iterator[SegmentationCurveDifference]:
    """Yield one encoder minus another for each split, class and metric; see `scoring.differences_of`."""
    for split, patients in scored.patients.items():
        first, second = (_scores_of(runs, split, scored) for runs in (trained, control))
        known = [~np.isnan(own[split].dice) for own in (*trained.measures, *control.measures)]
        counted = by_label(np.any(known, axis=0), scored.classes)
        for label in first[0]:
            for metric in SHARES:
                own = _mean([each[label][metric] for each in first])
                other = _mean([each[label][metric] for each in second])
                low, high, left_out = interval(own.draws - other.draws)
                yield SegmentationCurveDifference(
                    split=split, label=label, metric=metric, unit=None, encoder=trained.encoder,
                    control=control.encoder, fraction=trained.fraction,
                    difference=or_none(own.value - other.value), low=or_none(low), high=or_none(high),
                    bootstrap_left_out=left_out, n=int(counted[label].sum()),
                    n_patients=int(np.unique(patients[counted[label]]).size),
                )  # fmt: skip


def _scores_of(trained: Trained, split: str, scored: Scored) -> list[Scores]:
    """Return the scores of each run on a split, on the same bootstrap draws."""
    return [
        score(own[split], scored.patients[split], scored.classes, draws=scored.bootstrap, seed=scored.seed)
        for own in trained.measures
    ]


def _mean(scores: Sequence[Score]) -> Score:
    """Return the mean over draws of the training patients, of the value and of each bootstrap draw."""
    values = mean_of_defined(np.array([each.value for each in scores]))
    return Score(float(values), mean_of_defined(np.stack([each.draws for each in scores], axis=-1)))


def layout(points: Sequence[SegmentationPoint], differences: Sequence[SegmentationCurveDifference]) -> list[str]:
    """Return a block of lines for each split, class and metric, with a line per encoder and fraction.

    Args:
        points: Points, ordered by split, class and encoder.
        differences: Differences between the primary encoder and the others.
    """
    against = {(d.split, d.label, d.metric, d.control, d.fraction): d for d in differences}
    width, lines = name_width(point.encoder for point in points), list[str]()
    primary = next((point.encoder for point in points if point.primary), "")
    for (split, label), group in groupby(points, lambda point: (point.split, point.label)):
        block = list(group)
        name = "mean over classes" if label == MACRO else label
        titles = {"dice": "Dice", "surface_dice": f"surface Dice at {block[0].tolerance:g} {block[0].tolerance_unit}"}
        for metric, title in titles.items():
            lines += [
                f"{split}: {name}, {title}  ({block[0].n} images of {block[0].n_patients} patients)",
                f"  {'encoder':<{width}}{'masks of':<10}{'patients':<10}{'draws':<7}{'score':<8}"
                f"{'95 % interval':<18}{primary} minus it, 95 % interval",
            ]
            for point in block:
                found = against.get((split, label, metric, point.encoder, point.fraction))
                lines.append(f"  {point.encoder:<{width}}{_cells(point, metric, found)}".rstrip())
            lines.append("")
    return lines


def _cells(point: SegmentationPoint, metric: str, found: SegmentationCurveDifference | None) -> str:
    value, low, high = (getattr(point, f"{metric}{end}") for end in ("", "_low", "_high"))
    text = f"{f'{100 * point.fraction:g} %':<10}{point.n_train_patients:<10.0f}{point.draws:<7}"
    text += "undefined" if value is None else f"{value:<8.3f}{span(low, high):<18}"
    if found and found.difference is not None:
        text += f"{found.difference:+.3f}  {span(found.low, found.high, '+')}"
    return text
