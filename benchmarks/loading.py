"""Training from a pack against the training step alone: what loading costs while the step runs."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import torch

from benchmarks.turns import spread
from medmoco.config import RunSettings, load
from medmoco.data.pack.pack_writing import make_pack
from medmoco.training.bench import measure
from medmoco.training.synthetic import on_phantoms

ROUNDS, SECONDS, SIDE = 5, 6.0, 512
SMALL = {"ResNet-10, 96 px, batch 64": ("model.backbone=resnet10t", "views.size=96")}
LARGE = {"ResNet-18, 224 px, batch 64": ("model.backbone=resnet18", "views.size=224")}
"""Only for GPUs: on a CPU, loading keeps up with it anyway, and it takes minutes."""


def run() -> None:
    """Print a line for each network and number of data workers."""
    threads = 0 if torch.cuda.is_available() else 1  # a core for the step, the others for the workers
    print("\ntraining from a pack, images/s, and its share of the step alone: median [lowest-highest]")
    for kind, overrides in (SMALL | LARGE if torch.cuda.is_available() else SMALL).items():
        for workers in (1, 2):
            settings = _settings(*overrides, f"data.workers={workers}", f"train.threads={threads}")
            with on_phantoms(settings, lambda _: None, side=SIDE) as given, tempfile.TemporaryDirectory() as folder:
                pack = Path(folder) / "pack"
                make_pack(given.data, pack, lambda _: None)
                packed = given.model_copy(update={"data": given.data.model_copy(update={"pack": str(pack)})})
                found = [measure(packed, SECONDS, lambda _: None) for _ in range(ROUNDS)]
            shares = [facts.together.median / facts.step.median for facts in found]
            rate = statistics.median(facts.together.median for facts in found)
            print(f"{kind}, {workers} worker(s):".ljust(44), f"{rate:8.0f}   {spread(shares, 2)}")


def _settings(*overrides: str) -> RunSettings:
    data = {"manifest": ".", "root": ".", "labels": {}}
    sizes = ("train.global_batch_size=64", "method.queue_size=1024", "method.batch_norm_splits=4")
    return load({"out": ".", "data": data}, [*sizes, *overrides])
