"""What `evaluate`, `curve` and `external` return, for notebooks: records, tables as DataFrames, figures.

Every result can be loaded from the folder that it was saved to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from medmoco.errors import CheckpointError, SettingsError
from medmoco.evaluation.metrics.auroc import Floats, auroc, average_precision
from medmoco.evaluation.record_files import AnyRecord, read_named_records, read_records, to_frame, write_records
from medmoco.evaluation.records import (
    CalibrationScore,
    CurveDifference,
    CurvePoint,
    Difference,
    ExternalScore,
    MethodRecord,
    OperatingPoint,
    Score,
    Subgroup,
    primary_of,
)
from medmoco.evaluation.scoring.table import MACRO, span
from medmoco.plotting.figures import Line, curve_figure, pr_figure, roc_figure, save, thinned

Kind = Literal["roc", "precision_recall"]

PREDICTIONS = {
    "split": str, "row": int, "label": str, "method": str, "encoder": str, "draw": int, "target": int, "score": float,
}  # fmt: skip
"""Columns of predictions.csv. A row is numbered as a spreadsheet shows it; target is 1 or 0."""

_CURVE_CSV = [
    "label", "split", "method", "encoder", "fraction", "draws", "n_train", "n_train_patients", "auroc", "auroc_low",
    "auroc_high", "average_precision", "undefined", "n", "n_positive", "n_patients",
]  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """Scores of an encoder and its controls.

    Attributes:
        scores: For every label, split, method and encoder, with intervals.
        differences: Of the primary encoder and each other one.
        operating_points: Decisions at thresholds that were chosen on validation.
        calibration: Of probabilities, before and after calibration on validation.
        subgroups: AUROCs within groups of patients.
        predictions: One row for each score of an image, see PREDICTIONS.
        table: The table that `medmoco evaluate` prints.
        folder: Where the results are saved, if they are.

    Example:
        >>> import medmoco
        >>> evaluation = medmoco.Evaluation.load("runs/phantoms/evaluation")
        >>> evaluation.primary
        'run'
        >>> summary = evaluation.summary()
        >>> figure = evaluation.plot_curve("Opacity", split="test")
    """

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
        """Name of the encoder in question; the others are there for comparison."""
        return primary_of(self.scores)

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Read an evaluation from its folder; files that older versions did not write are empty.

        Example:
            >>> import medmoco
            >>> len(medmoco.Evaluation.load("runs/phantoms/evaluation").scores) > 0
            True

        Raises:
            CheckpointError: the folder holds no evaluation, or a damaged one.
        """
        folder = Path(folder)
        try:
            predictions = pd.read_csv(folder / "predictions.csv", dtype=PREDICTIONS, keep_default_na=False)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{folder} holds no predictions.csv that can be read ({type(error).__name__});\n"
                "`medmoco evaluate` writes one"
            ) from None
        return cls(
            read_records(folder / "scores.json", Score),
            _read_if_there(folder / "differences.json", Difference),
            _read_if_there(folder / "operating.json", OperatingPoint),
            _read_if_there(folder / "calibration.json", CalibrationScore),
            _read_if_there(folder / "subgroups.json", Subgroup),
            predictions,
            _read_table(folder),
            folder,
        )

    def save(self, folder: Path) -> None:
        """Write scores.json, differences.json, operating.json, calibration.json, subgroups.json, predictions.csv and
        table.txt.
        """  # noqa: D205
        write_records(folder / "scores.json", self.scores)
        write_records(folder / "differences.json", self.differences)
        write_records(folder / "operating.json", self.operating_points)
        write_records(folder / "calibration.json", self.calibration)
        write_records(folder / "subgroups.json", self.subgroups)
        (folder / "table.txt").write_text(self.table, encoding="utf-8")
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
        """Draw ROC or precision-recall curves.

        Where only a share of the labels was used, the curve is that of the first draw.

        Args:
            label: To draw, with a curve for each encoder; without it, the primary encoder with a curve for each label.
            kind: roc or precision_recall.
            split: test where it was evaluated, else val.
            method: linear (probe) or knn.

        Raises:
            SettingsError: nothing was scored under these names.
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
class Curve:
    """Label efficiency: scores at growing shares of labelled patients.

    Attributes:
        points: For every label, split, method, encoder and share.
        differences: Of the primary encoder and each other one.
        table: The table that `medmoco curve` prints.
        folder: Where the results are saved, if they are.

    Example:
        >>> import medmoco
        >>> curve = medmoco.Curve.load("runs/phantoms/curve")
        >>> sorted(curve.to_frame()["fraction"].unique().tolist())
        [0.5, 1.0]
        >>> figure = curve.plot("Opacity")
    """

    points: tuple[CurvePoint, ...]
    differences: tuple[CurveDifference, ...]
    table: str
    folder: Path | None = None

    @property
    def primary(self) -> str | None:
        """Name of the encoder in question; the others are there for comparison."""
        return primary_of(self.points)

    @classmethod
    def load(cls, folder: str | Path) -> Curve:
        """Read a curve from its folder.

        Raises:
            CheckpointError: the folder holds no curve, or a damaged one.
        """
        folder = Path(folder)
        return cls(
            read_records(folder / "curve.json", CurvePoint),
            _read_if_there(folder / "curve_differences.json", CurveDifference),
            _read_table(folder),
            folder,
        )

    def save(self, folder: Path) -> None:
        """Write curve.json, curve_differences.json, curve.csv, table.txt, and a figure for each split and label."""
        write_records(folder / "curve.json", self.points)
        write_records(folder / "curve_differences.json", self.differences)
        self.to_frame().to_csv(folder / "curve.csv", columns=_CURVE_CSV, index=False, float_format="%.6g")
        (folder / "table.txt").write_text(self.table, encoding="utf-8")
        for split, label in dict.fromkeys((p.split, p.label) for p in self.points if p.label != MACRO):
            name = re.sub(r"[^0-9A-Za-z]+", "_", label)
            save(curve_figure(self.points, label, split), folder / f"curve_{split}_{name}.svg")

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each point."""
        return to_frame(self.points)

    def plot(self, label: str | None = None, *, split: str | None = None) -> Figure:
        """Draw AUROC against the share of labelled patients, with a curve for each encoder and method.

        Args:
            label: To draw; without it the mean over labels, or the only label.
            split: test where it was evaluated, else val.

        Raises:
            SettingsError: nothing was scored under these names.
        """
        labels = list(dict.fromkeys(point.label for point in self.points))
        label = label or (MACRO if MACRO in labels else labels[0])
        split = split or shown_split(self.points)
        if not any((p.label, p.split) == (label, split) and p.auroc is not None for p in self.points):
            raise SettingsError(f"there is no curve of {label!r} on split {split!r}")
        return curve_figure(self.points, label, split)

    def _repr_html_(self) -> str:
        return f"<pre>{self.table.replace('&', '&amp;').replace('<', '&lt;')}</pre>"

    def __repr__(self) -> str:
        return f"Curve(primary={self.primary!r}, {len(self.points)} points)"


@dataclass(frozen=True, eq=False)
class External:
    """External validation: a frozen classifier on its own test split and on another's.

    Attributes:
        scores: By label.
        operating_points: Decisions at the classifier's own thresholds; their splits are internal and external.
        calibration: Of the classifier's own probabilities.
        subgroups: AUROCs within groups of patients.
        table: The table that `medmoco external` prints.
        folder: Where the results are saved, if they are.

    Example:
        >>> import medmoco
        >>> found = medmoco.External.load("external")  # doctest: +SKIP
        >>> found.to_frame()  # doctest: +SKIP
    """

    scores: Mapping[str, ExternalScore]
    operating_points: tuple[OperatingPoint, ...]
    calibration: tuple[CalibrationScore, ...]
    subgroups: tuple[Subgroup, ...]
    table: str
    folder: Path | None = None

    @classmethod
    def load(cls, folder: str | Path) -> External:
        """Read an external validation from its folder.

        Raises:
            CheckpointError: the folder holds none, or a damaged one.
        """
        folder = Path(folder)
        return cls(
            read_named_records(folder / "external.json", ExternalScore),
            _read_if_there(folder / "operating.json", OperatingPoint),
            _read_if_there(folder / "calibration.json", CalibrationScore),
            _read_if_there(folder / "subgroups.json", Subgroup),
            _read_table(folder),
            folder,
        )

    def save(self, folder: Path) -> None:
        """Write external.json, operating.json, calibration.json, subgroups.json and table.txt."""
        write_records(folder / "external.json", self.scores)
        write_records(folder / "operating.json", self.operating_points)
        write_records(folder / "calibration.json", self.calibration)
        write_records(folder / "subgroups.json", self.subgroups)
        (folder / "table.txt").write_text(self.table, encoding="utf-8")

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each label, with columns such as "internal.auroc", "external.auroc" and "drop"."""
        frame = to_frame(self.scores.values())
        frame.insert(0, "label", list(self.scores))
        return frame


def shown_split(records: Sequence[MethodRecord]) -> str:
    """Return the split that is shown first: test where it was evaluated, else val."""
    present = {record.split for record in records}
    return "test" if "test" in present or "val" not in present else "val"


def discrimination(kind: Kind, targets: Floats, scores: Floats) -> tuple[Floats, Floats, float]:
    """Return x and y of a ROC or precision-recall curve, by growing x, and the AUROC or average precision.

    Args:
        kind: roc or precision_recall.
        targets: (N,), 1 or 0, both there.
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
    for at, (name, (targets, scores)) in enumerate(groups.items()):
        x, y, value = discrimination(kind, targets, scores)
        lines.append(Line(f"{name} {value:.3f}", *thinned(x, y), colour=at))
    if kind == "roc":
        return roc_figure(lines, points)
    return pr_figure(lines, float(np.mean(next(iter(groups.values()))[0])))


def _cell(score: Score) -> str:
    if score.auroc is None:
        return "undefined"
    return f"{score.auroc:.3f} ({span(score.auroc_low, score.auroc_high)})"


def _read_if_there(file: Path, kind: type[AnyRecord]) -> tuple[AnyRecord, ...]:
    return read_records(file, kind) if file.is_file() else ()


def _read_table(folder: Path) -> str:
    file = folder / "table.txt"
    return file.read_text(encoding="utf-8") if file.is_file() else ""
