"""Wires a pretraining run: settings -> split, views, MoCo, loop, run folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial

import numpy as np

from medmoco.config import DataSettings, RunSettings
from medmoco.data.loading.emptiness import check_masks
from medmoco.data.loading.loading import Batch, check_images, training_batches
from medmoco.data.loading.pairs import partner_notices, plan_of
from medmoco.data.loading.quarantine import check_pairs
from medmoco.data.loading.workers import check_shared_memory, check_sockets, shared_memory_place
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.data.manifest.overlap import overlap_notices
from medmoco.data.quality.shapes import training_elongation
from medmoco.errors import ImageError, Stopped
from medmoco.models.backbones import Backbone
from medmoco.models.moco import MoCo
from medmoco.training.agreement import count_sharing, together
from medmoco.training.best_checkpoint import Selection, patience_refusals
from medmoco.training.context import RunContext, prepare_context
from medmoco.training.device import memory_explained
from medmoco.training.distributed import ALONE, Group
from medmoco.training.duration import Pace, duration_words, warning_before_start
from medmoco.training.engine import Hooks, Loop
from medmoco.training.moco_task import Contrast, create_fitting_backbone, create_state, negative_numbers, traffic
from medmoco.training.refusals import Refusals
from medmoco.training.run_folder import NEW, StartMode, facts_of, refuse_taken
from medmoco.training.session import Job, TrainingSession, open_session
from medmoco.training.sizes import batch_norm_groups, size_refusals

Monitor = Callable[[Backbone, dict[str, Split], RunSettings, Callable[[], bool]], dict[str, float]]
"""Scores a backbone on the splits during training; provided by the caller, since scoring is in a higher layer. It calls
its last argument from time to time, and raises Stopped if that returns True."""


def pretrain(
    settings: RunSettings,
    *,
    monitor: Monitor,
    start: StartMode = NEW,
    group: Group = ALONE,
    progress: bool = True,
    steps: int | None = None,
    estimate: bool = True,
) -> Backbone:
    """Pretrain an encoder on the training split, write a run folder, and return the query encoder's backbone.

    Args:
        settings: Settings of the run.
        monitor: Scores the backbone every `train.knn_every` epochs.
        start: What happens to a run that is in the folder already.
        group: The processes that train together; the first of them writes files and logs.
        progress: Show messages and a progress bar on stderr; log.txt has the messages either way.
        steps: End after this many steps, with a checkpoint, as a trial of the run.
        estimate: Log the expected duration after the first steps, and warn before if it is long on this CPU.

    Raises:
        SettingsError: the queue or the batch exceeds the training split; the folder holds another run. All that can be
            known before the run begins is in one message.
        CheckpointError, DataError, DistributedError, DivergedError, Stopped: also recorded in status.json.
    """
    context = prepare_context(settings, group, progress=progress)
    splits = _load_splits(context, start)
    train = splits["train"]
    job = Job(
        split=train,
        facts=facts_of(settings, train),
        create_state=lambda: create_state(context),
        notices=[*train.notices, *overlap_notices(splits), *filter(None, [training_elongation(train, settings)])],
    )
    with memory_explained(settings.train), ExitStack() as stack:
        session = open_session(stack, context, job, start)
        _log_start(session)
        if estimate and (warning := warning_before_start(train, session.order.steps - session.start_step, context)):
            session.log.warn(warning)
        selection = Selection(session, partial(_measure, session, splits, monitor))
        selection.restore()
        state, order, model = session.state, session.order, session.state.model
        assert isinstance(model, MoCo)
        numbers = negative_numbers(train, settings.method)
        task = Contrast(model, context, numbers=numbers, steps=order.steps)
        batches = training_batches(train, settings, order, state.step, group.share)
        stack.enter_context(closing(batches))
        hooks = Hooks(
            save=selection.save,
            after_epoch=partial(_after_epoch, session, selection),
            skipped=session.skipped.list_skipped,
            replaced=partial(_list_replaced, session),
            must_save=selection.must_save,
            stepped=partial(_log_duration, session, Pace()) if estimate else lambda: None,
            finished=lambda: (
                selection.ended_early() or (steps is not None and state.step >= session.start_step + steps)
            ),
        )
        Loop(state, order, settings.train, session.log, hooks, group).fit(task, batches)
        session.skipped.log_total()
        if steps is None:
            selection.finish()
        return model.query_encoder.backbone  # type: ignore[return-value]


def _load_splits(context: RunContext, start: StartMode) -> dict[str, Split]:
    """Return train, and val if features are scored, after checking that this machine can train on them.

    Whatever would stop the run is reported at once.
    """
    settings, group = context.settings, context.group
    data, refusals = settings.data, Refusals()
    sharing = count_sharing(group, shared_memory_place())
    with together(group):
        loaded = _load_what_can_be(data, refusals)
        splits: dict[str, Split] = {}
        with refusals.collecting():  # what is wrong with the files of train is usually wrong with those of val
            for name, split in loaded.items():
                splits[name] = check_images(split, data)
        if train := splits.get("train", loaded.get("train")):
            with refusals.collecting():
                notices = (*train.notices, *partner_notices(train, settings.positives))
                splits["train"] = replace(train, notices=notices)
            with refusals.collecting():
                check_masks(train, data, settings.decoder)
            refusals.add(*size_refusals(len(train), settings, group.size).errors)
        refusals.add(*patience_refusals(settings, splits))
        if data.workers:
            with refusals.collecting():
                check_sockets()
        with refusals.collecting():
            views = len(plan_of(settings.method, settings.decoder).views)
            check_shared_memory(settings, settings.train.global_batch_size // group.size, sharing, views)
        if refusals:  # checks that a run makes later
            with refusals.collecting():
                create_fitting_backbone(settings)
            with refusals.collecting():
                refuse_taken(settings.out, start)
        refusals.refuse()
    return splits


def _load_what_can_be(data: DataSettings, refusals: Refusals) -> dict[str, Split]:
    """Return the splits to train on; if they cannot be read, train without labels, so that it can be checked too."""
    attempts: list[tuple[DataSettings, tuple[str, ...]]] = [(data, ("train",))]
    if data.labels:
        attempts = [(data, ("train", "val")), *attempts, (data.model_copy(update={"labels": {}}), ("train",))]
    for settings, names in attempts:
        with refusals.collecting():
            return load_manifest(settings, names)
    return {}


def _log_start(session: TrainingSession) -> None:
    context, order, log = session.context, session.order, session.log
    settings, processes = context.settings, context.group.size
    backbone: Backbone = session.state.model.query_encoder.backbone  # type: ignore[union-attr,assignment]
    if backbone.start and not session.checkpoint:
        log.info(f"starting from {backbone.start}")
        if line := _other_normalisation(backbone, settings):
            log.info(line)
    before = session.checkpoint.get("processes", 1) if session.checkpoint else processes
    if before != processes:
        log.info(
            f"the run had {before} processes and now has {processes}: samples, views and their order stay the same"
        )
    splits, groups = settings.method.batch_norm_splits, batch_norm_groups(settings, processes)
    if groups != splits:
        log.info(
            f"batch norm computes its statistics over {groups} groups of the batch instead of {splits}: each process"
            " and part needs at least one"
        )
    log.info(
        f"{'resuming' if session.checkpoint else 'pretraining'} {settings.model.backbone} with {settings.method.name}"
        f" on {order.samples} {settings.data.noun}, {order.steps} steps of {order.batch_size},"
        f" from step {session.start_step},"
        f" {f'{processes} processes on ' if processes > 1 else ''}{context.device.type}, {context.precision}"
        f" ({context.reason})"
    )


def _other_normalisation(backbone: Backbone, settings: RunSettings) -> str | None:
    """Return a line if gray images are not normalised as for the weights that the run starts from."""
    source, views = backbone.preparation, settings.views
    if source is None or source.mean is None or source.std is None or settings.data.channels != "gray":
        return None
    if np.allclose([views.mean, views.std], [source.mean, source.std], rtol=0, atol=1e-3):
        return None
    return (
        f"the source of these weights normalised images with other values than views.mean={views.mean}"
        f" views.std={views.std}; to use its own, set views.mean={source.mean} views.std={source.std}"
    )


def _log_duration(session: TrainingSession, pace: Pace) -> None:
    """Log the expected duration once it is known, unless the run is then nearly over."""
    seconds, left = pace.after_step(), session.order.steps - session.state.step
    if seconds and left:
        session.log.info(f"expected duration: {duration_words(seconds * left)} for the other {left:,} steps")


def _after_epoch(
    session: TrainingSession, selection: Selection, epoch: int, stop_asked: Callable[[], bool]
) -> dict[str, float]:
    context, model = session.context, session.state.model
    assert isinstance(model, MoCo)
    if context.group.size > 1 and epoch == session.start_step // session.order.steps_per_epoch:
        session.log.info(traffic(context, session.state.step - session.start_step, model))
    return selection.after_epoch(epoch, stop_asked)


def _measure(
    session: TrainingSession, splits: dict[str, Split], monitor: Monitor, epoch: int, stop_asked: Callable[[], bool]
) -> dict[str, float] | None:
    """Score the features; return None if the run is to stop."""
    settings, model, train = session.context.settings, session.state.model, splits["train"]
    usable = {**splits, "train": train.select(~np.isin(train.rows, session.skipped.quarantine.rows()))}
    try:
        return monitor(model.query_encoder.backbone, usable, settings, stop_asked)  # type: ignore[arg-type,union-attr]
    except Stopped:
        return None
    except ImageError as error:
        if settings.data.bad_images == "refuse":
            raise
        session.log.warn(f"no kNN score of epoch {epoch}: {error}")
        return {}


def _list_replaced(session: TrainingSession, batch: Batch) -> None:
    """List the images that cannot be used, after checking that both views of a pair show the same image."""
    settings, skipped = session.context.settings, session.skipped
    found = skipped.replacements(batch)
    check_pairs(found, skipped.split, plan_of(settings.method, settings.decoder))
    skipped.list_replaced(found)
