"""The only training loop. A task says what a step computes; the loop does everything around it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medmoco.config import TrainSettings
from medmoco.data.loading import Batch
from medmoco.data.order import StepOrder, hashed
from medmoco.data.stopping import stop_requests
from medmoco.errors import DivergedError, Stopped
from medmoco.training.device import autocast
from medmoco.training.optim import learning_rate
from medmoco.training.runlog import RunLog


class Task(Protocol):
    """What is trained."""

    @property
    def model(self) -> nn.Module:
        """Everything that is trained or follows; what a checkpoint holds."""

    def training_step(self, batch: Batch, measure: bool) -> dict[str, Tensor]:
        """Return "loss", and when `measure` is set what else is worth recording, all scalars."""

    def after_step(self) -> None:
        """Do what must wait for the optimiser's step."""


@dataclass
class TrainState:
    """Everything that changes from step to step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0

    def as_content(self) -> dict[str, Any]:
        """Return tensors and plain values for a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Take over what `as_content` gave."""
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.step = content["step"]


@dataclass(frozen=True)
class Hooks:
    """What the loop calls back: save the state, and measure after an epoch."""

    save: Callable[[TrainState], None]
    after_epoch: Callable[[int], dict[str, float]]


def fit(
    task: Task,
    batches: Iterator[Batch],
    state: TrainState,
    order: StepOrder,
    train: TrainSettings,
    precision: str,
    log: RunLog,
    hooks: Hooks,
) -> None:
    """Train from state.step to the end of the order.

    Args:
        task: What is trained.
        batches: Of steps state.step, state.step + 1, ...
        state: Changed in place; saved by `hooks.save` every so often, at the end and on a stop.
        order: Knows the number of steps.
        train: The loop's settings.
        precision: fp32, bf16 or fp16.
        log: Told of measurements.
        hooks: See Hooks.

    Raises:
        DivergedError: the loss is not finite; the state is not saved.
        Stopped: a signal asked for it; the state is saved.
        DataError: an image cannot be used.
    """
    device = next(task.model.parameters()).device
    interval = Interval(order.batch_size, device)
    first_epoch_ends = state.step + order.steps_per_epoch  # later epochs read the same files again
    with stop_requests() as stop_asked:
        while state.step < order.steps:
            batch = interval.wait_for(batches)
            measure = (state.step + 1) % train.log_every == 0 or state.step + 1 == order.steps
            outputs = _step(task, batch, state, order, train, precision, device, measure)
            interval.add(outputs["loss"])
            log.advance(state.step)
            for notice in batch.notices if state.step <= first_epoch_ends else ():
                log.remark(notice)
            if measure:
                _record(interval, outputs, state, order, train, log)
            if state.step % order.steps_per_epoch == 0:
                with interval.pause():
                    measured = hooks.after_epoch(state.step // order.steps_per_epoch - 1)
                if measured:
                    log.record(state.step, measured)
            if stop_asked() or state.step % train.checkpoint_every == 0 or state.step == order.steps:
                interval.refuse_divergence(state.step)
                hooks.save(state)
            if stop_asked() and state.step < order.steps:
                raise Stopped(f"stopped after step {state.step} of {order.steps}; everything is saved")


def _step(
    task: Task,
    batch: Batch,
    state: TrainState,
    order: StepOrder,
    train: TrainSettings,
    precision: str,
    device: torch.device,
    measure: bool,
) -> dict[str, Tensor]:
    """Do one optimiser step."""
    # Networks with dropout draw from torch's generator: the step alone decides what, so resuming needs no state of it.
    torch.manual_seed(int(hashed(order.seed, state.step)[0] >> 1))
    task.model.train()
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(train, state.step / order.steps_per_epoch)
    with autocast(device, precision):
        outputs = task.training_step(batch, measure)
    state.optimizer.zero_grad(set_to_none=True)
    state.scaler.scale(outputs["loss"]).backward()
    if train.clip_norm is not None:
        state.scaler.unscale_(state.optimizer)
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, train.clip_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    task.after_step()
    state.step += 1
    return outputs


def _record(
    interval: Interval,
    outputs: dict[str, Tensor],
    state: TrainState,
    order: StepOrder,
    train: TrainSettings,
    log: RunLog,
) -> None:
    interval.refuse_divergence(state.step)
    values = {key: value.item() for key, value in outputs.items() if key != "loss"}
    seconds = interval.seconds_per_step
    record = {
        "epoch": (state.step - 1) // order.steps_per_epoch,
        **interval.values(),
        **values,
        "lr": learning_rate(train, (state.step - 1) / order.steps_per_epoch),
    }
    log.record(state.step, record, seconds_left=seconds * (order.steps - state.step))
    interval.restart()


class Interval:
    """Loss, speed and waiting between two records; the loss stays on the device until it is read."""

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self._batch_size = batch_size
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Begin the next interval."""
        self._losses = torch.zeros((), device=self._device)
        self._steps = 0
        self._waited = 0.0
        self._start = time.perf_counter()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the time of what is not training."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def wait_for(self, batches: Iterator[Batch]) -> Batch:
        """Take the next batch and count the time that took."""
        start = time.perf_counter()
        batch = next(batches)
        self._waited += time.perf_counter() - start
        return batch

    def add(self, loss: Tensor) -> None:
        """Count one step's loss."""
        self._losses += loss.detach()
        self._steps += 1

    @property
    def seconds_per_step(self) -> float:
        """Mean over the interval so far."""
        return (time.perf_counter() - self._start) / max(self._steps, 1)

    def values(self) -> dict[str, float]:
        """Return the mean loss, images per second and the share of time spent waiting for data."""
        seconds = time.perf_counter() - self._start
        return {
            "loss": self._losses.item() / self._steps,
            "images_per_second": self._steps * self._batch_size / seconds,
            "waiting": self._waited / seconds,
        }

    def refuse_divergence(self, step: int) -> None:
        """Raise DivergedError when a loss of this interval was not finite."""
        if not math.isfinite(self._losses.item()):
            raise DivergedError(
                f"the loss became infinite or not a number in the {self._steps} steps before step {step}.\n"
                "The last checkpoint is older than that. Lower train.lr, set train.clip_norm=1 or train.precision=fp32."
            )
