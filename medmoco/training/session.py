"""A training run from locking its folder to closing its log, for pretraining, fine-tuning and detection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from medmoco.config import Tree
from medmoco.data.loading.loading import Batch
from medmoco.data.loading.quarantine import Quarantine
from medmoco.data.loading.sampler import StepOrder
from medmoco.data.manifest.manifest import Split
from medmoco.training.agreement import check_same, on_first
from medmoco.training.checkpoint import save_checkpoint
from medmoco.training.context import RunContext
from medmoco.training.engine import TrainState
from medmoco.training.run_folder import CHECKPOINTS, HARMLESS, StartMode, describe_run, enter_folder
from medmoco.training.runlog import RunLog, SilentLog
from medmoco.training.skipped_steps import SkippedSteps
from medmoco.training.status import reporting_end, write_status


@dataclass(frozen=True, kw_only=True)
class Job:
    """The work of a run."""

    split: Split
    facts: Tree  # stored in its checkpoints, see `facts_of`
    create_state: Callable[[], TrainState]  # builds the state of step 0
    notices: Sequence[str] = ()  # for the log
    warnings: Sequence[str] = ()  # for the log
    harmless: tuple[str, ...] = HARMLESS  # prefixes of the settings that may change on resuming, see `check_changes`


@dataclass
class TrainingSession:
    """A run in progress."""

    context: RunContext
    order: StepOrder  # the samples of every step
    state: TrainState  # networks, optimiser and step
    checkpoint: dict[str, Any] | None  # the content of the checkpoint that the run was resumed from; None for a new run
    facts: Tree
    log: RunLog
    skipped: SkippedSteps  # steps and images that could not be used
    start_step: int  # where this session began

    def save(self, state: TrainState, **more: Any) -> None:
        """Write a checkpoint with `more` tensors or plain values, if all processes have the same weights."""
        out, group = self.context.settings.out, self.context.group
        check_same(group, "the weights", list(state.model.state_dict().values()))
        content = {**state.as_content(), **self.facts, **more}

        def write() -> None:
            save_checkpoint(out / CHECKPOINTS, state.step, content)
            write_status(out, "running", state.step, self.order.steps)

        on_first(group, write)

    def list_replaced(self, batch: Batch) -> None:
        """List the images that cannot be used."""
        self.skipped.list_replaced(self.skipped.replacements(batch))


def open_session(stack: ExitStack, context: RunContext, job: Job, start: StartMode) -> TrainingSession:
    """Lock the run folder, restore the state saved in it, and open the log.

    At its end, the stack closes the log, writes to status.json how the run ended, and unlocks the folder.

    Raises:
        SettingsError, CheckpointError: see `enter_folder`.
    """
    settings, group = context.settings, context.group
    order = StepOrder(settings.seed, len(job.split), settings.train.global_batch_size, settings.train.epochs)
    facts = {**job.facts, "processes": group.size}
    initial = enter_folder(stack, context, facts, job.create_state, start, job.harmless)
    state = initial.state
    stack.enter_context(reporting_end(settings.out, state, order.steps, settings.train, group))
    changes = on_first(group, lambda: describe_run(settings.out, context, facts)) or []
    make_log = RunLog if group.is_first else SilentLog
    log = stack.enter_context(
        make_log(settings.out, steps=order.steps, start_step=state.step, quiet=not context.progress)
    )
    for notice in job.notices:
        log.info(notice)
    for warning in [*job.warnings, *initial.warnings, *changes]:
        log.warn(warning)
    if start.resume and not initial.checkpoint:
        log.info("the run folder holds no checkpoint yet: starting from step 0")
    quarantine = Quarantine(settings.out, settings.data.bad_images_budget)
    skipped = SkippedSteps(order, job.split, state, log, group, quarantine)
    skipped.log_earlier()
    return TrainingSession(context, order, state, initial.checkpoint, facts, log, skipped, state.step)
