"""Wires a fine-tuning run: settings -> labelled images, encoder and classifier, loop, run folder, classifier folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from medmoco.config import RunSettings, Tree
from medmoco.data.loading.loading import training_batches
from medmoco.data.loading.pairs import ONE_VIEW
from medmoco.data.loading.workers import check_shared_memory, shared_memory_place
from medmoco.data.manifest.manifest import Split
from medmoco.errors import SettingsError
from medmoco.evaluation.features.features import extract, fingerprint
from medmoco.evaluation.metrics.auroc import auroc, undefined
from medmoco.evaluation.scoring.clinical import describe_operating_points, fit_operating_points
from medmoco.evaluation.supervised.classifier import describe_classifier, save_classifier
from medmoco.evaluation.supervised.heads import Classifier
from medmoco.evaluation.supervised.task import Supervision, accuracies
from medmoco.evaluation.supervised.training_labels import Lesson, load_lesson, targets_of
from medmoco.models.backbones import check_size
from medmoco.models.patches import check_all_learn, check_patches
from medmoco.training.checkpoint import load_backbone
from medmoco.training.device import memory_explained, prepare_device
from medmoco.training.distributed import ALONE, Group, join_batch_norm
from medmoco.training.early_stopping import Selection, check_parts, loop_settings, train_and_select
from medmoco.training.engine import TrainState
from medmoco.training.optim import create_layered_optimizer
from medmoco.training.run_folder import (
    HARMLESS,
    describe_run,
    enter_folder,
    facts_of,
)
from medmoco.utils.files import replacing
from medmoco.utils.rng import WEIGHTS, hashed

Floats = NDArray[np.float64]

CLASSIFIER, VAL_SCORES = "classifier", "val_scores.csv"

_CROP_FLIP: Tree = {
    "crop_scale": (0.08, 1.0), "crop_ratio": (0.75, 4 / 3), "flip_probability": 0.5, "rotation": 0.0,
    "jitter_probability": 0.0, "blur_probability": 0.0, "noise_probability": 0.0, "cutout_probability": 0.0,
}  # fmt: skip
# Of these, fine-tuning uses what decides which images it learns from and how validation sees them.
_UNUSED = ("method.", "evaluate.")
_USED = ("evaluate.where", "evaluate.size", "evaluate.mirror")
_HARMLESS = tuple(key for key in HARMLESS if key not in ("evaluate.", "finetune."))


@dataclass(frozen=True)
class Finetuned:
    """What a run came to.

    Attributes:
        labels: L names.
        epoch: The best, from 0, whose weights these are.
        epochs: How many were trained.
        val_auroc: By label; None where undefined.
        splits: val and what else was asked for.
        targets: Of each of them, (N, L), 1, 0 or nan.
        scores: Of each of them, (N, L) log-odds.
        rows: Of train that taught each label.
        patients: That these are of.
        accuracies: top1 and top5 on val, of classes.
    """

    labels: tuple[str, ...]
    epoch: int
    epochs: int
    val_auroc: dict[str, float | None]
    splits: dict[str, Split]
    targets: dict[str, NDArray[np.float32]]
    scores: dict[str, Floats]
    rows: dict[str, int]
    patients: dict[str, int]
    accuracies: dict[str, float]


def finetune(
    settings: RunSettings,
    encoder: str,
    out: Path,
    *,
    splits: Sequence[str] = ("val",),
    resume: bool = False,
    overwrite: bool = False,
    allow_change: bool = False,
    log: Callable[[str], None] = lambda _: None,
    group: Group = ALONE,
) -> Finetuned | None:
    """Train an encoder and a classifier on the labels of train, and leave a run folder with the classifier in it.

    Args:
        settings: `finetune` says how; device, precision and the like are those of `train`.
        encoder: A run folder, a weights file, or "random", which is training from scratch.
        out: Run folder.
        splits: What the best epoch scores in the end; the test split is not read unless it is named.
        resume: Go on from the newest checkpoint in the folder; from step 0 where there is none yet.
        overwrite: Delete a run that is in the folder.
        allow_change: Resume although settings or the manifest have changed.
        log: Told of damaged checkpoints of the encoder.
        group: The processes that train together; the first scores, writes and speaks, the others return None.

    Raises:
        SettingsError: there is nothing to learn, or the folder holds another run.
        ManifestError: the manifest cannot be used, or test shares patients or images with what was learned from.
        CheckpointError, DataError, DistributedError, DivergedError, Stopped: see there; status.json then says which.
    """
    settings = settings_of_run(settings, out, group.size)
    device, precision, why = prepare_device(settings.train, group)
    beside = group.beside(shared_memory_place())
    with group.one_fate():
        loaded, lesson, notes = load_lesson(settings, encoder, splits)
        check_shared_memory(settings, settings.train.global_batch_size // group.size, beside, views=1)
        model, source = _create_model(settings, encoder, lesson, log if group.is_first else lambda _: None)
    facts = {**_facts(settings, loaded, model, source), "processes": group.size}
    run = _Run(settings, loaded, lesson, model, facts, source, device, precision)
    with memory_explained(settings.train), ExitStack() as stack:
        start = enter_folder(
            stack, settings, facts, lambda: _create_state(model, source, settings, device, precision, group),
            resume=resume, overwrite=overwrite, allow_change=allow_change, group=group, harmless=_HARMLESS,
        )  # fmt: skip
        changes = group.first(lambda: describe_run(settings.out, settings, device, precision, facts)) or []
        selection = train_and_select(
            stack, settings, start, facts, group,
            what=f"{settings.model.backbone} by {settings.finetune.protocol} on {device.type}, {precision} ({why})",
            notes=[*notes, *changes], split=lesson.train, patience=settings.finetune.patience, measure=run.measure,
            make_batches=lambda order, step: training_batches(
                lesson.train, settings, order, step, group.share, ONE_VIEW
            ),
            make_task=lambda: Supervision(model, lesson, settings, device, precision, group),
        )  # fmt: skip
        return group.first(lambda: run.finish(selection), patiently=True)


def settings_of_run(settings: RunSettings, out: Path, processes: int = 1) -> RunSettings:
    """Return the settings that the loop and the views follow: `finetune` takes the place of what it has a say in."""
    chosen = settings.finetune
    views = settings.views.model_copy(update=_CROP_FLIP if chosen.augmentation == "crop_flip" else {})
    train = loop_settings(settings.train, chosen)
    if processes > 1:
        check_parts("finetune", train, processes)
    if train.global_batch_size // (processes * train.accumulation_steps) < 2:
        where, remedy = (f" on {processes} processes", "lower one of them") if processes > 1 else ("", "lower it")
        raise SettingsError(
            f"train.accumulation_steps {train.accumulation_steps}{where} leaves parts of less than 2 images of"
            f" finetune.global_batch_size {train.global_batch_size}; {remedy}, or raise the batch size"
        )
    return settings.model_copy(update={"out": out, "train": train, "views": views})


def _create_model(
    settings: RunSettings, encoder: str, lesson: Lesson, log: Callable[[str], None]
) -> tuple[Classifier, dict[str, Any]]:
    """Return the encoder with a classifier that knows nothing yet, and what the encoder is."""
    backbone, source = load_backbone(encoder, settings, log)
    check_size(backbone, settings.views.size)
    chosen = settings.finetune
    top_patches = chosen.top_patches if chosen.head == "patches" else None
    if top_patches is not None:
        size = settings.views.size
        check_patches(backbone, min(size, settings.evaluate.size or size), top_patches)
        check_all_learn(backbone, size)
    head = nn.Linear(backbone.feature_dim, len(lesson.names))
    generator = torch.Generator().manual_seed(int(hashed(settings.seed, WEIGHTS, 2)[0] >> 1))
    nn.init.normal_(head.weight, std=0.01, generator=generator)  # as the published linear probe starts
    nn.init.zeros_(head.bias)
    if chosen.protocol == "linear_sgd":
        backbone.requires_grad_(False)
    model = Classifier(
        backbone, head, mirror=settings.evaluate.mirror, exclusive=lesson.exclusive, top_patches=top_patches
    )
    return model, source


def _create_state(
    model: Classifier,
    source: dict[str, Any],
    settings: RunSettings,
    device: torch.device,
    precision: str,
    group: Group,
) -> TrainState:
    chosen = settings.finetune
    # What knows nothing yet has nothing to keep: from scratch, the first layers learn as fast as the last.
    decay = 1.0 if source["kind"] == "random" else chosen.layer_decay
    join_batch_norm(model, group)
    model.to(device).to(memory_format=torch.channels_last if settings.train.channels_last else torch.contiguous_format)
    if settings.train.compile:
        model.compile()
    optimizer = create_layered_optimizer(
        settings.train, model.backbone.net, model.head, layer_decay=decay, head_lr=chosen.head_lr
    )
    return TrainState(model, optimizer, torch.amp.GradScaler(device.type, enabled=precision == "fp16"))


def _facts(settings: RunSettings, splits: Mapping[str, Split], model: Classifier, source: dict[str, Any]) -> Tree:
    """Return what a checkpoint remembers of the run; the encoder and val are part of what it must be resumed with."""
    facts = facts_of(settings, splits["train"])
    used = {key: value for key, value in facts["settings"].items() if key in _USED or not key.startswith(_UNUSED)}
    used |= {
        "encoder": f"{source['kind']}, SHA-256 {fingerprint(model.backbone)[:16]}",
        "validation manifest": f"{len(splits['val'])} rows, SHA-256 {splits['val'].sha256[:16]}",
    }
    return {**facts, "settings": used}


@dataclass
class _Run:
    """What is scored with, and what is left in the end."""

    settings: RunSettings
    splits: dict[str, Split]
    lesson: Lesson
    model: Classifier
    facts: Tree
    source: dict[str, Any]
    device: torch.device
    precision: str

    def measure(self, stop_asked: Callable[[], bool]) -> tuple[float, dict[str, float]]:
        """Score val: the mean AUROC, and that of every label."""
        scores = self.score("val", self.precision, stop_asked)
        targets = targets_of(self.splits["val"], self.lesson)
        by_label = self._aurocs(targets, scores)
        mean = float(np.mean([value for value in by_label.values() if value is not None]))
        values = {"val_auroc": mean}
        values |= {f"val_auroc/{name}": value for name, value in by_label.items() if value is not None}
        if self.lesson.exclusive:
            values |= {f"val_{name}": value for name, value in accuracies(targets, scores).items()}
        return mean, values

    def score(self, split: str, precision: str, stop_asked: Callable[[], bool] = lambda: False) -> Floats:
        """Return the scores of a split, (N, L)."""
        found = extract(
            {"classifier": self.model}, self.splits[split], self.settings, self.device, precision, stop_asked
        )
        return found.features["classifier"].astype(np.float64)

    def _aurocs(self, targets: NDArray[np.float32], scores: Floats) -> dict[str, float | None]:
        pairs = zip(self.lesson.names, targets.T, scores.T, strict=True)
        return {name: None if undefined(truth) else auroc(truth, own) for name, truth, own in pairs}

    def finish(self, selection: Selection) -> Finetuned:
        """Score with the best epoch's weights, and leave them as a classifier."""
        self._check_frozen()
        scores = {name: self.score(name, "fp32") for name in self.splits if name != "train"}
        targets = {name: targets_of(self.splits[name], self.lesson) for name in scores}
        result = Finetuned(
            labels=self.lesson.names,
            epoch=selection.best.epoch,
            epochs=selection.best.validated,
            val_auroc=self._aurocs(targets["val"], scores["val"]),
            splits={name: self.splits[name] for name in scores},
            targets=targets,
            scores=scores,
            rows=self.lesson.rows,
            patients=self.lesson.patients,
            accuracies=accuracies(targets["val"], scores["val"]) if self.lesson.exclusive else {},
        )
        save_classifier(self.settings.out / CLASSIFIER, self.model, self._describe(result))
        _write_scores(self.settings.out / VAL_SCORES, result)
        selection.log.info(_in_words(result, selection.finished()))
        return result

    def _check_frozen(self) -> None:
        if self.settings.finetune.protocol == "linear_sgd":
            now = fingerprint(self.model.backbone)[:16]
            if not self.facts["settings"]["encoder"].endswith(now):
                raise RuntimeError("the frozen encoder changed while the classifier was trained")

    def _describe(self, result: Finetuned) -> Tree:
        chosen = self.settings.evaluate
        points = {
            name: fit_operating_points(
                result.targets["val"][:, number].astype(np.float64), result.scores["val"][:, number], chosen
            )
            for number, name in enumerate(result.labels)
        }
        return describe_classifier(
            self.settings, result.labels, trained="fine-tuned", encoder=self.source, val_auroc=result.val_auroc,
            exclusive=self.lesson.exclusive, top_patches=self.model.top_patches,
            **describe_operating_points(points, chosen),
        )  # fmt: skip


def _write_scores(file: Path, result: Finetuned) -> None:
    """Write the score of every row of val with a known label."""
    frames = []
    for number, label in enumerate(result.labels):
        targets, scores = result.targets["val"][:, number], result.scores["val"][:, number]
        rows = pd.DataFrame({"row": result.splits["val"].rows, "label": label, "target": targets, "score": scores})
        frames.append(rows[~np.isnan(targets)].astype({"target": int}))
    with replacing(file) as temporary:
        pd.concat(frames).to_csv(temporary, index=False, float_format="%.9g")


def _in_words(result: Finetuned, early: bool) -> str:
    values = {name: value for name, value in result.val_auroc.items() if value is not None}
    if len(values) > 5:
        values = {"mean": float(np.mean(list(values.values())))}
    shown = [f"{name} {value:.3f}" for name, value in values.items()]
    shown += [f"{name} {value:.1%}" for name, value in result.accuracies.items()]
    return (
        f"done: {result.epochs} epochs{', ended early' if early else ''}; number {result.epoch + 1} is the best"
        f" (AUROC on val: {', '.join(shown)}); {CLASSIFIER}/ in the run folder holds it"
    )
