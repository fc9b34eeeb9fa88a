"""Small gray images whose label can be seen, for tests that go through files, encoders and probes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SMALL = [
    "data.labels=[Bright]", "data.canvas_size=48", "data.workers=0", "views.size=32", "train.device=cpu",
    "evaluate.batch_size=16",
]  # fmt: skip


def write_images(folder: Path, sizes: dict[str, int]) -> None:
    """Write gray squares; where Bright is 1 their upper half is brighter, and an id that must not leak."""
    generator = np.random.default_rng(0)
    for split, size in sizes.items():
        (folder / "images").mkdir(exist_ok=True)
        lines = ["Path,PatientID,Bright"]
        for number in range(size):
            label = int(generator.random() < 0.5)
            pixels = generator.integers(60, 140, size=(48, 40))
            pixels[:24] += 12 * label
            name = f"secret-{split}-{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name)
            lines.append(f"{name},confidential-{split}-{number // 2},{label if number % 10 else ''}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
