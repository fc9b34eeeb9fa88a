"""Gray images with bright rectangles whose boxes are known, for tests of what finds them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medmoco import config
from medmoco.detection.boxes import Annotated
from medmoco.detection.learning import Detections

SECRET = "DOE-JANE-4711"
COUNTS = {"train": 12, "val": 8, "test": 6}
HEADER = ["Split", "Path", "Label", "x_min", "y_min", "x_max", "y_max"]
HEIGHT, WIDTH = 48, 64


def write_images(folder: Path) -> Path:
    """Write splits of images of a patient whose name must not travel; every third has no box, every fourth has two."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    boxes: list[list[Any]] = []
    for name, count in COUNTS.items():
        (folder / name).mkdir()
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["Path", "PatientID", "Mass", "Nodule"])
            for number in range(count):
                path = f"{SECRET}-{number}.png"
                pixels = rng.integers(60, 120, (HEIGHT, WIDTH))
                found = []
                for label in (["Mass", "Nodule"] if number % 4 == 1 else ["Mass"]) if number % 3 else []:
                    side = 22 if label == "Mass" else 12
                    x, y = int(rng.integers(WIDTH - side)), int(rng.integers(HEIGHT - side))
                    pixels[y : y + side, x : x + side] += 90
                    found.append([name, path, label, x, y, x + side, y + side])
                Image.fromarray(pixels.astype(np.uint8)).save(folder / name / path)
                boxes += found or [[name, path, "", "", "", "", ""]]
                writer.writerow([path, f"{SECRET}-{name}-{number // 2}", int(number % 3 > 0), int(len(found) > 1)])
    write_boxes(folder, boxes)
    return folder


def write_boxes(folder: Path, rows: Sequence[Sequence[Any]], header: Sequence[str] = HEADER) -> None:
    with (folder / "boxes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def read_boxes(folder: Path) -> list[list[str]]:
    with (folder / "boxes.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def make_settings(manifest: Path, *overrides: str) -> config.RunSettings:
    """Return settings of a short run on the CPU with a small detector."""
    base = [
        "out=unused", f"data.manifest={manifest}", f"data.root={manifest}/{{split}}", "data.workers=0",
        "views.size=32", "model.backbone=test_resnet", "train.precision=fp32", "train.device=cpu", "train.log_every=1",
        "evaluate.bootstrap=100", "detection.size=64", "detection.channels=16", "detection.smallest_anchor=12",
        "detection.detector=retinanet", "detection.epochs=2", "detection.global_batch_size=4",
        "detection.warmup_epochs=0", "detection.lr=1e-3",
    ]  # fmt: skip
    return config.load(None, [*base, *overrides])


def made_up(seed: int, *, images: int = 30, labels: int = 2) -> tuple[Annotated, Detections]:
    """Return boxes and detections in images that do not exist: near boxes, far from them, and with tied scores."""
    rng = np.random.default_rng(seed)

    class Rows:
        patients = np.arange(images) // 3

    def boxes(count: int) -> Any:
        start = rng.integers(0, 60, (count, 2))
        return np.concatenate([start, start + rng.integers(8, 30, (count, 2))], axis=1).astype(float)

    of_image = np.sort(rng.integers(0, images, images))
    truth = boxes(images)
    annotated = Annotated(
        Rows(), np.full((images, 2), 100), of_image, truth, rng.integers(0, labels, images)  # type: ignore[arg-type]
    )  # fmt: skip
    near = np.repeat(np.arange(images), 2)
    corners = np.concatenate([truth[near] + rng.normal(0, 2, (len(near), 4)), boxes(4 * images)])
    where = np.concatenate([of_image[near], rng.integers(0, images, 4 * images)])
    which = np.concatenate([annotated.labels[near], rng.integers(0, labels, 4 * images)])
    scores = np.empty(len(where))
    for image in range(images):  # equal in different images, never in one, where they would have no order
        scores[where == image] = (1 + rng.permutation((where == image).sum())) / 50
    order = np.argsort(where, kind="stable")
    return annotated, Detections(where[order], corners[order], which[order], scores[order])
