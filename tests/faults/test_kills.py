"""SIGKILL, which no program can answer: inside a save, and at any moment of a run."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from medmoco.training.checkpoint import keep_as_best, load_best, load_checkpoint, save_checkpoint
from tests.helpers.runs import assert_same_result, pretrain, steps

KILLS = 50
SYSTEM_CALLS = ("fsync", "replace", "rename", "unlink", "link")  # after and before each of them a save may be cut off


def content(value: float) -> dict[str, Any]:
    return {"model": {"w": torch.full((1000,), value)}}


def save_and_die(folder: Path, step: int, value: float, prepare: Callable[[], None]) -> int | None:
    """Save in a process of its own; return the signal that ended it, or None if it came through."""
    return die_in(lambda: save_checkpoint(folder, step, content(value)), prepare)


def die_in(action: Callable[[], object], prepare: Callable[[], None]) -> int | None:
    """Act in a process of its own; return the signal that ended it, or None if it came through."""
    pid = os.fork()
    if not pid:
        try:
            prepare()
            action()
        finally:
            os._exit(0)  # after a failure too: the parent looks at what is in the folder
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else None


def die_at(call: int) -> Callable[[], None]:
    """Return what makes this process kill itself right before its n-th system call of a kind that matters."""

    def prepare() -> None:
        numbers = count()

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call_or_die(*arguments: Any, **options: Any) -> Any:
                if next(numbers) == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call_or_die

        for name in SYSTEM_CALLS:
            setattr(os, name, counted(getattr(os, name)))

    return prepare


@pytest.mark.parametrize("again", [False, True], ids=["new step", "same step again"])
def test_kill__at_any_point_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path, again: bool) -> None:
    """The newest is the new one or the one before, whole; the next save cleans up."""
    for step in (1, 2, 3):
        save_checkpoint(tmp_path / "before", step, content(step))
    if again:  # and it is the only one
        for file in (tmp_path / "before").glob("step-00000000[12]*"):
            file.unlink()
    step, found = (3 if again else 4), []
    for call in count():
        folder = tmp_path / f"{call}"
        shutil.copytree(tmp_path / "before", folder)
        killed = save_and_die(folder, step, 9.0, die_at(call))
        newest = load_checkpoint(folder, pytest.fail)
        value = float(newest["model"]["w"][0])
        assert torch.equal(newest["model"]["w"], torch.full((1000,), value))
        assert (newest["step"], value) in ((3, 3.0), (step, 9.0))
        found.append(value)
        save_checkpoint(folder, 5, content(5.0))
        names = {file.name for file in folder.iterdir()}
        assert names == {f"{file.name}{end}" for file in folder.glob("*.pt") for end in ("", ".sha256")}
        assert load_checkpoint(folder, pytest.fail)["step"] == 5
        if killed is None:
            break
        assert killed == signal.SIGKILL
    assert len(found) >= 7
    assert found == sorted(found)  # the old one up to some point, the new one from there on
    assert {found[0], found[-1]} == {3.0, 9.0}


@pytest.mark.parametrize("old", [2, 3], ids=["another step", "same step again"])
def test_kill__at_any_point_of_keeping_the_best_leaves_a_whole_one(tmp_path: Path, old: int) -> None:
    """The best is the new one or the one before, whole, and no checkpoint changes; the next time cleans up."""
    before, found = tmp_path / "before", []
    save_checkpoint(before / "checkpoints", old, content(2.0))
    keep_as_best(before / "checkpoints", old, before / "best")
    save_checkpoint(before / "checkpoints", 3, content(3.0))
    for call in count():
        run = tmp_path / f"{call}"
        shutil.copytree(before, run)
        source, best = run / "checkpoints", run / "best"
        killed = die_in(lambda source=source, best=best: keep_as_best(source, 3, best), die_at(call))  # type: ignore[misc]
        kept = load_best(best)
        found.append(float(kept["model"]["w"][0]))
        assert (kept["step"], found[-1]) in ((old, 2.0), (3, 3.0))
        keep_as_best(source, 3, best)
        assert {file.name for file in best.iterdir()} == {"step-000000003.pt", "step-000000003.pt.sha256"}
        assert load_best(best)["step"] == load_checkpoint(source, pytest.fail)["step"] == 3
        if killed is None:
            break
        assert killed == signal.SIGKILL
    assert len(found) >= 7
    assert found == sorted(found)
    assert {found[0], found[-1]} == {2.0, 3.0}


@pytest.mark.parametrize("size", [0, 1, 2000])
def test_kill__while_the_file_is_written_leaves_the_one_before(tmp_path: Path, size: int) -> None:
    """The kernel kills a process that writes past a limit, in the middle of the file."""
    save_checkpoint(tmp_path, 3, content(3.0))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    assert save_and_die(tmp_path, 4, 4.0, limit) == signal.SIGXFSZ
    assert (tmp_path / "step-000000004.pt.tmp").stat().st_size <= size
    assert load_checkpoint(tmp_path, pytest.fail)["step"] == 3


@pytest.mark.slow
@pytest.mark.usefixtures("straight")  # from then on, a run starts as fast as it always will
def test_kill__at_50_random_moments_ends_with_the_same_weights(settings: Path, tmp_path: Path) -> None:
    """In start-up, steps and saves: a moment lies up to four steps after a run on this machine comes to its first."""
    options = ("train.checkpoint_every=1", "train.epochs=30")
    whole, out = tmp_path / "whole", tmp_path / "run0"
    started = time.monotonic()
    run = pretrain(settings, whole, *options)
    run.wait_for(lambda: steps(whole))
    start_up = time.monotonic() - started
    assert run.wait() == 0, run.said
    step = (time.monotonic() - started - start_up) / len(steps(whole))

    moments = random.Random(0)
    hits: Counter[str] = Counter()
    while hits.total() < KILLS:
        before = len(steps(out))
        run = pretrain(settings, out, *options, "--resume")
        if run.kill(after=moments.uniform(0, start_up + 4 * step)):
            saving = any((out / "checkpoints").glob("*.tmp"))
            hits["in a save" if saving else "between steps" if len(steps(out)) > before else "while starting"] += 1
        else:  # it came to its end before the last kill; the others go to another run
            assert run.wait() == 0, run.said
            assert_same_result(out, whole)
            out = tmp_path / f"run{hits.total()}"
    print(f"start-up {start_up:.2f} s, step and save {step:.2f} s; {dict(hits)}; {len(steps(out))} steps in {out.name}")
    last = pretrain(settings, out, *options, "--resume")
    assert last.wait() == 0, last.said
    assert_same_result(out, whole)
    assert not list(out.rglob("*.tmp"))
