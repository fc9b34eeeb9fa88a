"""Runs medmoco as a user does."""

from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple, Protocol

TINY = """
out: run
data: {manifest: data, root: 'data/{split}', labels: [Opacity], canvas_size: 40, workers: 0}
views: {size: 32}
model: {backbone: test_resnet}
method: {queue_size: 16}
train: {epochs: 1, global_batch_size: 8, device: cpu, knn_every: 0}
evaluate: {bootstrap: 100}
"""
"""Settings for phantoms in the folder `data`, with which a run takes a second."""


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run medmoco as a user does, in a process of its own; importing all it needs takes that some seconds."""
    command = [sys.executable, "-m", "medmoco", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done


class Said(NamedTuple):
    stdout: str
    stderr: str


class Call(Protocol):
    def __call__(self, *arguments: object, code: int = 0) -> Said:
        """Run medmoco with the arguments of a command line; it must end with `code`."""


def refused(call: Call, arguments: list[str], code: int, expected: str) -> None:
    said = call(*arguments, code=code).stderr
    assert expected in said
    assert "Traceback" not in said
    if code != 2 or arguments[0] == "config":
        assert len(said.splitlines()) <= 5
