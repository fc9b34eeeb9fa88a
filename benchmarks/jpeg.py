"""JPEG files to canvases on one core: decoded whole, and at the reduced size that the canvas needs."""

from __future__ import annotations

import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.turns import report, seconds_per_round
from medmoco.data.image_io.images import read_image, to_canvas

IMAGES, ROUNDS, CANVAS, SIDES = 4, 5, 256, (1024, 2048, 3000)
KINDS = {
    "quality 95": {"quality": 95},
    "quality 75": {"quality": 75},
    "quality 95, progressive": {"quality": 95, "progressive": True},
}


def run() -> None:
    """Print a table for each size and kind of file."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        for side, (kind, options) in product(SIDES, KINDS.items()):
            files = _write_images(Path(name), side, options)
            sizes = {"decoded whole": None, "at reduced size": CANVAS}
            contestants = {name: partial(_read, files, size) for name, size in sizes.items()}
            times = seconds_per_round(contestants, ROUNDS)
            title = f"{side} x {side} JPEG, {kind}, to a canvas of {CANVAS}"
            report(title, times, per_round=len(files), unit="images", reference="decoded whole")


def _read(files: list[Path], at_least: int | None) -> None:
    for file in files:
        to_canvas(read_image(file, at_least=at_least), CANVAS, 8)


def _write_images(folder: Path, side: int, options: dict[str, Any]) -> list[Path]:
    rng = np.random.default_rng(0)
    files = []
    for number in range(IMAGES):
        smooth = cv2.resize(rng.random((32, 32)), (side, side), interpolation=cv2.INTER_CUBIC)
        pixels = np.clip(40 + 160 * smooth + rng.normal(0, 3, (side, side)), 0, 255).astype(np.uint8)
        files.append(folder / f"{number}.jpg")
        Image.fromarray(pixels).save(files[-1], **options)
    return files
