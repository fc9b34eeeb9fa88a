"""Estimate how long a run takes, before its first step by trial steps, or from the first steps themselves.

The trial steps train a copy of the networks on noise, so the run itself stays bitwise the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import cv2
import torch

from medmoco.config import RunSettings
from medmoco.data.loading.loading import Batch, ViewDataset
from medmoco.data.loading.pairs import plan_of
from medmoco.data.loading.sampler import BatchKey, StepOrder
from medmoco.data.manifest.manifest import Split
from medmoco.errors import MedmocoError
from medmoco.models.moco import MoCo
from medmoco.training.context import RunContext
from medmoco.training.device import memory_explained
from medmoco.training.engine import Hooks, Loop
from medmoco.training.moco_task import Contrast, create_state, negative_numbers
from medmoco.training.runlog import SilentLog
from medmoco.training.sizes import batch_norm_groups
from medmoco.utils.available import available_cores

_IMAGES = 8  # loaded to time loading
_ENOUGH = 0.25  # seconds of a trial step from which its time says enough about larger batches
_LONG = 6 * 3600  # seconds on a CPU from which a warning says how to shorten the run
_TIMED = 3  # first steps of a run that are timed, after one that warms up
_PATIENCE = 10.0  # seconds after which fewer are enough


def seconds_per_step(split: Split, context: RunContext, enough: float = 0.0) -> float | None:
    """Measure the duration of a training step, with the data workers at work; takes a few seconds.

    Args:
        split: The training split.
        context: Settings and device of the run.
        enough: End the trial as soon as a step certainly takes less than this, in seconds.

    Returns:
        Seconds; None if they cannot be estimated: with several processes, with torch.compile, without enough memory for
        a copy of the networks, or if an image cannot be used, which the run itself then reports.
    """
    settings = context.settings
    if context.group.size > 1 or settings.train.compile:
        return None
    try:
        loading = settings.train.global_batch_size * _seconds_per_image(split, settings)
        with memory_explained(settings.train):
            training = _seconds_of_training(split, context, enough)
    except MedmocoError:
        return None
    finally:
        if context.device.type == "cuda":
            torch.cuda.empty_cache()
    return step_with_loading(
        training, loading, workers=settings.data.workers, cores=available_cores(), on_gpu=context.device.type == "cuda"
    )


def step_with_loading(step: float, loading: float, *, workers: int, cores: int, on_gpu: bool) -> float:
    """Return the duration of a training step with the data workers at work.

    Args:
        step: Duration of the step alone, with torch's number of threads.
        loading: Time that one core takes to load the batch.
        workers: Data workers of all processes.
        cores: Cores of the machine.
        on_gpu: Whether the step leaves the cores to the workers.
    """
    if not workers:
        return step + loading
    if on_gpu:
        return max(step, loading / min(workers, cores))
    together = (step * min(torch.get_num_threads(), cores) + loading) / cores
    return max(step, loading / workers, together)


def duration_words(seconds: float) -> str:
    """Return a duration to about two digits, such as "about 35 minutes"."""
    for unit, size, most in (("second", 1, 90), ("minute", 60, 90), ("hour", 3600, 48), ("day", 86400, math.inf)):
        count = seconds / size
        if count < most:
            number = max(1, round(count)) if unit == "second" or count >= 10 else round(count, 1)
            return f"about {number:,.10g} {unit}{'s' * (number != 1)}"
    raise AssertionError


def warning_if_long(seconds: float, steps: int, context: RunContext) -> str:
    """Return a warning if a run takes many hours on this CPU; blank if it does not.

    The settings in the warning are those of configs/cxr.yaml, or for volumes those of docs/results.md.

    Args:
        seconds: Estimated duration of a step.
        steps: Steps that are left.
        context: Settings and device of the run.
    """
    total = seconds * steps
    if context.device.type != "cpu" or total < _LONG:
        return ""
    backbone, size, epochs = context.settings.model.backbone, context.settings.views.size, context.settings.train.epochs
    volumes = context.settings.data.dimensions == 3
    small, enough = ("monai/resnet10_quarter", 48) if volumes else ("resnet10t", 96)
    smaller = [
        *([f"model.backbone={small}"] if backbone != small else []),
        *([f"views.size={enough}"] if size > enough else []),
        *(["train.epochs=30"] if epochs > 30 else []),
    ]
    return (
        f"training {backbone} on views of {size} {'voxels' if volumes else 'pixels'} for {epochs} epochs takes"
        f" {duration_words(total)} on this CPU; use a GPU{', or settings for a CPU such as ' * bool(smaller)}"
        f"{' '.join(smaller)}"
    )


def warning_before_start(split: Split, steps: int, context: RunContext) -> str:
    """Return `warning_if_long` by trial steps, as few as are needed to rule it out."""
    if context.device.type != "cpu" or not steps:
        return ""
    seconds = seconds_per_step(split, context, enough=_LONG / steps / 2)
    return "" if seconds is None else warning_if_long(seconds, steps, context)


class Pace:
    """Times the first steps of a run, after one that warms up."""

    def __init__(self) -> None:
        self._start: float | None = None  # the end of the step that warms up
        self._steps = 0
        self._known = False

    def after_step(self) -> float | None:
        """Return the mean duration of a step, once, when enough steps were timed; call it after every step."""
        if self._known:
            return None
        now = perf_counter()
        if self._start is None:
            self._start = now
            return None
        self._steps += 1
        self._known = self._steps == _TIMED or now - self._start >= _PATIENCE
        return (now - self._start) / self._steps if self._known else None


# Measuring


def _seconds_per_image(split: Split, settings: RunSettings) -> float:
    """Time reading images of the first step and making their views, as a data worker does it."""
    order = StepOrder(settings.seed, len(split), settings.train.global_batch_size, settings.train.epochs)
    first = order.batch(0)
    dataset = ViewDataset(split, settings)
    with one_thread():
        for samples in (first.samples[:1], first.samples[-_IMAGES:]):  # the first is a warm-up
            start = perf_counter()
            batch = dataset[BatchKey(first.step, first.epoch, samples)]
            if isinstance(batch, MedmocoError):
                raise batch
            seconds = (perf_counter() - start) / len(samples)
    return seconds


def _seconds_of_training(split: Split, context: RunContext, enough: float) -> float:
    """Time training steps on noise: with the whole batch on a GPU, and with growing batches on a CPU, which is slow."""
    settings, whole = context.settings, context.settings.train.global_batch_size
    state = create_state(context)
    model = state.model
    assert isinstance(model, MoCo)
    task = Contrast(model, context, numbers=negative_numbers(split, settings.method))
    order = StepOrder(settings.seed, len(split), whole, settings.train.epochs)
    loop = Loop(state, order, settings.train, SilentLog(), Hooks(lambda _: None, lambda *_: {}, lambda *_: None))

    def measure(size: int) -> float:
        batch = random_batch(settings, size)
        start = _now(context.device)
        loop.step(task, batch, measure=False)
        return _now(context.device) - start

    if context.device.type == "cuda":
        return min(measure(whole) for _ in range(4))
    passes = settings.train.accumulation_steps
    size = min(whole, 2 * math.lcm(batch_norm_groups(settings, 1), passes))
    measure(size)  # a warm-up
    timed = [(size, measure(size))]
    if (most := timed[0][1] * whole / size) < enough:  # larger batches take less time per image
        return most
    while size < whole and (len(timed) < 2 or timed[-1][1] < _ENOUGH):
        size = min(whole, 2 * size)
        timed.append((size, measure(size)))
    if size == whole:
        return timed[-1][1]
    (fewer, less), (more, longer) = timed[-2:]
    slope = max((longer - less) / (more - fewer), longer / more / 2)  # the lower bound is for a busy machine
    return longer + slope * (whole - more)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread, as a data worker does."""
    threads = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads[0])
        torch.set_num_threads(threads[1])


def random_batch(settings: RunSettings, size: int) -> Batch:
    """Return a batch of noise: the time of a step does not depend on the content of images."""
    side = settings.views.size
    dtype = torch.uint8 if settings.data.bit_depth == 8 else torch.uint16
    planned = plan_of(settings.method, settings.decoder).views
    shape = (size, settings.data.channel_count, *[side] * settings.data.dimensions)
    views = [torch.randint(0, 256, shape).to(dtype) for _ in planned]
    return Batch(views, torch.arange(size), step=0, epoch=0)
