"""The memory of data workers while they read hundreds of thousands of images, which must not grow."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from medmoco import config
from medmoco.data.loading.loading import Batch, training_batches
from medmoco.data.loading.sampler import StepOrder
from medmoco.data.manifest.manifest import Split, load_manifest

ROWS, FILES, SEEN, BATCH = 1_000_000, 1000, 200_000, 256


def run() -> None:
    """Print a line for file names as they are, and one for Python strings, of which each reading copies memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_images(folder)
        settings = config.load(None, [
            "out=run", f"data.manifest={folder}", f"data.root={folder}", "data.labels={}", "data.canvas_size=16",
            "views.size=16", f"train.global_batch_size={BATCH}", "train.device=cpu", "method.queue_size=1024",
        ])  # fmt: skip
        split = load_manifest(settings.data, ["train"])["train"]
        print(f"\nMB that a data worker shares with no other process, over {SEEN:,} of {ROWS:,} images")
        _report_workers("as they are", split, settings)
        _report_workers("file names as Python strings", replace(split, files=split.files.astype(object)), settings)


def _write_images(folder: Path) -> None:
    """Write a few images, and a manifest that lists them under many names."""
    rng = np.random.default_rng(0)
    (folder / "folder0000").mkdir()
    for number in range(FILES):
        pixels = rng.integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"folder0000/view{number:04d}_frontal.png")
    for number in range(1, ROWS // FILES):
        (folder / f"folder{number:04d}").symlink_to("folder0000")
    rows = (f"folder{row // FILES:04d}/view{row % FILES:04d}_frontal.png,{row // 3:08d}" for row in range(ROWS))
    (folder / "train.csv").write_text("\n".join(["Path,PatientID", *rows]) + "\n")


def _report_workers(name: str, split: Split, settings: config.RunSettings) -> None:
    order = StepOrder(0, len(split), BATCH, 1)
    with closing(_batches(split, settings, order)) as batches:
        start = time.perf_counter()
        for _ in islice(batches, 4):
            pass
        before = [_private(child.pid) for child in multiprocessing.active_children()]
        for _ in islice(batches, SEEN // BATCH):
            pass
        after = [_private(child.pid) for child in multiprocessing.active_children()]
        rate = SEEN / (time.perf_counter() - start)
    print(f"{name:30} {_megabytes(before)} at the start, {_megabytes(after)} at the end ({rate:.0f} images/s)")


def _batches(split: Split, settings: config.RunSettings, order: StepOrder) -> Generator[Batch]:
    yield from training_batches(split, settings, order, 0)


def _private(pid: int | None) -> int:
    """Return the kilobytes that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private"))


def _megabytes(kilobytes: list[int]) -> str:
    return " and ".join(f"{number / 1024:.0f}" for number in kilobytes)
