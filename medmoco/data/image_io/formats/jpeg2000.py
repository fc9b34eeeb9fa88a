"""Decode a JPEG 2000 or HTJ2K image at a reduced size: its wavelets store the image at each halving.

Source: ITU-T T.800 A.5.1 (size and depth), A.6.1 (levels) and B.15 (reduced sizes).
"""

from __future__ import annotations

import struct
from io import BytesIO

import cv2
import numpy as np
from PIL import Image, features

from medmoco.data.image_io.intensity import Pixels

_START = b"\xff\x4f\xff\x51"  # start of codestream, and the marker of its size
_CODING_STYLE = b"\xff\x52"


def decode_reduced(data: bytes, bits: int, *, signed: bool, at_least: int) -> Pixels | None:
    """Return an image of one component, halved as often as its longer side keeps `at_least` pixels.

    Like `medmoco.data.image_io.intensity.halved`, it drops a last row or column without a partner.

    Args:
        data: The codestream.
        bits: Bits stored per sample.
        signed: Whether samples are signed.
        at_least: Pixels.

    Returns:
        (H, W) uint8, uint16 or int16 samples; None if the image cannot be halved so often, or is not stored as
        the arguments say, so that it must be decoded in full.
    """
    halvings = _halvings(data, bits, signed, at_least)
    if not halvings or not features.check("jpg_2000"):
        return None
    try:
        with Image.open(BytesIO(data), formats=["JPEG2000"]) as picture:
            picture.reduce = halvings  # type: ignore[assignment, method-assign]
            # Pillow rounds the reduced size to the nearest, the standard up; a whole multiple is the same for both.
            width, height = picture.width >> halvings, picture.height >> halvings
            picture._size = (_rounded_up(picture.width, halvings), _rounded_up(picture.height, halvings))
            levels = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    samples = levels >> (8 * levels.itemsize - bits)  # Pillow moves them to the top of a cell, and signed ones above 0
    if signed:
        samples = (samples.astype(np.int32) - 2 ** (bits - 1)).astype(np.int16)
    # A sample lies on the first pixel of its block, the average of the block in its middle, this share of it away.
    share = (1 - 0.5**halvings) / 2
    between = np.array([1 - share, share])
    blocks = cv2.sepFilter2D(samples, -1, between, between, anchor=(0, 0), borderType=cv2.BORDER_REPLICATE)
    return blocks[:height, :width]


def _halvings(data: bytes, bits: int, signed: bool, at_least: int) -> int:
    """Return how often the image can be halved; 0 if it is not stored as expected."""
    if data[:4] != _START:
        return 0  # a JP2 file, which may have a palette
    try:
        right, lower, left, upper = struct.unpack_from(">4L", data, 8)
        components, depth = struct.unpack_from(">HB", data, 40)
        levels = data[data.index(_CODING_STYLE, 4) + 9]
    except (struct.error, ValueError, IndexError):
        return 0
    if components != 1 or depth != (bits - 1) | (128 if signed else 0) or left or upper:
        return 0
    return next((n for n in range(levels, 0, -1) if max(right, lower) >> n >= at_least), 0)


def _rounded_up(side: int, halvings: int) -> int:
    return -(-side >> halvings) << halvings
