"""Label efficiency of segmentation in a report: Dice and surface Dice by the fraction of patients with masks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from medmoco.evaluation.record_files import shown_split
from medmoco.evaluation.records import UNNAMED
from medmoco.evaluation.scoring.trained_records import SegmentationPoint
from medmoco.plotting.figures import curve_figure
from medmoco.reporting.blocks import Block, Fold, Plot, Table, count, number, with_interval
from medmoco.reporting.runs import Run
from medmoco.reporting.scores import labels_of
from medmoco.reporting.trained.scores import class_words


def segmentation_curves(run: Run) -> dict[str, list[Block]]:
    """Return the blocks of each class, the mean over classes first."""
    labels = labels_of(run.curve_segmentation or ())
    ordered = [*labels[-1:], *labels[:-1]] if len(labels) > 1 else labels
    return {f"Segmentation: {class_words(label)}": list(_curve(run, label)) for label in ordered}


def _curve(run: Run, label: str) -> Iterable[Block]:
    split = shown_split(run.curve_segmentation or ())
    points = [
        point.model_copy(update={"encoder": _name(run, point.encoder)})
        for point in run.curve_segmentation or ()
        if (point.label, point.split) == (label, split)
    ]
    yield _plot(run, points, "dice", "Dice", label, split)
    tolerance = f"{points[0].tolerance:g} {points[0].tolerance_unit}"
    yield _plot(run, points, "surface_dice", f"surface Dice at {tolerance}", label, split)
    differences = [
        [f"{100 * found.fraction:g} %, {_name(run, found.control)}",
         with_interval(found.difference, found.low, found.high, sign="+"),
         "Dice" if found.metric == "dice" else "surface Dice"]
        for found in run.curve_segmentation_differences or ()
        if (found.label, found.split) == (label, split)
    ]  # fmt: skip
    if differences:
        name = next(point.encoder for point in points if point.primary)
        head = ["masks, control", "primary minus control", "score"]
        table = Table(f"{name} minus controls, on the same draws of patients", head, differences, decisive=True)
        yield Fold(f"Differences between {name} and its controls", [table])


def _plot(
    run: Run,
    points: Sequence[SegmentationPoint],
    metric: Literal["dice", "surface_dice"],
    metric_words: str,
    label: str,
    split: str,
) -> Plot:
    cells = [
        [
            f"{100 * point.fraction:g} %, {point.encoder}",
            with_interval(*(getattr(point, f"{metric}{end}") for end in ("", "_low", "_high"))),
            count(point.n_train_patients), count(point.n_train), count(point.draws), count(point.n_missed),
            count(point.n_false),
        ]
        for point in points
    ]  # fmt: skip
    head = ["masks, encoder", f"{metric_words} (95 % interval)", "training patients", "training images", "draws",
            "images in which it was missed", "images without it in which it was found"]  # fmt: skip
    counts = f"{points[0].n} images of {points[0].n_patients} patients"
    title = f"{metric_words} by fraction of patients with masks, {class_words(label)} on {split} ({counts}), {run.name}"
    title = title[0].upper() + title[1:]
    least = min(point.fraction for point in points)
    words = [f"{point.encoder} {number(getattr(point, metric))}" for point in points if point.fraction == least]
    return Plot(
        curve_figure([point.model_copy(update={"label": class_words(label)}) for point in points], class_words(label),
                     split, metric),
        f"{title}; bars are 95 % intervals.", f"{title}. With {100 * least:g} %: {'; '.join(words)}.",
        Table(title, head, cells, decisive=True),
    )  # fmt: skip


def _name(run: Run, encoder: str) -> str:
    return run.name if encoder == UNNAMED else encoder
