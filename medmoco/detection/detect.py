"""Train and evaluate a detector: boxes, encoder, training loop, run folder, comparison with another run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from medmoco.config import RunSettings, Tree
from medmoco.data.loading.workers import check_shared_memory, shared_memory_place
from medmoco.data.manifest.manifest import Split
from medmoco.detection.boxes import Annotations, load_annotations
from medmoco.detection.detectors import create_detector
from medmoco.detection.drawing import draw_detections
from medmoco.detection.files import read_detections, write_detections
from medmoco.detection.learning import Detecting, Detections, detector_batches, find_boxes
from medmoco.detection.scoring import (
    Detected,
    Scores,
    differences_of,
    layout,
    mean_average_precision,
    records_of,
    score,
)
from medmoco.errors import SettingsError
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.features.features import fingerprint
from medmoco.evaluation.leakage.leakage import find_leaks, find_pretraining, leak_lines, refuse_leaks
from medmoco.evaluation.scoring.table import MACRO
from medmoco.evaluation.scoring.trained import VAL_ONLY, Scoring, paired_names, record_test
from medmoco.evaluation.scoring.trained_records import DetectionScore
from medmoco.training.agreement import count_sharing, on_first, together
from medmoco.training.context import RunContext, prepare_context
from medmoco.training.device import memory_explained
from medmoco.training.distributed import ALONE, Group, join_batch_norm
from medmoco.training.early_stopping import Selection, SupervisedJob, check_parts, loop_settings, train_and_select
from medmoco.training.engine import TrainState
from medmoco.training.optim import create_optimizer
from medmoco.training.run_folder import HARMLESS, NEW, StartMode, facts_of
from medmoco.training.runlog import explaining_disk_errors

_UNUSED = ("method.", "evaluate.", "finetune.", "data.labels")
_USED = ("evaluate.where",)
_HARMLESS = tuple(key for key in HARMLESS if key not in ("evaluate.", "detection."))
_NAMES = {"random": "untrained"}  # name of an encoder in the table, if it is not the kind of its source


def detect(
    settings: RunSettings,
    encoder: str,
    out: Path,
    *,
    scoring: Scoring = VAL_ONLY,
    start: StartMode = NEW,
    group: Group = ALONE,
    progress: bool = True,
) -> Detected | None:
    """Train a detector on the boxes of train, keep the epoch that is best on val, and evaluate it.

    In addition to the usual files, the run folder contains detections.csv, scores.json and table.txt.

    Args:
        settings: `detection` defines the training; device, precision and the like come from `train`.
        encoder: Run folder, weights file, or "random" for training from scratch.
        out: Run folder.
        scoring: What to evaluate after training.
        start: What to do with an existing run in the folder.
        group: Processes that train together; the first one evaluates and writes files, the others return None.
        progress: Show messages and a progress bar on stderr; log.txt has the messages in any case.

    Raises:
        SettingsError: there are no boxes to learn, the encoder has no feature maps, or the folder contains another run.
        ManifestError: manifest or boxes cannot be used, or test shares patients or images with the training data.
        CheckpointError, DataError, DistributedError, DivergedError, Stopped: also recorded in status.json.
    """
    context = prepare_context(settings_of_run(settings, out, group.size), group, progress=progress)
    settings = context.settings
    warnings: list[str] = []
    with together(group):
        annotations, notices = _load(settings, encoder, scoring.test, group)
        other = read_detections(scoring.against, annotations, _scored(annotations)) if scoring.against else None
        loaded = load_encoder(encoder, settings, log=warnings.append, whole=False)
        backbone, source = loaded.module, loaded.provenance.record()
    facts = _facts(settings, annotations, backbone, source)
    model = create_detector(backbone, settings, len(annotations.labels))
    scorer = _Scorer(context, annotations, model, encoder, source)
    train = annotations.splits["train"]
    job = SupervisedJob(
        split=train.split,
        facts=facts,
        create_state=lambda: _create_state(model, context),
        notices=notices,
        warnings=warnings,
        harmless=_HARMLESS,
        description=f"{settings.detection.detector} with {settings.model.backbone} on {context.device.type},"
        f" {context.precision} ({context.reason})",
        patience=settings.detection.patience,
        measure=scorer.measure,
        batches=lambda order, step: detector_batches(train, settings, order, step, group.share),
        create_task=lambda: Detecting(model, train, context),
    )
    with memory_explained(settings.train), ExitStack() as stack:
        selection = train_and_select(stack, context, job, start)
        return on_first(group, lambda: scorer.finish(selection, other, scoring.pictures), patiently=True)


def settings_of_run(settings: RunSettings, out: Path, processes: int = 1) -> RunSettings:
    """Return the settings of the training loop, in which those of `detection` replace those of `train`.

    Raises:
        SettingsError: they contradict each other.
    """
    settings.data.require_images("detection")
    chosen = settings.detection
    settings = loop_settings(settings, chosen)
    train = settings.train
    if train.compile:
        raise SettingsError("train.compile: detectors take images of any size and cannot be compiled; set it to false")
    check_parts("detection", train, processes)
    if not settings.data.pack:  # the canvases of a pack have their size already
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"canvas_size": chosen.size})})
    elif settings.data.canvas_size < chosen.size:
        raise SettingsError(
            f"detection.size {chosen.size}: the pack's canvases have {settings.data.canvas_size} pixels; create a pack"
            f" with data.canvas_size={chosen.size}, or remove data.pack"
        )
    return settings.model_copy(update={"out": out})


def _load(settings: RunSettings, encoder: str, test: bool, group: Group) -> tuple[Annotations, list[str]]:
    """Load images and boxes; refuse them if training or evaluation would leak."""
    sharing = count_sharing(group, shared_memory_place())
    annotations = load_annotations(settings, ("train", "val", *(["test"] if test else [])))
    if MACRO in annotations.labels:
        raise SettingsError(f"'{MACRO}' is the mean over labels in every table; rename that label")
    splits: dict[str, Split] = {name: annotated.split for name, annotated in annotations.splits.items()}
    pretraining = find_pretraining(encoder)
    leaks = find_leaks(splits, pretraining)
    refuse_leaks(leaks, settings)
    batch = settings.train.global_batch_size
    if len(splits["train"]) < batch:
        raise SettingsError(
            f"detection.global_batch_size {batch} is more than the {len(splits['train'])} annotated images of train"
        )
    canvas = settings.views.model_copy(update={"size": settings.data.canvas_size})
    check_shared_memory(settings.model_copy(update={"views": canvas}), batch // group.size, sharing, views=1)
    counts = [
        f"{name} {len(found)} images with {len(found.labels)} boxes in {np.unique(found.images).size}"
        for name, found in annotations.splits.items()
    ]
    return annotations, [*annotations.notes, *leak_lines(leaks), *pretraining.notes, "; ".join(counts)]


def _scored(annotations: Annotations) -> list[str]:
    return [name for name in annotations.splits if name != "train"]


def _create_state(model: nn.Module, context: RunContext) -> TrainState:
    join_batch_norm(model, context.group)
    context.place(model)
    return TrainState(model, create_optimizer(context.settings.train, model), context.scaler())


def _facts(settings: RunSettings, annotations: Annotations, backbone: nn.Module, source: dict[str, Any]) -> Tree:
    """Return the facts to store in checkpoints; a run must be resumed with the same encoder, boxes and val."""
    facts = facts_of(settings, annotations.splits["train"].split)
    used = {key: value for key, value in facts["settings"].items() if key in _USED or not key.startswith(_UNUSED)}
    val = annotations.splits["val"].split
    used |= {
        "encoder": f"{source['kind']}, SHA-256 {fingerprint(backbone)[:16]}",
        "table of boxes": f"SHA-256 {annotations.sha256[:16]}",
        "validation manifest": f"{len(val)} rows, SHA-256 {val.sha256[:16]}",
    }
    return {**facts, "settings": used}


@dataclass(frozen=True)
class _Scorer:
    """Evaluates the detector on the splits, and writes the results."""

    context: RunContext
    annotations: Annotations
    model: nn.Module
    encoder: str
    source: dict[str, Any]

    @property
    def settings(self) -> RunSettings:
        """Settings of the run."""
        return self.context.settings

    def measure(self, stop_asked: Callable[[], bool]) -> tuple[float, dict[str, float]]:
        """Return the average precision on val, as a mean and for each label."""
        val, labels = self.annotations.splits["val"], self.annotations.labels
        context = self.context
        found = find_boxes(self.model, val, context.settings, context.device, context.precision, stop_asked)
        mean, by_label = mean_average_precision(val, found, len(labels))
        values = {f"val_ap/{name}": float(value) for name, value in zip(labels, by_label, strict=True)}
        return mean, {"val_ap": mean, **values}

    def finish(
        self, selection: Selection, other: tuple[dict[str, Detections], str] | None, pictures: Path | None
    ) -> Detected:
        """Evaluate the weights of the best epoch, and write detections, scores and the table."""
        best = selection.best
        selection.session.log.info(f"done: {best.validated} epochs; epoch {best.epoch + 1} is the best on val")
        found = {
            name: find_boxes(self.model, self.annotations.splits[name], self.settings, self.context.device)
            for name in _scored(self.annotations)
        }
        write_detections(self.settings.out, found, self.annotations, self.source)
        detected = self._compare(self._score(found), other)
        with explaining_disk_errors():
            detected.save(self.settings.out)
        if pictures:
            shown = "test" if "test" in found else "val"
            draw_detections(
                self.annotations.splits[shown], found[shown], self.annotations.labels, self.settings, pictures
            )  # fmt: skip
        return detected

    def _score(self, found: Mapping[str, Detections]) -> dict[str, Scores]:
        draws, seed = self.settings.evaluate.bootstrap, self.settings.seed
        return {
            name: score(self.annotations.splits[name], own, self.annotations.labels, draws=draws, seed=seed)
            for name, own in found.items()
        }

    def _compare(self, scores: Mapping[str, Scores], other: tuple[dict[str, Detections], str] | None) -> Detected:
        name, control = paired_names(self.source["kind"], other[1] if other else "", _NAMES)
        records, differences = self._records(scores, name), []
        if other:
            theirs = self._score(other[0])
            records += self._records(theirs, control, primary=False)
            differences = [
                record
                for split in scores
                for record in differences_of(split, scores[split], theirs[split], (name, control))
            ]
        test = self.annotations.splits.get("test")
        note = record_test(
            "detect", self.settings, self.encoder, test.split if test is not None else None, records, "auroc"
        )
        notes = ["val also chose the epoch: only test is an unbiased score", note]
        return Detected(tuple(records), tuple(differences), layout(records, differences, self._head(), notes))

    def _records(self, scores: Mapping[str, Scores], encoder: str, *, primary: bool = True) -> list[DetectionScore]:
        splits, labels = self.annotations.splits, self.annotations.labels
        return [
            record
            for name, own in scores.items()
            for record in records_of(name, splits[name], labels, own, encoder=encoder, primary=primary)
        ]

    def _head(self) -> Sequence[str]:
        chosen = self.settings.detection
        what = ", ".join(f"{name} {value}" for name, value in self.source.items())
        return [
            f"{chosen.detector} on {self.settings.model.backbone} ({what}), images up to {chosen.size} pixels, seed"
            f" {self.settings.seed}",
            "AP: IoU of 0.50 to 0.95; FROC: mean sensitivity at 1/8 to 8 false positives per image, IoU of 0.50;",
            "AUROC: presence of a box in an image, by its highest score",
            f"95 % intervals: {self.settings.evaluate.bootstrap} draws of patients",
        ]
