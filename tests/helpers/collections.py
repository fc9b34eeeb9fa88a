"""Small folders of images, as people have them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from tests.helpers.films import film


def write_image(file: Path, seed: int, *, height: int = 48, width: int = 40, colour: bool = False) -> Path:
    """Write a PNG or JPEG file with large shapes."""
    pixels = film(seed, height, width)
    if colour:
        pixels = np.stack([film(seed + number, height, width) for number in (0, 1000, 2000)], axis=-1)
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), pixels)
    return file


def write_images(folder: Path, names: list[str], **options: int) -> Path:
    """Write an image for each name, each with its own content."""
    for seed, name in enumerate(names):
        write_image(folder / name, seed, **options)  # type: ignore[arg-type]
    return folder
