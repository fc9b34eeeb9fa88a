"""Results of `evaluate`, `curve` and `external`: records, DataFrames and figures, saved to and loaded from folders."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from medmoco.errors import CheckpointError, SettingsError
from medmoco.evaluation.metrics.auroc import Floats, auroc, average_precision
from medmoco.evaluation.record_files import read_named_records, read_records, to_frame, write_records
from medmoco.evaluation.records import (
    CalibrationScore,
    CurveDifference,
    CurvePoint,
    Difference,
    ExternalScore,
    MethodRecord,
    OperatingPoint,
    Record,
    Score,
    Subgroup,
    primary_of,
)
from medmoco.evaluation.scoring.table import MACRO, span
from medmoco.evaluation.verdict import verdict
from medmoco.plotting.figures import Line, curve_figure, pr_figure, roc_figure, save, thinned

Kind = Literal["roc", "precision_recall"]

PREDICTIONS = {
    "split": str, "row": int, "label": str, "method": str, "encoder": str, "draw": int, "target": int, "score": float,
}  # fmt: skip
"""Columns of predictions.csv. Rows are counted as in a spreadsheet; target is 1 or 0."""

_CURVE_CSV = [
    "label", "split", "method", "encoder", "fraction", "draws", "n_train", "n_train_patients", "auroc", "auroc_low",
    "auroc_high", "average_precision", "undefined", "n", "n_positive", "n_patients",
]  # fmt: skip


class _Saved:
    """Base of results: each field with records has its own file, and table.txt has the text."""

    _FILES: ClassVar[tuple[tuple[str, str, type[Record]], ...]]
    """Field, file, and class of its records; only the first is in the folders of all versions."""
    table: str

    @classmethod
    def _read(cls, folder: Path) -> dict[str, Any]:
        """Return the fields, empty for files that older versions did not write."""
        fields: dict[str, Any] = {}
        for number, (field, name, kind) in enumerate(cls._FILES):
            read = read_named_records if kind is ExternalScore else read_records
            fields[field] = read(folder / name, kind) if number == 0 or (folder / name).is_file() else ()
        text = folder / "table.txt"
        return {**fields, "table": text.read_text(encoding="utf-8") if text.is_file() else "", "folder": folder}

    def save(self, folder: Path) -> None:
        """Write the JSON files of the records and table.txt."""
        for field, name, _ in self._FILES:
            write_records(folder / name, getattr(self, field))
        (folder / "table.txt").write_text(self.table, encoding="utf-8")


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(_Saved):
    """Scores of an encoder and its controls.

    Attributes:
        scores: Scores of every label, split, method and encoder, with intervals.
        differences: Differences between the primary encoder and each other one.
        operating_points: Decisions at thresholds chosen on validation.
        calibration: Calibration of the probabilities, before and after it was fitted on validation.
        subgroups: AUROCs within subgroups of patients.
        predictions: One row for each score of an image, see PREDICTIONS.
        table: Table that `medmoco evaluate` prints.
        folder: Folder in which the results are saved, if they are.

    Example:
        >>> import medmoco
        >>> evaluation = medmoco.Evaluation.load("runs/phantoms/evaluation")
        >>> evaluation.primary
        'run'
        >>> summary = evaluation.summary()
        >>> figure = evaluation.plot_curve("Opacity", split="test")
    """

    _FILES = (
        ("scores", "scores.json", Score),
        ("differences", "differences.json", Difference),
        ("operating_points", "operating.json", OperatingPoint),
        ("calibration", "calibration.json", CalibrationScore),
        ("subgroups", "subgroups.json", Subgroup),
    )

    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    operating_points: tuple[OperatingPoint, ...]
    calibration: tuple[CalibrationScore, ...]
    subgroups: tuple[Subgroup, ...]
    predictions: pd.DataFrame
    table: str
    folder: Path | None = None

    @property
    def primary(self) -> str | None:
        """Name of the primary encoder; the others are controls."""
        return primary_of(self.scores)

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Load an evaluation from its folder; fields that its version did not write are empty.

        Example:
            >>> import medmoco
            >>> len(medmoco.Evaluation.load("runs/phantoms/evaluation").scores) > 0
            True

        Raises:
            CheckpointError: the folder contains no evaluation, or a damaged one.
        """
        folder = Path(folder)
        try:
            predictions = pd.read_csv(folder / "predictions.csv", dtype=PREDICTIONS, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{folder} holds no predictions.csv that can be read ({type(error).__name__});\n"
                "run `medmoco evaluate` to write one"
            ) from None
        return cls(**cls._read(folder), predictions=predictions)

    def save(self, folder: Path) -> None:
        """Write the JSON files of the records, predictions.csv and table.txt."""
        super().save(folder)
        self.predictions.to_csv(folder / "predictions.csv", index=False, float_format="%.9g")

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each score.

        Example:
            >>> import medmoco
            >>> frame = medmoco.Evaluation.load("runs/phantoms/evaluation").to_frame()
            >>> frame.query("split == 'test' and method == 'linear'")[["label", "encoder", "auroc"]].shape
            (9, 3)
        """
        return to_frame(self.scores)

    def summary(self, method: str = "linear") -> pd.DataFrame:
        """Return the AUROCs with their intervals as text: a row for each split and label, a column for each encoder.

        The primary encoder comes first.

        Args:
            method: linear (probe) or knn.
        """
        chosen = [score for score in self.scores if score.method == method]
        cells: dict[str, dict[tuple[str, str], str]] = {}
        for score in sorted(chosen, key=lambda score: score.encoder != self.primary):
            cells.setdefault(score.encoder, {})[score.split, score.label] = _cell(score)
        rows = pd.MultiIndex.from_tuples(next(iter(cells.values()), ()), names=["split", "label"])
        return pd.DataFrame({name: list(column.values()) for name, column in cells.items()}, index=rows)

    def plot_curve(
        self, label: str | None = None, kind: Kind = "roc", *, split: str | None = None, method: str = "linear"
    ) -> Figure:
        """Draw ROC or precision-recall curves; with a fraction of the labels, those of the first draw.

        Args:
            label: Label to draw, with a curve for each encoder; by default all labels of the primary encoder.
            kind: roc or precision_recall.
            split: By default test if it was evaluated, else val.
            method: linear (probe) or knn.

        Raises:
            SettingsError: there are no scores with these names.
        """
        split = split or shown_split(self.scores)
        table = self.predictions
        table = table[(table["split"] == split) & (table["method"] == method) & (table["draw"] == 0)]
        column, value = ("encoder", label) if label else ("label", self.primary)
        chosen = table[table["label" if label else "encoder"] == value]
        groups = {
            str(name): (rows["target"].to_numpy(float), rows["score"].to_numpy(float))
            for name, rows in chosen.groupby(column, sort=False)
            if rows["target"].nunique() == 2
        }
        if not groups:
            raise SettingsError(f"there is no curve of {value!r} by method {method!r} on split {split!r}")
        return discrimination_figure(kind, groups)

    def _repr_html_(self) -> str:
        return f"<p>AUROC (95 % interval)</p>{self.summary().to_html()}"

    def __repr__(self) -> str:
        labels = list(dict.fromkeys(score.label for score in self.scores if score.label != MACRO))
        splits = list(dict.fromkeys(score.split for score in self.scores))
        return f"Evaluation(primary={self.primary!r}, labels={labels}, splits={splits})"


@dataclass(frozen=True, eq=False, repr=False)
class Curve(_Saved):
    """Label efficiency: scores by the fraction of labelled patients.

    Attributes:
        points: Scores of every label, split, method, encoder and fraction.
        differences: Differences between the primary encoder and each other one.
        table: Table that `medmoco curve` prints.
        folder: Folder in which the results are saved, if they are.

    Example:
        >>> import medmoco
        >>> curve = medmoco.Curve.load("runs/phantoms/curve")
        >>> sorted(curve.to_frame()["fraction"].unique().tolist())
        [0.5, 1.0]
        >>> figure = curve.plot("Opacity")
    """

    _FILES = (
        ("points", "curve.json", CurvePoint),
        ("differences", "curve_differences.json", CurveDifference),
    )

    points: tuple[CurvePoint, ...]
    differences: tuple[CurveDifference, ...]
    table: str
    folder: Path | None = None

    @property
    def primary(self) -> str | None:
        """Name of the primary encoder; the others are controls."""
        return primary_of(self.points)

    @property
    def verdict(self) -> str:
        """One sentence: what the primary encoder gains over its strongest control with the fewest labels."""
        return verdict(self.points, self.differences, shown_split(self.points))

    @classmethod
    def load(cls, folder: str | Path) -> Curve:
        """Load a curve from its folder.

        Raises:
            CheckpointError: the folder contains no curve, or a damaged one.
        """
        return cls(**cls._read(Path(folder)))

    def save(self, folder: Path) -> None:
        """Write curve.json, curve_differences.json, curve.csv, table.txt, and a figure for each split and label."""
        super().save(folder)
        self.to_frame().to_csv(folder / "curve.csv", columns=_CURVE_CSV, index=False, float_format="%.6g")
        for split, label in dict.fromkeys((p.split, p.label) for p in self.points if p.label != MACRO):
            name = re.sub(r"[^0-9A-Za-z]+", "_", label)
            save(curve_figure(self.points, label, split), folder / f"curve_{split}_{name}.svg")

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each point."""
        return to_frame(self.points)

    def plot(self, label: str | None = None, *, split: str | None = None) -> Figure:
        """Draw AUROC against the fraction of labelled patients, with a curve for each encoder and method.

        Args:
            label: Label to draw; by default the mean over labels, or the only label.
            split: By default test if it was evaluated, else val.

        Raises:
            SettingsError: there are no scores with these names.
        """
        labels = list(dict.fromkeys(point.label for point in self.points))
        label = label or (MACRO if MACRO in labels else labels[0])
        split = split or shown_split(self.points)
        if not any((p.label, p.split) == (label, split) and p.auroc is not None for p in self.points):
            raise SettingsError(f"there is no curve of {label!r} on split {split!r}")
        return curve_figure(self.points, label, split)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.table)}</pre>"

    def __repr__(self) -> str:
        return f"Curve(primary={self.primary!r}, {len(self.points)} points)"


@dataclass(frozen=True, eq=False)
class External(_Saved):
    """External validation: a frozen classifier on its own test split and on that of other data.

    Attributes:
        scores: Scores by label.
        operating_points: Decisions at the classifier's thresholds; the splits are named internal and external.
        calibration: Calibration of the classifier's probabilities.
        subgroups: AUROCs within subgroups of patients.
        table: Table that `medmoco external` prints.
        folder: Folder in which the results are saved, if they are.

    Example:
        >>> import medmoco
        >>> found = medmoco.External.load("external")  # doctest: +SKIP
        >>> found.to_frame()  # doctest: +SKIP
    """

    _FILES = (
        ("scores", "external.json", ExternalScore),
        ("operating_points", "operating.json", OperatingPoint),
        ("calibration", "calibration.json", CalibrationScore),
        ("subgroups", "subgroups.json", Subgroup),
    )

    scores: Mapping[str, ExternalScore]
    operating_points: tuple[OperatingPoint, ...]
    calibration: tuple[CalibrationScore, ...]
    subgroups: tuple[Subgroup, ...]
    table: str
    folder: Path | None = None

    @classmethod
    def load(cls, folder: str | Path) -> External:
        """Load an external validation from its folder.

        Raises:
            CheckpointError: the folder contains none, or a damaged one.
        """
        return cls(**cls._read(Path(folder)))

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each label, with columns such as "internal.auroc", "external.auroc" and "drop"."""
        frame = to_frame(self.scores.values())
        frame.insert(0, "label", list(self.scores))
        return frame


def shown_split(records: Sequence[MethodRecord]) -> str:
    """Return the split to show by default: test if it was evaluated, else val."""
    present = {record.split for record in records}
    return "test" if "test" in present or "val" not in present else "val"


def discrimination(kind: Kind, targets: Floats, scores: Floats) -> tuple[Floats, Floats, float]:
    """Return x, in ascending order, and y of a ROC or precision-recall curve, and the AUROC or average precision.

    Args:
        kind: roc or precision_recall.
        targets: (N,), 1 or 0, both classes present.
        scores: (N,), any unit, higher is more positive.
    """
    if kind == "roc":
        false, true, _ = roc_curve(targets, scores)
        return false, true, auroc(targets, scores)
    precision, recall, _ = precision_recall_curve(targets, scores)
    return recall[::-1], precision[::-1], average_precision(targets, scores)


def discrimination_figure(
    kind: Kind, groups: Mapping[str, tuple[Floats, Floats]], points: Sequence[tuple[float, float]] = ()
) -> Figure:
    """Draw a curve for each group.

    Args:
        kind: roc or precision_recall.
        groups: Name -> targets (N,) and scores (N,).
        points: Operating points for a ROC, (1 - specificity, sensitivity).
    """
    lines = []
    for number, (name, (targets, scores)) in enumerate(groups.items()):
        x, y, value = discrimination(kind, targets, scores)
        lines.append(Line(f"{name} {value:.3f}", *thinned(x, y), colour=number))
    if kind == "roc":
        return roc_figure(lines, points)
    return pr_figure(lines, float(np.mean(next(iter(groups.values()))[0])))


def _cell(score: Score) -> str:
    if score.auroc is None:
        return "undefined"
    return f"{score.auroc:.3f} ({span(score.auroc_low, score.auroc_high)})"
