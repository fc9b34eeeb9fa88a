"""Read a run folder for a report: only fields that are picked by name, checked before they are used."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pydantic import ValidationError

from medmoco.config import BEST, DataSettings, Tree, flatten
from medmoco.data.manifest.columns import IDENTIFYING
from medmoco.data.manifest.manifest import Split, load_manifest, present_splits
from medmoco.data.manifest.row_filter import where_words
from medmoco.errors import CheckpointError, MedmocoError, SettingsError
from medmoco.evaluation.forecast_records import Forecast, LabelsNeeded
from medmoco.evaluation.leakage.ledger import LEDGER, LedgerEntry, read_ledger
from medmoco.evaluation.record_files import PREDICTIONS, AnyRecord, read_named_records, read_records, shown_split
from medmoco.evaluation.records import (
    CalibrationScore,
    CurveDifference,
    CurvePoint,
    Difference,
    EncoderRecord,
    ExternalScore,
    OperatingPoint,
    Score,
    Subgroup,
    primary_of,
)
from medmoco.evaluation.scoring.trained_records import SegmentationCurveDifference, SegmentationPoint
from medmoco.evaluation.target_records import RIDGE, ClassScore, RegressionDifference, RegressionScore
from medmoco.reporting.blocks import Block, Text
from medmoco.reporting.trained.results import Trained, read_trained

_PREDICTION = [column for column in PREDICTIONS if column != "row"]
_LINES = 1_000_000  # of predictions.csv that are in memory at a time


@dataclass(frozen=True)
class Scores:
    """Contents of an evaluation folder; None for a missing file.

    Attributes:
        scores: scores.json.
        differences: differences.json.
        operating: operating.json.
        calibration: calibration.json.
        subgroups: subgroups.json, without ID columns.
        classes: classes.json.
        regression: regression.json.
        regression_differences: regression_differences.json.
        predictions: First draw of predictions.csv on the split shown, without row numbers and numeric targets.
        split: test, or val if test was not scored.
    """

    scores: Sequence[Score] | None
    differences: Sequence[Difference] | None
    operating: Sequence[OperatingPoint] | None
    calibration: Sequence[CalibrationScore] | None
    subgroups: Sequence[Subgroup] | None
    classes: Sequence[ClassScore] | None
    regression: Sequence[RegressionScore] | None
    regression_differences: Sequence[RegressionDifference] | None
    predictions: pd.DataFrame | None
    split: str

    @property
    def primary(self) -> str | None:
        """Name of the primary encoder; external validation scores one encoder, and has no scores.json."""
        files: tuple[Sequence[EncoderRecord] | None, ...] = (
            self.scores, self.operating, self.calibration, self.subgroups, self.regression,
        )  # fmt: skip
        return primary_of(next((records for records in files if records), ()))


@dataclass(frozen=True)
class Run:
    """Contents of a run folder; None for a missing file.

    Attributes:
        name: Name of the folder.
        is_finetuned: Whether it trained a classifier, not an encoder.
        trained: Scores of a run that trained a detector or a segmentation network; None for others.
        has_weights: Whether it was initialised with weights provided by the user.
        settings: "group.key" -> value, without paths.
        environment: environment.json.
        state: running, stopped, done or failed.
        step: Steps done.
        steps: Steps planned.
        metrics: metrics.jsonl.
        best_step: Step of the checkpoint with the best kNN score.
        quarantine: Number of images replaced in training, by reason.
        audit: report.txt of `medmoco check`.
        faults: (severity, fault) of `medmoco check` -> rows.
        splits: Splits of the manifest, if it is the one that the run was trained on.
        evaluation: Results of `medmoco evaluate`.
        curve: curve.json.
        curve_differences: curve_differences.json.
        curve_forecast: forecast.json of the curve.
        labels_needed: labels_needed.json of the curve.
        curve_regression: regression.json of the curve.
        curve_segmentation: segmentation.json of the curve.
        curve_segmentation_differences: segmentation_differences.json of the curve.
        external: external.json.
        external_scores: Other files of the external folder.
        ledger: ledger.jsonl.
        classifier: classifier.json of the run, or of its evaluation.
        card: MODEL_CARD.md.
    """

    name: str
    is_finetuned: bool
    trained: Trained | None
    has_weights: bool
    settings: Tree
    environment: Tree
    state: str
    step: int | None
    steps: int | None
    metrics: list[Tree]
    best_step: int | None
    quarantine: Counter[str]
    audit: str | None
    faults: Counter[tuple[str, str]]
    splits: dict[str, Split] | None
    evaluation: Scores
    curve: Sequence[CurvePoint] | None
    curve_differences: Sequence[CurveDifference] | None
    curve_forecast: Sequence[Forecast] | None
    labels_needed: Sequence[LabelsNeeded] | None
    curve_regression: Sequence[RegressionScore] | None
    curve_segmentation: Sequence[SegmentationPoint] | None
    curve_segmentation_differences: Sequence[SegmentationCurveDifference] | None
    external: dict[str, ExternalScore] | None
    external_scores: Scores
    ledger: list[LedgerEntry] | None
    classifier: Tree | None
    card: str | None

    @property
    def kind(self) -> str:
        """What was trained: an encoder, a classifier, a segmentation network or a detector."""
        return self.trained.network if self.trained else "classifier" if self.is_finetuned else "encoder"

    @property
    def ended_early(self) -> bool:
        """Whether it was done before the steps planned, since its score no longer improved."""
        return self.state == "done" and self.step is not None and self.steps is not None and self.step < self.steps

    @property
    def scores_best(self) -> bool:
        """Whether `evaluation` is of the checkpoint with the best kNN score, as its classifier says."""
        encoder = None if self.is_finetuned or not self.classifier else self.classifier.get("encoder")
        return isinstance(encoder, dict) and encoder.get("selected_by") is not None


def missing(runs: Sequence[Run], is_missing: Callable[[Run], object], words: str) -> list[Block]:
    """Return a line for each encoder or classifier without certain results; {run} in its words stands for the name."""
    return [Text(words.format(run=run.name), "missing") for run in runs if not run.trained and is_missing(run)]


def run_names(folders: Sequence[Path]) -> list[str]:
    """Name runs by their folders, with as many of the folders above as it takes to tell them apart.

    Raises:
        SettingsError: a folder is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    for folder, own in zip(folders, parts, strict=True):
        if parts.count(own) > 1:
            raise SettingsError(f"{folder} is given twice; give each run once")
    return [_shortest(own, [other for other in parts if other != own]) for own in parts]


def _shortest(own: Sequence[str], others: Sequence[Sequence[str]]) -> str:
    ends = (own[-depth:] for depth in range(1, len(own) + 1))
    return "/".join(next(end for end in ends if not any(other[-len(end) :] == end for other in others)))


def read_run(folder: Path, card: Path | None = None) -> Run:
    """Read a run folder.

    Args:
        folder: Run folder.
        card: Model card, instead of the one in its subfolder `export` or `exported`.

    Raises:
        SettingsError: it is not a run folder.
        CheckpointError: one of its files is damaged.
    """
    if not (folder / "config.yaml").is_file() or not (folder / "environment.json").is_file():
        raise SettingsError(f"{folder} is not a run folder: it lacks config.yaml or environment.json")
    tree, environment = _read_settings(folder / "config.yaml"), _read_object(folder / "environment.json") or {}
    status = _read_object(folder / "status.json") or {}
    metrics = _read_lines(folder / "metrics.jsonl") or []
    own = _read_object(folder / "classifier" / "classifier.json")
    check = folder.resolve().with_name(f"{folder.resolve().name}-check")
    cards = [card] if card else [folder / name / "MODEL_CARD.md" for name in ("export", "exported")]
    other = folder / "external" / "external.json"
    return Run(
        name=folder.resolve().name,
        is_finetuned=own is not None or any(key.startswith("val_auroc") for record in metrics for key in record),
        trained=read_trained(folder, metrics),
        has_weights=dict(flatten(tree)).get("model.init") is not None,
        settings=_portable(tree),
        environment=environment,
        state=str(status.get("state", "unknown")),
        step=_whole(status.get("step")),
        steps=_whole(status.get("steps")),
        metrics=[record for record in metrics if isinstance(record.get("step"), int)],
        best_step=max(map(_step_of, (folder / BEST).glob("step-?????????.pt")), default=None),
        quarantine=Counter(row["reason"] for row in _read_csv(folder / "quarantine.csv", ("reason",))),
        audit=_read_text(check / "report.txt"),
        faults=Counter((row["severity"], row["fault"]) for row in _read_csv(check / "rows.csv", ("severity", "fault"))),
        splits=_read_manifest(tree, environment.get("manifest_sha256")),
        evaluation=_read_scores(folder / "evaluation"),
        curve=_read_records(folder / "curve" / "curve.json", CurvePoint),
        curve_differences=_read_records(folder / "curve" / "curve_differences.json", CurveDifference),
        curve_forecast=_read_records(folder / "curve" / "forecast.json", Forecast),
        labels_needed=_read_records(folder / "curve" / "labels_needed.json", LabelsNeeded),
        curve_regression=_read_records(folder / "curve" / "regression.json", RegressionScore),
        curve_segmentation=_read_records(folder / "curve" / "segmentation.json", SegmentationPoint),
        curve_segmentation_differences=_read_records(
            folder / "curve" / "segmentation_differences.json", SegmentationCurveDifference
        ),
        external=read_named_records(other, ExternalScore) if other.is_file() else None,
        external_scores=_read_scores(other.parent),
        ledger=read_ledger(folder / LEDGER) if (folder / LEDGER).is_file() else None,
        classifier=own or _read_object(folder / "evaluation" / "classifier" / "classifier.json"),
        card=next((text for text in map(_read_text, cards) if text is not None), None),
    )


# ---- files by kind ----


def _damaged(file: Path, what: str) -> CheckpointError:
    name = f"{file.parent.name}/{file.name}"
    return CheckpointError(f"{name} is damaged: {what}.\nDelete it, or run the command that writes it again.")


def _read_text(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8") if file.is_file() else None
    except UnicodeDecodeError:
        raise _damaged(file, "it is not text") from None
    except OSError as error:
        raise CheckpointError(f"{file.parent.name}/{file.name} cannot be read: {error.strerror}") from None


def _parse(text: str, file: Path) -> Any:
    def refuse(name: str) -> None:
        raise _damaged(file, f"it contains {name}, which is not JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise _damaged(file, "it is not JSON") from None


def _read_object(file: Path) -> Tree | None:
    text = _read_text(file)
    content = _parse(text, file) if text is not None else {}
    if not isinstance(content, dict):
        raise _damaged(file, "it does not contain an object")
    return content if text is not None else None


def _read_lines(file: Path) -> list[Tree] | None:
    """Read JSON lines; the last one may be incomplete."""
    text = _read_text(file)
    if text is None:
        return None
    *whole, last = text.split("\n")
    if last and last.endswith("}"):
        whole.append(last)
    records = [_parse(line, file) for line in whole if line]
    if not all(isinstance(record, dict) for record in records):
        raise _damaged(file, "a line does not contain an object")
    return records


def _read_records(file: Path, kind: type[AnyRecord]) -> tuple[AnyRecord, ...] | None:
    return read_records(file, kind) if file.is_file() else None


def _read_csv(file: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read some columns of a CSV that medmoco wrote; no rows if it is missing or empty."""
    text = _read_text(file)
    if not text or not text.strip():
        return []
    rows = list(csv.DictReader(text.splitlines()))
    if any(row.get(column) is None for row in rows for column in columns):
        raise _damaged(file, f"it lacks a column or a cell of {', '.join(columns)}")
    return [{column: row[column] for column in columns} for row in rows]


def _read_scores(folder: Path) -> Scores:
    scores, subgroups = _read_records(folder / "scores.json", Score), _read_records(folder / "subgroups.json", Subgroup)
    regression = _read_records(folder / "regression.json", RegressionScore)
    split = shown_split(scores or regression or ())
    return Scores(
        scores=scores,
        differences=_read_records(folder / "differences.json", Difference),
        operating=_read_records(folder / "operating.json", OperatingPoint),
        calibration=_read_records(folder / "calibration.json", CalibrationScore),
        subgroups=None if subgroups is None else [row for row in subgroups if row.column not in IDENTIFYING],
        classes=_read_records(folder / "classes.json", ClassScore),
        regression=regression,
        regression_differences=_read_records(folder / "regression_differences.json", RegressionDifference),
        predictions=_read_predictions(folder / "predictions.csv", split),
        split=split,
    )


def _read_predictions(file: Path, split: str) -> pd.DataFrame | None:
    if not file.is_file():
        return None
    text = dict.fromkeys(("split", "label", "method", "encoder"), str)
    parts = []
    try:
        with pd.read_csv(file, usecols=_PREDICTION, dtype=text, keep_default_na=False, chunksize=_LINES) as chunks:
            for chunk in chunks:
                chosen = (chunk["split"] == split) & (chunk["draw"] == 0) & (chunk["method"] != RIDGE)
                parts.append(chunk[chosen])
        table = pd.concat(parts).astype({"target": int, "score": float})
    except (ValueError, OSError) as error:
        raise _damaged(file, f"it cannot be read ({type(error).__name__})") from None
    if not set(table["target"].unique()) <= {0, 1} or not np.isfinite(table["score"]).all():
        raise _damaged(file, "a target is neither 0 nor 1, or a score is not finite")
    return table


# ---- settings and manifest ----


def _read_settings(file: Path) -> Tree:
    try:
        tree = yaml.safe_load(_read_text(file) or "")
    except yaml.YAMLError:
        raise _damaged(file, "it is not YAML") from None
    if not isinstance(tree, dict):
        raise _damaged(file, "it does not contain settings")
    return tree


_PATHS = ("out", "manifest", "root", "pack", "pack_cache", "init", "weights", "boxes", "encoder", "run", "file")


def _portable(tree: Tree) -> Tree:
    """Return the settings without paths, and without conditions on IDs."""
    portable = {}
    for key, value in flatten(tree):
        is_where = key in ("evaluate.where", "data.where")
        is_name = is_where or key == "model.backbone" or key.startswith(("data.labels", "data.columns"))
        if key.split(".")[-1] in _PATHS or (isinstance(value, str) and not is_name and _is_path(value)):
            continue
        portable[key] = where_words(value) if is_where and value else value
    return portable


def _is_path(value: str) -> bool:
    return len(PureWindowsPath(value).parts) > 1 or value.startswith("~")  # which splits at both kinds of slashes


def _read_manifest(tree: Tree, sha256: Any) -> dict[str, Split] | None:
    """Read the manifest in the settings; None if it is missing or has changed since training."""
    try:
        data = DataSettings.model_validate(tree.get("data"))
        splits = load_manifest(data, present_splits(data), patients_matter=False)
    except (MedmocoError, ValidationError, OSError):
        return None
    return splits if "train" in splits and splits["train"].sha256 == sha256 else None


def _step_of(checkpoint: Path) -> int:
    digits = checkpoint.stem.removeprefix("step-")
    return int(digits) if digits.isdecimal() else 0


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None
