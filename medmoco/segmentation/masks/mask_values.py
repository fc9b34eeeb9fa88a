"""Read the numbers that PNG, TIFF and .npy files store as the mask of an image.

They are those in the file: indices of a palette, not its colours, and of TIFF files that are WhiteIsZero, as ImageJ
writes masks, the numbers before they are inverted for display.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medmoco.data.image_io.file_format import kind_of_file
from medmoco.data.image_io.formats.bands import npy_header
from medmoco.data.image_io.formats.png_jpeg import png_header, upright
from medmoco.data.image_io.formats.tiff import TiffPage, tiff_pages
from medmoco.data.image_io.intensity import DAMAGED, Unreadable
from medmoco.data.image_io.limits import Limits, within
from medmoco.data.volume_io.headers import without_header_values

Values = NDArray[Any]

_GRAY_FILE = "a grayscale PNG or TIFF file of 8 or 16 bits, with a number for each class"
_GREY, _PALETTE = 0, 3  # colour types of PNG. Source: PNG, third edition, section 11.2.1
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # tag of TIFF and one of its values. Source: TIFF 6.0, section 3
_LOSSY = ("jpeg", "tiff_jpeg", "webp")  # compressions of TIFF, as Pillow calls them


def stored_numbers(path: Path, limits: Limits) -> Values:
    """Return the numbers that a file stores, (H, W), upright as the image's reader shows them.

    Raises:
        Unreadable: the file is damaged, or has colours, several pages, or another type.
        ImageError: it exceeds the limits.
    """
    kind = kind_of_file(path)
    if kind == "PNG":
        return _png_values(path.read_bytes(), limits)
    if kind == "TIFF":
        return _tiff_values(path, limits)
    if kind == "NPY":
        return _npy_values(path, limits)
    lossy = ", from the original, as JPEG changes values" * (kind == "JPEG")
    raise Unreadable(f"the mask is a {kind} file; save it as {_GRAY_FILE}{lossy}")


def _png_values(content: bytes, limits: Limits) -> Values:
    """Return the stored numbers of a PNG file: grey levels, or indices of a palette."""
    header = png_header(content)
    within(limits)(header.width, header.height, 1)
    if content[25] not in (_GREY, _PALETTE):
        raise Unreadable(f"the mask has colours or transparency; save it as {_GRAY_FILE}")
    # Not OpenCV, which replaces the indices of a palette by its colours.
    with without_header_values("PNG"), Image.open(BytesIO(content), formats=["PNG"]) as picture:
        values = np.asarray(picture)
    if content[25] == _GREY and header.bits in (2, 4):
        values = values // (255 // (2**header.bits - 1))  # Pillow stretches them to 8 bits
    return upright(values, header.orientation)  # as the image's reader


def _tiff_values(path: Path, limits: Limits) -> Values:
    """Return the stored numbers of the only page of a TIFF file."""
    with tiff_pages(path, within(limits), f"save the mask as {_GRAY_FILE}") as (pages, page_of):
        if pages != 1:
            raise Unreadable(f"the TIFF file has {pages} pages; save the mask of this image as a file of its own")
        return _page_numbers(page_of(1))


def _page_numbers(page: TiffPage) -> Values:
    picture = page.picture
    deep = picture.mode.startswith("I;16")
    if page.form != "unsigned" or not (deep or picture.mode in ("1", "L", "P")):
        raise page.unsupported()
    if picture.info.get("compression") in _LOSSY:
        raise Unreadable("its compression may have changed values; save the mask again, from the original, without it")
    page.check_whole()
    photometric = picture.tag_v2.get(_PHOTOMETRIC)  # type: ignore[attr-defined]
    inverted = photometric == _WHITE_IS_ZERO and not deep  # Pillow inverts up to 8 bits
    values = np.asarray(picture).astype(np.uint16 if deep else np.uint8)
    most = 2**page.bits - 1
    if picture.mode == "L":
        values = values // (255 // most)  # Pillow stretches fewer bits to 8
    return most - values if inverted else values


def _npy_values(path: Path, limits: Limits) -> Values:
    shape, _ = npy_header(path)
    if len(shape) != 2:
        raise Unreadable(f"the mask has {len(shape)} axes; that of an image has two: height and width")
    within(limits)(shape[1], shape[0], 1)
    try:
        values: Values = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        raise Unreadable(f"the NumPy array cannot be read; {DAMAGED}") from None
    if not np.isfinite(values).all():
        raise Unreadable("the mask has values that are not finite; a class is a whole number")
    return values
