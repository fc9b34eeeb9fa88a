"""A manifest of a million rows: seconds and memory to load it, and memory of the data workers over 200,000 images."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
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
from medmoco.data.manifest.file_checks import check_files
from medmoco.data.manifest.manifest import Split, load_manifest

ROWS, FOLDERS, LABELS, SEEN, BATCH = 1_000_000, 1000, 14, 200_000, 256

_LOAD = """
import sys, time
from pathlib import Path
from medmoco.config import DataSettings
from medmoco.data.manifest.manifest import load_manifest
labels = [f"L{number}" for number in range(int(sys.argv[2]))]
data = DataSettings(manifest=Path(sys.argv[1]), root="images", labels=labels)
def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
before, start, busy = peak(), time.perf_counter(), time.process_time()
assert len(load_manifest(data, ["train"])["train"]) == int(sys.argv[3])
seconds, busy = time.perf_counter() - start, time.process_time() - busy
print(seconds, busy, peak() - before)
"""


def run() -> None:
    """Print how long loading takes and what it needs, then what the workers need."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print(f"\n{ROWS} rows of Path, PatientID and {LABELS} labels")
        for quotes in ("", '"'):
            _write_csv(folder, quotes)
            command = [sys.executable, "-c", _LOAD, str(folder), str(LABELS), str(ROWS)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds, busy, megabytes = map(float, printed.split())
            cells = "quoted cells" if quotes else "plain cells"
            print(f"load, {cells:14} {seconds:6.1f} s ({busy:.1f} s of CPU), {megabytes:4.0f} MB more at the peak")
        _write_images(folder)
        settings = config.load(None, [
            "out=run", f"data.manifest={folder}", f"data.root={folder}", "data.canvas_size=16", "views.size=16",
            f"train.global_batch_size={BATCH}", "train.device=cpu", "method.queue_size=1024",
        ])  # fmt: skip
        split = load_manifest(settings.data, ["train"])["train"]
        start = time.perf_counter()
        check_files(split, settings.data)
        seconds = time.perf_counter() - start
        print(f"look for every file          {seconds:6.1f} s in {FOLDERS} folders, all but one of them links")
        print(f"\nMB that a data worker shares with no other process, over {SEEN} images")
        _report_workers("as they are", split, settings)
        _report_workers("file names as Python strings", replace(split, files=split.files.astype(object)), settings)


def _write_csv(folder: Path, quotes: str) -> None:
    rng = np.random.default_rng(0)
    cells = rng.choice(["0", "1", "", "-1", "0.0", "1.0"], (ROWS, LABELS), p=[0.5, 0.1, 0.2, 0.05, 0.1, 0.05])
    with (folder / "train.csv").open("w", encoding="utf-8") as stream:
        stream.write("Path,PatientID," + ",".join(f"L{number}" for number in range(LABELS)) + "\n")
        for row in range(ROWS):
            path = f"folder{row // FOLDERS:04d}/study00000001/view{row % FOLDERS:04d}_frontal.png"
            stream.write(f"{quotes}{path}{quotes},{quotes}{row // 3:08d}{quotes},{','.join(cells[row])}\n")


def _write_images(folder: Path) -> None:
    """Make a thousand images in a folder that has a thousand names."""
    first = folder / "folder0000/study00000001"
    first.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(FOLDERS):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(first / f"view{number:04d}_frontal.png")
    for number in range(1, ROWS // FOLDERS):
        (folder / f"folder{number:04d}").symlink_to("folder0000")


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
