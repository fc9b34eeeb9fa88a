"""How time and memory grow with the number of images, measured in a process each, and extrapolated to ten million.

`python -m benchmarks.growth NAME SIZE` measures one operation at one size.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmoco.utils.available import available_memory

NARROW, WIDE = 512, 2048  # features of a ResNet-18 and of a ResNet-50
LABELS, QUERIES = 14, 1000
TEN_MILLION = 10**7

Work = Callable[[], object]


class Measured(NamedTuple):
    """What is measured, for how many images, and the bytes of memory that one of them needs."""

    prepare: Callable[[int, Path], Work]
    sizes: Sequence[int]
    bytes_per_image: int = 0


def run() -> None:
    """Print a table: seconds and memory at each size, the slope between the two largest, and both at ten million.

    Sizes that need more memory than there is are left out.
    """
    print("\nseconds, and MB of memory above those at the start, by the number of images; slope 1 is linear")
    for name, (_, sizes, bytes_per_image) in WORK.items():
        fitting = [size for size in sizes if size * bytes_per_image < available_memory()]
        measured = {size: _in_process(name, size) for size in fitting}
        cells = ", ".join(f"{size:,}: {seconds:.2f} s, {memory:.0f} MB" for size, (seconds, memory) in measured.items())
        (small, before), (large, last) = list(measured.items())[-2:]
        growth = [_slope(*pair) / math.log(large / small) for pair in zip(before, last, strict=True)]
        pairs = zip(last, growth, strict=True)
        times, memories = (value * (TEN_MILLION / large) ** max(slope, 1) for value, slope in pairs)
        print(f"{name:48} {cells}\n{'':48} slopes {growth[0]:.2f} and {growth[1]:.2f}", end="")
        print(f"; 10,000,000: {times:,.0f} s, {memories / 1024:,.1f} GB" if large < TEN_MILLION else "")


def _slope(small: float, large: float) -> float:
    return math.log(max(large, 1e-3) / max(small, 1e-3))


def _in_process(name: str, size: int) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.growth", name, str(size)]
    seconds, memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(memory)


def process_memory(what: str) -> float:
    """Return VmRSS, the memory of this process, or VmHWM, its peak, in MB; `resource` would count the parent's."""
    return int(Path("/proc/self/status").read_text().partition(f"{what}:")[2].split()[0]) / 1024


def measure(name: str, size: int) -> None:
    """Print the seconds of one operation, and the megabytes that this process needs for it."""
    with tempfile.TemporaryDirectory() as folder:
        work = WORK[name].prepare(size, Path(folder))
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, start = process_memory("VmRSS"), time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        print(seconds, max(0.0, process_memory("VmHWM") - before))  # the kernel may have reclaimed a little meanwhile


# ---- what is measured ----


def _manifest(size: int, folder: Path) -> Work:
    from medmoco.config import DataSettings
    from medmoco.data.manifest.manifest import load_manifest

    cells = np.random.default_rng(0).choice(["0", "1", "", "-1", "0.0"], (size, LABELS), p=[0.6, 0.1, 0.2, 0.05, 0.05])
    with (folder / "train.csv").open("w", encoding="utf-8") as stream:
        stream.write("Path,PatientID," + ",".join(f"L{number}" for number in range(LABELS)) + "\n")
        for row in range(size):
            path = f"folder{row // 1000:05d}/study00000001/view{row % 1000:04d}_frontal.png"
            stream.write(f"{path},{row // 3:08d},{','.join(cells[row])}\n")
    data = DataSettings(manifest=folder, root="images", labels=[f"L{number}" for number in range(LABELS)])
    return lambda: load_manifest(data, ["train"])


def _look(size: int, folder: Path) -> Work:
    from medmoco.config import DataSettings
    from medmoco.data.manifest.file_checks import check_files
    from medmoco.data.manifest.manifest import load_manifest

    lines = ["Path", *(f"folder{row // 1000:05d}/{row % 1000}.png" for row in range(size))]
    (folder / "train.csv").write_text("\n".join(lines) + "\n")
    (folder / "folder00000").mkdir()
    for row in range(1000):
        (folder / f"folder00000/{row}.png").touch()
    for number in range(1, size // 1000):  # a million files would take minutes to make
        (folder / f"folder{number:05d}").symlink_to("folder00000")
    data = DataSettings(manifest=folder, root=str(folder), labels={})
    split = load_manifest(data, ["train"])["train"]
    return lambda: check_files(split, data)


def _order(size: int, _: Path) -> Work:
    from medmoco.data.loading.sampler import StepOrder

    order = StepOrder(0, size, 256, 1)
    return lambda: order.batch(0)


def _near_duplicates(size: int, _: Path) -> Work:
    from medmoco.data.image_io.fingerprints import near_duplicates, pattern

    rng = np.random.default_rng(0)
    patterns = np.empty((size, 1024), np.uint8)
    for row in range(size):
        patterns[row] = pattern(np.cumsum(np.cumsum(rng.normal(0, 1, (32, 32)).astype(np.float32), 0), 1))
    return lambda: list(near_duplicates(patterns, np.arange(size)))


def _bootstrap(size: int, _: Path) -> Work:
    from medmoco.evaluation.metrics.auroc import bootstrap_auroc

    rng = np.random.default_rng(0)
    targets = (rng.random(size) < 0.1).astype(np.float64)
    return lambda: bootstrap_auroc(targets, rng.normal(targets), np.arange(size) // 3, draws=1000, seed=0)


def _features(size: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return (N, F) features, and (N,) targets that depend on them."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((size, width), np.float32)
    return features, (features[:, :16].sum(1) + rng.normal(0, 4, size) > 0).astype(np.float64)


def _probe(size: int, _: Path, *, width: int) -> Work:
    from medmoco.config import EvaluateSettings
    from medmoco.evaluation.features.probes import linear_probe, standardise

    features, targets = _features(size + QUERIES, width)
    parts = {"train": features[QUERIES:], "val": features[:QUERIES]}
    strengths = EvaluateSettings().strengths
    return lambda: linear_probe(standardise(parts).features, targets[QUERIES:], targets[:QUERIES], strengths)


def _knn(size: int, _: Path, *, width: int) -> Work:
    from medmoco.evaluation.features.probes import knn_scores

    features, targets = _features(size + QUERIES, width)
    return lambda: knn_scores(features[QUERIES:], targets[QUERIES:, None], features[:QUERIES], 20)


def _neighbours(size: int, folder: Path) -> Work:
    from medmoco.config import DataSettings
    from medmoco.data.manifest.manifest import load_manifest
    from medmoco.inspection.neighbours import nearest

    _write_rows(size, folder)
    split = load_manifest(DataSettings(manifest=folder, root=".", labels={}), ["train"])["train"]
    features, chosen = _features(size, NARROW)[0], split.select(np.arange(4))
    return lambda: nearest(chosen, features[:4], split, features, count=5, same_patient=False)


def _placement(size: int, _: Path) -> Work:
    import torch
    from torch.nn.functional import normalize

    from medmoco.inspection.retrieval import ROWS_AT_A_TIME, place

    images = normalize(torch.from_numpy(_features(size, NARROW)[0]), dim=1)

    def work() -> None:
        for start in range(0, size, ROWS_AT_A_TIME):
            some = images[start : start + ROWS_AT_A_TIME]
            place(images, start, [normalize(some + 0.1 * torch.randn_like(some), dim=1)])

    return work


def _write_rows(size: int, folder: Path) -> None:
    lines = ["Path,PatientID", *(f"{row}.png,{row // 3}" for row in range(size))]
    (folder / "train.csv").write_text("\n".join(lines) + "\n")


def _images(size: int, folder: Path) -> Path:
    import cv2

    rng = np.random.default_rng(0)
    for row in range(size):
        smooth = cv2.resize(rng.random((9, 9)), (96, 96), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(folder / f"{row}.png"), np.clip(255 * smooth, 0, 255).astype(np.uint8))
    _write_rows(size, folder)
    return folder


def _check(size: int, folder: Path) -> Work:
    import medmoco

    config = _config(_images(size, folder))
    return lambda: medmoco.check(config, out=folder / "check")


def _pack(size: int, folder: Path) -> Work:
    import medmoco

    config = _config(_images(size, folder))
    return lambda: medmoco.pack(config, out=folder / "pack")


def _open_pack(size: int, folder: Path) -> Work:
    import medmoco
    from medmoco.config import load
    from medmoco.data.loading.loading import canvas_reader
    from medmoco.data.manifest.manifest import load_manifest

    config = _config(_images(size, folder))
    medmoco.pack(config, out=folder / "pack")
    data = load(config, [f"data.pack={folder / 'pack'}"]).data
    split = load_manifest(data, ["train"])["train"]
    return lambda: canvas_reader(split, data)(np.array([0]))


def _config(folder: Path) -> dict[str, object]:
    return {
        "out": str(folder / "run"),
        "data": {"manifest": str(folder), "root": str(folder), "labels": {}, "canvas_size": 96, "workers": 2},
        "views": {"size": 96},
    }


MANY, SQUARE, FILES = (10**4, 10**5, 10**6), (10**4, 3 * 10**4, 10**5), (10**3, 3 * 10**3, 10**4)
WORK = {
    "load a manifest": Measured(_manifest, MANY),
    "look for its files": Measured(_look, MANY),
    "order an epoch": Measured(_order, (*MANY, TEN_MILLION)),
    "find near duplicates": Measured(_near_duplicates, MANY),
    "bootstrap an AUROC": Measured(_bootstrap, MANY),
    **{  # in memory are the features, and for the probe a standardised copy of them
        f"{name}, {width} features": Measured(partial(prepare, width=width), MANY, copies * 4 * width)
        for name, prepare, copies in (("fit a linear probe", _probe, 2), ("score 1,000 images by kNN", _knn, 1))
        for width in (NARROW, WIDE)
    },
    "find the neighbours of 4 images": Measured(_neighbours, MANY),
    "rank a copy of each image among all": Measured(_placement, SQUARE),
    "check small images": Measured(_check, FILES),
    "pack small images": Measured(_pack, FILES),
    "open a pack": Measured(_open_pack, FILES),
}
"""What is measured, by name."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("size", type=int)
    given = parser.parse_args()
    measure(given.name, given.size)
