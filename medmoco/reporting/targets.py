"""Section of a report with classes, of which every image has one, and numeric targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from medmoco.evaluation.record_files import shown_split
from medmoco.evaluation.records import Record, primary_of
from medmoco.evaluation.scoring.table import figure
from medmoco.evaluation.target_records import ClassScore, RegressionDifference, RegressionScore
from medmoco.plotting.figures import Estimate, confusion_figure, curve_figure, method_words
from medmoco.reporting.blocks import (
    MINUS,
    NOTHING,
    Block,
    Plot,
    Section,
    Table,
    count,
    number,
    p_value,
    unbroken,
    with_interval,
)
from medmoco.reporting.runs import Run
from medmoco.reporting.scores import Rows, encoder_name, forest_plot, images_in, multiplicity, rows_of


def targets_section(runs: Sequence[Run]) -> Section:
    """Show accuracies of classes and errors of numeric targets; without content if there are neither."""
    sections: list[Section] = []
    for run in runs:
        split, suffix = run.evaluation.split, f", {run.name}" if len(runs) > 1 else ""
        if classes := [score for score in run.evaluation.classes or () if score.split == split]:
            sections.append(Section(f"{classes[0].label}, {split}{suffix}", list(_classes(run, runs, classes))))
        scores = [score for score in run.evaluation.regression or () if score.split == split]
        for target in dict.fromkeys(score.label for score in scores):
            rows = rows_of(run, [score for score in scores if score.label == target], run.evaluation.primary)
            sections.append(Section(f"{target}, {split}{suffix}", list(_regression(run, runs, rows))))
    forest = _forest(runs)
    return Section("Classes and numeric targets", [forest] if forest else [], sections)


def _forest(runs: Sequence[Run]) -> Plot | None:
    rows = [row for run in runs for row in rows_of(run, run.evaluation.regression or (), run.evaluation.primary)]
    split, drawn, colours = shown_split([row.record for row in rows]), [], dict[str, int]()
    for target in dict.fromkeys(row.record.label for row in rows):
        for row in rows:
            score = row.record
            if (score.label, score.split) == (target, split):
                name = row.name(runs)
                colour = colours.setdefault(name, len(colours))
                drawn.append(Estimate(target, name, score.r2, score.r2_low, score.r2_high, colour))
    return forest_plot(drawn, f"R2 by ridge regression on {split}, with 95 % intervals", "R²")


# ---- classes ----


def _classes(run: Run, runs: Sequence[Run], scores: Sequence[ClassScore]) -> Iterable[Block]:
    rows = rows_of(run, scores, run.evaluation.primary)
    shown = next((row for row in rows if row.is_primary), rows[0])
    score, names = shown.record, [found.name for found in shown.record.classes]
    title = f"{score.label} on {score.split}, {shown.name(runs)} by {method_words(score.method)}"
    if not score.undefined:
        cells = [[name, *(f"{value:.4g}" for value in row)] for name, row in zip(names, score.confusion, strict=True)]
        words = [f"{found.name} {number(found.recall)}" for found in score.classes if found.recall is not None]
        yield Plot(
            confusion_figure(score.confusion, names, f"{score.label}, {score.split}"),
            f"Confusion matrix, {title}: images; shades are shares of the true class.",
            f"Confusion matrix, {title}. Share of each class that is recognised: {'; '.join(words)}.",
            Table(f"Confusion matrix, {title}", ["true class", *(f"predicted {name}" for name in names)], cells),
        )
    counts = f"{images_in(score)}, {len(names)} classes"
    yield Table(
        f"{score.label} on {score.split}: {counts}",
        ["features", "balanced accuracy", "top-1 accuracy"],
        [
            [
                f"{row.name(runs)}, {method_words(row.record.method)}",
                *(row.record.undefined or _interval(row.record, name) for name in ("balanced_accuracy", "top1")),
            ]
            for row in rows
        ],
    )
    yield Table(
        f"Report by class, {title}",
        ["class", "images", "precision", "recall", "F1"],
        [
            [found.name, count(found.support), number(found.precision), number(found.recall), number(found.f1)]
            for found in score.classes
        ],
    )


def _interval(score: Record, name: str) -> str:
    return with_interval(*(getattr(score, f"{name}{end}") for end in ("", "_low", "_high")))


# ---- numeric targets ----


def _regression(run: Run, runs: Sequence[Run], rows: Rows[RegressionScore]) -> Iterable[Block]:
    first = rows[0].record
    against = {
        (d.metric, d.control): d
        for d in run.evaluation.regression_differences or ()
        if (d.label, d.split) == (first.label, first.split)
    }
    cells = []
    for row in rows:
        gain, p_gain, error, p_error = (
            cell for metric in ("r2", "mae") for cell in _difference(against.get((metric, row.record.encoder)))
        )
        cells.append([
            row.name(runs), gain, row.record.undefined or _interval(row.record, "r2"), p_gain,
            error, in_unit(row.record.mae, row.record.mae_low, row.record.mae_high), p_error,
        ])  # fmt: skip
    head = ["features", "R2: primary minus this", "R2", "p (Holm)", "error: primary minus this", "mean absolute error",
            "p (Holm)"]  # fmt: skip
    caption = f"{first.label} on {first.split}: {images_in(first)}; the error has the unit of the target"
    yield Table(caption, head, cells, decisive=True)
    yield from multiplicity(list(against.values()), run.evaluation.regression_differences or ())


def _difference(found: RegressionDifference | None) -> list[str]:
    if found is None:
        return [NOTHING, NOTHING]
    values = (found.difference, found.low, found.high)
    written = with_interval(*values, sign="+") if found.metric == "r2" else in_unit(*values, sign="+")
    return [written, p_value(found.p if found.p_holm is None else found.p_holm)]


def in_unit(value: float | None, low: float | None = None, high: float | None = None, sign: str = "") -> str:
    """Write a number of any unit with its 95 % interval."""
    if value is None or low is None or high is None:
        return NOTHING if value is None else _figure(value, sign)
    return f"{_figure(value, sign)} ({unbroken(f'{_figure(low, sign)} to {_figure(high, sign)}')})"


def _figure(value: float, sign: str) -> str:
    return figure(value, sign).replace("-", MINUS)


def regression_curves(run: Run) -> dict[str, list[Block]]:
    """Return for each numeric target its R2 by fraction of labelled patients."""
    scores, found = run.curve_regression or (), dict[str, list[Block]]()
    split, primary = shown_split(scores), primary_of(scores)
    for target in dict.fromkeys(score.label for score in scores):
        points = [
            score.model_copy(
                update={"encoder": encoder_name(run, score.encoder, [run], is_primary=score.encoder == primary)}
            )
            for score in sorted(scores, key=lambda score: score.fraction)
            if (score.label, score.split) == (target, split)
        ]
        cells = [
            [f"{100 * point.fraction:g} %", point.encoder, count(point.draws),
             point.undefined or _interval(point, "r2"), in_unit(point.mae, point.mae_low, point.mae_high)]
            for point in points
        ]  # fmt: skip
        title = f"R2 by fraction of labelled patients, {target} on {split}, {run.name}"
        head = ["labels", "features", "draws", "R2 (95 % interval)", "mean absolute error"]
        table = Table(title, head, cells)
        if any(point.r2 is not None for point in points):
            words = [f"{row[1]} with {row[0]} {row[3]}" for row in cells]
            plot = Plot(curve_figure(points, target, split, "r2"), f"{title}; bars are 95 % intervals.",
                        f"{title}. {'; '.join(words)}.", table)  # fmt: skip
            found[target] = [plot]
        else:
            found[target] = [table]
    return found
