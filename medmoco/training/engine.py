"""The only training loop. A task computes the losses of a step; the loop does everything else."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from medmoco.config import TrainSettings
from medmoco.data.loading.loading import Batch
from medmoco.data.loading.sampler import StepOrder
from medmoco.errors import DataError, DivergedError, MedmocoError, Stopped
from medmoco.training.agreement import any_of, exchange, raise_together
from medmoco.training.distributed import ALONE, Group
from medmoco.training.lost_processes import explaining_lost, report_step
from medmoco.training.optim import learning_rate
from medmoco.training.runlog import RunLog
from medmoco.utils.rng import hashed
from medmoco.utils.stopping import stop_requests


class Task(Protocol):
    """A model with its loss."""

    @property
    def model(self) -> nn.Module:
        """All networks, trained or not, as stored in a checkpoint."""

    def losses(self, batch: Batch, measure: bool) -> Iterator[dict[str, Tensor]]:
        """Yield "loss" for each part of the batch and, with `measure`, other measurements.

        All are scalars: means over the part, divided by the number of parts. The loop runs the backward pass of a part
        before it requests the next.
        """

    def after_step(self) -> None:
        """Called after the optimiser's step."""

    def skip_step(self) -> None:
        """Called instead if the gradient is not finite: undo changes of the step, such as to running statistics."""


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
        """Load what `as_content` returned."""
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        self.step = content["step"]


@dataclass(frozen=True)
class Hooks:
    """What the loop calls back, on every process."""

    save: Callable[[TrainState], None]
    # Measure after an epoch; receives the epoch and a function that returns whether to stop
    after_epoch: Callable[[int, Callable[[], bool]], dict[str, float]]
    # Receives the skipped step, the number skipped so far, and the processes with a loss that is not finite: none if
    # only the gradient is not
    skipped: Callable[[int, int, list[int]], None]
    # Receives this process's batch if any process replaced an unusable image; raises DataError, on all, if too many are
    replaced: Callable[[Batch], None] = lambda _: None
    # Whether to save now, after an epoch was measured; the same on all processes
    must_save: Callable[[], bool] = lambda: False
    # Whether training ends before the last step; the same on all processes
    finished: Callable[[], bool] = lambda: False
    # Called after every step, when its result has been computed
    stepped: Callable[[], None] = lambda: None


@dataclass
class Loop:
    """The training loop."""

    state: TrainState  # changed in place; saved at intervals, at the end, on a stop and if data fail
    order: StepOrder  # the samples of every step
    train: TrainSettings
    log: RunLog
    hooks: Hooks
    group: Group = field(default_factory=lambda: ALONE)  # the processes that train together
    _saved_at: int = field(init=False, default=0)

    def fit(self, task: Task, batches: Iterator[Batch]) -> None:
        """Train until the last step or `hooks.finished`, with this process's batches from step `state.step` on.

        Raises:
            DivergedError: see `Skips` and `_check_finite`; the state is not saved.
            Stopped: a signal requested it; the state is saved.
            DataError: an image cannot be used, or loading failed; the state is saved.
            DistributedError: another process has ended or hangs.
        """
        state, order, hooks = self.state, self.order, self.hooks
        self._saved_at = state.step
        interval = Interval(order.batch_size, next(task.model.parameters()).device)
        first_epoch_ends = state.step + order.steps_per_epoch  # later epochs read the same files again
        skips = Skips(self.train.max_skipped, order.steps)
        with explaining_lost(self.group), stop_requests() as stop_asked:
            while state.step < order.steps and not hooks.finished():
                batch = self._next_batch(batches, interval, stop_asked)
                measure = (state.step + 1) % self.train.log_every == 0 or state.step + 1 == order.steps
                outputs, sound = self.step(task, batch, measure)
                interval.add(outputs["loss"] if sound else None)
                self.log.advance(state.step)
                skips.count(sound, outputs["loss"], state, self.group, hooks)
                hooks.stepped()
                for notice in notices_of(batch, self.group) if state.step <= first_epoch_ends else ():
                    self.log.remark(notice)
                if measure:
                    self._record(interval, outputs)
                if state.step % order.steps_per_epoch == 0:
                    with interval.pause():
                        self._end_epoch(stop_asked)
                is_due = state.step % self.train.checkpoint_every == 0 or state.step == order.steps
                if is_due or hooks.must_save() or hooks.finished():
                    self._save()

    def _save(self) -> None:
        if self.state.step != self._saved_at:
            _check_finite(self.state)
            self.hooks.save(self.state)
            self._saved_at = self.state.step

    def _next_batch(self, batches: Iterator[Batch], interval: Interval, stop_asked: Callable[[], bool]) -> Batch:
        """Return the next batch; save and raise on all processes if one of them has none or is to stop."""
        report_step(self.group, self.state.step)
        batch, failure = interval.wait_for(batches)
        replaced = batch is not None and bool(batch.replaced)
        failed, stop, replaced = any_of(self.group, failure is not None, stop_asked(), replaced)
        if replaced and not failed:
            assert batch is not None
            try:
                self.hooks.replaced(batch)
            except DataError as error:
                failed, failure = True, error
        if failed or stop:
            self._save()
        if failed:
            raise_together(self.group, failure)
        if stop:
            raise Stopped(f"stopped after step {self.state.step} of {self.order.steps}; everything is saved")
        assert batch is not None
        return batch

    def step(self, task: Task, batch: Batch, measure: bool) -> tuple[dict[str, Tensor], bool]:
        """Do one optimiser step unless the gradient is not finite; return measurements, and whether it is finite."""
        state, train = self.state, self.train
        # Dropout draws from torch's generator: seeded by the step alone, so that resuming needs no generator state.
        torch.manual_seed(int(hashed(self.order.seed, state.step, self.group.rank)[0] >> 1))
        task.model.train()
        for parameters in state.optimizer.param_groups:
            rate = learning_rate(train, state.step / self.order.steps_per_epoch)
            parameters["lr"] = rate * parameters.get("lr_scale", 1.0)
        state.optimizer.zero_grad(set_to_none=True)
        outputs: dict[str, Tensor] = {}
        for part in task.losses(batch, measure):
            state.scaler.scale(part["loss"]).backward()
            for name, value in part.items():
                outputs[name] = outputs.get(name, 0) + value.detach()
        state.scaler.unscale_(state.optimizer)
        trained = [p for parameters in state.optimizer.param_groups for p in parameters["params"] if p.grad is not None]
        # By now gradients are means over all processes, so that all of them decide alike.
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

    def _record(self, interval: Interval, outputs: dict[str, Tensor]) -> None:
        """Log the means of the measurements over all processes."""
        step, order = self.state.step, self.order
        values = {key: value.item() for key, value in outputs.items() if key != "loss"} | {"loss": interval.loss}
        device = next(self.state.model.parameters()).device
        means = self.group.mean(torch.tensor(list(values.values()), dtype=torch.float64, device=device), "measurements")
        record = {
            "epoch": (step - 1) // order.steps_per_epoch,
            **dict(zip(values, means.tolist(), strict=True)),
            **interval.speed,
            "lr": learning_rate(self.train, (step - 1) / order.steps_per_epoch),
        }
        self.log.record(step, record, seconds_left=interval.seconds_per_step * (order.steps - step))
        interval.restart()

    def _end_epoch(self, stop_asked: Callable[[], bool]) -> None:
        try:
            measured = self.hooks.after_epoch(self.state.step // self.order.steps_per_epoch - 1, stop_asked)
        except DataError:
            self._save()
            raise
        if measured:
            self.log.record(self.state.step, measured)


def notices_of(batch: Batch, group: Group) -> list[str]:
    """Return the notices of the image readers of all processes."""
    if not any_of(group, bool(batch.notices))[0]:
        return []
    return [notice for text in exchange(group, json.dumps(batch.notices)) for notice in json.loads(text)]


class Skips:
    """Counts skipped steps. `most` in a row end the run, and so does the last of its `steps`.

    After a last step without a finite gradient, the final networks may return nothing finite.
    """

    def __init__(self, most: int, steps: int) -> None:
        self._most, self._steps, self._in_a_row, self._total = most, steps, 0, 0

    def count(self, sound: bool, loss: Tensor, state: TrainState, group: Group, hooks: Hooks) -> None:
        """Count one step.

        Raises:
            DivergedError: too many in a row were skipped, or the last of the run.
        """
        if sound:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self._total += 1
        texts = exchange(group, str(math.isfinite(loss.item())))
        processes = [rank for rank, text in enumerate(texts) if text == "False"]
        hooks.skipped(state.step - 1, self._total, processes)
        searching = state.scaler.is_enabled() and not processes  # fp16 is still finding its scale
        if self._in_a_row >= self._most or (state.step == self._steps and not searching):
            steps = f"{self._in_a_row} steps, up to step {state.step - 1}," if self._in_a_row > 1 else "step"
            raise DivergedError(
                f"the last {steps} had no finite gradient and {'were' if self._in_a_row > 1 else 'was'} skipped.\n"
                "skipped.jsonl in the run folder lists them and their rows. Lower train.lr (or finetune.lr), set\n"
                "train.clip_norm=1 or train.precision=fp32, and start a new run; checkpoints hold finite\n"
                "weights, but training may not recover from them."
            )


def _check_finite(state: TrainState) -> None:
    """Raise DivergedError if a step with a finite gradient was too large for the weights."""
    if not all(bool(parameter.isfinite().all()) for parameter in state.model.parameters()):
        raise DivergedError(
            f"after step {state.step - 1} weights are not finite, and are not saved: lower train.lr (or finetune.lr),\n"
            "or set train.clip_norm=1, and start a new run."
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
        """Do not count the time inside the block."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def wait_for(self, batches: Iterator[Batch]) -> tuple[Batch | None, MedmocoError | None]:
        """Return the next batch or the error of loading it, and count the time."""
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
