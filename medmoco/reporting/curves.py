"""Sections of a report with curves: ROC, precision and recall, calibration, label efficiency, external validation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd

from medmoco.evaluation.discrimination import discrimination, discrimination_figure
from medmoco.evaluation.metrics.auroc import Floats
from medmoco.evaluation.record_files import shown_split
from medmoco.evaluation.records import Bin, CalibrationScore, primary_of
from medmoco.evaluation.scoring.table import CAVEAT, needed_words
from medmoco.plotting.figures import Line, calibration_figure, curve_figure, method_words
from medmoco.reporting.blocks import Block, Fold, Plot, Section, Table, Text, count, number, plots_first, with_interval
from medmoco.reporting.runs import Run, missing
from medmoco.reporting.scores import (
    Kind,
    Rows,
    by_label,
    difference_cells,
    encoder_name,
    label_words,
    labels_of,
    method_of,
    multiplicity,
    operating_blocks,
    preprocessing_texts,
    subgroup_blocks,
)
from medmoco.reporting.targets import regression_curves
from medmoco.reporting.trained.curves import segmentation_curves

_SPECIFICITIES = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
_SENSITIVITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

Predictions = dict[str, tuple[Floats, Floats]]  # name -> targets and scores


def curves_section(runs: Sequence[Run]) -> Section:
    """Draw discrimination and calibration for each label."""
    words = "{run} has no predictions: `medmoco evaluate` writes predictions.csv."
    blocks = missing(runs, lambda run: run.evaluation.predictions is None, words)
    words = "{run} has no calibration: `medmoco evaluate` writes calibration.json."
    blocks += missing(runs, lambda run: run.evaluation.calibration is None, words)
    calibrated = {
        part.title: part.blocks for part in by_label(runs, lambda scores: scores.calibration, calibration_blocks)
    }
    predicted = [run.evaluation.predictions["label"] for run in runs if run.evaluation.predictions is not None]
    labels = dict.fromkeys([*(label for column in predicted for label in column.unique()), *calibrated])
    sections = []
    for label in labels:
        found: list[Block] = [*_discrimination(runs, label), *calibrated.get(label, ())]
        sections.append(Section(label, plots_first(found)))
    return Section("ROC, precision and calibration curves", blocks, sections)


def _predictions(runs: Sequence[Run], label: str) -> Predictions:
    """Return the predictions to draw: of all encoders of one run, or of the primary ones of several runs."""
    predictions: Predictions = {}
    for run in runs:
        table, primary = run.evaluation.predictions, run.evaluation.primary
        if table is None:
            continue
        method = method_of(table["method"].unique().tolist())
        chosen = table[(table["label"] == label) & (table["method"] == method)]
        encoders = list(dict.fromkeys(chosen["encoder"]))
        for encoder in encoders if len(runs) == 1 else [e for e in encoders if e == primary]:
            rows: pd.DataFrame = chosen[chosen["encoder"] == encoder]
            targets = rows["target"].to_numpy(float)
            if 0 < targets.sum() < len(targets):
                name = encoder_name(run, encoder, runs, is_primary=encoder == primary)
                predictions[name] = (targets, rows["score"].to_numpy(float))
    return predictions


def _discrimination(runs: Sequence[Run], label: str) -> Iterable[Plot]:
    predictions = _predictions(runs, label)
    if not predictions:
        return
    roc_rows, pr_rows, aurocs, precisions = [], [], [], []
    for name, (targets, scores) in predictions.items():
        false, true, area = discrimination("roc", targets, scores)
        recall, precision, mean = discrimination("precision_recall", targets, scores)
        aurocs.append(f"{name} AUROC {area:.3f}")
        precisions.append(f"{name} average precision {mean:.3f}")
        roc_rows += [[name, number(s, 2), number(true[false <= 1 - s + 1e-9].max())] for s in _SPECIFICITIES]
        pr_rows += [[name, number(s, 2), number(precision[recall >= s - 1e-9].max())] for s in _SENSITIVITIES]
    prevalence = float(next(iter(predictions.values()))[0].mean())
    points = _operating_points(runs[0], label) if len(runs) == 1 else []
    title = f"{label} on {runs[0].evaluation.split}"
    yield Plot(
        discrimination_figure("roc", predictions, points),
        f"Receiver operating characteristic, {title}; the numbers are AUROCs.",
        f"Receiver operating characteristic for {title}: {'; '.join(aurocs)}.",
        Table(f"Sensitivity at given specificity, {title}", ["features", "specificity", "sensitivity"], roc_rows),
    )
    yield Plot(
        discrimination_figure("precision_recall", predictions),
        f"Precision against recall, {title}; the numbers are average precisions.",
        f"Precision against recall for {title}: {'; '.join(precisions)}. Chance is {prevalence:.3f}.",
        Table(f"PPV at given sensitivity or more, {title}", ["features", "sensitivity", "PPV"], pr_rows),
    )


def _operating_points(run: Run, label: str) -> list[tuple[float, float]]:
    points = run.evaluation.operating or ()
    shown = (label, run.evaluation.split, method_of([point.method for point in points]), run.evaluation.primary)
    return [
        (1 - point.specificity, point.sensitivity)
        for point in points
        if (point.label, point.split, point.method, point.encoder) == shown
        and point.specificity is not None
        and point.sensitivity is not None
    ]


# ---- calibration ----


def calibration_blocks(runs: Sequence[Run], rows: Rows[CalibrationScore]) -> list[Block]:
    """Return the plot and the table of one label's calibration, for the primary encoders."""
    own = [row for row in rows if row.is_primary]
    cells = [
        [
            words if len(runs) == 1 else f"{row.run.name}, {words}", number(found.ece), number(found.brier),
            number(found.slope, 2), number(found.intercept, 2), count(found.n),
        ]
        for row in own
        for found, words in (
            (row.record.before, "uncalibrated"), (row.record.after, f"{row.record.kind}, fitted on validation"),
        )
    ]  # fmt: skip
    head = ["probabilities", "calibration error", "Brier score", "slope", "intercept", "images"]
    plot = _calibration(runs, own)
    caption = "Calibration; perfect are an error of 0, a slope of 1 and an intercept of 0"
    table = Table(caption, head, cells, decisive=True)
    return [plot, table] if plot else [table]


def _calibration(runs: Sequence[Run], rows: Rows[CalibrationScore]) -> Plot | None:
    lines, cells, words = [], [], []
    for at, row in enumerate(rows):
        for dash, (kind, found) in enumerate(
            ((row.record.kind, row.record.after), ("uncalibrated", row.record.before))
        ):
            bins = [(each, each.predicted, each.observed) for each in found.bins]
            drawn = [(each, x, y) for each, x, y in bins if x is not None and y is not None]
            if not drawn:
                continue
            name = kind if len(runs) == 1 else f"{row.run.name}, {kind}"
            low, high = (_ends(drawn, end) if dash == 0 else [] for end in ("observed_low", "observed_high"))
            colour = dash if len(runs) == 1 else at
            x, y = [x for _, x, _ in drawn], [y for _, _, y in drawn]
            lines.append(Line(name, x, y, low, high, colour=colour, dash=dash, marked=True))
            cells += [
                [name, f"{number(each.low, 2)} to {number(each.high, 2)}", count(each.n), number(each.predicted),
                 with_interval(each.observed, each.observed_low, each.observed_high)]
                for each, _, _ in drawn
            ]  # fmt: skip
            words.append(f"{name}: error {number(found.ece)}, slope {number(found.slope, 2)}")
    if not lines:
        return None
    title = f"{rows[0].record.label} on {rows[0].record.split}"
    head = ["probabilities", "bin", "images", "predicted", "observed (95 % interval)"]
    return Plot(
        calibration_figure(lines), f"Calibration, {title}: observed share of positives in bins of the prediction.",
        f"Calibration for {title}. {'; '.join(words)}.", Table(f"Calibration, {title}", head, cells),
    )  # fmt: skip


def _ends(bins: Sequence[tuple[Bin, float, float]], end: str) -> list[float]:
    """Return one end of each bin's interval, or the observed share if there is none."""
    ends = ((getattr(each, end), observed) for each, _, observed in bins)
    return [observed if value is None else float(value) for value, observed in ends]


# ---- label efficiency ----


def curve_section(runs: Sequence[Run]) -> Section:
    """Show label efficiency: scores by the fraction of labelled patients."""
    parts: dict[str, list[Block]] = {}
    for run in runs:
        for label in labels_of(run.curve or ()):
            parts.setdefault(label_words(label), []).extend(_curve(run, label, shown_split(run.curve or ())))
        for part, blocks in segmentation_curves(run).items():
            parts.setdefault(part, []).extend(blocks)
        for target, blocks in regression_curves(run).items():
            parts.setdefault(target, []).extend(blocks)
    first = next(iter(parts), "")
    at_top = parts.pop(first) if len(runs) == 1 and curve_plots(runs[0]) else []
    sections = [Section(title, found) for title, found in parts.items()]
    words = "{run} has no label-efficiency curve: `medmoco curve --out {run}/curve` computes it."
    blocks = missing(runs, lambda run: not (run.curve or run.curve_regression or run.curve_segmentation), words)
    blocks += [text for run in runs for text in preprocessing_texts(run, run.curve or ())]
    if at_top:  # the summary shows its figure
        blocks += [Text(f"The figure of {first} is in the summary.", "note"), *at_top[1:]]
    return Section("Label efficiency", blocks, sections, columns=True)


def curve_plots(run: Run) -> list[Block]:
    """Return the plots of a run's label efficiency, of labels and of classes that are segmented."""
    split = shown_split(run.curve or ())
    blocks = [block for label in labels_of(run.curve or ()) for block in _curve(run, label, split)]
    blocks += [block for found in segmentation_curves(run).values() for block in found]
    return [block for block in blocks if isinstance(block, Plot)]


def _name(run: Run, encoder: str, *, is_primary: bool = False) -> str:
    return encoder_name(run, encoder, [run], is_primary=is_primary, records=run.curve)


def _curve(run: Run, label: str, split: str) -> Iterable[Block]:
    primary = primary_of(run.curve or ())
    points = [
        _renamed(run, point, primary)
        for point in sorted(run.curve or (), key=lambda point: point.fraction)
        if (point.label, point.split) == (label, split)
    ]
    cells = [
        [
            f"{100 * point.fraction:g} %, {point.encoder}",
            point.undefined or with_interval(point.auroc, point.auroc_low, point.auroc_high),
            method_words(point.method), count(point.n_train_patients), count(point.draws),
        ]
        for point in points
    ]  # fmt: skip
    head = ["labels, features", "AUROC (95 % interval)", "method", "training patients", "draws"]
    title = f"AUROC by fraction of labelled patients, {label_words(label)} on {split}, {run.name}"
    table, drawn = Table(title, head, cells, decisive=True), [point for point in points if point.auroc is not None]
    if drawn:
        least = min(point.fraction for point in drawn)
        words = [f"{point.encoder} by {method_words(point.method)} {number(point.auroc)}" for point in drawn
                 if point.fraction == least]  # fmt: skip
        alt = f"{title}. With {100 * least:g} %: {'; '.join(words)}."
        ahead = [
            _renamed(run, found, primary)
            for found in run.curve_forecast or ()
            if (found.label, found.split) == (label, split)
        ]
        bars = f"{title}; bars are 95 % intervals{', dotted lines forecasts' if ahead else ''}."
        yield Plot(curve_figure(points, label_words(label), split, forecasts=ahead), bars, alt, table)
    else:
        yield table
    shown = [d for d in run.curve_differences or () if (d.label, d.split) == (label, split)]
    differences = [
        [f"{100 * d.fraction:g} %, {_name(run, d.control)}", *difference_cells(d), method_words(d.method)]
        for d in shown
    ]
    if differences:
        name = encoder_name(run, primary or "", [run], is_primary=True)
        head = ["labels, control", "primary minus control", "p (Holm)", "method"]
        table = Table(f"{name} minus controls, on the same draws of patients", head, differences, decisive=True)
        notes = multiplicity(shown, run.curve_differences or ())
        yield Fold(f"Differences between {name} and its controls", [table, *notes])
    yield from _forecast(run, label, split)


def _renamed(run: Run, record: Kind, primary: str | None) -> Kind:
    """Return a record with the names of the encoder and the label to show."""
    name = _name(run, record.encoder, is_primary=record.encoder == primary)
    return record.model_copy(update={"encoder": name, "label": label_words(record.label)})


def _forecast(run: Run, label: str, split: str) -> Iterable[Block]:
    """Show the forecasts of one label for more labels, and the labels that controls need."""
    primary = primary_of(run.curve or ())
    cells = [
        [
            f"{count(round(found.n_train_patients))} ({found.times:g} times), {found.encoder}",
            with_interval(found.gain, found.gain_low, found.gain_high, sign="+"),
            found.undefined or with_interval(found.auroc, found.auroc_low, found.auroc_high),
            method_words(found.method),
        ]
        for found in (_renamed(run, found, primary) for found in run.curve_forecast or ())
        if (found.label, found.split) == (label, split)
    ]  # fmt: skip
    needed = [
        [f"{_name(run, found.control)}, for {number(found.auroc)}", found.undefined or needed_words(found),
         count(round(found.n_train_patients)), method_words(found.method)]
        for found in run.labels_needed or ()
        if (found.label, found.split) == (label, split)
    ]  # fmt: skip
    if cells:
        name = encoder_name(run, primary or "", [run], is_primary=True)
        head = ["training patients, features", "gain (95 % interval)", "AUROC (95 % interval)", "method"]
        words = ["control, for this AUROC", "training patients (95 % interval)", name, "method"]
        yield Fold(f"Forecast for more labels, {label_words(label)}", [
            Text(CAVEAT),
            Table(f"AUROC forecast for {label_words(label)} on {split}", head, cells, decisive=True),
            Table(f"Labelled patients with which a control has the AUROC of {name}", words, needed, decisive=True),
        ])  # fmt: skip


# ---- external validation ----


def external_section(runs: Sequence[Run]) -> Section:
    """Compare the scores of a frozen classifier on the internal and the external test set."""
    words = "{run} has no external validation: `medmoco external --out {run}/external` scores a frozen classifier."
    blocks = missing(runs, lambda run: not run.external, words)
    cells = []
    for run in runs:
        for label, score in (run.external or {}).items():
            inside, outside = score.internal, score.external
            cells.append([
                label if len(runs) == 1 else f"{label}, {run.name}",
                with_interval(score.drop, score.drop_low, score.drop_high, sign="+"),
                with_interval(inside.auroc, inside.low, inside.high), count(inside.n),
                with_interval(outside.auroc, outside.low, outside.high), count(outside.n),
            ])  # fmt: skip
    if cells:
        head = ["label", "drop", "internal AUROC", "images", "external AUROC", "images"]
        caption = "The frozen classifier on the internal and the external test set"
        blocks.append(Table(caption, head, cells, decisive=True))
    parts = {
        "Operating points": by_label(runs, lambda scores: scores.operating, operating_blocks, is_external=True),
        "Calibration": by_label(runs, lambda scores: scores.calibration, calibration_blocks, is_external=True),
        "Subgroups": by_label(runs, lambda scores: scores.subgroups, subgroup_blocks, is_external=True),
    }
    named = [replace(part, title=f"{title}, {part.title}") for title, found in parts.items() for part in found]
    return Section("External validation", blocks, named)
