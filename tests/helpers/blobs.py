"""Images and volumes with bright balls of two sizes, and their masks, for tests of what segments them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medmoco import config

SECRET = "ROE-JANE-1147"
COUNTS = {"train": 6, "val": 4, "test": 4}
SPACING = (1.0, 1.5, 2.0)  # mm, of volumes
LARGE, SMALL, UNSURE = 10, 20, 99  # values in the masks


def blobs(rng: np.random.Generator, shape: tuple[int, ...], *, small: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return uint8 pixels and the mask of a large ball in the first half, perhaps a small one, and an unsure corner."""
    pixels, mask = rng.integers(40, 90, shape).astype(np.uint8), np.zeros(shape, np.uint8)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    for value, share, radius in ((LARGE, 0.3, 0.22), (SMALL, 0.75, 0.12)):
        if value == LARGE or small:
            centre = np.array(shape) * share + rng.uniform(-1, 1, len(shape))
            inside = np.linalg.norm(places - centre, axis=-1) < radius * min(shape)
            pixels[inside] = rng.integers(180 if value == LARGE else 120, 250 if value == LARGE else 150, inside.sum())
            mask[inside] = value
    mask[tuple(slice(-2, None) for _ in shape)] = UNSURE
    return pixels, mask


def write_blobs(folder: Path, dimensions: int) -> Path:
    """Write splits of images of patients whose names must not travel, two each; the last of each split has no mask."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(dimensions)
    for name, count in COUNTS.items():
        (folder / name).mkdir()
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["Path", "Mask", "PatientID"])
            for number in range(count + 1):
                shape = (28, 36) if dimensions == 2 else (20, 24, 18)
                pixels, mask = blobs(rng, shape, small=number % 3 != 2)
                suffix = ".png" if dimensions == 2 else ".nii.gz"
                paths = [f"{SECRET}-{number}{suffix}", f"{SECRET}-{number}-mask{suffix}"]
                for path, array in zip(paths, (pixels, mask), strict=True):
                    if dimensions == 2:
                        Image.fromarray(array).save(folder / name / path)
                    else:
                        nibabel.save(nibabel.Nifti1Image(array, np.diag([*SPACING, 1.0])), folder / name / path)
                writer.writerow([paths[0], paths[1] if number < count else "", f"{SECRET}-{name}-{number // 2}"])
    return folder


def make_settings(
    manifest: Path, dimensions: int, *overrides: str, classes: str = f"{{large: {LARGE}, small: {SMALL}}}"
) -> config.RunSettings:
    """Return settings of a short run on the CPU with a small network."""
    base = [
        "out=unused", f"data.manifest={manifest}", f"data.root={manifest}/{{split}}", "data.workers=0",
        "train.precision=fp32", "train.device=cpu", "train.log_every=1", "evaluate.bootstrap=100",
        f"segmentation.classes={classes}", f"segmentation.ignore={UNSURE}",
        "segmentation.epochs=2", "segmentation.global_batch_size=4", "segmentation.least_steps=2",
        "segmentation.warmup_epochs=0", "segmentation.channels=4",
    ]  # fmt: skip
    if dimensions == 2:
        base += ["data.canvas_size=32", "views.size=32", "model.backbone=test_resnet"]
    else:
        base += [
            "data.dimensions=3", "data.window=percentiles", "data.spacing=[1.5, 1.5, 1.5]", "views.recipe=mr",
            "views.size=16", "model.backbone=nnunet/resenc_4stages_quarter",
        ]  # fmt: skip
    return config.load(None, [*base, *overrides])
