"""What encoded streams say of themselves, read before a decoder sees them: those built to keep it busy are refused."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from medmoco.data.grey_levels import DAMAGED
from medmoco.data.limits import Limits, within
from medmoco.data.png_jpeg import START_OF_SCAN, segments
from medmoco.errors import ImageError

_MOST_SCANS = 1000  # a progressive JPEG has some ten
_MOST_TAGS = 4096  # some 80 are defined
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


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
        claims = list(islice(_pages(stream), limits.max_frames + 1))
    except (struct.error, ValueError, OSError):
        raise ImageError(f"the TIFF file has a directory that cannot be read; {DAMAGED}") from None
    within(limits)(1, 1, len(claims))
    if max(claims, default=0) > size:
        raise ImageError(f"the tags of a TIFF page claim more bytes than the file has; {DAMAGED}")


def _pages(stream: BinaryIO) -> Iterator[int]:
    """Yield the bytes that the tags of each page claim."""
    stream.seek(0)
    start = stream.read(16)
    order = "<" if start[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", start, 2)[0] == 43
    offset = struct.unpack_from(order + ("8xQ" if big else "4xL"), start)[0]
    count_of, word = ("Q", "Q") if big else ("H", "L")
    entry = struct.Struct(f"{order}HH{word}{word}")
    seen = set()
    while offset:
        if offset in seen:
            raise ValueError
        seen.add(offset)
        stream.seek(offset)
        entries = _read_one(stream, order + count_of)
        if entries > _MOST_TAGS:
            raise ValueError
        tags = list(entry.iter_unpack(stream.read(entries * entry.size)))
        yield sum(count * _TYPE_BYTES.get(kind, 0) for _, kind, count, _ in tags)
        offset = _read_one(stream, order + word)


def _read_one(stream: BinaryIO, form: str) -> int:
    """Read one number of a struct format."""
    return int(struct.unpack(form, stream.read(struct.calcsize(form)))[0])
