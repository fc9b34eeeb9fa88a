"""Supervised training (fine-tuning, detection, segmentation): keep the epoch that is best on val, and stop early."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from medmoco.config import DetectionSettings, FinetuneSettings, RunSettings, SegmentationSettings, TrainSettings
from medmoco.data.loading.loading import Batches
from medmoco.data.loading.sampler import StepOrder
from medmoco.errors import SettingsError, Stopped
from medmoco.training.agreement import from_first
from medmoco.training.context import RunContext
from medmoco.training.engine import Hooks, Loop, Task, TrainState
from medmoco.training.run_folder import StartMode
from medmoco.training.session import Job, TrainingSession, open_session

Measure = Callable[[Callable[[], bool]], tuple[float, dict[str, float]]]
"""Scores val. Receives a function that returns whether to stop; returns the score that chooses the epoch, higher is
better, and all measurements for the log."""

_OF_THE_LOOP = (
    "epochs", "global_batch_size", "optimizer", "lr", "weight_decay", "warmup_epochs", "schedule", "milestones",
)  # fmt: skip


def loop_settings(
    settings: RunSettings, chosen: FinetuneSettings | DetectionSettings | SegmentationSettings
) -> RunSettings:
    """Return settings whose `train` has the values of `chosen` where that has the same setting.

    The batch is then another, which `method.batch_norm_splits`, of pretraining only, need not divide.
    """
    own = {key: getattr(chosen, key) for key in _OF_THE_LOOP}
    train = settings.train.model_copy(update=own | {"knn_every": 0, "patience": None})
    return settings.model_copy(
        update={"train": train, "method": settings.method.model_copy(update={"batch_norm_splits": 1})}
    )


def check_parts(section: str, train: TrainSettings, processes: int) -> None:
    """Raise SettingsError if the batch of a section of the settings does not divide among processes and their parts."""
    passes = processes * train.accumulation_steps
    if train.global_batch_size % passes:
        raise SettingsError(
            f"{section}.global_batch_size {train.global_batch_size} does not divide evenly among"
            f" {processes} process{'es' * (processes > 1)} x train.accumulation_steps {train.accumulation_steps}.\n"
            f"Set it to a multiple of {passes}, or change the number of processes (--devices) or parts."
        )


@dataclass
class Best:
    """The best epoch so far; the first of equals."""

    epoch: int = -1  # from 0; -1 before the first
    score: float = -math.inf  # higher is better
    model: dict[str, Tensor] = field(default_factory=dict)  # its weights, on the CPU
    validated: int = 0  # number of scored epochs

    def take(self, score: float, model: nn.Module) -> None:
        """Consider the next epoch."""
        if score > self.score:
            self.epoch, self.score = self.validated, score
            self.model = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        self.validated += 1

    def is_final(self, patience: int) -> bool:
        """Return whether `patience` epochs have passed without a better one; never if it is 0."""
        return bool(patience) and self.validated - 1 - self.epoch >= patience


@dataclass(frozen=True, kw_only=True)
class SupervisedJob(Job):
    """The work of a supervised run."""

    description: str  # model and device, for the log
    patience: int  # epochs without a better one after which training stops; 0 disables this
    measure: Measure
    # Yields this process's share of the batches from a step on
    batches: Callable[[StepOrder, int], Batches]
    create_task: Callable[[], Task]  # builds the task of the training loop, once the state exists


@dataclass
class Selection:
    """A supervised run, and its best epoch."""

    session: TrainingSession
    job: SupervisedJob
    best: Best = field(default_factory=Best)

    def fit(self) -> None:
        """Train; see `train_and_select`."""
        session, job = self.session, self.job
        state, order, context = session.state, session.order, session.context
        if session.checkpoint:
            self._restore(session.checkpoint)
        hooks = Hooks(
            save=self._save,
            after_epoch=self._after_epoch,
            skipped=session.skipped.list_skipped,
            replaced=session.list_replaced,
            finished=self.ended_early,
        )
        with closing(job.batches(order, state.step)) as batches:
            Loop(state, order, context.settings.train, session.log, hooks, context.group).fit(
                job.create_task(), batches
            )
        session.skipped.log_total()
        if self.best.validated < state.step // order.steps_per_epoch:
            raise Stopped(f"stopped after step {state.step} before its epoch was scored; everything is saved")
        state.model.load_state_dict(self.best.model)

    def ended_early(self) -> bool:
        """Return whether `patience` epochs have passed without a better one."""
        return self.best.is_final(self.job.patience)

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        """Load the best epoch; score the last one if the run was stopped before that."""
        self.best = Best(**checkpoint["best"])
        step = self.session.state.step
        epochs, rest = divmod(step, self.session.order.steps_per_epoch)
        if not rest and self.best.validated < epochs:
            self.session.log.record(step, self._after_epoch(epochs - 1, lambda: False))

    def _save(self, state: TrainState) -> None:
        self.session.save(state, best=dict(vars(self.best)))

    def _after_epoch(self, epoch: int, stop_asked: Callable[[], bool]) -> dict[str, float]:
        """Score val, and keep the weights if they are the best so far."""

        def measure() -> tuple[float, dict[str, float]] | None:
            try:
                return self.job.measure(stop_asked)
            except Stopped:
                return None  # the loop saves now, and the resumed run scores this epoch

        found = from_first(self.session.context.group, measure, patiently=True)
        if not found:
            return {}
        score, values = found
        self.best.take(score, self.session.state.model)
        return values


def train_and_select(stack: ExitStack, context: RunContext, job: SupervisedJob, start: StartMode) -> Selection:
    """Train up to the last step or until early stopping, and load the best epoch's weights into the model.

    Raises:
        SettingsError, CheckpointError: see `open_session`.
        DataError, DistributedError, DivergedError, Stopped: see `Loop.fit`.
    """
    session = open_session(stack, context, job, start)
    order, processes = session.order, context.group.size
    session.log.info(
        f"{'resuming' if session.checkpoint else 'training'} {job.description}"
        f"{f', {processes} processes' if processes > 1 else ''}, up to {order.steps} steps of {order.batch_size},"
        f" from step {session.start_step}"
    )
    selection = Selection(session, job)
    selection.fit()
    return selection
