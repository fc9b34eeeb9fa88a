"""medmoco itself, with configs/cxr.yaml: in its own environment, and on the same terms as the others."""

from __future__ import annotations

import sys
from pathlib import Path

import medmoco
from benchmarks.peers.films import clock, write_time
from medmoco.config import load


def train(config: str, out: Path, overrides: list[str]) -> None:
    """Train the run `out`/run, and record how long it took."""
    settings = load(config, [*overrides, f"out={out / 'run'}"])
    seconds = clock()
    run = medmoco.pretrain(settings, overwrite=True)
    write_time(out, seconds(), run.status["step"] * settings.train.global_batch_size)


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
