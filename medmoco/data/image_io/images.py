"""Read an image file into an array: PNG, JPEG, TIFF and DICOM at their full bit depth, and .npy.

`preprocessing` reads the files, here and in exports. This module adds what training needs: limits for hostile files,
canvases, and the package's errors.

The file type is detected from the content, not the suffix, and the size is checked before decoding. A truncated file
is refused, never returned in part. Brighter is denser, as a viewer displays it. Messages and notices contain neither
paths nor patient data; the caller adds the row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pydicom
from PIL import Image

from medmoco.config import DataSettings
from medmoco.data.image_io import preprocessing
from medmoco.data.image_io.file_format import kind_of
from medmoco.data.image_io.formats import bands
from medmoco.data.image_io.intensity import (
    CONSTANT,
    REPEATED,
    GrayImage,
    Pixels,
    Unreadable,
    Window,
    on_canvas,
    quiet,
)
from medmoco.data.image_io.limits import DEFAULT_LIMITS, Limits, as_image_errors, check_file, limits_of, within
from medmoco.errors import ImageError


@dataclass(frozen=True)
class Canvas:
    """An image scaled and padded to a square."""

    # (S, S) uint8 or uint16, or (S, S, C) with several channels; zero below and to the right of the image
    pixels: Pixels
    height: int  # rows of the image; the longer of height and width is S
    width: int  # columns of the image
    rgb: bool = False  # whether the channels are red, green and blue, not bands


def read_canvas(file: str | Path, frame: int, data: DataSettings) -> tuple[Canvas, tuple[str, ...]]:
    """Decode a file to a canvas according to the settings, as used in training and stored in packs.

    Returns:
        The canvas, and the reader's notices.

    Raises:
        ImageError: see `read_image`.
    """
    image = read_as_set(file, frame, data, at_least=data.canvas_size)
    canvas = to_canvas(image, data.canvas_size, data.bit_depth)
    return replace(canvas, rgb=data.channels == "rgb"), image.notices


def read_as_set(file: str | Path, frame: int, data: DataSettings, *, at_least: int | None = None) -> GrayImage:
    """Decode a file according to the settings; `at_least` and errors are those of `read_image`."""
    limits = limits_of(data)
    if isinstance(data.channels, str):
        rgb = data.channels == "rgb"
        assert data.window != "percentiles"  # of volumes only
        return read_image(file, frame=frame, window=data.window, limits=limits, at_least=at_least, rgb=rgb)
    with reading(Path(file), limits):
        values = bands.band_values(Path(file), data.channel_count, frame, within(limits))
        return _with_notices(bands.levels_of(values, data.scale, data.band_ranges))


@contextmanager
def reading(path: Path, limits: Limits) -> Iterator[None]:
    """Refuse a file that is missing or too large, and turn errors inside the block into `ImageError`.

    Raises:
        ImageError: the file cannot be read.
    """
    check_file(path, limits)
    with as_image_errors():
        yield


def read_image(
    file: str | Path,
    *,
    frame: int = 1,
    window: Window = "voi",
    limits: Limits = DEFAULT_LIMITS,
    at_least: int | None = None,
    rgb: bool = False,
) -> GrayImage:
    """Decode a PNG, JPEG, TIFF or DICOM file to one grayscale plane, or to red, green and blue.

    Args:
        file: The file.
        frame: Frame of a multi-frame DICOM file or page of a TIFF file, counted from 1.
        window: "voi" applies the VOI table or window of a DICOM file; without one, 8-bit files keep their full range
            and deeper ones are scaled from their minimum to their maximum, with a notice. "full" is the full range of
            the stored values. (centre, width) refers to DICOM values after the modality transform, or to stored
            values of a 16-bit PNG or TIFF file. Colour and 8-bit PNG, JPEG and TIFF files are read as displayed.
        limits: Larger files and images are refused.
        at_least: The file may be decoded at a reduced size that is enough for a canvas of this number of pixels, see
            `preprocessing.read`. None means full size.
        rgb: Keep the colours, (H, W, 3); gray files become three equal planes, with a notice.

    Raises:
        ImageError: the file is missing, damaged, truncated, too large, transparent, of unknown type, or not an image.
    """
    path = Path(file)
    with reading(path, limits):
        image = preprocessing.read(
            path, frame, window, rgb=rgb, at_least=at_least, admit=within(limits), inflate_to=limits.inflated_bytes
        )
    if rgb and image.pixels.ndim == 2:
        image = replace(image, pixels=np.repeat(image.pixels[..., None], 3, 2), notices=(*image.notices, REPEATED))
    return _with_notices(image)


def _with_notices(image: GrayImage) -> GrayImage:
    is_constant = image.pixels.min() == image.pixels.max()
    return replace(image, notices=(*image.notices, CONSTANT)) if is_constant else image


def size_in_header(file: str | Path) -> tuple[int, int] | None:
    """Return the height and width in a file's header, without decoding it; None if it is not an image or of bands."""
    found: list[tuple[int, int]] = []

    def stop(width: int, height: int, _: int) -> None:
        if (width, height) != (1, 1):  # as the reader of TIFF files calls it for the number of pages
            found.append((height, width))
            raise Unreadable("only the header is read")

    with suppress(ImageError), reading(Path(file), DEFAULT_LIMITS):
        preprocessing.read(Path(file), 1, "full", rgb=True, admit=stop, inflate_to=DEFAULT_LIMITS.inflated_bytes)
    return found[0] if found else None


def to_canvas(image: GrayImage, size: int, bit_depth: int) -> Canvas:
    """Return an image scaled so that its longer side is `size`, and padded to a square.

    Args:
        image: Image (H, W), or (H, W, C), whose channels are all processed alike.
        size: Side S of the canvas, in pixels.
        bit_depth: 8 or 16; white becomes 255 or 65535.
    """
    if image.pixels.ndim == 3:
        planes = [to_canvas(replace(image, pixels=plane), size, bit_depth) for plane in cv2.split(image.pixels)]
        return replace(planes[0], pixels=np.stack([plane.pixels for plane in planes], axis=-1))
    scaled = on_canvas(image, size, bit_depth)
    canvas = np.zeros((size, size), scaled.dtype)
    canvas[: scaled.shape[0], : scaled.shape[1]] = scaled
    return Canvas(canvas, *scaled.shape)


# File formats

# TIFF tags
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_TIFF_COLORS = {0: "MONOCHROME1", 1: "MONOCHROME2", 2: "RGB", 3: "PALETTE COLOR"}
_PNG_COLORS = {0: "MONOCHROME2", 2: "RGB", 3: "PALETTE COLOR", 4: "MONOCHROME2", 6: "RGB"}


class FileFormat(NamedTuple):
    """How a file stores its pixels."""

    kind: str  # PNG, JPEG, TIFF, DICOM or NPY
    bits: int  # bits stored per pixel and channel
    # Photometric interpretation in DICOM's terms, or the number type of NPY files. Source: DICOM PS3.3 C.7.6.3.1.2
    photometric: str


def file_format(file: str | Path) -> FileFormat:
    """Return the format in the header of a file that `read_image` can read."""
    path = Path(file)
    with path.open("rb") as stream:
        start = stream.read(132)
    with quiet():
        kind = kind_of(start)
        if kind == "DICOM":
            header = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=["BitsStored", "PhotometricInterpretation"]
            )
            return FileFormat("DICOM", int(header.BitsStored), str(header.PhotometricInterpretation))
        if kind == "PNG":
            return FileFormat("PNG", start[24], _PNG_COLORS[start[25]])
        if kind == "NPY":
            dtype = bands.npy_header(path)[1]
            return FileFormat("NPY", 8 * dtype.itemsize, dtype.name)
        with Image.open(path, formats=["JPEG", "TIFF"]) as image:
            if image.format == "JPEG":
                return FileFormat("JPEG", 8, "MONOCHROME2" if image.mode == "L" else "RGB")
            tags = image.tag_v2  # type: ignore[attr-defined]
            return FileFormat(
                "TIFF", max(tags.get(_BITS_PER_SAMPLE, (1,))), _TIFF_COLORS.get(tags[_PHOTOMETRIC], "RGB")
            )
