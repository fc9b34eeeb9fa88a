"""Choose the settings of a run from the images and the machine, each with its reason.

The choices follow configs/cxr.yaml for small runs (docs/results.md) and the published MoCo for large ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from medmoco.config import Tree
from medmoco.config.yaml_text import dump
from medmoco.data.quality.shapes import ELONGATED, least_canvas
from medmoco.starting.machine import Machine
from medmoco.training.duration import duration_words, step_with_loading
from medmoco.training.sizes import power_of_two
from medmoco.utils.files import size_words

SMALL_RUN = 20_000
"""Steps below which the recipe for few steps is used."""

WIDE = 1.8
"""Ratio of the longer to the shorter side above which squeezing a whole image to a square distorts it much."""

_MOST_EPOCHS = 200  # Source: He et al. 2020
_LARGEST_QUEUE = 65536  # Source: He et al. 2020
_LEAST_FOR_RESNET50 = 5000
_LEAST_FOR_SEVERAL_GPUS = 1000
_FORWARD_SHARE = 0.25  # of a training step's time: its forward passes are two of eight parts
_REASON_COLUMN = 34  # of the comments in the YAML file
_WIDTH = 120


@dataclass(frozen=True)
class Choice:
    """A setting and the reason for its value."""

    key: str  # with its group, such as train.epochs
    value: Any
    reason: str = ""


@dataclass(frozen=True)
class Shape:
    """Sizes in pixels of canvas, views and whole images in evaluation."""

    canvas: int
    view: int
    whole: int
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Facts:
    """What the choices depend on, apart from the machine.

    Attributes:
        train: Images in the training split.
        val: Images in the validation split.
        labels: Label columns.
        coloured: Share of the sampled images with colour.
        shape: Sizes of canvas and views.
        decode_seconds: Time to decode an image to a canvas, on one core.
        view_seconds: Time to make two views of a canvas, on one core.
        pack_bytes: Size of a pack of all images.
        free_bytes: Free disk space.
    """

    train: int
    val: int
    labels: tuple[str, ...]
    coloured: float
    shape: Shape
    decode_seconds: float
    view_seconds: float
    pack_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Plan:
    """The choices, and what they will cost."""

    choices: tuple[Choice, ...]
    seconds: float  # estimated duration of pretraining, without packing
    pack_seconds: float  # to make the pack; 0 without one
    devices: int  # processes to start with; 0 for all GPUs
    notes: tuple[str, ...]


def choose_shape(width: int, height: int, machine: Machine) -> Shape:
    """Choose canvas and view size from the size of a typical image, and whether there is a GPU."""
    longer, shorter = max(width, height), max(1, min(width, height))
    full, share, where = (256, 7 / 8, "a GPU") if machine.gpus else (128, 3 / 4, "a CPU")
    base = max(32, min(full, _multiple(longer)))
    view = max(32, _multiple(base * share, math.floor))
    canvas = base
    if longer / shorter > ELONGATED:  # whole images in evaluation are as large as `base`
        canvas = max(base, min(least_canvas(base, longer / shorter), _multiple(longer)))
    if canvas > base:
        why = f"a typical image is {width} x {height}: its shorter side keeps {canvas * shorter // longer} pixels"
    elif base < full:
        why = f"the longer side of a typical image has {longer} pixels"
    elif machine.gpus:
        why = f"enough for views of {view}; a typical image is {width} x {height}"
    else:
        why = f"small, as training runs on a CPU; a typical image is {width} x {height}"
    if base < full:
        small = f"most of the {base}-pixel canvas"
    else:
        small = "the published size" if machine.gpus else f"a step on {where} takes a fifth of the time of 224 pixels"
    return Shape(canvas, view, base, (Choice("data.canvas_size", canvas, why), Choice("views.size", view, small)))


def make_plan(facts: Facts, machine: Machine, minutes: float, images_per_second: Callable[[Tree], float]) -> Plan:
    """Choose all settings that depend on the images and the machine.

    Args:
        facts: The images.
        machine: The machine.
        minutes: Time for pretraining.
        images_per_second: Times the training step of one process with a tree of settings without `out` and `data`.
    """
    gpus = len(machine.gpus) if facts.train >= _LEAST_FOR_SEVERAL_GPUS else min(1, len(machine.gpus))
    network, batch, queue = _network(facts, machine), _batch(facts, machine, gpus), _queue(facts)
    recipe = _recipe(facts, network, batch, queue, small=True)
    rate = images_per_second(as_tree(recipe)) * max(1, gpus)
    steps = int(60 * minutes * rate / batch.value)
    if steps >= SMALL_RUN and facts.train * _MOST_EPOCHS // batch.value >= SMALL_RUN:
        recipe = _recipe(facts, network, batch, queue, small=False)
    workers, pack, load = _loading(facts, machine, rate, gpus)
    each = step_with_loading(
        1 / rate, load, workers=workers.value * max(1, gpus), cores=machine.cores, on_gpu=bool(gpus)
    )
    epochs, knn, notes = _epochs(facts, each, rate, minutes)
    warmup = min(1.0, round(epochs.value / 10, 2))
    order = (*facts.shape.choices, *_channels(facts), workers, *pack, *recipe, epochs)
    choices = [*order, Choice("train.warmup_epochs", warmup, "the learning rate rises from 0"), *knn]
    choices += [
        Choice("evaluate.size", facts.shape.whole, "views are magnified crops; whole images at a similar scale"),
        Choice("evaluate.mirror", True, "half of the views are mirrored, so both sides look alike to the encoder"),
    ]
    knn_seconds = (len(knn) and epochs.value // knn[0].value) * _knn_seconds(facts, rate)
    pack_seconds = (facts.train + facts.val) * facts.decode_seconds / machine.cores if pack else 0.0
    return Plan(
        tuple(choices),
        epochs.value * facts.train * each + knn_seconds,
        pack_seconds,
        devices=1 if len(machine.gpus) > gpus else 0,
        notes=tuple(notes),
    )


def _channels(facts: Facts) -> list[Choice]:
    share = f"{facts.coloured:.0%} of the sampled images have colour"
    if facts.coloured >= 0.5:
        reason = "so that colours alone do not identify an image; as in MoCo v2"
        jitter = [Choice("views.saturation", 0.4, reason), Choice("views.hue", 0.1, "as in MoCo v2")]
        return [Choice("data.channels", "rgb", share), *jitter]
    reason = f"{share}; they are converted to gray" if facts.coloured else "no sampled image has colour"
    return [Choice("data.channels", "gray", reason)]


def _network(facts: Facts, machine: Machine) -> Choice:
    if not machine.gpus:
        return Choice("model.backbone", "resnet10t", "small, since training runs on a CPU")
    if facts.train >= _LEAST_FOR_RESNET50:
        return Choice("model.backbone", "resnet50", "the published network; the GPU is fast enough")
    return Choice("model.backbone", "resnet18", f"{facts.train:,} images do not need a larger network")


def _batch(facts: Facts, machine: Machine, gpus: int) -> Choice:
    largest, why = 64, "as large as a CPU can use"
    if gpus:
        memory = min(gpu.memory for gpu in machine.gpus)
        largest = 256 if memory > 30e9 else 128 if memory > 14e9 else 64
        why = f"fits into {memory / 1e9:.0f} GB of GPU memory"
    share = power_of_two(largest // max(1, gpus))
    quarter = facts.train // 4 // max(1, gpus)
    if quarter < share:
        share, why = max(2, power_of_two(quarter)), f"at most a quarter of the {facts.train:,} training images"
    return Choice("train.global_batch_size", share * max(1, gpus), why)


def _queue(facts: Facts) -> Choice:
    size = min(_LARGEST_QUEUE, power_of_two(facts.train // 2))
    why = "the published size" if size == _LARGEST_QUEUE else f"at most half of the {facts.train:,} training images"
    return Choice("method.queue_size", size, why)


def _recipe(facts: Facts, network: Choice, batch: Choice, queue: Choice, *, small: bool) -> list[Choice]:
    """Return the choices that the training step depends on; `small` is for runs of few steps."""
    groups = max(1, min(8, batch.value // 16))
    split = f"batch norm over groups of {batch.value // groups} images, so that it cannot reveal the key"
    few = f"for fewer than {SMALL_RUN:,} steps; 0.999 would be too slow"
    choices = [
        Choice("views.crop_scale", [0.2, 1.0], "as in MoCo v2"),
        network,
        queue,
        Choice("method.key_momentum", 0.99, few) if small else Choice("method.key_momentum", 0.999, "as published"),
        Choice("method.batch_norm_splits", groups, split if groups > 1 else "the batch is too small to divide"),
        batch,
    ]
    if small:
        choices += [
            Choice("method.projector", "mlp_bn", "learns faster in short runs"),
            Choice("train.optimizer", "adamw", "needs fewer steps than sgd"),
            Choice("train.lr", 0.001, "usual for adamw"),
            Choice("train.weight_decay", 0.05, "usual for adamw"),
        ]
    shape = {choice.key: choice for choice in facts.shape.choices}
    return [choice for choice in choices if choice.key not in shape]


def _loading(facts: Facts, machine: Machine, rate: float, gpus: int) -> tuple[Choice, list[Choice], float]:
    """Choose workers and pack; return them, and the seconds that loading an image takes one core."""
    step = 1 / rate
    cores = machine.cores
    decode = facts.decode_seconds
    spare = max(1, (cores - gpus) // max(1, gpus)) if gpus else cores
    slow = (decode + facts.view_seconds) / (spare * max(1, gpus)) > step if gpus else decode / cores > step / 4
    fits = facts.pack_bytes < facts.free_bytes / 2
    pack = []
    if slow and fits:
        why = f"decoding takes {1000 * decode:.3g} ms, a step {1000 * step:.3g} ms per image; decoded once,"
        why += f" {size_words(facts.pack_bytes)}"
        pack = [Choice("data.pack", "", why)]
        decode = 0.0
    each = decode + facts.view_seconds
    if gpus:
        count = max(1, min(spare, max(2, math.ceil(1.2 * each * rate / gpus))))
        reason = f"per GPU; loading takes {1000 * each:.2g} ms per image and core, a step {1000 * step:.2g} ms"
        return Choice("data.workers", count, reason), pack, each
    count = 1 if cores < 8 else 2
    reason = f"training itself needs the {cores} cores" if cores > 1 else "there is one core"
    return Choice("data.workers", count, reason), pack, each


def _knn_seconds(facts: Facts, rate: float) -> float:
    """Return the time of one kNN score on the validation split."""
    scale = (facts.shape.whole / facts.shape.view) ** 2
    return (facts.train + facts.val) * _FORWARD_SHARE * scale / rate


def _epochs(facts: Facts, each: float, rate: float, minutes: float) -> tuple[Choice, list[Choice], list[str]]:
    """Choose the number of epochs for the time, and how often to score the features during training."""
    seconds, epoch = 60 * minutes, facts.train * each
    scored = bool(facts.labels and facts.val)
    scores = (5 if seconds / epoch >= 20 else 3 if seconds / epoch >= 8 else 1) * scored
    possible = max(1, int((seconds - scores * _knn_seconds(facts, rate)) / epoch))
    count = min(_MOST_EPOCHS, possible)
    speed = f"{1 / each:,.0f} images/s measured here"
    notes = []
    if epoch > 1.2 * seconds:
        why = f"a single epoch takes {duration_words(epoch)} ({speed})"
        given = duration_words(seconds).removeprefix("about ")
        notes.append(f"One epoch takes {duration_words(epoch)}, longer than the {given} that you gave.")
    elif possible > _MOST_EPOCHS:
        why = f"as published; {duration_words(count * epoch)} ({speed})"
    else:
        why = f"{duration_words(count * epoch)} ({speed})"
    every = math.ceil(count / scores) if scores else 0
    knn = [Choice("train.knn_every", every, "epochs between two kNN scores on the validation split")] if scored else []
    return Choice("train.epochs", count, why), knn, notes


def _multiple(size: float, rounded: Callable[[float], int] = math.ceil) -> int:
    """Return a multiple of 16."""
    return 16 * rounded(size / 16)


# The file


def as_tree(choices: Sequence[Choice]) -> Tree:
    """Return choices as a tree of settings."""
    tree: Tree = {}
    for choice in choices:
        *groups, key = choice.key.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[key] = choice.value
    return tree


def as_yaml(choices: Sequence[Choice], heading: Sequence[str]) -> str:
    """Return choices as YAML with their reasons as comments, in groups in order of their first choice."""
    lines = [f"# {line}" for line in heading]
    groups: dict[str, list[Choice]] = {}
    for choice in choices:
        group, _, _ = choice.key.rpartition(".")
        groups.setdefault(group, []).append(choice)
    for group, members in groups.items():
        lines += [f"{group}:"] if group else []
        for choice in members:
            key = choice.key.rpartition(".")[2]
            setting = f"{'  ' * bool(group)}{key}: {dump([choice.value], default_flow_style=True, width=10**6)[1:-2]}"
            comment = f"# {choice.reason}" if choice.reason else ""
            line = f"{setting:<{_REASON_COLUMN}}{comment}".rstrip()
            if len(setting) >= _REASON_COLUMN and comment:
                line = f"{setting}  {comment}"
            lines += [line] if len(line) <= _WIDTH or not comment else [f"{'  ' * bool(group)}{comment}", setting]
    return "\n".join(lines) + "\n"
