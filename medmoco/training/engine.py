"""The only training loop. A task says what a step computes; the loop does everything around it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medmoco.config import TrainSettings
from medmoco.data.loading.loading import Batch
from medmoco.data.loading.sampler import StepOrder
from medmoco.errors import DataError, DivergedError, MedmocoError, Stopped
from medmoco.training.distributed import ALONE, Group
from medmoco.training.optim import learning_rate
from medmoco.training.runlog import RunLog
from medmoco.utils.rng import hashed
from medmoco.utils.stopping import stop_requests


class Task(Protocol):
    """What is trained."""

    @property
    def model(self) -> nn.Module:
        """Everything that is trained or follows; what a checkpoint holds."""

    def losses(self, batch: Batch, measure: bool) -> Iterator[dict[str, Tensor]]:
        """Yield, part by part of the batch, "loss", and when `measure` is set what else is worth recording.

        All are scalars, and means over the part divided by the number of parts. The loop runs the backward pass of a
        part before it asks for the next.
        """

    def after_step(self) -> None:
        """Do what must wait for the optimiser's step."""

    def skip_step(self) -> None:
        """Forget what the step has left behind besides gradients; the optimiser did nothing."""


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
    """What the loop calls back, on every process.

    Attributes:
        save: Save the state.
        after_epoch: Measure after an epoch; given the epoch and what tells whether the run is asked to stop.
        skipped: Told of the step that was skipped, how many were so far, and on which processes the loss was not
            finite; on none where the gradient alone was not.
        replaced: Told of this process's batch where on any process one holds another image in place of one that cannot
            be used; raises DataError, on all, where there are too many.
        finished: Whether training ends here, before the order does; alike on all processes.
    """

    save: Callable[[TrainState], None]
    after_epoch: Callable[[int, Callable[[], bool]], dict[str, float]]
    skipped: Callable[[int, int, list[int]], None]
    replaced: Callable[[Batch], None] = lambda _: None
    finished: Callable[[], bool] = lambda: False


def fit(
    task: Task,
    batches: Iterator[Batch],
    state: TrainState,
    order: StepOrder,
    train: TrainSettings,
    log: RunLog,
    hooks: Hooks,
    group: Group = ALONE,
) -> None:
    """Train from state.step to the end of the order, or until it is finished.

    Args:
        task: What is trained.
        batches: This process's share of steps state.step, state.step + 1, ...
        state: Changed in place; saved by `hooks.save` every so often, at the end, on a stop and when data fails.
        order: Knows the number of steps.
        train: The loop's settings.
        log: Told of measurements.
        hooks: See Hooks.
        group: The processes that train together.

    Raises:
        DivergedError: see `Skips` and `_check_finite`; the state is not saved.
        Stopped: a signal asked for it; the state is saved.
        DataError: an image cannot be used, or data does not come; the state is saved.
        DistributedError: another process is gone or hangs.
    """
    device = next(task.model.parameters()).device
    interval = Interval(order.batch_size, device)
    first_epoch_ends = state.step + order.steps_per_epoch  # later epochs read the same files again
    skips = Skips(train.max_skipped, order.steps)
    saved_at = state.step

    def save() -> None:
        nonlocal saved_at
        if state.step != saved_at:
            _check_finite(state)
            hooks.save(state)
            saved_at = state.step

    with group.explained(), stop_requests() as stop_asked:
        while state.step < order.steps and not hooks.finished():
            batch = _next_batch(batches, state, order, interval, stop_asked, save, hooks, group)
            measure = (state.step + 1) % train.log_every == 0 or state.step + 1 == order.steps
            outputs, sound = _step(task, batch, state, order, train, measure, group)
            interval.add(outputs["loss"] if sound else None)
            log.advance(state.step)
            skips.count(sound, outputs["loss"], state, group, hooks)
            for notice in notices_of(batch, group) if state.step <= first_epoch_ends else ():
                log.remark(notice)
            if measure:
                _record(interval, outputs, state, order, train, log, group)
            if state.step % order.steps_per_epoch == 0:
                with interval.pause(), _saving_if_data_fails(save):
                    measured = hooks.after_epoch(state.step // order.steps_per_epoch - 1, stop_asked)
                if measured:
                    log.record(state.step, measured)
            if state.step % train.checkpoint_every == 0 or state.step == order.steps or hooks.finished():
                save()


def notices_of(batch: Batch, group: Group) -> list[str]:
    """Return what the image readers of all processes have remarked on."""
    if not group.any_of(bool(batch.notices))[0]:
        return []
    return [notice for text in group.tell(json.dumps(batch.notices)) for notice in json.loads(text)]


@contextmanager
def _saving_if_data_fails(save: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except DataError:
        save()
        raise


def _next_batch(
    batches: Iterator[Batch],
    state: TrainState,
    order: StepOrder,
    interval: Interval,
    stop_asked: Callable[[], bool],
    save: Callable[[], None],
    hooks: Hooks,
    group: Group,
) -> Batch:
    """Return the next batch; save and raise on every process where one of them has none or is asked to stop."""
    group.at_step(state.step)
    batch, failure = interval.wait_for(batches)
    failed, stop, replaced = group.any_of(failure is not None, stop_asked(), batch is not None and bool(batch.replaced))
    if replaced and not failed:
        assert batch is not None
        try:
            hooks.replaced(batch)
        except DataError as error:
            failed, failure = True, error
    if failed or stop:
        save()
    if failed:
        group.raise_together(failure)
    if stop:
        raise Stopped(f"stopped after step {state.step} of {order.steps}; everything is saved")
    assert batch is not None
    return batch


def _step(
    task: Task, batch: Batch, state: TrainState, order: StepOrder, train: TrainSettings, measure: bool, group: Group
) -> tuple[dict[str, Tensor], bool]:
    """Do one optimiser step, or none where the gradient is not finite; return the measurements, and which it was."""
    # Networks with dropout draw from torch's generator: the step alone decides what, so resuming needs no state of it.
    torch.manual_seed(int(hashed(order.seed, state.step, group.rank)[0] >> 1))
    task.model.train()
    for parameters in state.optimizer.param_groups:
        parameters["lr"] = learning_rate(train, state.step / order.steps_per_epoch) * parameters.get("lr_scale", 1.0)
    state.optimizer.zero_grad(set_to_none=True)
    outputs: dict[str, Tensor] = {}
    for part in task.losses(batch, measure):
        state.scaler.scale(part["loss"]).backward()
        for name, value in part.items():
            outputs[name] = outputs.get(name, 0) + value.detach()
    state.scaler.unscale_(state.optimizer)
    trained = [p for parameters in state.optimizer.param_groups for p in parameters["params"] if p.grad is not None]
    # Gradients are the mean over all processes by now, so every process comes to the same verdict.
    norm = nn.utils.get_total_norm([p.grad for p in trained])
    sound = bool(norm.isfinite())
    if sound:
        if train.clip_norm is not None:
            nn.utils.clip_grads_with_norm_(trained, train.clip_norm, norm)
        state.scaler.step(state.optimizer)
        task.after_step()
    else:
        task.skip_step()
    state.scaler.update()
    state.step += 1
    return outputs | {"gradient_norm": norm}, sound


def _record(
    interval: Interval,
    outputs: dict[str, Tensor],
    state: TrainState,
    order: StepOrder,
    train: TrainSettings,
    log: RunLog,
    group: Group,
) -> None:
    values = {key: value.item() for key, value in outputs.items() if key != "loss"} | {"loss": interval.loss}
    device = next(state.model.parameters()).device
    means = group.mean(torch.tensor(list(values.values()), dtype=torch.float64, device=device), "measurements")
    record = {
        "epoch": (state.step - 1) // order.steps_per_epoch,
        **dict(zip(values, means.tolist(), strict=True)),
        **interval.speed,
        "lr": learning_rate(train, (state.step - 1) / order.steps_per_epoch),
    }
    log.record(state.step, record, seconds_left=interval.seconds_per_step * (order.steps - state.step))
    interval.restart()


class Skips:
    """Counts the steps that were skipped.

    Args:
        most: In a row that a run survives.
        steps: Of the run, the last of which must not be skipped: it would end with networks that give nothing finite.
    """

    def __init__(self, most: int, steps: int) -> None:
        self._most, self._steps, self._in_a_row, self._total = most, steps, 0, 0

    def count(self, sound: bool, loss: Tensor, state: TrainState, group: Group, hooks: Hooks) -> None:
        """Count the step that has been done.

        Raises:
            DivergedError: too many in a row were skipped, or the last of the run.
        """
        if sound:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self._total += 1
        words = group.tell(str(math.isfinite(loss.item())))
        processes = [rank for rank, word in enumerate(words) if word == "False"]
        hooks.skipped(state.step - 1, self._total, processes)
        searching = state.scaler.is_enabled() and not processes  # fp16 is still finding its scale
        if self._in_a_row >= self._most or (state.step == self._steps and not searching):
            steps = f"{self._in_a_row} steps, up to step {state.step - 1}," if self._in_a_row > 1 else "step"
            raise DivergedError(
                f"the last {steps} had no finite gradient and {'were' if self._in_a_row > 1 else 'was'} skipped.\n"
                "skipped.jsonl in the run folder lists them and their rows. Lower train.lr (or finetune.lr), set\n"
                "train.clip_norm=1 or train.precision=fp32, and start anew; checkpoints hold finite weights, but may\n"
                "be past saving."
            )


def _check_finite(state: TrainState) -> None:
    """Raise DivergedError where a step, its gradient finite, was too large for the weights."""
    if not all(bool(parameter.isfinite().all()) for parameter in state.model.parameters()):
        raise DivergedError(
            f"after step {state.step - 1} weights are not finite, and are not saved: lower train.lr (or finetune.lr),\n"
            "or set train.clip_norm=1, and start anew."
        )


class Interval:
    """Loss, speed and waiting between two records; the loss stays on the device until it is read."""

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self._batch_size = batch_size
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Begin the next interval."""
        self._losses = torch.zeros((), device=self._device)
        self._steps = self._counted = 0
        self._waited = 0.0
        self._start = time.perf_counter()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the time of what is not training."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def wait_for(self, batches: Iterator[Batch]) -> tuple[Batch | None, MedmocoError | None]:
        """Take the next batch, or what is wrong with it, and count the time that took."""
        start = time.perf_counter()
        try:
            return next(batches), None
        except MedmocoError as error:
            return None, error
        finally:
            self._waited += time.perf_counter() - start

    def add(self, loss: Tensor | None) -> None:
        """Count one step and its loss; None for one that was skipped."""
        self._steps += 1
        if loss is not None:
            self._losses += loss
            self._counted += 1

    @property
    def seconds_per_step(self) -> float:
        """Mean over the interval so far."""
        return (time.perf_counter() - self._start) / max(self._steps, 1)

    @property
    def loss(self) -> float:
        """Mean over the steps that were not skipped; nan without any."""
        return self._losses.item() / self._counted if self._counted else math.nan

    @property
    def speed(self) -> dict[str, float]:
        """Images per second of all processes, and the share of time that this one waited for data."""
        seconds = time.perf_counter() - self._start
        return {"images_per_second": self._steps * self._batch_size / seconds, "waiting": self._waited / seconds}
