"""One file of several bands in, their grey levels out: NumPy arrays, and TIFF with a page or a sample for each band.

Values may be any numbers, so `data.band_ranges` and `data.scale` say which become black and white. FITS and other
formats of science are converted to .npy by whoever knows them; docs/channels.md shows how.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medmoco.config import DataSettings
from medmoco.data.grey_levels import DAMAGED, GrayImage, quantise, spread
from medmoco.data.limits import Limits, check_size, limits_of
from medmoco.data.structure import check_pages
from medmoco.errors import ImageError

OWN_RANGE = "no data.band_ranges: each band is spread from its smallest to its largest value in the image"

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_ONE_SAMPLE, _SAMPLES = ("L", "I;16", "I;16B", "I", "F"), ("RGB", "RGBA", "RGBX", "CMYK")  # Pillow's modes
_TILE_WIDTH, _TILE_HEIGHT = 322, 323  # TIFF tags
_NOT_ITS_BANDS = "make files of data.channels bands each, or set it to what they have"

Values = NDArray[Any]


def read_bands(path: Path, kind: str, frame: int, data: DataSettings) -> GrayImage:
    """Decode a file of `data.channels` bands.

    Args:
        path: The file, which is there and not too large.
        kind: NPY or TIFF, by its content.
        frame: 1; there are no others.
        data: The settings.

    Raises:
        ImageError: of another kind or shape, damaged, too large, or with values that are no numbers.
    """
    count, limits = data.channel_count, limits_of(data)
    if frame != 1:
        raise ImageError(f"frame {frame} is asked for, but the pages of a file are its bands; check the Frame column")
    if kind == "NPY":
        values = _read_npy(path, count, limits)
    elif kind == "TIFF":
        values = _read_tiff(path, count, limits)
    else:
        raise ImageError(
            f"a {kind} file, but data.channels = {count} reads bands from .npy and TIFF;\nset it to gray or rgb"
        )
    if bad := np.count_nonzero(~np.isfinite(values)) if values.dtype.kind == "f" else 0:
        raise ImageError(f"{bad} of {values.size} values are not finite; replace them where the file is made")
    return levels_of(values, data.scale, data.band_ranges)


def levels_of(values: Values, scale: str, ranges: Sequence[tuple[float, float]] | None) -> GrayImage:
    """Turn bands (C, H, W) of finite numbers into grey levels, (H, W, C), or (H, W) of one.

    Args:
        values: Of any type; 8-bit ones stay as they are where nothing else is asked for.
        scale: "linear" or "log".
        ranges: [low, high] of each band, or one pair for all.
    """
    if values.dtype == np.uint8 and scale == "linear" and not ranges:
        return GrayImage(_last(list(values)), 8, ())
    pairs = list(ranges or [None])  # type: ignore[list-item]
    pairs = pairs * len(values) if len(pairs) == 1 else pairs
    planes = [
        quantise(shares_of(band.astype(np.float64), scale, pair), 16) for band, pair in zip(values, pairs, strict=True)
    ]
    return GrayImage(_last(planes), 16, () if ranges else (OWN_RANGE,))


def shares_of(band: NDArray[np.float64], scale: str, pair: tuple[float, float] | None) -> NDArray[np.float64]:
    """Turn the values of a band into shares of white.

    Where the logarithm is taken, `low` is the floor of all below it, zero and negative values too; without a pair it
    is the smallest positive value. Source: grantmerz/moco, which has a floor of 0.1 in the place of values up to 0.
    """
    if scale == "linear":
        return spread(band, np.array(pair) if pair else band)
    positive = band[band > 0]
    low, high = pair or ((positive.min(), positive.max()) if positive.size else (1.0, 1.0))
    return spread(np.log10(np.maximum(band, low)), np.log10([low, high]))


def _last(planes: list[Values]) -> Values:
    return planes[0] if len(planes) == 1 else np.stack(planes, axis=-1)


# NumPy arrays


def npy_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and type of an array, having made sure that it is all there, holds numbers and no code.

    Raises:
        ImageError: see above.
    """
    try:
        with path.open("rb") as stream:
            shape, _, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
            start, size = stream.tell(), stream.seek(0, 2)
    except Exception:  # of many kinds, whatever the header holds
        raise ImageError(f"the header of the NumPy array cannot be read; {DAMAGED}") from None
    if dtype.kind not in "uif":
        raise ImageError(f"a NumPy array of {dtype.name}; only plain whole or floating-point numbers can be read")
    if not all(side > 0 for side in shape):
        raise ImageError(f"a NumPy array of shape {shape} is empty; {DAMAGED}")
    if size != start + math.prod(shape) * dtype.itemsize:
        raise ImageError(f"the NumPy file ends inside its array, or does not end with it; {DAMAGED}")
    return shape, dtype


def band_axis(shape: tuple[int, ...], count: int) -> int | None:
    """Return which axis of an array is its bands, the first or the last; None where it is one plane without.

    Raises:
        ImageError: neither, or it could be both.
    """
    if len(shape) == 2 and count == 1:
        return None
    first, last = len(shape) == 3 and shape[0] == count, len(shape) == 3 and shape[-1] == count
    if first and last:
        raise ImageError(
            f"an array of shape {shape} may have its {count} bands first or last; pad or crop its sides, so that only\n"
            "one of them is data.channels"
        )
    if not first and not last:
        raise ImageError(f"an array of shape {shape} has no axis of {count} bands, first or last;\n{_NOT_ITS_BANDS}")
    return 0 if first else 2


def _read_npy(path: Path, count: int, limits: Limits) -> Values:
    shape, _ = npy_header(path)
    axis = band_axis(shape, count)
    height, width = (side for at, side in enumerate(shape) if at != axis)
    check_size(width * count, height, limits)
    try:
        values: Values = np.load(path, allow_pickle=False)
    except (OSError, ValueError):
        raise ImageError(f"the NumPy array cannot be read; {DAMAGED}") from None
    return values[None] if axis is None else np.moveaxis(values, axis, 0)


# TIFF


def _read_tiff(path: Path, count: int, limits: Limits) -> Values:
    with path.open("rb") as stream:
        check_pages(stream, 1, limits)
    try:
        with Image.open(path, formats=["TIFF"]) as image:
            pages = image.n_frames  # type: ignore[attr-defined]
            if pages not in (1, count):
                raise ImageError(f"a TIFF file of {pages} pages for {count} bands;\n{_NOT_ITS_BANDS}")
            planes: list[Values] = []
            for page in range(pages):
                image.seek(page)
                planes += _page(image, count, limits)
    except ImageError:
        raise
    except Exception:  # Pillow has many kinds, decompression bombs among them
        raise ImageError(f"the TIFF file cannot be decoded; {DAMAGED}") from None
    if len(planes) != count:
        raise ImageError(f"a TIFF file of {len(planes)} bands, not of {count};\n{_NOT_ITS_BANDS}")
    if len({plane.shape for plane in planes}) > 1:
        raise ImageError("the pages of the TIFF file have several sizes; bands must have one")
    return np.stack(planes)


def _page(image: Image.Image, count: int, limits: Limits) -> list[Values]:
    """Return the current page's planes."""
    check_size(image.width * count, image.height, limits)
    tags = image.tag_v2  # type: ignore[attr-defined]
    check_size(tags.get(_TILE_WIDTH, 1), tags.get(_TILE_HEIGHT, 1), limits)
    if image.mode not in (*_ONE_SAMPLE, *_SAMPLES):
        raise ImageError(
            f"TIFF pixels in Pillow's mode {image.mode} are not supported as bands;\n"
            "save each band as a page of 8, 16 or 32 bits, or all as .npy"
        )
    return list(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1))
