"""Wires a detection run: settings -> boxes, encoder and detector, loop, run folder, scores beside another run's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
    Record,
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
from medmoco.evaluation.leakage.ledger import add_look, ledger_of
from medmoco.evaluation.scoring.table import MACRO
from medmoco.training.device import memory_explained, prepare_device
from medmoco.training.distributed import ALONE, Group, join_batch_norm
from medmoco.training.early_stopping import Selection, check_parts, loop_settings, train_and_select
from medmoco.training.engine import TrainState
from medmoco.training.optim import create_optimizer
from medmoco.training.run_folder import HARMLESS, describe_run, enter_folder, facts_of
from medmoco.training.runlog import saying_what_disk_refuses, write_json

_UNUSED = ("method.", "evaluate.", "finetune.", "data.labels")
_USED = ("evaluate.where",)
_HARMLESS = tuple(key for key in HARMLESS if key not in ("evaluate.", "detection."))
_NAMES = {"random": "untrained"}  # of an encoder in the table; else what kind of source it is


@dataclass(frozen=True)
class Detected:
    """What a run came to; its files hold the same."""

    records: list[Record]
    differences: list[Record]
    table: str


def detect(
    settings: RunSettings,
    encoder: str,
    out: Path,
    *,
    test: bool = False,
    against: Path | None = None,
    pictures: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    allow_change: bool = False,
    log: Callable[[str], None] = lambda _: None,
    group: Group = ALONE,
) -> Detected | None:
    """Train a detector on the boxes of train, keep the epoch that is best on val, and score it.

    The run folder gets detections.csv, scores.json and table.txt besides what every run folder has.

    Args:
        settings: `detection` says how; device, precision and the like are those of `train`.
        encoder: A run folder, a weights file, or "random", which is training from scratch.
        out: Run folder.
        test: Score the test split too, and note that in the ledger.
        against: Folder of another detection run on the same images, for paired differences.
        pictures: PNG file that shows boxes in a few images.
        resume: Go on from the newest checkpoint in the folder; from step 0 where there is none yet.
        overwrite: Delete a run that is in the folder.
        allow_change: Resume although settings, the manifest or the boxes have changed.
        log: Told of damaged checkpoints of the encoder.
        group: The processes that train together; the first scores, writes and speaks, the others return None.

    Raises:
        SettingsError: there is nothing to learn, the encoder has no feature maps, or the folder holds another run.
        ManifestError: manifest or boxes cannot be used, or test shares patients or images with what was learned from.
        CheckpointError, DataError, DistributedError, DivergedError, Stopped: see there; status.json then says which.
    """
    settings = settings_of_run(settings, out, group.size)
    device, precision, why = prepare_device(settings.train, group)
    with group.one_fate():
        annotations, notes = _load(settings, encoder, test, group)
        other = read_detections(against, annotations, _scored(annotations)) if against else None
        loaded = load_encoder(encoder, settings, log=log if group.is_first else lambda _: None, whole=False)
    facts = _facts(settings, annotations, loaded.module, loaded.provenance.record()) | {"processes": group.size}
    model = create_detector(loaded.module, settings, len(annotations.labels))
    run = _Run(settings, annotations, model, encoder, loaded.provenance.record(), device, precision)
    with memory_explained(settings.train), ExitStack() as stack:
        start = enter_folder(
            stack, settings, facts, lambda: _create_state(model, settings, device, precision, group),
            resume=resume, overwrite=overwrite, allow_change=allow_change, group=group, harmless=_HARMLESS,
        )  # fmt: skip
        changes = group.first(lambda: describe_run(settings.out, settings, device, precision, facts)) or []
        train = annotations.splits["train"]
        selection = train_and_select(
            stack, settings, start, facts, group, notes=[*notes, *changes],
            what=f"{settings.detection.detector} with {settings.model.backbone} on {device.type}, {precision} ({why})",
            split=train.split, patience=settings.detection.patience, measure=run.measure,
            make_batches=lambda order, step: detector_batches(train, settings, order, step, group.share),
            make_task=lambda: Detecting(model, train, settings, device, precision, group),
        )  # fmt: skip
        return group.first(lambda: run.finish(selection, other, pictures), patiently=True)


def settings_of_run(settings: RunSettings, out: Path, processes: int = 1) -> RunSettings:
    """Return the settings that the loop follows: `detection` takes the place of what it has a say in.

    Raises:
        SettingsError: they contradict each other.
    """
    chosen = settings.detection
    train = loop_settings(settings.train, chosen)
    if train.compile:
        raise SettingsError("train.compile: detectors meet images of any size and are not compiled; set it to false")
    check_parts("detection", train, processes)
    if not settings.data.pack:  # a pack's canvases are as they are
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"canvas_size": chosen.size})})
    elif settings.data.canvas_size < chosen.size:
        raise SettingsError(
            f"detection.size {chosen.size}: the pack's canvases have {settings.data.canvas_size} pixels; make a pack"
            f" with data.canvas_size={chosen.size}, or take data.pack out"
        )
    return settings.model_copy(update={"out": out, "train": train})


def _load(settings: RunSettings, encoder: str, test: bool, group: Group) -> tuple[Annotations, list[str]]:
    """Load images and boxes, and refuse what cannot be learned or honestly scored."""
    beside = group.beside(shared_memory_place())
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
    check_shared_memory(settings.model_copy(update={"views": canvas}), batch // group.size, beside, views=1)
    counts = [
        f"{name} {len(found)} images with {len(found.labels)} boxes in {np.unique(found.images).size}"
        for name, found in annotations.splits.items()
    ]
    return annotations, [*annotations.notes, *leak_lines(leaks), *pretraining.notes, "; ".join(counts)]


def _scored(annotations: Annotations) -> list[str]:
    return [name for name in annotations.splits if name != "train"]


def _create_state(
    model: nn.Module, settings: RunSettings, device: torch.device, precision: str, group: Group
) -> TrainState:
    join_batch_norm(model, group)
    model.to(device).to(memory_format=torch.channels_last if settings.train.channels_last else torch.contiguous_format)
    optimizer = create_optimizer(settings.train, model)
    return TrainState(model, optimizer, torch.amp.GradScaler(device.type, enabled=precision == "fp16"))


def _facts(settings: RunSettings, annotations: Annotations, backbone: nn.Module, source: dict[str, Any]) -> Tree:
    """Return what a checkpoint remembers of the run; encoder, boxes and val must be the same to resume it."""
    facts = facts_of(settings, annotations.splits["train"].split)
    used = {key: value for key, value in facts["settings"].items() if key in _USED or not key.startswith(_UNUSED)}
    val = annotations.splits["val"].split
    used |= {
        "encoder": f"{source['kind']}, SHA-256 {fingerprint(backbone)[:16]}",
        "table of boxes": f"SHA-256 {annotations.sha256[:16]}",
        "validation manifest": f"{len(val)} rows, SHA-256 {val.sha256[:16]}",
    }
    return {**facts, "settings": used}


@dataclass
class _Run:
    """What is scored with, and what is left in the end."""

    settings: RunSettings
    annotations: Annotations
    model: nn.Module
    encoder: str
    source: dict[str, Any]
    device: torch.device
    precision: str

    def measure(self, stop_asked: Callable[[], bool]) -> tuple[float, dict[str, float]]:
        """Score val: the average precision, and that of every label."""
        val, labels = self.annotations.splits["val"], self.annotations.labels
        found = find_boxes(self.model, val, self.settings, self.device, self.precision, stop_asked)
        mean, by_label = mean_average_precision(val, found, len(labels))
        values = {f"val_ap/{name}": float(value) for name, value in zip(labels, by_label, strict=True)}
        return mean, {"val_ap": mean, **values}

    def finish(
        self, selection: Selection, other: tuple[dict[str, Detections], str] | None, pictures: Path | None
    ) -> Detected:
        """Score the best epoch's weights, and leave detections, scores and the table."""
        best = selection.best
        selection.log.info(f"done: {best.validated} epochs; number {best.epoch + 1} is the best on val")
        found = {
            name: find_boxes(self.model, self.annotations.splits[name], self.settings, self.device)
            for name in _scored(self.annotations)
        }
        write_detections(self.settings.out, found, self.annotations, self.source)
        detected = self._compare(self._score(found), other)
        with saying_what_disk_refuses():
            write_json(self.settings.out / "scores.json", detected.records)
            write_json(self.settings.out / "differences.json", detected.differences)
            (self.settings.out / "table.txt").write_text(detected.table, encoding="utf-8")
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
        name = _NAMES.get(self.source["kind"], self.source["kind"])
        records, differences = self._records(scores, name), []
        if other:
            theirs, control = self._score(other[0]), _NAMES.get(other[1], other[1])
            control = control if control != name else "other"
            records += self._records(theirs, control)
            differences = [
                record
                for split in scores
                for record in differences_of(split, scores[split], theirs[split], (name, control))
            ]
        notes = ["val also chose the epoch: only test is an unbiased score", self._note_look(records, name)]
        return Detected(records, differences, layout(records, differences, self._head(), notes))

    def _records(self, scores: Mapping[str, Scores], encoder: str) -> list[Record]:
        splits, labels = self.annotations.splits, self.annotations.labels
        return [
            record for name, own in scores.items() for record in records_of(name, splits[name], labels, own, encoder)
        ]

    def _head(self) -> Sequence[str]:
        chosen = self.settings.detection
        what = ", ".join(f"{name} {value}" for name, value in self.source.items())
        return [
            f"{chosen.detector} on {self.settings.model.backbone} ({what}), images up to {chosen.size} pixels, seed"
            f" {self.settings.seed}",
            "AP: overlap of 0.50 to 0.95; FROC: mean sensitivity at 1/8 to 8 false positives per image, overlap 0.50;",
            "AUROC: whether an image has a box, by its highest score",
            f"95 % intervals: {self.settings.evaluate.bootstrap} draws of patients",
        ]

    def _note_look(self, records: Sequence[Record], encoder: str) -> str:
        """Write down that the test split was looked at, before anybody sees the scores; say how often it was."""
        if "test" not in self.annotations.splits:
            return "the test split was not looked at; --test does, and is noted in the ledger"
        ledger = ledger_of(self.encoder, self.settings.out)
        aurocs = {
            record["label"]: record["value"]
            for record in records
            if (record["split"], record["metric"], record["encoder"]) == ("test", "auroc", encoder)
            and record["label"] != MACRO
        }
        test = self.annotations.splits["test"].split
        count = add_look(ledger, "detect", test, self.settings, [encoder], aurocs)
        return f"look {count} at a test split, noted in {ledger.name}: a score is unbiased if nothing was chosen by it"
