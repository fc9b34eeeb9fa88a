"""Sections of a report that draw: over shares of labels, ROC, precision, calibration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from medmoco.evaluation.metrics.auroc import auroc, average_precision
from medmoco.plotting.figures import Line, calibration_figure, curve_figure, method_words, pr_figure, roc_figure
from medmoco.reporting.blocks import (
    Block,
    Fold,
    Plot,
    Section,
    Table,
    Text,
    count,
    number,
    p_value,
    plots_first,
    with_interval,
)
from medmoco.reporting.runs import Run
from medmoco.reporting.scores import OWN, Rows, by_label, encoder_name, label_words, labels_of, method_of

Record = dict[str, Any]
Floats = NDArray[np.float64]

_GRID = 400  # cells a side that a curve is drawn in, finer than a screen shows
_SPECIFICITIES = (0.99, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)
_SENSITIVITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

Answers = dict[str, tuple[Floats, Floats]]  # name -> targets and scores


def curves_section(runs: Sequence[Run]) -> Section:
    """Draw how each label is told apart, and whether probabilities can be believed."""
    blocks: list[Block] = [
        Text(f"{run.name} has no predictions: `medmoco evaluate` writes predictions.csv.", "missing")
        for run in runs
        if run.evaluation.predictions is None
    ]
    blocks += [
        Text(f"{run.name} has no calibration: `medmoco evaluate` writes calibration.json.", "missing")
        for run in runs
        if run.evaluation.calibration is None
    ]
    calibrated = {part.title: part.blocks for part in by_label(runs, "calibration", calibration_blocks)}
    predicted = [run.evaluation.predictions["label"] for run in runs if run.evaluation.predictions is not None]
    labels = dict.fromkeys([*(label for column in predicted for label in column.unique()), *calibrated])
    sections = []
    for label in labels:
        found: list[Block] = [*_discrimination(runs, label), *calibrated.get(label, ())]
        sections.append(Section(label, plots_first(found)))
    return Section("ROC, precision and calibration curves", blocks, sections)


def _answers(runs: Sequence[Run], label: str) -> Answers:
    """Return what is drawn: of one run its encoder and the controls, of several their encoders."""
    answers: Answers = {}
    for run in runs:
        table = run.evaluation.predictions
        if table is None:
            continue
        method = method_of([{"method": name} for name in table["method"].unique()])
        chosen = table[(table["label"] == label) & (table["method"] == method)]
        encoders = list(dict.fromkeys(chosen["encoder"]))
        for encoder in encoders if len(runs) == 1 else [e for e in encoders if e == OWN]:
            rows: pd.DataFrame = chosen[chosen["encoder"] == encoder]
            targets = rows["target"].to_numpy(float)
            if 0 < targets.sum() < len(targets):
                answers[encoder_name(run, encoder, runs)] = (targets, rows["score"].to_numpy(float))
    return answers


def _discrimination(runs: Sequence[Run], label: str) -> Iterable[Plot]:
    answers = _answers(runs, label)
    if not answers:
        return
    split = runs[0].evaluation.split
    roc, pr, roc_rows, pr_rows, said, precisions = [], [], [], [], [], []
    for at, (name, (targets, scores)) in enumerate(answers.items()):
        false, true, _ = roc_curve(targets, scores)
        precision, recall, _ = precision_recall_curve(targets, scores)
        area, mean = auroc(targets, scores), average_precision(targets, scores)
        roc.append(Line(f"{name} {area:.3f}", *thinned(false, true), colour=at))
        pr.append(Line(f"{name} {mean:.3f}", *thinned(recall[::-1], precision[::-1]), colour=at))
        said.append(f"{name} AUROC {area:.3f}")
        precisions.append(f"{name} average precision {mean:.3f}")
        roc_rows += [[name, number(s, 2), number(true[false <= 1 - s + 1e-9].max())] for s in _SPECIFICITIES]
        pr_rows += [[name, number(s, 2), number(precision[recall >= s - 1e-9].max())] for s in _SENSITIVITIES]
    prevalence = float(next(iter(answers.values()))[0].mean())
    points = _operating_points(runs[0], label) if len(runs) == 1 else []
    title = f"{label} on {split}"
    yield Plot(
        roc_figure(roc, points), f"Receiver operating characteristic, {title}; the numbers are AUROCs.",
        f"Receiver operating characteristic for {title}: {'; '.join(said)}.",
        Table(f"Sensitivity at given specificity, {title}", ["features", "specificity", "sensitivity"], roc_rows),
    )  # fmt: skip
    yield Plot(
        pr_figure(pr, prevalence), f"Precision against recall, {title}; the numbers are average precisions.",
        f"Precision against recall for {title}: {'; '.join(precisions)}. Chance is {prevalence:.3f}.",
        Table(f"PPV at given sensitivity or more, {title}", ["features", "sensitivity", "PPV"], pr_rows),
    )  # fmt: skip


def thinned(x: Floats, y: Floats) -> tuple[list[float], list[float]]:
    """Leave out points that lie in the same cell of a fine grid as the one before: less to draw, nothing seen of it.

    Args:
        x: (N,) in 0..1.
        y: (N,) in 0..1.
    """
    cells = np.round(np.stack([x, y]) * _GRID)
    kept = np.ones(len(x), bool)
    kept[1:-1] = (cells[:, 1:-1] != cells[:, :-2]).any(axis=0)
    return x[kept].round(4).tolist(), y[kept].round(4).tolist()


def _operating_points(run: Run, label: str) -> list[tuple[float, float]]:
    records = run.evaluation.operating or []
    method = method_of(records)
    return [
        (1 - record["specificity"], record["sensitivity"])
        for record in records
        if (record["label"], record["split"], record["method"], record["encoder"])
        == (label, run.evaluation.split, method, OWN)
        and record["specificity"] is not None
        and record["sensitivity"] is not None
    ]


# ---- calibration ----


def calibration_blocks(runs: Sequence[Run], rows: Rows) -> list[Block]:
    """Return the plot and the table of one label's calibration; of the runs' own encoders, where they are there.

    Args:
        runs: To show.
        rows: Records of calibration.json with their runs.
    """
    own = [(run, record) for run, record in rows if record["encoder"] == OWN] or list(rows)
    cells = [
        [run.name, words, count(record[key]["n"]), *(number(record[key][what]) for what in ("brier", "ece")),
         *(number(record[key][what], 2) for what in ("slope", "intercept"))]
        for run, record in own
        for key, words in (("before", "as scored"), ("after", f"{record['kind']}, fitted on validation"))
    ]  # fmt: skip
    head = ["run", "probabilities", "images", "Brier score", "calibration error", "slope", "intercept"]
    plot = _calibration(runs, own)
    table = Table("Calibration; errors of 0, slope 1 and intercept 0 are perfect", head, cells)
    return [plot, table] if plot else [table]


def _calibration(runs: Sequence[Run], rows: Rows) -> Plot | None:
    lines, cells, said = [], [], []
    for at, (run, record) in enumerate(rows):
        for dash, (key, words) in enumerate((("after", record["kind"]), ("before", "as scored"))):
            bins = [each for each in record[key]["bins"] if None not in (each["predicted"], each["observed"])]
            if not bins:
                continue
            called = words if len(runs) == 1 else f"{run.name}, {words}"
            low, high = (
                [float(each["observed"] if each[end] is None else each[end]) for each in bins if key == "after"]
                for end in ("observed_low", "observed_high")
            )
            x, y = ([float(each[value]) for each in bins] for value in ("predicted", "observed"))
            colour = dash if len(runs) == 1 else at
            lines.append(Line(called, x, y, low, high, colour=colour, dash=dash, marked=True))
            cells += [
                [called, f"{number(each['low'], 2)} to {number(each['high'], 2)}", count(each["n"]),
                 number(each["predicted"]), with_interval(each, "observed", "observed_low", "observed_high")]
                for each in bins
            ]  # fmt: skip
            said.append(f"{called}: error {number(record[key]['ece'])}, slope {number(record[key]['slope'], 2)}")
    if not lines:
        return None
    title = f"{rows[0][1]['label']} on {rows[0][1]['split']}"
    head = ["probabilities", "bin", "images", "predicted", "observed (95 % interval)"]
    return Plot(
        calibration_figure(lines), f"Calibration, {title}: observed share of positives in bins of the prediction.",
        f"Calibration for {title}. {'; '.join(said)}.", Table(f"Calibration, {title}", head, cells),
    )  # fmt: skip


# ---- label fractions ----


def curve_section(runs: Sequence[Run]) -> Section:
    """Show what the scores are with few labels."""
    blocks: list[Block] = []
    parts: dict[str, list[Block]] = {}
    for run in runs:
        if not run.curve:
            words = f"`medmoco curve --out {run.name}/curve` scores with 1, 10 or 100 % of the labels."
            blocks.append(Text(f"{run.name} has no label-fraction curve: {words}", "missing"))
            continue
        present = {row["split"] for row in run.curve}
        split = "test" if "test" in present else sorted(present)[0]
        for label in labels_of(run.curve):
            parts.setdefault(label_words(label), []).extend(_curve(run, label, split))
    sections = [Section(title, plots_first(found)) for title, found in parts.items()]
    return Section("Scores with few labels", blocks, sections)


def _curve(run: Run, label: str, split: str) -> Iterable[Block]:
    rows = [
        {**row, "encoder": encoder_name(run, row["encoder"], [run])}
        for row in sorted(run.curve or [], key=lambda row: row["fraction"])
        if (row["label"], row["split"]) == (label, split)
    ]
    cells = [
        [
            f"{100 * row['fraction']:g} %", row["encoder"], method_words(row["method"]),
            count(row.get("n_train_patients")), count(row.get("draws")),
            row.get("undefined") or with_interval(row, "auroc", "auroc_low", "auroc_high"),
        ]
        for row in rows
    ]  # fmt: skip
    head = ["labels", "features", "method", "training patients", "draws", "AUROC (95 % interval)"]
    title = f"AUROC by share of labelled patients, {label_words(label)} on {split}, {run.name}"
    table, drawn = Table(title, head, cells), [row for row in rows if row["auroc"] is not None]
    if drawn:
        least = min(row["fraction"] for row in drawn)
        said = [f"{r['encoder']} by {method_words(r['method'])} {number(r['auroc'])}" for r in drawn
                if r["fraction"] == least]  # fmt: skip
        alt = f"{title}. With {100 * least:g} %: {'; '.join(said)}."
        yield Plot(curve_figure(rows, label, split), f"{title}; bars are 95 % intervals.", alt, table)
    else:
        yield table
    differences = [
        [
            f"{100 * d['fraction']:g} %", encoder_name(run, d["control"], [run]), method_words(d["method"]),
            with_interval(d, "difference", "low", "high", sign="+"), p_value(d.get("p_holm", d.get("p"))),
        ]
        for d in run.curve_differences or []
        if (d["label"], d["split"]) == (label, split)
    ]  # fmt: skip
    if differences:
        head = ["labels", "control", "method", "run minus control", "p (Holm)"]
        table = Table(f"{run.name} minus controls, on the same draws of patients", head, differences)
        yield Fold(f"Differences of {run.name} to its controls", [table])
