"""The best epoch so far by the score on validation, and when it is time to give up waiting for a better one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from medmoco.config import DetectionSettings, FinetuneSettings, RunSettings, TrainSettings, Tree
from medmoco.data.loading.loading import Batch, Batches
from medmoco.data.loading.quarantine import Quarantine
from medmoco.data.loading.sampler import StepOrder
from medmoco.data.manifest.manifest import Split
from medmoco.errors import SettingsError, Stopped
from medmoco.training.checkpoint import save_checkpoint
from medmoco.training.distributed import ALONE, Group
from medmoco.training.engine import Hooks, Task, TrainState, fit
from medmoco.training.run_folder import CHECKPOINTS, Start
from medmoco.training.runlog import RunLog, SilentLog
from medmoco.training.skipped_steps import Mishaps
from medmoco.training.status import reporting_end, write_status

Measure = Callable[[Callable[[], bool]], tuple[float, dict[str, float]]]


_OF_THE_LOOP = (
    "epochs", "global_batch_size", "optimizer", "lr", "weight_decay", "warmup_epochs", "schedule", "milestones",
)  # fmt: skip


def loop_settings(train: TrainSettings, chosen: FinetuneSettings | DetectionSettings) -> TrainSettings:
    """Return what the training loop follows: `chosen` takes the place of what it has a say in."""
    return train.model_copy(update={key: getattr(chosen, key) for key in _OF_THE_LOOP} | {"knn_every": 0})


def check_parts(section: str, train: TrainSettings, processes: int) -> None:
    """Refuse a batch that processes and the parts they work in do not divide evenly.

    Args:
        section: Of the settings, that says how large the batch is.
        train: What the training loop follows.
        processes: How many.

    Raises:
        SettingsError: they do not.
    """
    passes = processes * train.accumulation_steps
    if train.global_batch_size % passes:
        raise SettingsError(
            f"{section}.global_batch_size {train.global_batch_size} does not divide among"
            f" {processes} process{'es' * (processes > 1)} x train.accumulation_steps {train.accumulation_steps}.\n"
            f"Set it to a multiple of {passes}, or change the number of processes (--devices) or parts."
        )


@dataclass
class Best:
    """The best epoch so far; of equals the first.

    Attributes:
        epoch: From 0; -1 before the first.
        score: Higher is better.
        model: Its weights, on the CPU.
        validated: How many epochs have been scored.
    """

    epoch: int = -1
    score: float = -math.inf
    model: dict[str, Tensor] = field(default_factory=dict)
    validated: int = 0

    def take(self, score: float, model: nn.Module) -> None:
        """Take in the next epoch."""
        if score > self.score:
            self.epoch, self.score = self.validated, score
            self.model = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        self.validated += 1

    def is_final(self, patience: int) -> bool:
        """Tell whether so many epochs have passed without a better one; never with a patience of 0."""
        return bool(patience) and self.validated - 1 - self.epoch >= patience

    def as_content(self) -> dict[str, Any]:
        """Return tensors and plain values for a checkpoint; `Best(**content)` takes them over."""
        return {"epoch": self.epoch, "score": self.score, "model": self.model, "validated": self.validated}


@dataclass
class Selection:
    """What the training loop calls back in a run whose best epoch is chosen on validation.

    Attributes:
        out: Run folder.
        order: Of the run.
        state: Of the run.
        facts: What a checkpoint remembers of the run.
        log: Of the run.
        mishaps: Of the run.
        patience: Epochs without a better one after which training ends; 0 is never.
        measure: Scores val, given what tells whether the run is asked to stop; returns the score that chooses, higher
            is better, and all that is worth recording.
        best: So far.
        group: The processes that train together; the first of them scores.
    """

    out: Path
    order: StepOrder
    state: TrainState
    facts: Tree
    log: RunLog
    mishaps: Mishaps
    patience: int
    measure: Measure
    best: Best = field(default_factory=Best)
    group: Group = field(default_factory=lambda: ALONE)

    def hooks(self) -> Hooks:
        """Return what `fit` takes."""
        return Hooks(self.save, self.after_epoch, self.mishaps.skipped, self.replaced, self.finished)

    def take_up(self, saved: dict[str, Any] | None) -> None:
        """Go on from a checkpoint; score the epoch at whose end the run was stopped before it was scored."""
        if not saved:
            return
        self.best = Best(**saved["best"])
        epochs, rest = divmod(self.state.step, self.order.steps_per_epoch)
        if not rest and self.best.validated < epochs:
            self.log.record(self.state.step, self.after_epoch(epochs - 1, lambda: False))

    def save(self, state: TrainState) -> None:
        """Write a checkpoint, after making sure that all processes hold the same."""
        content = {**state.as_content(), **self.facts, "best": self.best.as_content()}
        self.group.check_same("the weights", list(state.model.state_dict().values()))

        def write() -> None:
            save_checkpoint(self.out / CHECKPOINTS, state.step, content)
            write_status(self.out, "running", state.step, self.order.steps)

        self.group.first(write)

    def replaced(self, batch: Batch) -> None:
        """List the images that cannot be used."""
        self.mishaps.replaced(self.mishaps.replacements(batch))

    def finished(self) -> bool:
        """Tell whether `patience` epochs have passed without a better one."""
        return self.best.is_final(self.patience)

    def after_epoch(self, epoch: int, stop_asked: Callable[[], bool]) -> dict[str, float]:
        """Score val, and keep the weights if they are the best so far."""

        def measure() -> tuple[float, dict[str, float]] | None:
            try:
                return self.measure(stop_asked)
            except Stopped:
                return None  # the loop saves now; `take_up` scores this epoch

        found = self.group.from_first(measure, patiently=True)
        if not found:
            return {}
        score, values = found
        self.best.take(score, self.state.model)
        return values

    def take_best(self) -> None:
        """Put the best epoch's weights into the model.

        Raises:
            Stopped: the run was stopped before its last epoch was scored.
        """
        if self.best.validated < self.state.step // self.order.steps_per_epoch:
            raise Stopped(f"stopped after step {self.state.step} before its epoch was scored; everything is saved")
        self.state.model.load_state_dict(self.best.model)


def train_and_select(
    stack: ExitStack,
    settings: RunSettings,
    start: Start,
    facts: Tree,
    group: Group,
    *,
    what: str,
    notes: Sequence[str],
    split: Split,
    patience: int,
    measure: Measure,
    make_batches: Callable[[StepOrder, int], Batches],
    make_task: Callable[[], Task],
) -> Selection:
    """Train until the order ends or patience does, and put the best epoch's weights into the model.

    Args:
        stack: Closes the log, and says in status.json how the run ended.
        settings: Of the run; `train` is what the loop follows.
        start: Of the run.
        facts: What a checkpoint remembers of the run.
        group: The processes that train together.
        what: Is trained and where, for the log.
        notes: For the log, before all else.
        split: That is learned from.
        patience: See Selection.
        measure: See Selection.
        make_batches: Yields this process's share of the batches of an order from a step on.
        make_task: Makes the task of the training loop.

    Raises:
        DataError, DistributedError, DivergedError, Stopped: see `fit`.
    """
    train, state = settings.train, start.state
    order = StepOrder(settings.seed, len(split), train.global_batch_size, train.epochs)
    make_log = RunLog if group.is_first else SilentLog
    stack.enter_context(reporting_end(settings.out, state, order.steps, train, group))
    log = stack.enter_context(make_log(settings.out, steps=order.steps, start_step=state.step))
    for note in notes:
        log.info(note)
    for warning in start.warnings:
        log.warn(warning)
    processes = f", {group.size} processes" if group.size > 1 else ""
    log.info(
        f"{'resuming' if start.saved else 'training'} {what}{processes}, up to {order.steps} steps"
        f" of {order.batch_size}, from step {state.step}"
    )
    mishaps = Mishaps(order, split, state, log, group, Quarantine(settings.out, settings.data.bad_images_budget))
    mishaps.say_what_is_known()
    selection = Selection(settings.out, order, state, facts, log, mishaps, patience, measure, group=group)
    selection.take_up(start.saved)
    batches = stack.enter_context(closing(make_batches(order, state.step)))
    fit(make_task(), batches, state, order, train, log, selection.hooks(), group)
    mishaps.say_what_came()
    selection.take_best()
    return selection
