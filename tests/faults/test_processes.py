"""Faults of runs of several processes, started by the launcher inside `medmoco pretrain --devices N`."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.helpers.runs import assert_same, checkpoints, losses, pretrain, status, steps, workers_of

TWO = ("--devices", 2)
START = 180.0  # seconds; every process of these runs imports PyTorch, on a machine that may be busy


@pytest.fixture(scope="session")
def together(settings: Path) -> Path:
    """A run of two processes that nothing happened to."""
    out = settings.parents[1] / "together"
    run = pretrain(settings, out, *TWO)
    assert run.wait(START) == 0, run.said
    return out


def assert_same_weights(out: Path, other: Path) -> None:
    one, two = (torch.load(checkpoints(run)[-1], weights_only=True) for run in (out, other))
    for part in ("model", "optimizer"):
        assert_same(one[part], two[part])


@pytest.mark.slow
def test_processes__two_leave_one_run_folder(settings: Path, together: Path, straight: Path) -> None:
    assert {file.name for file in together.iterdir()} == {file.name for file in straight.iterdir()}
    assert status(together)["state"] == "done"
    said = together.with_name("together.said").read_text()
    assert said.count("done: ") == 1
    assert "2 processes on cpu" in said
    assert "each process sends" in said
    assert losses(together)[0][1] == pytest.approx(losses(straight)[0][1], rel=1e-5)  # the same batch and groups


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.slow
def test_processes__a_signal_stops_all_at_one_step_and_resuming_is_bitwise(
    settings: Path, together: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    run = pretrain(settings, out, *TWO)
    run.wait_for(lambda: len(steps(out)) > 6, START)
    run.signal(number)
    assert run.wait(START) == 75, run.said
    assert status(out)["state"] == "stopped"
    assert run.said.count("stopped after step") == 1
    assert "Resume with: medmoco pretrain" in run.said
    assert "Traceback" not in run.said
    resumed = pretrain(settings, out, *TWO, "--resume")
    assert resumed.wait(START) == 0, resumed.said
    assert_same_weights(out, together)


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.slow
def test_processes__one_is_killed(settings: Path, together: Path, tmp_path: Path, victim: int) -> None:
    out = tmp_path / "run"
    run = pretrain(settings, out, *TWO)
    run.wait_for(lambda: len(checkpoints(out)) > 1, START)
    os.kill(workers_of(run)[victim], signal.SIGKILL)
    assert run.wait(START) == 6, run.said
    assert f"process {victim} was killed by SIGKILL, most often for lack of memory" in run.said
    assert "Traceback" not in run.said
    assert (status(out)["state"], status(out)["exit_code"]) == ("failed", 6)
    resumed = pretrain(settings, out, *TWO, "--resume")
    assert resumed.wait(START) == 0, resumed.said
    assert_same_weights(out, together)


@pytest.mark.slow
def test_processes__one_hangs(settings: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run = pretrain(settings, out, *TWO, "train.hang_seconds=10", "train.epochs=400")
    run.wait_for(lambda: len(steps(out)) > 6, START)
    hanging = workers_of(run)[1]
    os.kill(hanging, signal.SIGSTOP)
    try:
        run.wait_for(lambda: " has not answered for 10 s" in run.said, START)
    finally:
        os.kill(hanging, signal.SIGCONT)
    assert run.wait(START) == 6, run.said
    assert "process 0: process 1 (in step " in run.said
    assert "train.hang_seconds" in run.said
    assert "Traceback" not in run.said


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
@pytest.mark.slow
def test_processes__another_number_may_go_on(settings: Path, tmp_path: Path, before: int, after: int) -> None:
    out = tmp_path / "run"
    run = pretrain(settings, out, "--devices", before)
    run.wait_for(lambda: len(steps(out)) > 6, START)
    run.signal(signal.SIGTERM)
    assert run.wait(START) == 75, run.said
    resumed = pretrain(settings, out, "--devices", after, "--resume")
    assert resumed.wait(START) == 0, resumed.said
    assert f"the run had {before} processes and now has {after}" in resumed.said
    assert steps(out) == list(range(1, status(out)["steps"] + 1))


@pytest.mark.slow
def test_processes__bad_settings_are_said_once(settings: Path, tmp_path: Path) -> None:
    run = pretrain(settings, tmp_path / "run", "--devices", 2, "method.queue_size=25", "model.backbone=resnt")
    assert run.wait(START) == 2
    assert run.said.count("exceeds the 24 training images") == 1
    assert run.said.count("model.backbone 'resnt' is not a timm model") == 1
    assert "Traceback" not in run.said


@pytest.mark.slow
def test_processes__a_batch_they_cannot_divide(settings: Path, tmp_path: Path) -> None:
    run = pretrain(settings, tmp_path / "run", "--devices", 3)
    assert run.wait(START) == 2
    assert "does not divide into 6 equal groups" in run.said


def test_processes__no_gpu_though_asked_for(settings: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    run = pretrain(settings, tmp_path / "run", "--devices", 2, "train.device=cuda")
    assert run.wait(START) == 2
    assert "--devices 2, but torch sees 0 usable GPUs" in run.said
    run = pretrain(settings, tmp_path / "run", "train.device=cuda")
    assert run.wait(START) == 2
    assert "torch sees no usable GPU" in run.said


@pytest.mark.gpu
def test_processes__two_gpus_stop_and_go_on(settings: Path, straight: Path, tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    out, device = tmp_path / "run", ("train.device=cuda", *TWO)
    run = pretrain(settings, out, *device)
    run.wait_for(lambda: len(steps(out)) > 6, START)
    run.signal(signal.SIGTERM)
    assert run.wait(START) == 75, run.said
    resumed = pretrain(settings, out, *device, "--resume")
    assert resumed.wait(START) == 0, resumed.said
    assert steps(out) == list(range(1, status(out)["steps"] + 1))
    assert losses(out)[0][1] == pytest.approx(losses(straight)[0][1], rel=1e-2)
