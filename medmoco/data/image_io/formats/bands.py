"""Read images of several bands: NumPy arrays, and TIFF files with one page or one sample per band.

Values may be any numbers, so `data.band_ranges` and `data.scale` define which become black and white. FITS and other
scientific formats must be converted to .npy first; docs/channels.md shows how.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medmoco.data.image_io.file_format import kind_of_file
from medmoco.data.image_io.formats.tiff import TiffPage, tiff_pages
from medmoco.data.image_io.intensity import (
    DAMAGED,
    Admit,
    Floats,
    GrayImage,
    Pixels,
    Unreadable,
    admit_all,
    quantise,
    spread,
)

OWN_RANGE = "no data.band_ranges: each band is scaled from its smallest to its largest value in the image"
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_BAND_MODES = ("L", "I;16", "I;16B", "I", "F", "RGB", "RGBA", "RGBX", "CMYK")
_NOT_ITS_BANDS = "the files must have data.channels bands each; correct the files or the setting"
_AS_BANDS = "save each band as a page of 8, 16 or 32 bits, or all of them as .npy"


def band_values(path: Path, count: int, frame: int = 1, admit: Admit = admit_all) -> Pixels:
    """Return the values of a file with `count` bands, (C, H, W) of any number type.

    Raises:
        Unreadable: the file has another type or shape, is damaged, or contains values that are not finite.
    """
    if frame != 1:
        raise Unreadable(f"frame {frame} is requested, but the pages of a file are its bands; check the Frame column")
    kind = kind_of_file(path)
    if kind not in ("NPY", "TIFF"):
        raise Unreadable(
            f"it is a {kind} file, but bands (data.channels = {count}) are read from .npy and TIFF;\n"
            "set data.channels to gray or rgb"
        )
    values = _npy_values(path, count, admit) if kind == "NPY" else _tiff_values(path, count, admit)
    if bad := np.count_nonzero(~np.isfinite(values)) if values.dtype.kind == "f" else 0:
        raise Unreadable(f"{bad} of {values.size} values are not finite; replace them when creating the file")
    return values


def levels_of(values: Pixels, scale: str, ranges: Sequence[Sequence[float]] | None) -> GrayImage:
    """Return bands (C, H, W) of finite numbers as grey levels, (H, W, C), or (H, W) for a single band.

    Args:
        values: Numbers of any type; 8-bit values are kept unless a range or a logarithm is requested.
        scale: "linear" or "log".
        ranges: [low, high] of each band, or one pair for all; None is the range of each image.
    """
    if values.dtype == np.uint8 and scale == "linear" and not ranges:
        return GrayImage(_bands_last(list(values)), 8)
    pairs: list[Sequence[float] | None] = list(ranges) if ranges else [None]
    pairs = pairs * len(values) if len(pairs) == 1 else pairs
    planes = [
        quantise(shares_of(band.astype(np.float64), scale, pair), 16) for band, pair in zip(values, pairs, strict=True)
    ]
    return GrayImage(_bands_last(planes), 16, () if ranges else (OWN_RANGE,))


def _bands_last(planes: Sequence[Pixels]) -> Pixels:
    return planes[0] if len(planes) == 1 else np.stack(planes, axis=-1)


def shares_of(band: Floats, scale: str, pair: Sequence[float] | None) -> Floats:
    """Return the values of a band as fractions of white.

    With a logarithmic scale, values below `low`, including zero and negative ones, are raised to it; without a pair it
    is the smallest positive value. Source: grantmerz/moco, which replaces values up to 0 by 0.1.
    """
    if scale == "linear":
        return spread(band, np.array(pair) if pair else band)
    positive = band[band > 0]
    low, high = pair or ((positive.min(), positive.max()) if positive.size else (1.0, 1.0))
    return spread(np.log10(np.maximum(band, low)), np.log10([low, high]))


def npy_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and type of an array, after checking that it is complete and contains numbers, not objects.

    Raises:
        Unreadable: the check fails.
    """
    try:
        with path.open("rb") as stream:
            shape, _, dtype = _NPY_HEADERS[np.lib.format.read_magic(stream)](stream)
            start, size = stream.tell(), stream.seek(0, 2)
    except Exception:  # of many types, depending on what the header contains
        raise Unreadable(f"the header of the NumPy array cannot be read; {DAMAGED}") from None
    if dtype.kind not in "uif":
        raise Unreadable(f"a NumPy array of {dtype.name}; only plain integers and floating-point numbers are supported")
    if not all(side > 0 for side in shape):
        raise Unreadable(f"a NumPy array of shape {shape} is empty; {DAMAGED}")
    if size != start + math.prod(shape) * dtype.itemsize:
        raise Unreadable(f"the NumPy file ends inside its array or continues after it; {DAMAGED}")
    return shape, dtype


def band_axis(shape: tuple[int, ...], count: int) -> int | None:
    """Return the axis of an array with the bands, the first or the last; None for a single plane.

    Raises:
        Unreadable: neither axis or both have the number of bands.
    """
    if len(shape) == 2 and count == 1:
        return None
    first, last = len(shape) == 3 and shape[0] == count, len(shape) == 3 and shape[-1] == count
    if first and last:
        raise Unreadable(
            f"an array of shape {shape} may have its {count} bands first or last; pad or crop its sides, so that only\n"
            "one of them equals data.channels"
        )
    if not first and not last:
        raise Unreadable(f"an array of shape {shape} has no axis of {count} bands, first or last;\n{_NOT_ITS_BANDS}")
    return 0 if first else 2


def _npy_values(path: Path, count: int, admit: Admit) -> Pixels:
    shape, _ = npy_header(path)
    axis = band_axis(shape, count)
    height, width = (side for at, side in enumerate(shape) if at != axis)
    admit(width * count, height, 1)
    try:
        values: Pixels = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        raise Unreadable(f"the NumPy array cannot be read; {DAMAGED}") from None
    return values[None] if axis is None else np.moveaxis(values, axis, 0)


def _tiff_values(path: Path, count: int, admit: Admit) -> Pixels:
    def admit_bands(width: int, height: int, frames: int) -> None:
        admit(width * count, height, frames)

    with tiff_pages(path, admit_bands, _AS_BANDS) as (pages, page_of):
        if pages not in (1, count):
            raise Unreadable(f"a TIFF file of {pages} pages for {count} bands;\n{_NOT_ITS_BANDS}")
        planes = [plane for number in range(1, pages + 1) for plane in _page_values(page_of(number))]
    if len(planes) != count:
        raise Unreadable(f"a TIFF file of {len(planes)} bands, not of {count};\n{_NOT_ITS_BANDS}")
    if len({plane.shape for plane in planes}) > 1:
        raise Unreadable("the pages of the TIFF file have several sizes; bands must have one")
    return np.stack(planes)


def _page_values(page: TiffPage) -> Pixels:
    """Return a page's samples with the number type stated in the file; Pillow changes the sign of some."""
    several = page.picture.mode in ("RGB", "RGBA", "RGBX", "CMYK")
    if (
        page.picture.mode not in _BAND_MODES
        or page.form not in ("unsigned", "signed", "floating-point")
        or (several and page.bits > 8)
    ):
        raise page.unsupported()
    samples = page.samples()
    if len(samples) != page.declared:
        raise page.unsupported()
    if page.form == "signed" and page.bits == 8:
        return samples.view(np.int8)
    return samples.view(np.uint32) if page.form == "unsigned" and page.bits == 32 else samples
