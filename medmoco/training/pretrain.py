"""Wires a pretraining run: settings -> split, views, MoCo, loop, run folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from medmoco.config import RunSettings, Tree
from medmoco.data.loading import Batch, check_images, training_batches
from medmoco.data.manifest import Split, load_manifest
from medmoco.data.order import StepOrder
from medmoco.data.overlap import overlap_notices
from medmoco.data.quarantine import QUARANTINE, Quarantine, Replacement, check_pairs
from medmoco.data.workers import check_shared_memory, shared_memory_place
from medmoco.errors import ImageError, Stopped
from medmoco.models.backbones import Backbone
from medmoco.models.moco import MoCo
from medmoco.training.checkpoint import save_checkpoint
from medmoco.training.contrast import Contrast, batch_norm_groups, check_sizes, create_state, traffic
from medmoco.training.device import choose_device, choose_precision, memory_explained
from medmoco.training.distributed import ALONE, Group
from medmoco.training.engine import Hooks, TrainState, fit
from medmoco.training.run_folder import (
    CHECKPOINTS,
    check_changes,
    claim,
    describe_run,
    facts_of,
    holding,
    keeping_status,
    load_newest,
    restore,
    write_status,
)
from medmoco.training.runlog import RunLog, SilentLog, saying_what_disk_refuses

Monitor = Callable[[Backbone, dict[str, Split], RunSettings, Callable[[], bool]], dict[str, float]]
"""Scores a backbone on the splits during training; given by the caller, since scoring lies above training. Asks the
last argument now and then whether the run shall stop, and raises Stopped then."""


def pretrain(
    settings: RunSettings,
    *,
    monitor: Monitor,
    resume: bool = False,
    overwrite: bool = False,
    allow_change: bool = False,
    group: Group = ALONE,
) -> None:
    """Pretrain an encoder on the training split and leave a run folder.

    Args:
        settings: Of the run.
        monitor: Scores the backbone every `train.knn_every` epochs.
        resume: Go on from the newest checkpoint in the folder; from step 0 where there is none yet.
        overwrite: Delete a run that is in the folder.
        allow_change: Resume although settings or the manifest have changed.
        group: The processes that train together; the first of them writes and speaks.

    Raises:
        SettingsError: the queue or the batch exceeds the training split; the folder holds another run.
        CheckpointError, DataError, DistributedError, DivergedError, Stopped: see there; status.json then says which.
    """
    device = choose_device(settings.train)
    precision, _ = choose_precision(settings.train, device)
    if settings.train.threads:
        torch.set_num_threads(settings.train.threads)
    splits = _load_splits(settings, group)
    facts = {**facts_of(settings, splits["train"]), "processes": group.size}
    order = StepOrder(settings.seed, len(splits["train"]), settings.train.global_batch_size, settings.train.epochs)

    with ExitStack() as stack:
        start = _enter_folder(stack, settings, facts, device, precision, resume, overwrite, allow_change, group)
        state = start.state
        make_log = RunLog if group.is_first else SilentLog
        log = stack.enter_context(make_log(settings.out, steps=order.steps, start_step=state.step))
        for notice in [*splits["train"].notices, *overlap_notices(splits)]:
            log.say(notice)
        for warning in start.warnings:
            log.warn(warning)
        if resume and not start.saved:
            log.say("the run folder holds no checkpoint yet: starting from step 0")
        _say_start(settings, order, start, device, group, log)
        if group.is_first:
            stack.enter_context(keeping_status(settings.out, state, order.steps))
        quarantine = Quarantine(settings.out, settings.data.bad_images_budget)
        if quarantine:
            log.say(f"{len(quarantine)} images of train are in quarantine from before ({QUARANTINE})")
        run = _Run(settings, splits, order, state, facts, log, monitor, group, quarantine, state.step)
        task = Contrast(run.model, settings, device, precision, group)
        batches = training_batches(splits["train"], settings, order, state.step, group.share)
        stack.enter_context(closing(batches))
        with memory_explained(settings.train):
            fit(task, batches, state, order, settings.train, log, run.hooks(), group)
        if quarantine:
            log.say(f"{len(quarantine)} images of train could not be used: {QUARANTINE} in the run folder lists them")
        log.say(f"done: {order.steps} steps; the encoder is in the run folder's checkpoints/")


def _load_splits(settings: RunSettings, group: Group) -> dict[str, Split]:
    """Return train, and val where features are to be scored, having checked that this machine can train on them."""
    place = shared_memory_place()
    beside = group.tell(place).count(place)  # processes on this machine, with this one
    with group.one_fate():
        loaded = load_manifest(settings.data, ("train", "val") if settings.data.labels else ("train",))
        splits = {name: check_images(split, settings.data) for name, split in loaded.items()}
        check_sizes(len(splits["train"]), settings, group.size)
        check_shared_memory(settings, settings.train.global_batch_size // group.size, beside)
    return splits


@dataclass
class _Start:
    """What a run begins with: its state, the checkpoint that came from, and what the user should know."""

    state: TrainState
    saved: dict[str, Any] | None
    warnings: list[str]


def _enter_folder(
    stack: ExitStack,
    settings: RunSettings,
    facts: Tree,
    device: torch.device,
    precision: str,
    resume: bool,
    overwrite: bool,
    allow_change: bool,
    group: Group,
) -> _Start:
    """Take the run folder, which the first process holds until the stack ends, and what is saved in it."""
    warnings: list[str] = []

    def take() -> None:
        stack.enter_context(holding(settings.out, warnings.append))
        claim(settings.out, resume=resume, overwrite=overwrite)

    group.first(take)
    with group.one_fate():
        saved = load_newest(settings.out, warnings.append) if resume else None
        warnings += check_changes(saved, facts, allow=allow_change) if saved else []
        state = create_state(settings, device, precision, group)
        model = state.model
        assert isinstance(model, MoCo)
        if saved:
            if "queue" in saved["model"]:
                saved["model"]["queue"] = model.own_part(saved["model"]["queue"])
            restore(state, saved)
    group.first(lambda: describe_run(settings.out, settings, device, precision, facts))
    return _Start(state, saved, warnings)


def _say_start(
    settings: RunSettings, order: StepOrder, start: _Start, device: torch.device, group: Group, log: RunLog
) -> None:
    before = start.saved.get("processes", 1) if start.saved else group.size
    if before != group.size:
        log.say(
            f"the run had {before} processes and now has {group.size}: the same samples and views in the same order"
        )
    wanted, groups = settings.method.batch_norm_splits, batch_norm_groups(settings, group.size)
    if groups != wanted:
        log.say(
            f"batch norm takes its statistics over {groups} groups of the batch, not {wanted}: at least one for each"
            " process and part"
        )
    precision, why = choose_precision(settings.train, device)
    log.say(
        f"{'resuming' if start.saved else 'pretraining'} {settings.model.backbone} by {settings.method.name}"
        f" on {order.samples} images, {order.steps} steps of {order.batch_size}, from step {start.state.step},"
        f" {f'{group.size} processes on ' if group.size > 1 else ''}{device.type}, {precision} ({why})"
    )


@dataclass
class _Run:
    """What the training loop calls back."""

    settings: RunSettings
    splits: dict[str, Split]
    order: StepOrder
    state: TrainState
    facts: Tree
    log: RunLog
    monitor: Monitor
    group: Group
    quarantine: Quarantine
    start_step: int
    traffic_told: bool = False

    @property
    def model(self) -> MoCo:
        """The networks and the queue."""
        assert isinstance(self.state.model, MoCo)
        return self.state.model

    def hooks(self) -> Hooks:
        return Hooks(self.save, self.after_epoch, self.skipped, self.replaced)

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, after making sure that all processes hold the same."""
        model = self.model
        shared = {name: tensor for name, tensor in model.state_dict().items() if name != "queue" or not model.sharded}
        self.group.check_same("the weights", list(shared.values()))
        content = {**state.as_content(), **self.facts}
        content["model"]["queue"] = model.whole_queue()

        def write() -> None:
            save_checkpoint(self.settings.out / CHECKPOINTS, state.step, content)
            write_status(self.settings.out, "running", state.step, self.order.steps)

        self.group.first(write)

    def after_epoch(self, epoch: int, stop_asked: Callable[[], bool]) -> dict[str, float]:
        """Measure what the features are worth so far, where that is due."""
        if self.group.size > 1 and not self.traffic_told:
            self.traffic_told = True
            self.log.say(traffic(self.group, self.settings, self.state.step - self.start_step, self.model))
        every = self.settings.train.knn_every
        if not every or (epoch + 1) % every or not self.settings.data.labels:
            return {}
        backbone, train = self.model.query_encoder.backbone, self.splits["train"]
        splits = {**self.splits, "train": train.select(~np.isin(train.rows, self.quarantine.rows()))}

        def measure() -> dict[str, float]:
            try:
                return self.monitor(backbone, splits, self.settings, stop_asked)  # type: ignore[arg-type]
            except Stopped:
                return {}
            except ImageError as error:
                if self.settings.data.bad_images == "refuse":
                    raise
                self.log.warn(f"no kNN score of epoch {epoch}: {error}")
                return {}

        return self.group.first(measure, patiently=True) or {}

    def skipped(self, step: int, total: int, processes: list[int]) -> None:
        """Record a step that did nothing, with what is needed to do it again."""
        if not processes and self.state.scaler.is_enabled():
            return  # fp16 is still finding its scale
        batch, split = self.order.batch(step), self.splits["train"]
        self.log.append("skipped.jsonl", {
            "step": step, "epoch": batch.epoch, "processes": processes, "rows": split.rows[batch.samples].tolist(),
        })  # fmt: skip
        self.log.warn(
            f"step {step} is skipped, the {total}. so far: its {'loss' if processes else 'gradient'} is not finite;"
            f" the rows of {split.csv.name} are in skipped.jsonl"
        )

    def replaced(self, batch: Batch) -> None:
        """List the images that cannot be used and that a batch holds others for, of all processes."""
        split, texts = self.splits["train"], self.group.tell(json.dumps([asdict(one) for one in batch.replaced]))
        found = [Replacement(**one) for text in texts for one in json.loads(text)]
        check_pairs(found, split)
        new = self.quarantine.add(found)
        if new:
            self.group.first(self._write_quarantine)
        for row, reason in new:
            self.log.remark(
                f"{split.csv.name} row {row}: left out, another image takes its place ({QUARANTINE} lists it): {reason}"
            )
        self.quarantine.check_budget(split.csv.name)

    def _write_quarantine(self) -> None:
        with saying_what_disk_refuses():
            self.quarantine.write()
