"""Wires a pretraining run: settings -> split, views, MoCo, loop, run folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from medmoco.config import RunSettings, Tree
from medmoco.data.loading.emptiness import check_masks
from medmoco.data.loading.loading import Batch, check_images, training_batches
from medmoco.data.loading.pairs import partner_notices, plan_of
from medmoco.data.loading.quarantine import Quarantine, check_pairs
from medmoco.data.loading.sampler import StepOrder
from medmoco.data.loading.workers import check_shared_memory, shared_memory_place
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.data.manifest.overlap import overlap_notices
from medmoco.errors import ImageError, Stopped
from medmoco.models.backbones import Backbone
from medmoco.models.moco import MoCo
from medmoco.training.checkpoint import save_checkpoint
from medmoco.training.device import choose_precision, memory_explained, prepare_device
from medmoco.training.distributed import ALONE, Group
from medmoco.training.engine import Hooks, TrainState, fit
from medmoco.training.moco_task import (
    Contrast,
    batch_norm_groups,
    check_sizes,
    create_state,
    negative_numbers,
    traffic,
)
from medmoco.training.run_folder import (
    CHECKPOINTS,
    Start,
    describe_run,
    enter_folder,
    facts_of,
)
from medmoco.training.runlog import RunLog, SilentLog
from medmoco.training.skipped_steps import Mishaps
from medmoco.training.status import reporting_end, write_status

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
) -> Backbone:
    """Pretrain an encoder on the training split, leave a run folder, and return the query encoder's backbone.

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
    device, precision, _ = prepare_device(settings.train, group)
    splits = _load_splits(settings, group)
    facts = {**facts_of(settings, splits["train"]), "processes": group.size}
    order = StepOrder(settings.seed, len(splits["train"]), settings.train.global_batch_size, settings.train.epochs)

    with memory_explained(settings.train), ExitStack() as stack:
        start = enter_folder(
            stack, settings, facts, lambda: create_state(settings, device, precision, group),
            resume=resume, overwrite=overwrite, allow_change=allow_change, group=group, adapt=_take_own_part_of_queue,
        )  # fmt: skip
        state = start.state
        stack.enter_context(reporting_end(settings.out, state, order.steps, settings.train, group))
        changes = group.first(lambda: describe_run(settings.out, settings, device, precision, facts)) or []
        make_log = RunLog if group.is_first else SilentLog
        log = stack.enter_context(make_log(settings.out, steps=order.steps, start_step=state.step))
        for notice in [*splits["train"].notices, *overlap_notices(splits)]:
            log.info(notice)
        for warning in [*start.warnings, *changes]:
            log.warn(warning)
        if resume and not start.saved:
            log.info("the run folder holds no checkpoint yet: starting from step 0")
        _say_start(settings, order, start, device, group, log)
        quarantine = Quarantine(settings.out, settings.data.bad_images_budget)
        mishaps = Mishaps(order, splits["train"], state, log, group, quarantine)
        mishaps.say_what_is_known()
        run = _Run(settings, splits, order, state, facts, log, monitor, group, mishaps, state.step)
        numbers = negative_numbers(splits["train"], settings.method)
        task = Contrast(run.model, settings, device, precision, group, numbers=numbers, steps=order.steps)
        batches = training_batches(splits["train"], settings, order, state.step, group.share)
        stack.enter_context(closing(batches))
        fit(task, batches, state, order, settings.train, log, run.hooks(), group)
        mishaps.say_what_came()
        log.info(f"done: {order.steps} steps; the encoder is in the run folder's checkpoints/")
        return run.model.query_encoder.backbone  # type: ignore[return-value]


def _load_splits(settings: RunSettings, group: Group) -> dict[str, Split]:
    """Return train, and val where features are to be scored, having checked that this machine can train on them."""
    beside = group.beside(shared_memory_place())
    with group.one_fate():
        loaded = load_manifest(settings.data, ("train", "val") if settings.data.labels else ("train",))
        splits = {name: check_images(split, settings.data) for name, split in loaded.items()}
        train = splits["train"]
        notices = (*train.notices, *partner_notices(train, settings.positives))
        splits["train"] = replace(train, notices=notices)
        check_masks(train, settings.data, settings.decoder)
        check_sizes(len(train), settings, group.size)
        views = len(plan_of(settings.method, settings.decoder).views)
        check_shared_memory(settings, settings.train.global_batch_size // group.size, beside, views)
    return splits


def _take_own_part_of_queue(state: TrainState, saved: dict[str, Any]) -> None:
    model = state.model
    assert isinstance(model, MoCo)
    for name in saved["model"].keys() & set(model.divided):
        saved["model"][name] = model.own_part(saved["model"][name])


def _say_start(
    settings: RunSettings, order: StepOrder, start: Start, device: torch.device, group: Group, log: RunLog
) -> None:
    model: Any = start.state.model
    if model.query_encoder.backbone.start and not start.saved:
        log.info(f"starting from {model.query_encoder.backbone.start}")
    before = start.saved.get("processes", 1) if start.saved else group.size
    if before != group.size:
        log.info(
            f"the run had {before} processes and now has {group.size}: the same samples and views in the same order"
        )
    wanted, groups = settings.method.batch_norm_splits, batch_norm_groups(settings, group.size)
    if groups != wanted:
        log.info(
            f"batch norm takes its statistics over {groups} groups of the batch, not {wanted}: at least one for each"
            " process and part"
        )
    precision, why = choose_precision(settings.train, device)
    log.info(
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
    mishaps: Mishaps
    start_step: int
    traffic_told: bool = False

    @property
    def model(self) -> MoCo:
        """The networks and the queue."""
        assert isinstance(self.state.model, MoCo)
        return self.state.model

    def hooks(self) -> Hooks:
        return Hooks(self.save, self.after_epoch, self.mishaps.skipped, self.replaced)

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, after making sure that all processes hold the same."""
        model = self.model
        divided = model.divided
        shared = [tensor for name, tensor in model.state_dict().items() if name not in divided]
        self.group.check_same("the weights", shared)
        content = {**state.as_content(), **self.facts}
        content["model"] |= {name: model.whole(content["model"][name]) for name in divided}

        def write() -> None:
            save_checkpoint(self.settings.out / CHECKPOINTS, state.step, content)
            write_status(self.settings.out, "running", state.step, self.order.steps)

        self.group.first(write)

    def after_epoch(self, epoch: int, stop_asked: Callable[[], bool]) -> dict[str, float]:
        """Measure what the features are worth so far, where that is due."""
        if self.group.size > 1 and not self.traffic_told:
            self.traffic_told = True
            self.log.info(traffic(self.group, self.settings, self.state.step - self.start_step, self.model))
        every = self.settings.train.knn_every
        if not every or (epoch + 1) % every or not self.settings.data.labels:
            return {}
        backbone, train = self.model.query_encoder.backbone, self.splits["train"]
        splits = {**self.splits, "train": train.select(~np.isin(train.rows, self.mishaps.quarantine.rows()))}

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

    def replaced(self, batch: Batch) -> None:
        """List the images that cannot be used, having made sure that both views of a pair are of one image."""
        found = self.mishaps.replacements(batch)
        check_pairs(found, self.splits["train"], plan_of(self.settings.method, self.settings.decoder))
        self.mishaps.replaced(found)
