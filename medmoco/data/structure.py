"""What encoded streams say of themselves, read before a decoder sees them: those built to keep it busy are refused."""

from __future__ import annotations

import struct
from itertools import islice
from typing import BinaryIO

from medmoco.data.grey_levels import DAMAGED
from medmoco.data.limits import Limits, within
from medmoco.data.png_jpeg import START_OF_SCAN, segments
from medmoco.data.tiff import claims_of_pages
from medmoco.errors import ImageError

_MOST_SCANS = 1000  # a progressive JPEG has some ten


def check_scans(data: bytes) -> None:
    """Refuse a JPEG stream with so many scans that decoding takes hours."""
    first_scan = max((position for _, position in segments(data)), default=0)
    if (scans := data.count(START_OF_SCAN, first_scan)) > _MOST_SCANS:
        raise ImageError(f"the JPEG file has {scans} scans, which would take hours to decode; save it anew")


def check_pages(stream: BinaryIO, limits: Limits) -> None:
    """Refuse a TIFF file of too many pages, or whose directories would fill the memory or never end.

    Pillow holds the data of all tags of a page, which may be the same megabyte 65,535 times.

    Source: TIFF 6.0, section 2.
    """
    size = stream.seek(0, 2)
    try:
        claims = list(islice(claims_of_pages(stream), limits.max_frames + 1))
    except (struct.error, ValueError, OSError):
        raise ImageError(f"the TIFF file has a directory that cannot be read; {DAMAGED}") from None
    within(limits)(1, 1, len(claims))
    if max(claims, default=0) > size:
        raise ImageError(f"the tags of a TIFF page claim more bytes than the file has; {DAMAGED}")
