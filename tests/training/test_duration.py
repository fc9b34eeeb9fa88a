from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from medmoco import config
from medmoco.data.loading.loading import Batch
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.errors import ImageError
from medmoco.training import duration as module
from medmoco.training.context import RunContext
from medmoco.training.distributed import ALONE
from medmoco.training.duration import (
    Pace,
    duration_words,
    seconds_per_step,
    warning_before_start,
    warning_if_long,
)
from tests.helpers.packs import make_images, settings_for


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.1, "about 1 second"),
        (44.6, "about 45 seconds"),
        (95, "about 1.6 minutes"),
        (35.2 * 60, "about 35 minutes"),
        (3600 * 5.04, "about 5 hours"),
        (86400 * 12.4, "about 12 days"),
        (86400 * 12345, "about 12,345 days"),
    ],
)
def test_duration_words__have_two_digits(seconds: float, words: str) -> None:
    assert duration_words(seconds) == words


@pytest.fixture
def data(tmp_path: Any) -> tuple[Split, config.RunSettings]:
    make_images(tmp_path, train=8)
    settings = settings_for(tmp_path, "model.backbone=test_resnet", "train.global_batch_size=4", "data.workers=0")
    return load_manifest(settings.data, ("train",))["train"], settings


def test_seconds_per_step__grow_linearly_with_the_batch(
    data: tuple[Split, config.RunSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    split, settings = data
    sizes, clock = [], [0.0]

    def step(_: Any, __: Any, batch: Batch, measure: bool) -> None:
        sizes.append(len(batch.samples))
        clock[0] += 0.02 + 0.01 * len(batch.samples)

    monkeypatch.setattr(module, "perf_counter", lambda: clock[0])
    monkeypatch.setattr("medmoco.training.engine.Loop.step", step)
    monkeypatch.setattr(module, "_seconds_per_image", lambda *_: 0.001)
    large = config.load(settings, ["train.global_batch_size=200", "method.batch_norm_splits=5"])
    assert seconds_per_step(split, RunContext(large)) == pytest.approx(0.02 + 200 * 0.011)
    assert sizes == [10, 10, 20, 40]
    # Data workers share the cores with the step, or keep a GPU waiting.
    monkeypatch.setattr(module, "_seconds_of_training", lambda *_: 1.0)
    monkeypatch.setattr(module, "_seconds_per_image", lambda *_: 0.1)
    monkeypatch.setattr(module, "available_cores", lambda: 2)
    monkeypatch.setattr(module.torch, "get_num_threads", lambda: 2)
    of = [RunContext(config.load(large, [f"data.workers={workers}"])) for workers in (0, 1, 2)]
    assert [seconds_per_step(split, context) for context in of] == pytest.approx([21, 20, 11])
    monkeypatch.setattr(module.torch.cuda, "empty_cache", lambda: None)
    assert seconds_per_step(split, replace(of[2], device=torch.device("cuda"))) == pytest.approx(10)


def test_seconds_per_step__are_unknown_for_several_processes_and_compiled_networks(
    data: tuple[Split, config.RunSettings],
) -> None:
    split, settings = data
    assert seconds_per_step(split, RunContext(settings))
    assert seconds_per_step(split, RunContext(settings, group=replace(ALONE, size=2))) is None
    assert seconds_per_step(split, RunContext(config.load(settings, ["train.compile=true"]))) is None


@pytest.mark.parametrize("error", [MemoryError(), ImageError("damaged")])
def test_seconds_per_step__failures_are_left_to_the_run(
    data: tuple[Split, config.RunSettings], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> float:
        raise error

    monkeypatch.setattr(module, "_seconds_of_training", fail)
    assert seconds_per_step(data[0], RunContext(data[1])) is None


def test_warning_if_long__names_settings_for_a_cpu() -> None:
    published = config.load(None, ["out=o", "data.manifest=m", "data.root=r"])
    assert warning_if_long(1100, 1400, RunContext(published)) == (
        "training resnet50 on views of 224 pixels for 200 epochs takes about 18 days on this CPU; use a GPU, or"
        " settings for a CPU such as model.backbone=resnet10t views.size=96 train.epochs=30"
    )
    assert warning_if_long(10, 1400, RunContext(published)) == ""
    assert warning_if_long(1100, 1400, RunContext(published, device=torch.device("cuda"))) == ""
    small = config.load(published, ["model.backbone=resnet10t", "views.size=64", "train.epochs=9"])
    assert warning_if_long(1100, 1400, RunContext(small)).endswith("on this CPU; use a GPU")


@pytest.mark.parametrize(("per_image", "sizes", "warns"), [(0.001, [10, 10], False), (100, [10, 10, 20], True)])
def test_warning_before_start__needs_few_steps_to_rule_a_long_run_out(
    data: tuple[Split, config.RunSettings], monkeypatch: pytest.MonkeyPatch,
    per_image: float, sizes: list[int], warns: bool,
) -> None:  # fmt: skip
    tried, clock = [], [0.0]

    def step(_: Any, __: Any, batch: Batch, measure: bool) -> None:
        tried.append(len(batch.samples))
        clock[0] += per_image * len(batch.samples)

    monkeypatch.setattr(module, "perf_counter", lambda: clock[0])
    monkeypatch.setattr("medmoco.training.engine.Loop.step", step)
    monkeypatch.setattr(module, "_seconds_per_image", lambda *_: 0.001)
    large = config.load(data[1], ["train.global_batch_size=200", "method.batch_norm_splits=5"])
    assert bool(warning_before_start(data[0], 1000, RunContext(large))) == warns
    assert tried == sizes
    assert warning_before_start(data[0], 1000, RunContext(large, device=torch.device("cuda"))) == ""
    assert warning_before_start(data[0], 0, RunContext(large)) == ""


@pytest.mark.parametrize(("step", "found"), [(1.0, [None, None, None, 1.0]), (60.0, [None, 60.0, None, None])])
def test_pace__is_that_of_a_few_steps_after_the_first(
    monkeypatch: pytest.MonkeyPatch, step: float, found: list[float | None]
) -> None:
    ends = iter([0.0, *(100 + number * step for number in range(9))])
    next(ends)
    monkeypatch.setattr(module, "perf_counter", lambda: next(ends))
    pace = Pace()
    assert [pace.after_step() for _ in range(9)] == found + [None] * 5
