"""Sizes from headers: those that decoding gives, for every kind of file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medmoco.config import DataSettings
from medmoco.data.image_io.images import read_image
from medmoco.data.image_io.limits import DEFAULT_LIMITS, Limits
from medmoco.data.manifest.manifest import load_manifest
from medmoco.detection.sizes import image_size, image_sizes
from medmoco.errors import ImageError


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_image_size__of_plain_files(tmp_path: Path, kind: str) -> None:
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a", kind)
    assert image_size(tmp_path / "a", 1, DEFAULT_LIMITS) == (20, 30, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_size__is_that_of_the_upright_image(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30)).save(tmp_path / "a.jpg", exif=exif)
    assert image_size(tmp_path / "a.jpg", 1, DEFAULT_LIMITS)[:2] == read_image(tmp_path / "a.jpg").pixels.shape


def test_image_size__equals_what_is_decoded(shared: Path) -> None:
    """Of every DICOM file that can be decoded: multi-frame, deflated, compressed, palette."""
    compared = 0
    for file in sorted((shared / "data/dicom").glob("*.dcm")):
        try:
            decoded = read_image(file)
        except ImageError:
            continue
        assert image_size(file, 1, DEFAULT_LIMITS)[:2] == decoded.pixels.shape, file.name
        compared += 1
    assert compared > 20


def test_image_size__refuses(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no image")
    with pytest.raises(ImageError, match="its content is not PNG"):
        image_size(tmp_path / "text", 1, DEFAULT_LIMITS)
    with pytest.raises(ImageError, match="does not exist"):
        image_size(tmp_path / "nowhere", 1, DEFAULT_LIMITS)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="30 x 20 pixels"):
        image_size(tmp_path / "a.tif", 1, Limits(max_pixels=100))
    with pytest.raises(ImageError, match="frame 2 is requested, but the file has 1"):
        image_size(tmp_path / "a.tif", 2, DEFAULT_LIMITS)
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 40)
    with pytest.raises(ImageError, match="DICOM header"):
        image_size(tmp_path / "a.dcm", 1, DEFAULT_LIMITS)


def test_image_sizes__names_the_row_or_passes_over_it(tmp_path: Path) -> None:
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Path"], ["a.png"], ["b.png"]])
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    data = DataSettings(manifest=tmp_path, root=str(tmp_path))
    split = load_manifest(data, ("train",))["train"]
    with pytest.raises(ImageError, match=r"train.csv row 3: the header"):
        image_sizes(split, data)
    lenient = data.model_copy(update={"bad_images": "quarantine"})
    sizes, aspects = image_sizes(split, lenient)
    assert sizes.tolist() == [[20, 30], [0, 0]]
    assert aspects.tolist() == [1, 1]
