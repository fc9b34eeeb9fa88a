from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.commands import Call, refused


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["pretrain", "--config", "configs/cxr.yaml", "data.manifest=absent"], 3, "absent does not exist"),
    ],
)
def test_errors__are_short_and_have_their_exit_code(call: Call, arguments: list[str], code: int, expected: str) -> None:
    refused(call, arguments, code, expected)


SEARCH = """
data: {{manifest: {data}, root: '{data}/{{split}}', labels: [Opacity], canvas_size: 40, workers: 1}}
views: {{size: 32}}
model: {{backbone: test_resnet}}
method: {{queue_size: 16}}
train: {{epochs: 100, global_batch_size: 8, lr: 0.03, precision: fp32, device: cpu, log_every: 1}}
evaluate: {{bootstrap: 100}}
tune: {{trials: 7, epochs: 8, space: {{train.lr: {{low: 0.001, high: 0.3, log: true}}}}}}
"""


@pytest.mark.slow
def test_tune__a_signal_stops_the_search_and_resume_ends_it_as_if_nothing_had_been(call: Call, tmp_path: Path) -> None:
    data, file = tmp_path / "data", tmp_path / "settings.yaml"
    call("phantom", "--out", data, "--patients", 24, "--image-size", 64)
    file.write_text(f"out: {tmp_path / 'run'}\n{SEARCH.format(data=data)}")
    printed = call("tune", "--config", file, "--out", tmp_path / "whole").stdout
    assert "The winner is trial" in printed or "No trial scored better" in printed
    metrics = tmp_path / "run-tune" / "trial-005" / "metrics.jsonl"
    process = subprocess.Popen(
        [sys.executable, "-m", "medmoco", "tune", "--config", file],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while not (metrics.is_file() and metrics.read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 75, said
    assert f"Resume with: medmoco tune --config {file} --resume" in said
    call("tune", "--config", file, "--resume")

    def found(out: Path) -> Any:
        record = json.loads((out / "tune.json").read_text())
        return record["winner"], [{**trial, "seconds": 0} for trial in record["trials"]]

    assert found(tmp_path / "run-tune") == found(tmp_path / "whole")
    best = tmp_path / "run-tune" / "best.yaml"
    call("pretrain", "--config", best, "train.epochs=1")
    assert (tmp_path / "run" / "checkpoints").is_dir()


# ---- however a run ends, its status says so ----

TINY = """
data: {{manifest: {data}, root: {data}, labels: [A], canvas_size: 32, workers: 0}}
views: {{size: 32}}
model: {{backbone: test_resnet}}
method: {{queue_size: 8}}
train: {{epochs: 1, global_batch_size: 4, precision: fp32, device: cpu, threads: 1, knn_every: 0}}
finetune: {{epochs: 2, global_batch_size: 4, least_steps: 1}}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """Return the settings of a tiny data set with labels."""
    rng = np.random.default_rng(0)
    for split, numbers in (("train", range(16)), ("val", range(16, 24))):
        for number in numbers:
            Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        rows = [f"{number}.png,P{number:04d},{number % 2}" for number in numbers]
        (tmp_path / f"{split}.csv").write_text("\n".join(["Path,PatientID,A", *rows]))
    file = tmp_path / "settings.yaml"
    file.write_text(f"out: {tmp_path / 'run'}\n{TINY.format(data=tmp_path)}")
    return file


def _fails(error: BaseException) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def _interrupted(*_: Any, **__: Any) -> None:
    signal.raise_signal(signal.SIGINT)


STEP, SAVE = "training.engine.Loop.step", "evaluation.supervised.finetune.save_classifier"
PRETRAIN, FINETUNE = ("pretrain",), ("finetune", "--encoder", "random", "--out")
NO_MEMORY = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."


@pytest.mark.parametrize(
    ("command", "place", "harm", "state", "code", "words"),
    [
        (
            PRETRAIN,
            STEP,
            _fails(RuntimeError("odd shapes")),
            "failed",
            1,
            "RuntimeError: odd shapes",
        ),
        (PRETRAIN, STEP, _fails(KeyError("P0003")), "failed", 1, "unexpected KeyError\n"),
        (
            PRETRAIN,
            STEP,
            _fails(MemoryError()),
            "failed",
            2,
            "the machine has too little memory",
        ),
        (
            PRETRAIN,
            STEP,
            _fails(RuntimeError(NO_MEMORY)),
            "failed",
            2,
            "the machine has too little",
        ),
        (PRETRAIN, "training.pretrain.training_batches", _interrupted, "stopped", 75, "Resume with: medmoco pretrain"),
        (PRETRAIN, "training.pretrain.training_batches", _fails(OSError(5, "worn")), "failed", 1, "OSError: worn"),
        (PRETRAIN, "training.session.save_checkpoint", _fails(RuntimeError("x")), "failed", 1, "RuntimeError: x"),
        (
            FINETUNE,
            SAVE,
            _fails(ValueError("P0003")),
            "failed",
            1,
            "ValueError\n",
        ),
        (
            FINETUNE,
            SAVE,
            _interrupted,
            "stopped",
            75,
            "Resume with: medmoco finetune",
        ),
    ],
)
def test_status__says_how_a_run_ended(
    call: Call, monkeypatch: pytest.MonkeyPatch, tiny: Path, command: tuple[str, ...], place: str,
    harm: Callable[..., Any], state: str, code: int, words: str,
) -> None:  # fmt: skip
    out = tiny.with_name("run")
    monkeypatch.setattr(f"medmoco.{place}", harm)
    said = call(*command, *([out] if command == FINETUNE else []), "--config", tiny, code=code).stderr
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == (state, code)
    assert words in said
    assert "Traceback" not in said
    assert "P0003" not in said
    assert status["message"] in said
    if code == 1:
        assert f"The traceback is at the end of {out / 'log.txt'}" in said
        assert "Traceback" in (out / "log.txt").read_text()


@pytest.mark.parametrize("command", [PRETRAIN, FINETUNE])
def test_status__a_network_that_cannot_take_the_views_leaves_no_run(
    call: Call, tiny: Path, command: tuple[str, ...]
) -> None:
    out = tiny.with_name("run")
    words = [*command, *([out] if command == FINETUNE else []), "--config", tiny, "model.backbone=inception_v3"]
    said = call(*words, code=2).stderr
    assert "model.backbone inception_v3 does not accept images of 32 x 32 pixels (views.size)" in said
    assert not out.exists()


def test_status__a_run_that_ends_in_divergence_is_not_done(call: Call, tiny: Path) -> None:
    said = call("pretrain", "--config", tiny, "train.lr=1e30", code=5).stderr
    assert "had no finite gradient" in said
    assert json.loads(tiny.with_name("run").joinpath("status.json").read_text())["state"] == "failed"


@pytest.mark.slow
def test_bench__synthetic_images_need_neither_data_nor_settings(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["model.backbone=test_resnet", "views.size=32", "train.global_batch_size=8", "method.queue_size=32"]
    done = call("bench", "--synthetic", "--seconds", "0.1", *small, "data.workers=0", "method.batch_norm_splits=1")
    assert "drawing synthetic films of 1024 x 1024 pixels" in done.stderr
    assert "Training runs at " in done.stdout
    assert not list(tmp_path.iterdir())
