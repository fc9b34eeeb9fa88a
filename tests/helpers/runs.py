"""Real runs of the command line, for tests that harm them.

A run is a process of its own that gets real signals and ends with a real exit code. It is forked from a server that
has imported PyTorch already, which spares each of many runs the seconds that takes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

IMAGES, BATCH, EPOCHS = 24, 8, 10
STEPS = EPOCHS * IMAGES // BATCH
PATIENCE = 300.0  # seconds until a test gives up; a machine may be busy

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["medmoco.cli", "medmoco.training.pretrain", "medmoco.evaluation.features.monitor"])


def make_images(folder: Path) -> Path:
    """Write small images, their manifest and settings.yaml, of which `out` must still be given; return the latter."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for row in range(IMAGES):
        small = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
        small.resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{row}.png")
    (folder / "train.csv").write_text("\n".join(["Path", *(f"{row}.png" for row in range(IMAGES))]) + "\n")
    settings = folder / "settings.yaml"
    settings.write_text(f"""
data: {{manifest: {folder}, root: {folder}, canvas_size: 40, workers: 1}}
views: {{size: 32}}
model: {{backbone: test_resnet}}
method: {{queue_size: 20, batch_norm_splits: 2}}
train: {{epochs: {EPOCHS}, global_batch_size: {BATCH}, lr: 0.1, log_every: 1, checkpoint_every: 4, device: cpu,
  precision: fp32}}
""")
    return settings


class Run:
    """A medmoco command that runs in a process of its own, with what it says in a file."""

    def __init__(self, said: Path, *arguments: object) -> None:
        self._said = said
        self._process = _server.Process(target=_main, args=([str(word) for word in arguments], str(said)))
        self._process.start()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self._said.read_text() if self._said.exists() else ""

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal, to its data workers too if `group` is set."""
        (os.killpg if group else os.kill)(self.pid, number)

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for its end and return the exit code; a signal that ended it counts negative."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self.kill()
            raise AssertionError(f"still running after {seconds} s; it said:\n{self.said}")
        return self._process.exitcode

    def wait_for(self, what: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Wait until something has come true while it runs."""
        deadline = time.monotonic() + seconds
        while not what():
            assert self._process.is_alive(), f"it ended ({self._process.exitcode}) and said:\n{self.said}"
            assert time.monotonic() < deadline, self.said
            time.sleep(0.005)

    def kill(self, after: float = 0.0) -> bool:
        """Kill it, data workers and all, after so many seconds; return whether it was still running."""
        self._process.join(after)
        alive = self._process.is_alive()
        if alive:
            with suppress(ProcessLookupError):  # so young that it is not yet a group
                self.signal(signal.SIGKILL, group=True)
            self._process.kill()
        self._process.join()
        return alive


def _main(arguments: list[str], said: str) -> None:
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # data workers are started as they are on the command line
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    from medmoco.cli import main

    sys.argv = ["medmoco", *arguments]
    code = None
    try:
        main()
    except SystemExit as end:  # multiprocessing would wait for data workers that this exception keeps alive
        code = end.code
    sys.exit(code)


def pretrain(settings: Path, out: Path, *more: object, said: Path | None = None) -> Run:
    """Start `medmoco pretrain`; what it says is put beside its folder if no other file is given."""
    said = said or out.with_name(f"{out.name}.said")
    return Run(said, "pretrain", "--config", settings, f"out={out}", *more)


def workers_of(run: Run) -> list[int]:
    """Return the process ids of the ranks, in order."""
    ranks = {}
    for child in _children(run.pid):
        for line in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            if line.startswith(b"RANK="):
                ranks[int(line[5:])] = child
    return [ranks[rank] for rank in sorted(ranks)]


def data_workers_of(process: int) -> list[int]:
    """Return the process ids of the data workers of a process that trains: its forks."""
    own = Path(f"/proc/{process}/cmdline").read_bytes()
    return [child for child in _children(process) if Path(f"/proc/{child}/cmdline").read_bytes() == own]


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def steps(out: Path) -> list[int]:
    """Return the steps that are recorded in metrics.jsonl so far."""
    return [record["step"] for record in _records(out)]


def losses(out: Path) -> list[tuple[int, float]]:
    """Return steps and losses of metrics.jsonl."""
    return [(record["step"], record["loss"]) for record in _records(out)]


def _records(out: Path) -> list[dict[str, Any]]:
    file = out / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may be half written


def checkpoints(out: Path) -> list[Path]:
    """Return the run's checkpoints, the oldest first."""
    return sorted((out / "checkpoints").glob("*.pt"))


def status(out: Path) -> dict[str, Any]:
    """Return status.json."""
    found: dict[str, Any] = json.loads((out / "status.json").read_text())
    return found


def assert_same_result(out: Path, other: Path) -> None:
    """Compare two runs that are done: networks, queue, pointer, optimiser and every loss, to the bit."""
    one, two = (torch.load(checkpoints(run)[-1], weights_only=True) for run in (out, other))
    assert one["step"] == two["step"] == status(out)["steps"]
    for part in ("model", "optimizer", "scaler"):
        assert_same(one[part], two[part])
    assert losses(out) == losses(other)


def assert_same(first: Any, second: Any) -> None:
    """Compare nested tensors and plain values to the bit."""
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, two in zip(first, second, strict=True):
            assert_same(one, two)
    else:
        assert first == second
