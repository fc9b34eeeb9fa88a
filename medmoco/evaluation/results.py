"""Results of `evaluate`, `curve` and `external`: records, DataFrames and figures, saved to and loaded from folders."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import pandas as pd

from medmoco.errors import CheckpointError, SettingsError
from medmoco.evaluation.discrimination import Kind, discrimination_figure
from medmoco.evaluation.forecast_records import Forecast, LabelsNeeded
from medmoco.evaluation.record_files import PREDICTIONS, SavedRecords, shown_split, to_frame
from medmoco.evaluation.records import (
    CalibrationScore,
    CurveDifference,
    CurvePoint,
    Difference,
    ExternalScore,
    OperatingPoint,
    Record,
    Score,
    Subgroup,
    primary_of,
)
from medmoco.evaluation.scoring.table import MACRO, sized_names, summary_cells
from medmoco.evaluation.scoring.trained_records import SegmentationCurveDifference, SegmentationPoint
from medmoco.evaluation.target_records import RIDGE, ClassScore, RegressionDifference, RegressionScore
from medmoco.evaluation.verdict import Verdict, curve_verdict, dice_verdict, verdicts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TARGET_FILES: tuple[tuple[str, str, type[Record]], ...] = (
    ("classes", "classes.json", ClassScore),
    ("regression", "regression.json", RegressionScore),
    ("regression_differences", "regression_differences.json", RegressionDifference),
)
"""Files that are written only if there are classes or numeric targets."""

CurveMetric = Literal["auroc", "r2", "dice", "surface_dice"]
_FIGURES = {"auroc": "curve", "r2": "curve"}  # how names of files start, if it is not the metric
_CURVE_CSV = [
    "label", "split", "method", "encoder", "fraction", "draws", "n_train", "n_train_patients", "auroc", "auroc_low",
    "auroc_high", "average_precision", "undefined", "n", "n_positive", "n_patients",
]  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class _WithTargets(SavedRecords):
    """Base of results that may have classes and numeric targets.

    Attributes:
        classes: Accuracies of `evaluate.classes`, with confusion matrix and report by class.
        regression: R2 and mean absolute error of `evaluate.targets`.
        regression_differences: Differences between the primary encoder and each control, the training mean included.
    """

    _OPTIONAL: ClassVar[tuple[str, ...]] = ("classes", "regression", "regression_differences")

    classes: tuple[ClassScore, ...] = ()
    regression: tuple[RegressionScore, ...] = ()
    regression_differences: tuple[RegressionDifference, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation(_WithTargets):
    """Scores of an encoder and its controls; `classes` and `regression` have those of `evaluate.classes` and `targets`.

    Attributes:
        scores: Scores of every label, split, method and encoder, with intervals.
        differences: Differences between the primary encoder and each other one.
        operating_points: Decisions at thresholds chosen on validation.
        calibration: Calibration of the probabilities, before and after it was fitted on validation.
        subgroups: AUROCs within subgroups of patients.
        predictions: One row for each score of an image, with columns split, row (counted as in a spreadsheet), label,
            method, encoder, draw, target (1 or 0, or the number to predict) and score.
        table: Table that `medmoco evaluate` prints.
        folder: Folder in which the results are saved, if they are.

    Examples:
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
        *_TARGET_FILES,
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
        return primary_of(self.scores or self.regression)

    @property
    def verdict(self) -> tuple[Verdict, ...]:
        """What the linear probes of each label show: a gain, no evidence of a difference, or a likely shortcut."""
        return verdicts(self.scores, self.differences)

    @classmethod
    def load(cls, folder: str | Path) -> Evaluation:
        """Load an evaluation from its folder; fields that its version did not write are empty.

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
        """Return one row for each score; those of classes and of numeric targets follow, with columns of their own.

        Examples:
            >>> import medmoco
            >>> frame = medmoco.Evaluation.load("runs/phantoms/evaluation").to_frame()
            >>> frame.query("split == 'test' and method == 'linear'")[["label", "encoder", "auroc"]].shape
            (9, 3)
        """
        return to_frame([*self.scores, *self.classes, *self.regression])

    def summary(self, method: str = "linear") -> pd.DataFrame:
        """Return scores with their intervals as text: a row for each split and label, a column for each encoder.

        They are AUROCs, and in rows that name them the accuracies of classes, R2 and mean absolute errors. The primary
        encoder comes first.

        Args:
            method: linear (probe; numeric targets by ridge regression) or knn.
        """
        methods = (method, RIDGE) if method == "linear" else (method,)
        every: tuple[Score | ClassScore | RegressionScore, ...] = (*self.scores, *self.classes, *self.regression)
        chosen = [score for score in every if score.method in methods]
        cells: dict[str, dict[tuple[str, str], str]] = {}
        for score in sorted(chosen, key=lambda score: score.encoder != self.primary):
            for name, text in summary_cells(score).items():
                cells.setdefault(score.encoder, {})[score.split, f"{score.label} {name}".strip()] = text
        splits = [score.split for score in chosen]
        ordered = sorted(dict.fromkeys(chain(*cells.values())), key=lambda row: splits.index(row[0]))
        rows = pd.MultiIndex.from_tuples(ordered, names=["split", "label"])
        columns = {name: [column.get(row, "") for row in rows] for name, column in cells.items()}
        return pd.DataFrame(columns, index=rows)

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
        table, split = self.predictions, split or shown_split(self.scores)
        table = table[(table["split"] == split) & (table["method"] == method) & (table["draw"] == 0)]
        column, value = ("encoder", label) if label else ("label", self.primary)
        chosen, shown = table[table["label" if label else "encoder"] == value], sized_names(self.scores)
        groups = {
            shown.get(str(name), str(name)): (rows["target"].to_numpy(float), rows["score"].to_numpy(float))
            for name, rows in chosen.groupby(column, sort=False)
            if rows["target"].nunique() == 2
        }
        if not groups:
            raise SettingsError(f"there is no curve of {value!r} by method {method!r} on split {split!r}")
        return discrimination_figure(kind, groups)

    def plot_confusion(self, *, split: str | None = None, method: str = "linear", encoder: str | None = None) -> Figure:
        """Draw the confusion matrix of classes.

        Args:
            split: By default test if it was evaluated, else val.
            method: linear (probe) or knn.
            encoder: By default the primary one.

        Raises:
            SettingsError: there are no classes with these names.
        """
        key = (split or shown_split(self.classes), method, encoder or self.primary)
        found = next((score for score in self.classes if (score.split, score.method, score.encoder) == key), None)
        if found is None:
            raise SettingsError("there is no confusion matrix of {1!r} of {2!r} on split {0!r}".format(*key))
        from medmoco.plotting.figures import confusion_figure  # not at the top: most results are never drawn

        return confusion_figure(found.confusion, [each.name for each in found.classes], f"{found.label}, {key[0]}")

    def _repr_html_(self) -> str:
        return f"<p>AUROC (95 % interval)</p>{self.summary().to_html()}"

    def __repr__(self) -> str:
        scores = [*self.scores, *self.regression]
        labels = list(dict.fromkeys(score.label for score in scores if score.label != MACRO))
        splits = list(dict.fromkeys(score.split for score in scores))
        return f"Evaluation(primary={self.primary!r}, labels={labels}, splits={splits})"


@dataclass(frozen=True, eq=False, repr=False)
class Curve(_WithTargets):
    """Label efficiency: scores by the fraction of labelled patients, also in `classes`, `regression`, `segmentation`.

    Attributes:
        points: Scores of every label, split, method, encoder and fraction.
        differences: Differences between the primary encoder and each other one.
        table: Table that `medmoco curve` prints.
        forecast: Forecasts for more labels than there are; they assume more patients of the same kind.
        labels_needed: Labels with which each control would have the scores of the primary encoder.
        segmentation: Dice and surface Dice of segmentation networks by the fraction of patients with masks.
        segmentation_differences: Differences between the networks of the primary encoder and of each other one.
        folder: Folder in which the results are saved, if they are.

    Examples:
        >>> import medmoco
        >>> curve = medmoco.Curve.load("runs/phantoms/curve")
        >>> sorted(curve.to_frame()["fraction"].unique().tolist())
        [0.5, 1.0]
        >>> figure = curve.plot("Opacity")
    """

    _FILES = (
        ("points", "curve.json", CurvePoint),
        ("differences", "curve_differences.json", CurveDifference),
        ("forecast", "forecast.json", Forecast),
        ("labels_needed", "labels_needed.json", LabelsNeeded),
        ("segmentation", "segmentation.json", SegmentationPoint),
        ("segmentation_differences", "segmentation_differences.json", SegmentationCurveDifference),
        *_TARGET_FILES,
    )
    _OPTIONAL = (*_WithTargets._OPTIONAL, "segmentation", "segmentation_differences")

    points: tuple[CurvePoint, ...]
    differences: tuple[CurveDifference, ...]
    table: str
    folder: Path | None = None
    forecast: tuple[Forecast, ...] = ()
    labels_needed: tuple[LabelsNeeded, ...] = ()
    segmentation: tuple[SegmentationPoint, ...] = ()
    segmentation_differences: tuple[SegmentationCurveDifference, ...] = ()

    @property
    def primary(self) -> str | None:
        """Name of the primary encoder; the others are controls."""
        return primary_of(self.points or self.regression or self.segmentation)

    @property
    def verdict(self) -> str:
        """What the primary encoder gains over its strongest control with the fewest labels, and whether only then."""
        masks = dice_verdict(self.segmentation, self.segmentation_differences, shown_split(self.segmentation))
        return f"{curve_verdict(self.points, self.differences, shown_split(self.points))} {masks}".strip()

    @classmethod
    def load(cls, folder: str | Path) -> Curve:
        """Load a curve from its folder.

        Raises:
            CheckpointError: the folder contains no curve, or a damaged one.
        """
        return cls(**cls._read(Path(folder)))

    def save(self, folder: Path) -> None:
        """Write the JSON files of the records, their CSV files, table.txt, and a figure for each split and label."""
        from medmoco.plotting.style import save

        super().save(folder)
        frame = to_frame(self.points)
        columns = [*_CURVE_CSV, *({"preprocessing"} & {*frame})]
        tables = {"curve": frame.reindex(columns=columns), "forecast": to_frame(self.forecast)}
        tables |= {"segmentation": to_frame(self.segmentation)} if self.segmentation else {}
        for name, frame in tables.items():
            frame.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
        for metric, points in self._by_metric().items():
            for split, label in dict.fromkeys((p.split, p.label) for p in points):
                if label != MACRO or self.classes or metric != "auroc":
                    name = f"{split}_{re.sub(r'[^0-9A-Za-z]+', '_', label)}.svg"
                    save(self._figure(label, split, metric), folder / f"{_FIGURES.get(metric, metric)}_{name}")

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each point; those of segmentation follow, with columns of their own."""
        return to_frame([*self.points, *self.segmentation])

    def plot(self, label: str | None = None, *, split: str | None = None, metric: CurveMetric | None = None) -> Figure:
        """Draw a score by fraction of labelled patients, with a curve for each encoder and method.

        Args:
            label: Label, class or target to draw; by default the mean over labels or classes, or the only label.
            split: By default test if it was evaluated, else val.
            metric: auroc, r2, dice or surface_dice; by default the first of them that the label has.

        Raises:
            SettingsError: there are no scores with these names.
        """
        chosen = {name: [p for p in points if label in (None, p.label)] for name, points in self._by_metric().items()}
        known: list[CurveMetric] = [*(name for name, points in chosen.items() if points), "auroc"]
        shown = metric or known[0]
        found = [p for p in chosen[shown] if getattr(p, shown) is not None]
        split, labels = split or shown_split(found), [p.label for p in found]
        label = label or (MACRO if MACRO in labels else next(iter(labels), ""))
        if not any((p.label, p.split) == (label, split) for p in found):
            raise SettingsError(f"there is no curve of {label!r} on split {split!r}")
        return self._figure(label, split, shown)

    def _by_metric(self) -> dict[CurveMetric, Sequence[CurvePoint | RegressionScore | SegmentationPoint]]:
        masks = self.segmentation
        return {"auroc": self.points, "r2": self.regression, "dice": masks, "surface_dice": masks}

    def _figure(self, label: str, split: str, metric: CurveMetric) -> Figure:
        from medmoco.plotting.figures import curve_figure

        points = self._by_metric()[metric]
        return curve_figure(points, label, split, metric, self.forecast, sized_names(points))

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.table)}</pre>"

    def __repr__(self) -> str:
        return f"Curve(primary={self.primary!r}, {len(self.points) + len(self.segmentation)} points)"


@dataclass(frozen=True, eq=False)
class External(SavedRecords):
    """External validation: a frozen classifier on its own test split and on that of other data.

    Attributes:
        scores: Scores by label.
        operating_points: Decisions at the classifier's thresholds; the splits are named internal and external.
        calibration: Calibration of the classifier's probabilities.
        subgroups: AUROCs within subgroups of patients.
        table: Table that `medmoco external` prints.
        folder: Folder in which the results are saved, if they are.

    Examples:
        >>> import medmoco
        >>> medmoco.External.load("external").to_frame()  # doctest: +SKIP
    """

    _FILES = (
        ("scores", "external.json", ExternalScore),
        ("operating_points", "operating.json", OperatingPoint),
        ("calibration", "calibration.json", CalibrationScore),
        ("subgroups", "subgroups.json", Subgroup),
    )
    _NAMED = ("scores",)

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
