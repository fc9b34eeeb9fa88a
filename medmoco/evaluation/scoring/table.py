"""The table of scores: plain text, under 120 columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from textwrap import wrap
from typing import Any

import numpy as np

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import Split
from medmoco.data.manifest.overlap import counted, patient_ids
from medmoco.evaluation.forecast_records import Forecast, LabelsNeeded
from medmoco.evaluation.leakage.leakage import leak_lines
from medmoco.evaluation.records import Compared, Counts, Difference, PrimaryRecord, Record, Score
from medmoco.evaluation.scoring.trained_records import SegmentationScore
from medmoco.evaluation.target_records import ClassScore, RegressionDifference, RegressionScore

MACRO = "macro"
"""Name of the mean over labels, used like a label."""

CAVEAT = (
    "These forecasts extrapolate a fitted inverse power law to more patients of the same kind; they are not guarantees."
)

_ERRORS = (("r2", "R2", "R2", "higher"), ("mae", "mean absolute error", "error", "lower"))
_CELL = 11  # characters of a column of the report by class
_MOST_COLUMNS = 5  # classes whose confusion matrix fits next to the report by class


def family(found: Compared | RegressionDifference) -> tuple[Any, ...]:
    """Return what the comparisons have in common whose p-values Holm's method adjusts together."""
    if isinstance(found, RegressionDifference):
        return found.split, found.metric
    return found.split, found.method, found.label == MACRO


def heading(source: Mapping[str, Any], width: int, splits: Mapping[str, Split], settings: RunSettings) -> list[str]:
    """Return the lines above the blocks: the encoder, the images and the protocol.

    Args:
        source: `Provenance.record` of the primary encoder.
        width: Number of features.
        splits: train and the scored splits.
        settings: Settings of the evaluation.
    """
    chosen = settings.evaluate
    kind = "volumes" if settings.data.dimensions == 3 else "images"
    views = f"{kind} and their mirror {kind}" if chosen.mirror else kind
    windows = "in windows of " if kind == "volumes" and chosen.volumes == "sliding" else ""
    sides = " x ".join([str(chosen.size or settings.views.size)] * settings.data.dimensions)
    frozen = "frozen features" + (f" of the last {chosen.stages} stages" if chosen.stages > 1 else "")
    what = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in source.items())
    counts = [f"{name} {counted(split)}" for name, split in splits.items()]
    drawn = kind if all(patient_ids(split) is None for split in splits.values()) else "patients"
    draws = f", {chosen.label_draws} draws" if chosen.label_fraction < 1 else ""
    return [
        f"{settings.model.backbone} ({what}), {width} {frozen}, {views} {windows}{sides}, seed {settings.seed}",
        "; ".join(counts) + (f"; where {chosen.where}" if chosen.where else ""),
        f"labels of {100 * chosen.label_fraction:g} % of the training {drawn}{draws}; strength chosen on val; "
        f"95 % intervals: {chosen.bootstrap} draws of {drawn}",
    ]


def layout(
    scores: Sequence[Score],
    differences: Sequence[Difference],
    head: Sequence[str],
    notes: Sequence[str],
    classes: Sequence[ClassScore] = (),
    regression: Sequence[RegressionScore] = (),
    regression_differences: Sequence[RegressionDifference] = (),
) -> str:
    """Return scores, ordered by split and label, as text: a block per split and label, a line per method and encoder.

    Args:
        scores: Scores of labels or classes.
        differences: Their differences.
        head: Lines above the blocks.
        notes: Lines below the blocks.
        classes: Accuracies of classes.
        regression: Errors of numeric targets.
        regression_differences: Their differences.
    """
    against = {(d.label, d.split, d.method, d.control): d for d in differences}
    labels = {score.label for score in scores}
    width = name_width(score.encoder for score in scores)
    lines = [*head, ""]
    for (_, label), group in groupby(scores, lambda score: (score.split, score.label)):
        if label == MACRO and len(labels) == 2:
            continue  # the mean over one label repeats it
        rows = list(group)
        lines += _block_head(rows, width)
        for row in rows:
            difference = against.get((label, row.split, row.method, row.encoder))
            lines.append(f"  {row.method:<8}{row.encoder:<{width}}{_cells(row, difference)}".rstrip())
        lines.append("")
    lines += [*class_blocks(classes), *regression_blocks(regression, regression_differences)]
    return "\n".join([*lines, *_notes([*scores, *regression]), *notes]) + "\n"


def class_blocks(scores: Sequence[ClassScore], *, fractions: bool = False) -> list[str]:
    """Return the accuracies of classes as lines, with the report of the primary encoder's first method.

    Args:
        scores: Scores, ordered by split.
        fractions: Show the fraction of labels of each score instead of the report, for a label-efficiency curve.
    """
    width, lines = name_width(score.encoder for score in scores), list[str]()
    for split, group in groupby(scores, lambda score: score.split):
        rows = list(group)
        first = rows[0]
        counts = f"{first.n} images of {len(first.classes)} classes{patients_in(first)}"
        left_out = f"; {first.bootstrap_left_out} of {first.bootstrap} draws lacked a class and were left out"
        lines += [
            f"{split}: {first.label}  ({counts}{left_out if first.bootstrap_left_out and not first.undefined else ''})",
            f"  {'method':<10}{'encoder':<{width}}{'labels    ' if fractions else ''}"
            f"{'top-1':<8}{'95 % interval':<18}{'balanced acc.':<15}95 % interval",
        ]
        for row in rows:
            cells = row.undefined or (
                f"{row.top1:<8.3f}{span(row.top1_low, row.top1_high):<18}{row.balanced_accuracy:<15.3f}"
                f"{span(row.balanced_accuracy_low, row.balanced_accuracy_high)}"
            )
            share = _share(row) if fractions else ""
            lines.append(f"  {row.method:<10}{row.encoder:<{width}}{share}{cells}")
        shown = next((row for row in rows if row.primary and not row.undefined and not fractions), None)
        lines += ["", *(_class_report(shown) if shown else [])]
    return lines


def _share(score: ClassScore | RegressionScore) -> str:
    return f"{f'{100 * score.fraction:g} %':<10}"


def _class_report(score: ClassScore) -> list[str]:
    """Return precision, recall, F1 and support of each class, and the confusion matrix if it fits."""
    names = [_short(found.name) for found in score.classes]
    fits = len(names) <= _MOST_COLUMNS
    head = "".join(f"{name:>{_CELL}}" for name in ["precision", "recall", "F1", "images", *(names if fits else [])])
    note = "; the columns on the right: images by predicted class" if fits else ""
    lines = [f"  {score.encoder} by {score.method}, a line for each true class{note}", f"    {'':<{_CELL}}{head}"]
    for name, found, confused in zip(names, score.classes, score.confusion, strict=True):
        measures = [f"{value:>{_CELL}.3f}" if value is not None else f"{'-':>{_CELL}}"
                    for value in (found.precision, found.recall, found.f1)]  # fmt: skip
        cells = "".join(f"{value:>{_CELL}g}" for value in np.round(confused, 1)) if fits else ""
        lines.append(f"    {name:<{_CELL}}{''.join(measures)}{found.support:>{_CELL}}{cells}")
    return [*lines, ""]


def _short(name: str) -> str:
    return name if len(name) < _CELL else f"{name[: _CELL - 2]}…"


def regression_blocks(
    scores: Sequence[RegressionScore], differences: Sequence[RegressionDifference], *, fractions: bool = False
) -> list[str]:
    """Return the errors of numeric targets as lines: a block for each split, target and metric.

    Args:
        scores: Scores, ordered by split and target.
        differences: Their differences.
        fractions: Show the fraction of labels of each score, for a label-efficiency curve.
    """
    against = {(d.split, d.label, d.metric, d.control, d.label_fraction): d for d in differences}
    width, lines = name_width(score.encoder for score in scores), list[str]()
    for (split, label), group in groupby(scores, lambda score: (score.split, score.label)):
        rows = list(group)
        first, primary = rows[0], next(row.encoder for row in rows if row.primary)
        for metric, name, short, better in _ERRORS:
            labels = f"{'labels':<10}" if fractions else ""
            lines += [
                f"{split}: {label}, {name}  ({first.n} images{patients_in(first)}; {better} is better)",
                *_leaks(first),
                f"  {'encoder':<{width}}{labels}{short:<10}{'95 % interval':<22}{primary} minus control, 95 % interval",
            ]
            for row in rows:
                share = _share(row) if fractions else ""
                value = getattr(row, metric)
                ends = span(getattr(row, f"{metric}_low"), getattr(row, f"{metric}_high"), written=figure)
                cells = row.undefined or "undefined" if value is None else f"{figure(value):<10}{ends:<22}"
                found = against.get((split, label, metric, row.encoder, row.label_fraction))
                if value is not None and found and found.difference is not None:
                    cells += f"{figure(found.difference, '+')}  {span(found.low, found.high, '+', written=figure)}"
                lines.append(f"  {row.encoder:<{width}}{share}{cells}".rstrip())
            lines.append("")
    return lines


def forecast_blocks(forecasts: Sequence[Forecast], needed: Sequence[LabelsNeeded], drawn: str) -> list[str]:
    """Return forecasts of one split as lines: a block for each label, and the caveat.

    Args:
        forecasts: Forecasts, ordered by label, method and encoder.
        needed: Labels that controls need.
        drawn: What is labelled, patients or images.
    """
    width, lines = name_width(found.encoder for found in forecasts), list[str]()
    labels, reasons = ({getattr(found, name) for found in forecasts} for name in ("label", "undefined"))
    if len(reasons) == 1 and None not in reasons:
        return [f"no forecast for more labels: {reasons.pop()}", ""]
    for label, group in groupby(forecasts, lambda found: found.label):
        if label == MACRO and len(labels) == 2:
            continue  # the mean over one label repeats it
        rows = list(group)
        lines += [
            f"forecast for {rows[0].split}: {label}",
            f"  {'method':<9}{'encoder':<{width}}{drawn:<15}{'AUROC':<8}{'95 % interval':<18}gain, 95 % interval",
        ]
        for (method, encoder), cells in groupby(rows, lambda found: (found.method, found.encoder)):
            for number, found in enumerate(cells):
                name = f"{method:<9}{encoder:<{width}}" if number == 0 else ""
                if number == 0 or found.auroc is not None:
                    lines.append(f"  {name:<{9 + width}}{_forecast_cells(found)}")
        lines += ["", *_needed_lines([found for found in needed if found.label == label], drawn)]
    return [*lines, *wrap(CAVEAT, 118)] if lines else []


def _forecast_cells(found: Forecast) -> str:
    if found.auroc is None or found.gain is None:
        return f"no forecast: {found.undefined}"
    size = f"{found.times:g} x: {found.n_train_patients:,.0f}"
    ends = f"{found.auroc:<8.3f}{span(found.auroc_low, found.auroc_high):<18}"
    return f"{size:<15}{ends}{found.gain:+.3f}  {span(found.gain_low, found.gain_high, '+')}"


def _needed_lines(needed: Sequence[LabelsNeeded], drawn: str) -> list[str]:
    """Return a line for each fraction of one label, with a column for each control, at most three side by side."""
    lines = list[str]()
    for method in dict.fromkeys(found.method for found in needed):
        own = [found for found in needed if found.method == method]
        controls = list(dict.fromkeys(found.control for found in own))
        for some in (controls[at : at + 3] for at in range(0, len(controls), 3)):
            first = name_width([own[0].encoder])
            widths = {name: max(27, len(name) + 2) for name in some}
            names = "".join(f"{name:<{width}}" for name, width in widths.items())
            lines += [
                f"  {drawn} needed for the AUROC of {own[0].encoder}, {method}, 95 % interval",
                f"  {own[0].encoder:<{first}}{names}".rstrip(),
            ]
            for fraction in dict.fromkeys(found.fraction for found in own):
                cells = [found for found in own if found.fraction == fraction and found.control in some]
                words = "".join(f"{needed_words(found):<{widths[found.control]}}" for found in cells)
                lines.append(f"  {cells[0].n_train_patients:<{first},.0f}{words}".rstrip())
            lines.append("")
    return lines


def needed_words(found: LabelsNeeded) -> str:
    """Return the labels that a control needs with their interval, such as "41 (28 to >7,480)", in two digits."""

    def words(value: float) -> str:
        if value >= found.most:
            return f">{found.most:,.0f}"
        return f"<{found.least:,.0f}" if value <= found.least else f"{float(f'{value:.2g}'):,.0f}"

    if found.needed is None or found.needed_low is None or found.needed_high is None:
        return "no forecast"
    middle, low, high = map(words, (found.needed, found.needed_low, found.needed_high))
    return middle if low == high else f"{middle} ({low} to {high})"


def figure(value: float, sign: str = "") -> str:
    """Return a number of any unit with at least three digits."""
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return f"{value:{sign}.{digits}f}"


def name_width(names: Iterable[str]) -> int:
    """Return the width of a column of encoder names."""
    return max(12, 2 + max(map(len, names), default=0))


def sized_names(records: Iterable[PrimaryRecord]) -> dict[str, str]:
    """Return the names to show in figures for encoders with a preprocessing of their own: with the size of images."""
    return {
        record.encoder: f"{record.encoder} ({record.preprocessing.partition(',')[0]})"
        for record in records
        if record.preprocessing
    }


def patients_in(score: Counts | ClassScore | RegressionScore) -> str:
    """Return ", 80 patients", to follow the images; empty if each has its own patient, as if patients are unknown."""
    return f", {score.n_patients} patients" if score.n_patients != score.n else ""


def found_words(score: SegmentationScore) -> str | None:
    """Return in how many images a class was found, such as "found in 8 of 9 images that show it"; None without need.

    There is no need if it was found in all images and all show it, and for the mean over classes.
    """
    if score.label == MACRO or not (score.n_missed or score.n_false or score.n_empty):
        return None
    shown, without = score.n - score.n_false, score.n_false + score.n_empty
    words = f"found in {shown - score.n_missed} of {shown} images that show it"
    return f"{words}, and in {score.n_false} of {without} that do not" if without else words


def _block_head(rows: Sequence[Score], width: int) -> list[str]:
    first = rows[0]
    if first.label == MACRO:
        remark = f"mean of {first.n_labels_defined} of {first.n_labels} {'classes' if first.class_column else 'labels'}"
    elif first.class_column:
        remark = f"a class of the column {first.class_column}, against all others"
    else:
        remark = ", ".join(f"{cell}: {policy}" for cell, policy in first.label_policy.items())
    if first.bootstrap_left_out and not first.undefined:
        remark += f"; {first.bootstrap_left_out} of {first.bootstrap} draws had one class and were left out"
    counts = f"{first.n} images, {first.n_positive} positive{patients_in(first)}"
    return [
        f"{first.split}: {first.label}  ({counts}; {remark})",
        *_leaks(first),
        f"  {'method':<8}{'encoder':<{width}}{'AUROC':>7}   {'95 % interval':<17}{'avg. precision':<17}"
        f"{first.encoder} minus control, 95 % interval",
    ]


def _leaks(score: Score | RegressionScore) -> list[str]:
    return [f"  ! {line}" for line in leak_lines({score.split: score.leakage})]


def _cells(row: Score, difference: Difference | None) -> str:
    if row.undefined:
        return f"  {row.undefined}"
    mark = "!" if row.flag else " "
    text = f"{row.auroc:>7.3f}{mark}  {span(row.auroc_low, row.auroc_high, ''):<17}"
    text += f"{row.average_precision:<17.3f}"
    if difference and difference.difference is not None:
        text += f"{difference.difference:+.3f}  {span(difference.low, difference.high, '+')}"
    return text


def _three(value: float, sign: str) -> str:
    return f"{value:{sign}.3f}"


def span(
    low: float | None, high: float | None, sign: str = "", *, written: Callable[[float, str], str] = _three
) -> str:
    """Return an interval as text; bounds of None mean that there is none."""
    return "no interval" if low is None or high is None else f"{written(low, sign)} to {written(high, sign)}"


def summary_cells(score: Score | ClassScore | RegressionScore) -> dict[str, str]:
    """Return the values of a score with their intervals as text, by the words that follow the label in a summary."""
    if isinstance(score, Score):
        return {"": _summary_cell(score, "auroc")}
    if isinstance(score, ClassScore):
        return {
            "top-1": _summary_cell(score, "top1"),
            "balanced accuracy": _summary_cell(score, "balanced_accuracy"),
        }
    return {name: _summary_cell(score, metric, figure) for metric, name, _, _ in _ERRORS}


def _summary_cell(score: Record, metric: str, written: Callable[[float, str], str] = _three) -> str:
    value, low, high = (getattr(score, f"{metric}{end}") for end in ("", "_low", "_high"))
    return "undefined" if value is None else f"{written(value, '')} ({span(low, high, written=written)})"


def _notes(scores: Sequence[Score | RegressionScore]) -> list[str]:
    """Return notes on the scores and their marks."""
    lines = []
    if any(score.split == "val" for score in scores):
        lines.append("the linear probe's strength was also chosen on val; only test scores are unbiased")
    for score in scores:
        name = f"{score.split}, {score.label}, {score.method}, {score.encoder}"
        if isinstance(score, Score) and score.flag:
            lines.append(f"! {name}: {score.flag}; possibly nothing was learned")
        if score.note:
            lines.append(f"{name}: {score.note}")
    return lines
