"""Images and data workers that fail while a run trains."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from medmoco.data.loading.sampler import StepOrder
from tests.helpers.runs import (
    BATCH,
    EPOCHS,
    IMAGES,
    Run,
    assert_same_result,
    checkpoints,
    data_workers_of,
    losses,
    pretrain,
    status,
    steps,
    workers_of,
)

TWO = ("--devices", 2)
SLOW_START = 180.0  # seconds; every process of these runs imports PyTorch, on a machine that may be busy
QUARANTINE = "data.bad_images=quarantine"


def assert_saved(run: Run, out: Path) -> None:
    """Compare what a run says with what it has left: a short message, no path, and the step that it came to."""
    message = run.said[run.said.index("medmoco: ") :]
    assert len(message.splitlines()) <= 5
    assert not any(word in run.said for word in ("Traceback", "ERROR", ".png"))
    assert status(out)["exit_code"] == 3
    assert status(out)["state"] == "failed"
    step = status(out)["step"]
    assert checkpoints(out)[-1].stem == f"step-{step:09d}"
    assert steps(out) == list(range(1, step + 1))


# ---- images ----


def harm(settings: Path, folder: Path, count: int) -> tuple[tuple[str, str], list[int]]:
    """Copy the data and cut the images off that the last step of the first epoch begins with; return overrides, rows.

    The rows are those of the images, in order.
    """
    shutil.copytree(settings.parent, folder)
    samples = sorted(StepOrder(0, IMAGES, BATCH, EPOCHS).batch(2).samples[:count].tolist())
    for sample in samples:
        file = folder / f"{sample}.png"
        file.write_bytes(file.read_bytes()[:-30])
    return (f"data.manifest={folder}", f"data.root={folder}"), [sample + 2 for sample in samples]


def listed(out: Path) -> list[int]:
    """Return the rows in quarantine.csv."""
    header, *lines = (out / "quarantine.csv").read_text().splitlines()
    assert header == "row,reason"
    assert ".png" not in "".join(lines)
    return [int(line.split(",")[0]) for line in lines]


def test_bad_image__ends_the_run_and_quarantine_goes_on_with_it(settings: Path, tmp_path: Path) -> None:
    data, rows = harm(settings, tmp_path / "data", 2)
    refused, whole = tmp_path / "refused", tmp_path / "whole"
    run = pretrain(settings, refused, *data)
    assert run.wait() == 3
    assert f"train.csv row {rows[0]}: " in run.said
    assert "data.bad_images=quarantine" in run.said
    assert_saved(run, refused)
    assert steps(refused) == [1, 2]
    assert not (refused / "quarantine.csv").exists()

    for out, more in ((refused, ("--resume",)), (whole, ("data.workers=0",))):
        run = pretrain(settings, out, *data, QUARANTINE, *more)
        assert run.wait() == 0, run.said
        assert listed(out) == rows
        assert f"warning: train.csv row {rows[0]}: left out, another image takes its place" in run.said
        assert "warning: 1 more images: left out, another image takes its place" in run.said
        assert "2 images of train could not be used: quarantine.csv" in run.said
        assert ".png" not in run.said
    assert_same_result(refused, whole)


@pytest.mark.slow
def test_bad_image__over_the_budget_ends_the_run_and_a_larger_one_goes_on(settings: Path, tmp_path: Path) -> None:
    data, rows = harm(settings, tmp_path / "data", 3)
    out, whole = tmp_path / "run", tmp_path / "whole"
    for option in ((), ("--resume",)):  # the list is not forgotten
        run = pretrain(settings, out, *data, QUARANTINE, "data.bad_images_budget=2", *option)
        assert run.wait() == 3
        assert "3 images of train.csv cannot be used, more than data.bad_images_budget 2" in run.said
        assert_saved(run, out)
        assert listed(out) == rows
    for folder, option in ((out, ("--resume",)), (whole, ())):
        run = pretrain(settings, folder, *data, QUARANTINE, "data.bad_images_budget=3", *option)
        assert run.wait() == 0, run.said
        assert listed(folder) == rows
    assert_same_result(out, whole)


@pytest.mark.slow
def test_bad_image__two_processes_list_it_once_and_replace_it_alike(settings: Path, tmp_path: Path) -> None:
    data, rows = harm(settings, tmp_path / "data", 4)
    one, two = tmp_path / "one", tmp_path / "two"
    for out, more in ((one, ()), (two, TWO)):
        # The weights hardly move: else each step would multiply the rounding errors of the one before.
        run = pretrain(settings, out, *data, QUARANTINE, "train.lr=1e-6", *more)
        assert run.wait(SLOW_START) == 0, run.said
        assert listed(out) == rows
        assert run.said.count("left out, another image") == 2  # the first, and how many more
    for (step, loss), (_, other) in zip(losses(one)[:6], losses(two)[:6], strict=True):
        assert loss == pytest.approx(other, rel=1e-5), step  # the same views

    run = pretrain(settings, tmp_path / "over", *data, QUARANTINE, "data.bad_images_budget=3", *TWO)
    assert run.wait(SLOW_START) == 3
    assert run.said.count("4 images of train.csv cannot be used") == 1
    assert_saved(run, tmp_path / "over")


# ---- workers ----


def slow(number: signal.Signals) -> object:
    return pytest.param(number, marks=pytest.mark.slow)


@pytest.mark.parametrize("number", [signal.SIGKILL, slow(signal.SIGSEGV), slow(signal.SIGBUS), slow(signal.SIGSTOP)])
def test_data_worker__that_dies_or_hangs_ends_the_run_with_its_cause_and_loses_nothing(
    settings: Path, straight: Path, tmp_path: Path, number: signal.Signals
) -> None:
    words = {
        signal.SIGKILL: ("a data worker was killed (SIGKILL), usually by the system because memory ran out", "--mem"),
        signal.SIGSEGV: ("killed by SIGSEGV: usually an image has crashed its decoder", "medmoco check"),
        signal.SIGBUS: ("killed by SIGBUS: shared memory (/dev/shm) is full", "--shm-size"),
        signal.SIGSTOP: ("delivered no batch for 3 s: the storage or a decoder hangs", "train.hang_seconds"),
    }
    out = tmp_path / "run"
    run = pretrain(settings, out, "data.workers=2", "train.hang_seconds=4")
    run.wait_for(lambda: steps(out))
    team = data_workers_of(run.pid)
    assert len(team) == 2
    os.kill(team[1], number)
    assert run.wait(60) == 3, run.said
    assert all(word in run.said for word in words[number]), run.said
    assert_saved(run, out)
    assert not any(Path(f"/proc/{worker}").exists() for worker in team)

    resumed = pretrain(settings, out, "--resume")
    assert resumed.wait() == 0, resumed.said
    assert_same_result(out, straight)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.slow
def test_data_worker__of_one_process_ends_all_with_the_same_message(
    settings: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    run = pretrain(settings, out, *TWO, "train.epochs=400", "train.hang_seconds=20")
    run.wait_for(lambda: len(checkpoints(out)) > 1, SLOW_START)
    os.kill(data_workers_of(workers_of(run)[1])[0], number)
    assert run.wait(SLOW_START) == 3, run.said
    cause = "a data worker was killed (SIGKILL)" if number == signal.SIGKILL else "delivered no batch for 15 s"
    assert run.said.count(cause) == 1, run.said
    assert_saved(run, out)


# ---- shared memory ----


def with_shared_memory(size: int, script: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script where /dev/shm is so small; skip the test where that cannot be made."""
    mount = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec sh -c "$0"']
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a mount of its own for /dev/shm is not allowed here")
    return subprocess.run([*mount, script], capture_output=True, text=True, check=False, timeout=SLOW_START)


def command(settings: Path, out: Path, *more: str) -> str:
    """Return `medmoco pretrain` for a shell."""
    return shlex.join([sys.executable, "-m", "medmoco", "pretrain", "--config", str(settings), f"out={out}", *more])


@pytest.mark.slow
def test_shared_memory__too_small_is_said_before_anything_is_done(settings: Path, tmp_path: Path) -> None:
    done = with_shared_memory(2**16, command(settings, tmp_path / "run", "data.workers=3"))
    assert done.returncode == 2, done.stderr
    assert "take up to 0.229 MB of shared memory, but /dev/shm has 0.0655 MB free" in done.stderr
    assert "docker --shm-size" in done.stderr
    assert "or set data.workers=0, which needs none" in done.stderr
    assert len(done.stderr.splitlines()) <= 5
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_shared_memory__that_fills_up_later_ends_the_run_with_its_cause(settings: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    script = f"""
        {command(settings, out, "data.workers=2", "train.epochs=2000")} &
        until ls {shlex.quote(str(out))}/checkpoints/*.pt; do sleep 0.01; done > /dev/null 2>&1
        head -c 9000000 /dev/zero > /dev/shm/filler 2> /dev/null
        wait $!
    """
    done = with_shared_memory(2**22, script)
    assert done.returncode == 3, done.stderr
    assert "shared memory (/dev/shm) is full" in done.stderr
    assert "--shm-size" in done.stderr
    assert "Traceback" not in done.stderr
    assert checkpoints(out)[-1].stem == f"step-{status(out)['step']:09d}"
