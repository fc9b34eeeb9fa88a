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
from medmoco.training.duration import duration_words, estimate_lines, seconds_per_step
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

    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
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


def test_estimate_lines__warn_where_a_cpu_needs_days() -> None:
    published = config.load(None, ["out=o", "data.manifest=m", "data.root=r"])
    line, warning = estimate_lines(1100, 1400, RunContext(published))
    assert line == "expected duration: about 18 days for 1,400 steps"
    assert warning == (
        "training resnet50 on views of 224 pixels for 200 epochs takes about 18 days on this CPU; use a GPU, or"
        " settings for a CPU such as model.backbone=resnet10t views.size=96 train.epochs=30"
    )
    assert estimate_lines(10, 1400, RunContext(published))[1] == ""
    assert estimate_lines(1100, 1400, RunContext(published, device=torch.device("cuda")))[1] == ""
    small = config.load(published, ["model.backbone=resnet10t", "views.size=64", "train.epochs=9"])
    assert estimate_lines(1100, 1400, RunContext(small))[1].endswith("on this CPU; use a GPU")
