"""Measure where training spends its time: each part alone, the whole loop, and advice on what to change."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from medmoco.config import RunSettings
from medmoco.data.loading.emptiness import check_masks
from medmoco.data.loading.loading import Batch, canvas_reader, check_images, maker_of, training_batches
from medmoco.data.loading.sampler import StepOrder
from medmoco.data.loading.workers import AHEAD
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.models.moco import MoCo
from medmoco.training.context import RunContext
from medmoco.training.device import choose_device, choose_precision
from medmoco.training.duration import one_thread, random_batch
from medmoco.training.engine import Hooks, Loop
from medmoco.training.moco_task import Contrast, create_state, negative_numbers
from medmoco.training.runlog import RunLog
from medmoco.training.sizes import check_sizes
from medmoco.utils.available import available_cores
from medmoco.utils.rng import permutation

ROUNDS = 5
_CHUNK = 16  # images read between two readings of the clock
_ENDLESS = 10**6  # epochs and steps, more than any measurement takes
_NOISY = 0.3  # spread above which the machine counts as busy
_MARGIN = 0.15  # smaller differences do not count, even on an idle machine


@dataclass(frozen=True)
class Rate:
    """Images per second: median, lowest and highest of some rounds."""

    median: float
    low: float
    high: float

    @property
    def spread(self) -> float:
        """Return how far rounds lie apart, as a share of the median."""
        return (self.high - self.low) / self.median


@dataclass(frozen=True)
class Facts:
    """The measurements, and the machine."""

    read: Rate  # reading and decoding, in one process
    views: Rate  # making two views of a canvas, in one process
    step: Rate  # the training step on random images
    together: Rate  # the whole training loop
    waiting: float  # share of the time that training waited for data
    workers: int  # data.workers
    cores: int  # available to this process
    packed: bool  # whether canvases come from a pack
    device: str  # type: cpu or cuda
    precision: str
    best_precision: str  # the default on this device

    @property
    def per_worker(self) -> float:
        """Return images per second of one process that reads and makes views."""
        return 1 / (1 / self.read.median + 1 / self.views.median)

    @property
    def supply(self) -> float:
        """Return images per second of all workers, if each has a core."""
        return max(self.workers, 1) * self.per_worker


def bench(settings: RunSettings, seconds: float, log: Callable[[str], None]) -> str:
    """Measure training, and describe the bottleneck and what would help; see `measure` for arguments and errors."""
    facts = measure(settings, seconds, log)
    return "\n".join([*_table(facts), "", *advise(facts)])


def measure(settings: RunSettings, seconds: float, log: Callable[[str], None]) -> Facts:
    """Measure the parts of training and training itself.

    Args:
        settings: Settings of the run.
        seconds: Length of each of the four measurements, after a warm-up.
        log: Receives the name of each measurement.

    Raises:
        SettingsError, DataError: as pretraining would.
    """
    split = check_images(load_manifest(settings.data, ("train",))["train"], settings.data)
    check_masks(split, settings.data, settings.decoder)
    check_sizes(len(split), settings)
    if settings.train.threads:
        torch.set_num_threads(settings.train.threads)
    device = choose_device(settings.train)
    precision, _ = choose_precision(settings.train, device)
    best, _ = choose_precision(settings.train.model_copy(update={"precision": "device"}), device)
    log("1 of 4: reading and decoding, in one process")
    with one_thread():
        read = _rate(_reading(split, settings), seconds)
        log("2 of 4: views, in one process")
        views = _rate(_view_making(split, settings), seconds)
    log("3 of 4: the training step, on random images")
    step = step_rate(settings, len(split), seconds)
    log("4 of 4: the whole training loop")
    batches = training_batches(split, settings, _order(split, settings), 0)
    prefetched = AHEAD * settings.data.workers + 2  # batches that were made before the clock started
    numbers = negative_numbers(split, settings.method)
    together, waiting = _train(batches, _order(split, settings), numbers, settings, seconds, skip=prefetched)
    return Facts(
        read, views, step, together, waiting, settings.data.workers, available_cores(),
        bool(settings.data.pack), device.type, precision, best,
    )  # fmt: skip


def step_rate(settings: RunSettings, images: int, seconds: float) -> Rate:
    """Time the training step on random images, after two steps that do not count.

    Args:
        settings: Settings of the run.
        images: Number of images in the training split.
        seconds: Length of the measurement; it takes five steps at least.
    """
    order = StepOrder(settings.seed, images, settings.train.global_batch_size, _ENDLESS)
    numbers = None if settings.method.negatives == "all" else torch.arange(images)
    return _train(
        repeat(random_batch(settings, settings.train.global_batch_size)), order, numbers, settings, seconds, skip=2
    )[0]


def advise(facts: Facts) -> list[str]:
    """Interpret the numbers: the bottleneck, what would remove it, and how certain that is."""
    spread = max(rate.spread for rate in (facts.read, facts.views, facts.step, facts.together))
    margin = max(_MARGIN, spread / 2)
    ratio = facts.supply / facts.step.median
    lines = [
        f"Training runs at {facts.together.median:.0f} images/s. The training step alone would do "
        f"{facts.step.median:.0f}, the loading of data {facts.supply:.0f}."
    ]
    if ratio < 1 - margin:
        lines += ["The bottleneck is the loading of data.", *_about_loading(facts)]
    elif ratio > 1 + margin:
        lines += ["The bottleneck is the training step; loading keeps up with it.", *_about_step(facts)]
    else:
        lines += ["Loading and the training step are about equally fast; a large gain needs both to be faster."]
    slower = min(facts.supply, facts.step.median)
    if facts.together.median < (1 - margin) * slower:
        cores = _count(facts.cores, "core")
        lost = f"Together they reach {facts.together.median / slower:.0%} of the slower one"
        if facts.device == "cpu":
            lines.append(f"{lost}: the step and the workers share {cores}.")
        else:
            lines.append(f"{lost}: copies to the GPU, or fewer free cores than workers ({cores}).")
    if spread > _NOISY:
        lines.append(
            f"Rounds differed by up to {spread:.0%}: other programs are using this machine. Treat the numbers with "
            "caution, and repeat the measurement when it is idle."
        )
    return lines


def _about_loading(facts: Facts) -> list[str]:
    lines = []
    needed = math.ceil(1.2 * facts.step.median / facts.per_worker)  # a fifth to spare
    free = max(1, facts.cores - 1)
    if facts.workers < min(needed, free):
        enough = "would keep up" if needed <= free else f"would help; {needed} would be needed to keep up"
        lines.append(f"data.workers={min(needed, free)} {enough}.")
    elif needed > free:
        lines.append(f"To keep up, {needed} workers would be needed; this machine has {_count(facts.cores, 'core')}.")
    reading = facts.per_worker / facts.read.median
    if reading > 0.5 and not facts.packed:
        lines.append(
            f"Reading and decoding take {reading:.0%} of a worker's time, and a pack (medmoco pack, data.pack) nearly "
            f"all of that away: {_count(facts.workers or 1, 'worker')} would then make up to "
            f"{(facts.workers or 1) * facts.views.median:.0f} images/s."
        )
    elif reading > 0.5:
        lines.append(
            f"Reading from the pack takes {reading:.0%} of a worker's time: put it on a fast disk of this machine, or "
            "lower data.canvas_size."
        )
    else:
        lines.append(f"Views take {1 - reading:.0%} of a worker's time: lower views.size, or set views.rotation=0.")
    return lines


def _about_step(facts: Facts) -> list[str]:
    lines = []
    if facts.precision != facts.best_precision:
        lines.append(f"train.precision={facts.best_precision} is the fastest precision that this device supports well.")
    if facts.device == "cpu":
        lines.append("A GPU, a smaller model.backbone or a lower views.size would make it faster.")
    else:
        lines.append("A smaller model.backbone, a lower views.size or a larger batch would make it faster.")
    return lines


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _table(facts: Facts) -> list[str]:
    rows = {
        "reading and decoding, one process": facts.read,
        "two views, one process": facts.views,
        "training step": facts.step,
        f"training with {_count(facts.workers, 'worker')}": facts.together,
    }
    lines = [f"{'':36} images/s   rounds"]
    lines += [f"{name:36} {rate.median:8.0f}   {rate.low:.0f} to {rate.high:.0f}" for name, rate in rows.items()]
    return [*lines, f"{'time spent waiting for data':36} {facts.waiting:8.0%}", f"{facts.device}, {facts.precision}"]


# Measuring


def _rate(work: Callable[[], int], seconds: float) -> Rate:
    """Time a function that returns its number of images, after one call that does not count."""
    work()
    rates = []
    for _ in range(ROUNDS):
        start, images = time.perf_counter(), 0
        while images == 0 or time.perf_counter() - start < seconds / ROUNDS:
            images += work()
        rates.append(images / (time.perf_counter() - start))
    return _summary(rates)


def _summary(rates: list[float]) -> Rate:
    return Rate(statistics.median(rates), min(rates), max(rates))


def _reading(split: Split, settings: RunSettings) -> Callable[[], int]:
    """Read images in random order, each once per round."""
    read = canvas_reader(split, settings.data)
    chunks = _chunks(split)

    def work() -> int:
        return len(read(next(chunks))[0])

    return work


def _chunks(split: Split) -> Iterator[NDArray[np.int64]]:
    for epoch in range(_ENDLESS):
        order = permutation(epoch, length=len(split))
        yield from np.split(order, range(_CHUNK, len(order), _CHUNK))


def _view_making(split: Split, settings: RunSettings) -> Callable[[], int]:
    samples = next(_chunks(split))
    canvases, _ = canvas_reader(split, settings.data)(samples)
    epochs, maker = iter(range(_ENDLESS * 1000)), maker_of(settings.data)

    def work() -> int:
        epoch = next(epochs)
        params = [
            maker.draw(settings.views, canvases, seed=0, epoch=epoch, samples=samples, view=view) for view in range(2)
        ]
        return len(maker.render(settings.views, canvases, params)[0])

    return work


class _TimeIsUp(Exception):
    pass


def _train(
    batches: Iterable[Batch],
    order: StepOrder,
    numbers: torch.Tensor | None,
    settings: RunSettings,
    seconds: float,
    *,
    skip: int,
) -> tuple[Rate, float]:
    """Run the training loop on batches for a while; return its rate and the share of time that it waited for them."""
    device = choose_device(settings.train)
    precision, _ = choose_precision(settings.train, device)
    context = RunContext(settings, device, precision)
    state = create_state(context)
    stopwatch = _Stopwatch(device, seconds, skip)
    train = settings.train.model_copy(update={"log_every": _ENDLESS, "checkpoint_every": _ENDLESS})
    model = state.model
    assert isinstance(model, MoCo)
    task = Contrast(model, context, numbers=numbers)
    hooks = Hooks(lambda _: None, lambda *_: {}, lambda *_: None)
    with (
        suppress(_TimeIsUp),
        tempfile.TemporaryDirectory() as folder,
        RunLog(Path(folder), steps=_ENDLESS, start_step=0, quiet=True) as log,
    ):
        Loop(state, order, train, log, hooks).fit(task, stopwatch.timed(batches))
    return _summary(stopwatch.rates), stopwatch.waited / stopwatch.total


class _Stopwatch:
    """Times the consumer of an iterator of batches."""

    def __init__(self, device: torch.device, seconds: float, skip: int) -> None:
        self.rates: list[float] = []
        self.waited = self.total = 0.0
        self._device, self._seconds, self._skip = device, seconds / ROUNDS, skip

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches until the rounds are over."""
        source = iter(batches)
        for _ in range(self._skip):
            yield next(source)
        for _ in range(ROUNDS):
            start, images, elapsed = self._now(), 0, 0.0
            while elapsed < self._seconds:
                asked = time.perf_counter()
                batch = next(source)
                self.waited += time.perf_counter() - asked
                yield batch
                images += len(batch.samples)
                elapsed = time.perf_counter() - start
            elapsed = self._now() - start
            self.total += elapsed
            self.rates.append(images / elapsed)
        raise _TimeIsUp

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _order(split: Split, settings: RunSettings) -> StepOrder:
    return StepOrder(settings.seed, len(split), settings.train.global_batch_size, _ENDLESS)
