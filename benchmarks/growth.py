"""How time and memory grow with the number of images, measured in a process each, and extrapolated to ten million."""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FEATURES, LABELS, QUERIES = 512, 14, 1000
TEN_MILLION = 10**7

Work = Callable[[], object]


def run() -> None:
    """Print a table: seconds and memory at each size, the slope between the two largest, and both at ten million."""
    print("\nseconds, and MB of memory above those at the start, by the number of images; slope 1 is linear")
    for name, (_, sizes) in WORK.items():
        measured = {size: _in_process(name, size) for size in sizes}
        cells = ", ".join(f"{size:,}: {seconds:.2f} s, {memory:.0f} MB" for size, (seconds, memory) in measured.items())
        (small, before), (large, last) = list(measured.items())[-2:]
        growth = [_slope(*pair) / math.log(large / small) for pair in zip(before, last, strict=True)]
        pairs = zip(last, growth, strict=True)
        times, memories = (value * (TEN_MILLION / large) ** max(slope, 1) for value, slope in pairs)
        print(f"{name:32} {cells}\n{'':32} slopes {growth[0]:.2f} and {growth[1]:.2f}", end="")
        print(f"; 10,000,000: {times:,.0f} s, {memories / 1024:,.1f} GB" if large < TEN_MILLION else "")


def _slope(small: float, large: float) -> float:
    return math.log(max(large, 1e-3) / max(small, 1e-3))


def _in_process(name: str, size: int) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.growth", name, str(size)]
    seconds, memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), float(memory)


def _memory(what: str) -> float:
    """Return VmRSS, the memory of this process, or VmHWM, its peak, in MB; `resource` would count the parent's."""
    return int(Path("/proc/self/status").read_text().partition(f"{what}:")[2].split()[0]) / 1024


def measure(name: str, size: int) -> None:
    """Print the seconds of one operation, and the megabytes that this process needs for it."""
    with tempfile.TemporaryDirectory() as folder:
        work = WORK[name][0](size, Path(folder))
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before, start = _memory("VmRSS"), time.perf_counter()
        work()
        print(time.perf_counter() - start, _memory("VmHWM") - before)


# ---- what is measured ----


def _manifest(size: int, folder: Path) -> Work:
    from medmoco.config import DataSettings
    from medmoco.data.manifest.manifest import load_manifest

    rng = np.random.default_rng(0)
    with (folder / "train.csv").open("w", encoding="utf-8") as stream:
        stream.write("Path,PatientID," + ",".join(f"L{number}" for number in range(LABELS)) + "\n")
        for row in range(size):
            cells = ",".join(rng.choice(["0", "1", ""], LABELS))
            stream.write(f"folder{row // 1000:05d}/view{row % 1000:04d}_frontal.png,{row // 3:08d},{cells}\n")
    data = DataSettings(manifest=folder, root="images", labels=[f"L{number}" for number in range(LABELS)])
    return lambda: load_manifest(data, ["train"])


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


def _features(size: int) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return (N, F) features, and (N,) targets that depend on them."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((size, FEATURES), np.float32)
    return features, (features[:, :16].sum(1) + rng.normal(0, 4, size) > 0).astype(np.float64)


def _probe(size: int, _: Path) -> Work:
    from medmoco.config import EvaluateSettings
    from medmoco.evaluation.features.probes import linear_probe, standardise

    features, targets = _features(size + QUERIES)
    parts = {"train": features[QUERIES:], "val": features[:QUERIES]}
    strengths = EvaluateSettings().strengths
    return lambda: linear_probe(standardise(parts).features, targets[QUERIES:], targets[:QUERIES], strengths)


def _knn(size: int, _: Path) -> Work:
    from medmoco.evaluation.features.probes import knn_scores

    features, targets = _features(size + QUERIES)
    return lambda: knn_scores(features[QUERIES:], targets[QUERIES:, None], features[:QUERIES], 20)


def _neighbours(size: int, folder: Path) -> Work:
    from medmoco.config import DataSettings
    from medmoco.data.manifest.manifest import load_manifest
    from medmoco.inspection.neighbours import nearest

    _write_rows(size, folder)
    split = load_manifest(DataSettings(manifest=folder, root=".", labels={}), ["train"])["train"]
    features, chosen = _features(size)[0], split.select(np.arange(4))
    return lambda: nearest(chosen, features[:4], split, features, count=5, same_patient=False)


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


MANY, SLOW, FILES = (10**4, 10**5, 10**6), (10**4, 3 * 10**4, 10**5, 3 * 10**5), (10**3, 3 * 10**3, 10**4)
WORK: dict[str, tuple[Callable[[int, Path], Work], Sequence[int]]] = {
    "load a manifest": (_manifest, MANY),
    "order an epoch": (_order, (*MANY, TEN_MILLION)),
    "find near duplicates": (_near_duplicates, MANY),
    "bootstrap an AUROC": (_bootstrap, MANY),
    "fit a linear probe": (_probe, SLOW),
    "score 1,000 images by kNN": (_knn, MANY),
    "find the neighbours of 4 images": (_neighbours, MANY),
    "check small images": (_check, FILES),
    "pack small images": (_pack, FILES),
    "open a pack": (_open_pack, FILES),
}
"""What is measured, and for how many images."""


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("size", type=int)
    given = parser.parse_args()
    measure(given.name, given.size)
