"""What views of 64, 96 and 128 voxels cost: bytes of a pack, views per second from it, the training step, and memory.

Views of every size show the same 256 mm of CT phantoms, whose spacing follows from it. Each size is measured in a
process of its own, `python -m benchmarks.volume_costs SIZE FOLDER`. Bytes and time of the pack are those that further
volumes add; multiplied by 10,000, they are what an archive of that many volumes costs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.growth import process_memory
from benchmarks.step import FLOOR, STEPS, steps
from benchmarks.turns import seconds_per_round, spread
from medmoco.config import RunSettings, load
from medmoco.data.manifest.manifest import SPLITS, load_manifest
from medmoco.data.pack.pack_writing import make_pack
from medmoco.datasets.phantoms.phantom import phantom
from medmoco.training.bench import measure

SIZES, EXTENT = (64, 96, 128), 256.0  # voxels and mm
PATIENTS, IMAGE_SIZE = (5, 15), 192  # 60 % of them in train
BACKBONE, BATCH, ROUNDS, SECONDS = "monai/resnet10", 4, 5, 4.0
MANY = 10_000


def run() -> None:
    """Print a line for each size."""
    print(f"\n{BACKBONE}, batch {BATCH}, views of {EXTENT:.0f} mm, one core for views: medians [lowest-highest]")
    with tempfile.TemporaryDirectory() as folder:
        for patients in PATIENTS:
            out = Path(folder) / f"{patients}"
            phantom(out, volumes=True, patients=patients, image_size=IMAGE_SIZE, formats=["nifti"])
        for size in SIZES:
            print(_in_process(size, Path(folder)), flush=True)


def _in_process(size: int, folder: Path) -> str:
    command = [sys.executable, "-m", "benchmarks.volume_costs", str(size), str(folder)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def costs(size: int, folder: Path) -> str:
    """Return a line with the costs of one size of views, from the phantoms in a folder."""
    packed = [_pack(size, folder / f"{patients}") for patients in PATIENTS]
    (volumes, size_of_few, seconds_of_few), (more, size_of_many, seconds_of_many) = (
        (_rows(settings), _bytes(Path(str(settings.data.pack))), seconds) for settings, seconds in packed
    )
    each = (size_of_many - size_of_few) / (more - volumes)
    time_of_each = (seconds_of_many - seconds_of_few) / (more - volumes)
    rates = [measure(packed[-1][0], SECONDS, lambda _: None).views.median for _ in range(ROUNDS)]
    contestants, where = steps(BACKBONE, size, BATCH, 1024, dimensions=3, splits=2)
    contestants = {name: contestants[name] for name in (FLOOR, "medmoco")}
    times = seconds_per_round(contestants, ROUNDS)
    ratios = [floor / own for floor, own in zip(times[FLOOR], times["medmoco"], strict=True)]
    rate = STEPS * BATCH / statistics.median(times["medmoco"])
    return (
        f"{size} voxels of {EXTENT / size:.2f} mm: {each / 1e6:.2f} MB a volume, {each * MANY / 1e9:.1f} GB and"
        f" {time_of_each * MANY / 3600:.1f} h to pack {MANY:,};"
        f" {spread(rates, 0)} views/s from the pack; step {rate:.1f} volumes/s ({where}), {spread(ratios, 2)} of the"
        f" bare encoders, {MANY / rate / 3600:.1f} h an epoch of {MANY:,};"
        f" {process_memory('VmHWM') / 1024:.1f} GB of memory"
    )


def _pack(size: int, folder: Path) -> tuple[RunSettings, float]:
    """Return settings with a new pack, and the seconds that it took."""
    spacing = [EXTENT / size] * 3
    data = {
        "manifest": str(folder), "root": str(folder / "{split}"), "labels": [], "dimensions": 3, "spacing": spacing,
        "window": [-300, 1400], "workers": 0,
    }  # fmt: skip
    out = folder / f"pack-{size}"
    sizes = [f"views.size={size}", f"train.global_batch_size={BATCH}", "method.queue_size=4", "train.threads=1"]
    sizes += ["views.recipe=ct", f"model.backbone={BACKBONE}", "method.batch_norm_splits=2"]
    settings = load({"out": str(folder / "run"), "data": data}, sizes)
    start = time.perf_counter()
    make_pack(settings.data, out, lambda _: None)
    seconds = time.perf_counter() - start
    return settings.model_copy(update={"data": settings.data.model_copy(update={"pack": str(out)})}), seconds


def _rows(settings: RunSettings) -> int:
    return sum(len(split) for split in load_manifest(settings.data, SPLITS).values())


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


if __name__ == "__main__":
    print(costs(int(sys.argv[1]), Path(sys.argv[2])))
