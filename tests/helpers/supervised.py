"""Images whose label shows, for tests of what learns it."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from medmoco import config

SECRET = "DOE-JANE-4711"
COUNTS = {"train": 24, "val": 12, "test": 10}


def write_images(folder: Path) -> Path:
    """Write splits of images, named after a patient whose name must not travel, bright where they are sick.

    `Tube` is noise and missing in every third row of train; `Class` says in words what `Sick` says.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in COUNTS.items():
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["Path", "PatientID", "Sick", "Tube", "Class"])
            for number in range(count):
                path, sick = f"{name}-{SECRET}-{number}.png", number % 2
                pixels = np.clip(rng.normal(90 + 60 * sick, 30, (40, 36)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / path)
                tube = "" if name == "train" and number % 3 == 0 else int(rng.integers(2))
                writer.writerow([path, f"{SECRET}-{name}-{number // 2}", sick, tube, ("well", "sick")[sick]])
    return folder


def make_settings(manifest: Path, *overrides: str) -> config.RunSettings:
    """Return settings of a short run on the CPU, without pretraining's out."""
    base = [
        "out=unused", f"data.manifest={manifest}", f"data.root={manifest}", "data.labels=[Sick, Tube]",
        "data.canvas_size=32", "data.workers=0", "views.size=32", "model.backbone=test_resnet", "train.precision=fp32",
        "train.device=cpu", "train.log_every=1", "finetune.epochs=4", "finetune.global_batch_size=8",
        "finetune.least_steps=2", "finetune.warmup_epochs=0",
    ]  # fmt: skip
    return config.load(None, [*base, *overrides])
