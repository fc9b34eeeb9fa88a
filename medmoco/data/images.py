"""One image file in, one grayscale array out: PNG, JPEG, TIFF and DICOM at their full bit depth.

The content decides the file type, not the suffix, and the size is checked before anything is decoded. A file that is
cut off is refused, never returned in part. Brighter is denser, as a viewer displays it. Messages and notices carry
neither paths nor patient data; the caller adds the row.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import pydicom
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_image

from medmoco.config import DataSettings
from medmoco.data.dicom import read_dicom
from medmoco.data.grey_levels import (
    CONSTANT,
    DAMAGED,
    LUMA,
    GrayImage,
    Pixels,
    Window,
    dtype_of,
    linear,
    quantise,
    rescale,
)
from medmoco.data.limits import DEFAULT_LIMITS, Limits, check_file, check_frame, check_size, limits_of
from medmoco.data.structure import check_pages, check_scans
from medmoco.errors import ImageError

__all__ = [
    "Canvas", "FileFormat", "GrayImage", "Limits", "Window", "file_format", "fitted", "kind_of", "quiet", "read_canvas",
    "read_header", "read_image", "to_canvas",
]  # fmt: skip


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


def read_canvas(file: str | Path, frame: int, data: DataSettings) -> tuple[Canvas, tuple[str, ...]]:
    """Decode a file to a canvas as the settings say: what training reads, and what a pack holds.

    Returns:
        The canvas, and the reader's notices.

    Raises:
        ImageError: see `read_image`.
    """
    image = read_image(file, frame=frame, window=data.window, limits=limits_of(data), at_least=data.canvas_size)
    return to_canvas(image, data.canvas_size, data.bit_depth), image.notices


def read_image(
    file: str | Path,
    *,
    frame: int = 1,
    window: Window = "voi",
    limits: Limits = DEFAULT_LIMITS,
    at_least: int | None = None,
) -> GrayImage:
    """Decode a PNG, JPEG, TIFF or DICOM file to one grayscale plane.

    Args:
        file: The file.
        frame: Frame of a multi-frame DICOM file or page of a TIFF file, from 1.
        window: "voi" is the VOI table or window of a DICOM file; without one, 8-bit files keep their full range and
            deeper ones are spread from their smallest to their largest pixel value, with a notice. "full" is the full
            range of the stored values. (centre, width) is in DICOM values after the modality transform, or in stored
            values of a 16-bit PNG or TIFF file. Colour and 8-bit PNG, JPEG and TIFF files are taken as displayed.
        limits: Larger files and images are refused.
        at_least: A JPEG file may be decoded at half, a quarter or an eighth of its size, as long as its longer side
            keeps so many pixels. None is the full size.

    Raises:
        ImageError: missing, damaged, cut off, too large, transparent, of an unknown type, or not an image.
    """
    path = Path(file)
    check_file(path, limits)
    try:
        with path.open("rb") as stream:
            kind = kind_of(stream.read(132))
    except OSError as error:
        raise ImageError(f"the file cannot be opened: {error.strerror}") from None
    with quiet():
        if kind == "DICOM":
            image = read_dicom(path, frame, window, limits)
        elif kind == "TIFF":
            image = _read_tiff(path, frame, window, limits)
        elif kind == "PNG":
            image = _read_png(path, frame, window, limits)
        else:
            image = _read_jpeg(path, frame, limits, at_least)
    if image.pixels.min() == image.pixels.max():
        return replace(image, notices=(*image.notices, CONSTANT))
    return image


def to_canvas(image: GrayImage, size: int, bit_depth: int) -> Canvas:
    """Scale an image so that its longer side is `size`, and pad it to a square.

    Args:
        image: (H, W) image.
        size: Side S of the canvas in pixels.
        bit_depth: 8 or 16; white becomes 255 or 65535.
    """
    pixels, full_size = image.pixels, image.full_size or image.pixels.shape
    # Halving is the exact area filter and 20 times faster than cv2's fractional one; an odd last line is left out.
    while max(pixels.shape) >= 2 * size and min(pixels.shape) >= 2:
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        pixels = cv2.resize(pixels[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    height, width = fitted(full_size, size)
    if pixels.shape != (height, width):
        method = cv2.INTER_AREA if max(pixels.shape) > size else cv2.INTER_LINEAR
        pixels = cv2.resize(pixels, (width, height), interpolation=method)
    canvas = np.zeros((size, size), dtype_of(bit_depth))
    canvas[:height, :width] = rescale(pixels, image.bits, bit_depth)
    return Canvas(canvas, height, width)


def fitted(full_size: tuple[int, int], size: int) -> tuple[int, int]:
    """Return the height and width in its canvas of an image of that height and width."""
    height, width = (max(1, round(side * size / max(full_size))) for side in full_size)
    return height, width


def file_format(file: str | Path) -> FileFormat:
    """Look up what the header says of a file that `read_image` can read."""
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
        with Image.open(path, formats=["JPEG", "TIFF"]) as image:
            if image.format == "JPEG":
                return FileFormat("JPEG", 8, "MONOCHROME2" if image.mode == "L" else "RGB")
            tags = image.tag_v2  # type: ignore[attr-defined]
            return FileFormat(
                "TIFF", max(tags.get(_BITS_PER_SAMPLE, (1,))), _TIFF_COLORS.get(tags[_PHOTOMETRIC], "RGB")
            )


@contextmanager
def quiet() -> Iterator[None]:
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


# TIFF and EXIF tags
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION, _TILE_WIDTH, _TILE_HEIGHT = 258, 262, 274, 322, 323
_TIFF_COLORS = {0: "MONOCHROME1", 1: "MONOCHROME2", 2: "RGB", 3: "PALETTE COLOR"}
_PNG_COLORS = {0: "MONOCHROME2", 2: "RGB", 3: "PALETTE COLOR", 4: "MONOCHROME2", 6: "RGB"}
_GRAY_ALPHA = 4  # PNG's colour type
_Kind = Literal["DICOM", "TIFF", "PNG", "JPEG"]


def kind_of(start: bytes) -> _Kind:
    """Tell the file type from the first 132 bytes."""
    if not start:
        raise ImageError("the file is empty; fetch it again from where it came from")
    if start[128:] == b"DICM":  # before TIFF, because a DICOM preamble may hold a TIFF header
        return "DICOM"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    raise ImageError(
        "neither PNG, JPEG, TIFF nor DICOM by its content; convert it to one of them\n"
        "(a DICOM file must have its 128-byte preamble)"
    )


def _read_png(path: Path, frame: int, window: Window, limits: Limits) -> GrayImage:
    header = read_header(path, "PNG", limits)
    check_frame(frame, 1, limits)
    data = np.fromfile(path, np.uint8)
    if b"IEND\xaeB`\x82" not in data[-4096:].tobytes():
        raise ImageError(f"the PNG file has no end; {DAMAGED}")
    # Not torchvision, which crashes on damaged rows, nor Pillow, which cuts 16-bit colours to 8.
    try:
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        raise _undecodable(header) from None
    if pixels is None:
        raise _undecodable(header)
    if pixels.ndim == 2:
        planes = pixels[None]
    else:  # BGR, or BGRA also for gray + alpha
        planes = pixels.transpose(2, 0, 1)[[0, 3] if data[25] == _GRAY_ALPHA else [2, 1, 0, 3][: pixels.shape[2]]]
    return _as_displayed(_upright(planes, header.orientation), window)


def _read_jpeg(path: Path, frame: int, limits: Limits, at_least: int | None) -> GrayImage:
    header = read_header(path, "JPEG", limits)
    check_frame(frame, 1, limits)
    if header.mode == "CMYK":
        raise ImageError("its colours are CMYK; convert it to grayscale or RGB")
    data = np.fromfile(path, np.uint8)
    check_scans(data.tobytes())
    scale = next((scale for scale in (8, 4, 2) if at_least and _may_reduce(header, scale, at_least)), 1)
    try:
        if scale > 1:
            return _reduced_jpeg(path, header, scale)
        planes = decode_image(torch.from_numpy(data), ImageReadMode.UNCHANGED).numpy()
    except (RuntimeError, OSError, SyntaxError, ValueError):
        raise _undecodable(header) from None
    return _as_displayed(_upright(planes, header.orientation), "full")


def _may_reduce(header: _Header, scale: int, at_least: int) -> bool:
    """Tell whether enough pixels are left, and none is incomplete that `to_canvas` would leave out on another side."""
    ends_whole = header.width % scale == header.height % scale == 0
    return max(header.width, header.height) // scale >= at_least and (header.orientation == 1 or ends_whole)


def _reduced_jpeg(path: Path, header: _Header, scale: int) -> GrayImage:
    """Decode by the low frequencies of each 8 x 8 block alone, which are its pixels' means at a scale of 8.

    On films the canvas differs from that of a full decode by 0.5 grey levels of 255 in the mean and by 3 at the 99.9th
    percentile, at the most; some 0.25 is what rounding halves up at each halving adds to the full decode.
    """
    width, height = (max(1, side // scale) for side in (header.width, header.height))
    with Image.open(path, formats=["JPEG"]) as image:
        image.draft("L", (width, height))
        plane = _upright(np.asarray(image)[:height, :width], header.orientation)
    full_size = (header.height, header.width) if header.orientation < 5 else (header.width, header.height)
    return GrayImage(np.ascontiguousarray(plane), 8, () if header.mode == "L" else (LUMA,), full_size)


class _Header(NamedTuple):
    mode: str  # as Pillow names it
    width: int
    height: int
    orientation: int  # EXIF, 1 to 8


def read_header(path: Path, kind: _Kind, limits: Limits) -> _Header:
    """Read what is needed before decoding a PNG or JPEG file."""
    try:
        with Image.open(path, formats=[kind]) as image:
            header = _Header(image.mode, image.width, image.height, _orientation(image))
    except Image.DecompressionBombError:
        raise _bomb() from None
    except Exception:
        raise ImageError(f"the header cannot be read; {DAMAGED}") from None
    check_size(header.width, header.height, limits)
    return header


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 where there is none or the EXIF data are damaged, as viewers do."""
    exif = Image.Exif()
    with suppress(Exception):
        exif.load(image.info.get("exif") or b"")
    return next((orientation for orientation in range(2, 9) if exif.get(_ORIENTATION) == orientation), 1)


def _upright(planes: Pixels, orientation: int) -> Pixels:
    """Turn (..., H, W) as the EXIF orientation says. Source: EXIF 2.32, section 4.6.4."""
    mirrored = planes[..., ::-1] if orientation in (2, 4, 5, 7) else planes
    quarters = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.rot90(mirrored, quarters, axes=(-2, -1))


def _undecodable(header: _Header) -> ImageError:
    return ImageError(f"the {header.width} x {header.height} image cannot be decoded; {DAMAGED}")


def _bomb() -> ImageError:
    return ImageError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, which Pillow refuses; crop or shrink it")


def _read_tiff(path: Path, frame: int, window: Window, limits: Limits) -> GrayImage:
    with path.open("rb") as stream:
        check_pages(stream, frame, limits)
    try:
        with Image.open(path, formats=["TIFF"]) as image:
            image.seek(frame - 1)
            check_size(*image.size, limits)
            tags = image.tag_v2  # type: ignore[attr-defined]
            check_size(tags.get(_TILE_WIDTH, 1), tags.get(_TILE_HEIGHT, 1), limits)
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
