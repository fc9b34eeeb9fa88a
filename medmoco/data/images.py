"""One image file in, one grayscale array out: PNG, JPEG, TIFF and DICOM at their full bit depth.

The content decides the file type, not the suffix, and the size is checked before anything is decoded. A file that is
cut off is refused, never returned in part. Brighter is denser, as a viewer displays it. Messages and notices carry
neither paths nor patient data; the caller adds the row.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pydicom
import torch
from PIL import Image, ImageOps
from torchvision.io import ImageReadMode, decode_image

from medmoco.data.dicom import read_dicom
from medmoco.data.grey_levels import (
    CONSTANT,
    DAMAGED,
    LUMA,
    GrayImage,
    Pixels,
    Window,
    check_frame,
    check_size,
    dtype_of,
    linear,
    quantise,
    rescale,
)
from medmoco.errors import ImageError

__all__ = ["Canvas", "FileFormat", "GrayImage", "Window", "file_format", "read_image", "to_canvas"]


@dataclass(frozen=True)
class Canvas:
    """An image scaled to a square.

    Attributes:
        pixels: (S, S) uint8 or uint16, zero below and to the right of the image.
        height: Rows of the image; the longer of height and width is S.
        width: Columns of the image.
    """

    pixels: Pixels
    height: int
    width: int


class FileFormat(NamedTuple):
    """How a file stores its pixels.

    Attributes:
        kind: PNG, JPEG, TIFF or DICOM.
        bits: Stored per pixel and channel.
        photometric: What the pixel values mean, in DICOM's words. Source: DICOM PS3.3 C.7.6.3.1.2.
    """

    kind: str
    bits: int
    photometric: str


def read_image(file: str | Path, *, frame: int = 1, window: Window = "voi", max_pixels: int = 100_000_000) -> GrayImage:
    """Decode a PNG, JPEG, TIFF or DICOM file to one grayscale plane.

    Args:
        file: The file.
        frame: Frame of a multi-frame DICOM file or page of a TIFF file, from 1.
        window: "voi" is the VOI table or window of a DICOM file; without one, 8-bit files keep their full range and
            deeper ones are spread from their smallest to their largest pixel value, with a notice. "full" is the full
            range of the stored values. (centre, width) is in DICOM values after the modality transform, or in stored
            values of a 16-bit PNG or TIFF file. Colour and 8-bit PNG, JPEG and TIFF files are taken as displayed.
        max_pixels: Larger images are refused.

    Raises:
        ImageError: missing, damaged, cut off, too large, transparent, of an unknown type, or not an image.
    """
    path = Path(file)
    try:
        with path.open("rb") as stream:
            reader = _reader_for(stream.read(132))
    except FileNotFoundError:
        raise ImageError("the file does not exist; check the Path column and data.root") from None
    except OSError as error:
        raise ImageError(f"the file cannot be opened: {error.strerror}") from None
    with _quiet():
        image = reader(path, frame, window, max_pixels)
    if image.pixels.min() == image.pixels.max():
        return GrayImage(image.pixels, image.bits, (*image.notices, CONSTANT))
    return image


def to_canvas(image: GrayImage, size: int, bit_depth: int) -> Canvas:
    """Scale an image so that its longer side is `size`, and pad it to a square.

    Args:
        image: (H, W) image.
        size: Side S of the canvas in pixels.
        bit_depth: 8 or 16; white becomes 255 or 65535.
    """
    pixels = image.pixels
    # Halving is the exact area filter and 20 times faster than cv2's fractional one; an odd last line is left out.
    while max(pixels.shape) >= 2 * size and min(pixels.shape) >= 2:
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        pixels = cv2.resize(pixels[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    longer = max(image.pixels.shape)
    height, width = (max(1, round(side * size / longer)) for side in image.pixels.shape)
    if pixels.shape != (height, width):
        method = cv2.INTER_AREA if max(pixels.shape) > size else cv2.INTER_LINEAR
        pixels = cv2.resize(pixels, (width, height), interpolation=method)
    canvas = np.zeros((size, size), dtype_of(bit_depth))
    canvas[:height, :width] = rescale(pixels, image.bits, bit_depth)
    return Canvas(canvas, height, width)


def file_format(file: str | Path) -> FileFormat:
    """Look up what the header says of a file that `read_image` can read."""
    path = Path(file)
    with path.open("rb") as stream:
        start = stream.read(132)
    with _quiet():
        if _reader_for(start) is read_dicom:
            header = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=["BitsStored", "PhotometricInterpretation"]
            )
            return FileFormat("DICOM", int(header.BitsStored), str(header.PhotometricInterpretation))
        if start.startswith(b"\x89PNG"):
            return FileFormat("PNG", start[24], _PNG_COLORS[start[25]])
        with Image.open(path, formats=["JPEG", "TIFF"]) as image:
            if image.format == "JPEG":
                return FileFormat("JPEG", 8, "MONOCHROME2" if image.mode == "L" else "RGB")
            tags = image.tag_v2  # type: ignore[attr-defined]
            return FileFormat(
                "TIFF", max(tags.get(_BITS_PER_SAMPLE, (1,))), _TIFF_COLORS.get(tags[_PHOTOMETRIC], "RGB")
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' warnings off the console: they quote header values, which may identify a patient."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags
_TIFF_COLORS = {0: "MONOCHROME1", 1: "MONOCHROME2", 2: "RGB", 3: "PALETTE COLOR"}
_PNG_COLORS = {0: "MONOCHROME2", 2: "RGB", 3: "PALETTE COLOR", 4: "MONOCHROME2", 6: "RGB"}
_Reader = Callable[[Path, int, Window, int], GrayImage]


def _reader_for(start: bytes) -> _Reader:
    if not start:
        raise ImageError("the file is empty; fetch it again from where it came from")
    if start[128:] == b"DICM":  # before TIFF, because a DICOM preamble may hold a TIFF header
        return read_dicom
    if start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return _read_png_or_jpeg
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _read_tiff
    raise ImageError(
        "neither PNG, JPEG, TIFF nor DICOM by its content; convert it to one of them\n"
        "(a DICOM file must have its 128-byte preamble)"
    )


def _read_png_or_jpeg(path: Path, frame: int, window: Window, max_pixels: int) -> GrayImage:
    mode, width, height = _header(path, max_pixels)
    check_frame(frame, 1)
    if mode == "CMYK":
        raise ImageError("its colours are CMYK; convert it to grayscale or RGB")
    data = np.fromfile(path, np.uint8)
    if data[0] == 0x89 and b"IEND\xaeB`\x82" not in data[-4096:].tobytes():
        raise ImageError(f"the PNG file has no end; {DAMAGED}")
    try:
        if mode == "P":  # torchvision returns the palette's indices
            with Image.open(path, formats=["PNG"]) as image:
                planes = np.asarray(ImageOps.exif_transpose(image).convert("RGBA")).transpose(2, 0, 1)
        else:
            encoded = torch.from_numpy(data)
            planes = decode_image(encoded, ImageReadMode.UNCHANGED, apply_exif_orientation=True).numpy()
    except (RuntimeError, OSError, SyntaxError, ValueError):
        raise ImageError(f"the {width} x {height} image cannot be decoded; {DAMAGED}") from None
    return _as_displayed(planes, window)


def _header(path: Path, max_pixels: int) -> tuple[str, int, int]:
    """Return Pillow's mode, the width and the height, without decoding."""
    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as image:
            width, height = image.size
            mode = image.mode
    except Image.DecompressionBombError:
        raise _bomb() from None
    except Exception:
        raise ImageError(f"the header cannot be read; {DAMAGED}") from None
    check_size(width, height, max_pixels)
    return mode, width, height


def _bomb() -> ImageError:
    return ImageError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, which Pillow refuses; crop or shrink it")


def _read_tiff(path: Path, frame: int, window: Window, max_pixels: int) -> GrayImage:
    try:
        with Image.open(path, formats=["TIFF"]) as image:
            check_frame(frame, getattr(image, "n_frames", 1))
            image.seek(frame - 1)
            check_size(*image.size, max_pixels)
            planes = _tiff_planes(image)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise _bomb() from None
    except Exception:
        raise ImageError(f"the TIFF file cannot be decoded; {DAMAGED}") from None
    return _as_displayed(planes, window)


def _tiff_planes(image: Image.Image) -> Pixels:
    """Return (C, H, W) uint8 or uint16 of the current page."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
    if image.mode.startswith("I;16"):
        pixels = np.asarray(image).astype(np.uint16)[None]
        # Pillow turns "white is zero" round for 8 bits, but not for 16.
        return rescale(2**bits - 1 - pixels if tags.get(_PHOTOMETRIC) == 0 else pixels, bits, 16)
    if bits > 8 or image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise ImageError(
            f"TIFF pixels of {bits} bits in Pillow's mode {image.mode} are not supported;\n"
            "convert it to 8- or 16-bit unsigned grayscale"
        )
    plain = image.convert({"1": "L", "P": "RGBA"}.get(image.mode, image.mode))
    return np.atleast_3d(np.asarray(plain)).transpose(2, 0, 1)


def _as_displayed(planes: Pixels, window: Window) -> GrayImage:
    """Reduce (C, H, W) gray, gray + alpha, RGB or RGBA of a plain image file to one plane."""
    bits = 8 * planes.dtype.itemsize
    if len(planes) in (2, 4):
        if planes[-1].min() < 2**bits - 1:
            raise ImageError("it has transparent pixels, whose grey level is undefined; flatten it first")
        planes = planes[:-1]
    if len(planes) == 3:
        return GrayImage(cv2.cvtColor(planes.transpose(1, 2, 0).copy(), cv2.COLOR_RGB2GRAY), bits, (LUMA,))
    plane = np.ascontiguousarray(planes[0])
    if bits == 16 and isinstance(window, tuple):
        levels = linear(np.arange(2**16, dtype=np.float64), *window)
        return GrayImage(quantise(levels, 16)[plane], 16, ())
    if bits == 16 and plane.max() < 2**12:
        return GrayImage(plane, 16, ("16-bit file that uses 12 bits or fewer: dark; set data.window: [centre, width]",))
    return GrayImage(plane, bits, ())
