"""How long commands take to start: importing what each of them needs, relative to importing torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
from functools import partial

from benchmarks.turns import seconds_per_round

ROUNDS = 5
STATEMENTS = {
    "import torch": "import torch",
    "medmoco --help": "import medmoco.cli",
    "medmoco split": "import medmoco; medmoco.split",
    "medmoco check": "import medmoco.data.quality.audit, medmoco.evaluation.leakage.shortcuts",
    "medmoco pack": "import medmoco.data.pack.pack_writing",
    "medmoco slurm": "import medmoco.training.slurm",
    "medmoco report": "import medmoco; medmoco.report",
    "medmoco pretrain": "import medmoco.training.pretrain",
    "medmoco evaluate": "import medmoco; medmoco.evaluate",
    "medmoco export": "import medmoco; medmoco.export",
}


def run() -> None:
    """Print the median seconds of each, and its ratio to importing torch: median [lowest-highest] over the rounds."""
    starts = {
        name: partial(subprocess.run, [sys.executable, "-c", statement], check=True)
        for name, statement in STATEMENTS.items()
    }
    times = seconds_per_round(starts, ROUNDS)
    print(f"\nstarting a command\n{'':24} {'seconds':>8}   relative to import torch")
    for name, seconds in times.items():
        ratios = [own / base for own, base in zip(seconds, times["import torch"], strict=True)]
        ratio = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
        print(f"{name:24} {statistics.median(seconds):8.2f}   {ratio}")
