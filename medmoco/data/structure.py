"""What encoded streams say about themselves, read before a decoder sees them.

A decoder allocates what the stream asks for and not what the file's header promised, so the two are compared here. That
is also where a stream is found to be cut off that a decoder would fill up, or to be built to keep it busy.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from medmoco.data.grey_levels import DAMAGED
from medmoco.data.limits import Limits, check_frame
from medmoco.errors import ImageError

_MOST_TAGS = 4096  # some 80 are defined
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

_START_OF_CODESTREAM, _END_OF_IMAGE, _START_OF_SCAN = b"\xff\x4f\xff\x51", b"\xff\xd9", b"\xff\xda"
_START_OF_IMAGE = 0xD8
_MOST_SCANS = 1000  # a progressive JPEG has some ten
# Frame headers of JPEG (all but the markers between them that mean something else) and of JPEG-LS.
_FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}

# JPEG and JPEG 2000


def check_scans(data: bytes) -> None:
    """Refuse a JPEG stream without an end, or with so many scans that decoding takes hours.

    Inside coded data neither marker can occur, as a zero follows each 0xFF there; a thumbnail before them has both.
    """
    first_scan = max((position for _, position in _segments(data)), default=0)
    if _END_OF_IMAGE not in data[first_scan:]:
        raise ImageError(f"the JPEG file has no end; {DAMAGED}")
    if (scans := data.count(_START_OF_SCAN, first_scan)) > _MOST_SCANS:
        raise ImageError(f"the JPEG file has {scans} scans, which would take hours to decode; save it anew")


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield marker and position of every segment of a JPEG stream, to its first scan or to a gap between segments."""
    position = 0
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        yield marker, position
        if marker == _START_OF_SCAN[1]:
            return
        length = {_START_OF_IMAGE: 2, 0xFF: 1}.get(marker)  # fill bytes may precede a marker
        position += length or 2 + int.from_bytes(data[position + 2 : position + 4], "big")


def check_codestream(data: bytes, width: int, height: int, samples: int) -> None:
    """Refuse a JPEG, JPEG-LS or JPEG 2000 stream of another size than the header around it, or without an end.

    Source: ITU-T T.81 B.2.2, T.87 C.2.2 and T.800 A.5.1.
    """
    if _END_OF_IMAGE not in data[-16:]:  # some writers pad
        raise ImageError(f"the DICOM file ends inside its pixel data; {DAMAGED}")
    found = _stream_size(data)
    if not found:
        raise ImageError(f"its compressed image does not start as one; {DAMAGED}")
    if found != (width, height, samples):
        raise ImageError(
            f"its header says {width} x {height} pixels of {samples} sample(s),\n"
            f"but its compressed image {found[0]} x {found[1]} of {found[2]}; {DAMAGED}"
        )


def _stream_size(data: bytes) -> tuple[int, ...]:
    """Return width, height and samples per pixel, or nothing where the stream does not say.

    The segments before a JPEG stream's pixels must follow one another without a gap, on which GDCM ends the process.
    """
    size: tuple[int, ...] = ()
    marker = None
    try:
        if data[:2] != b"\xff\xd8":
            start = data.index(_START_OF_CODESTREAM)  # later than 0 inside a JP2 file
            right, lower, left, upper = struct.unpack_from(">4L", data, start + 8)
            return right - left, lower - upper, struct.unpack_from(">H", data, start + 40)[0]
        for marker, position in _segments(data):
            if marker in _FRAME_HEADERS:
                height, width, samples = struct.unpack_from(">HHB", data, position + 5)
                size = (width, height, samples)
    except (struct.error, ValueError):
        return ()
    return size if marker == _START_OF_SCAN[1] else ()


# TIFF


def check_pages(stream: BinaryIO, frame: int, limits: Limits) -> None:
    """Refuse a TIFF file without the wanted page, or whose directories would fill the memory or never end.

    Pillow holds the data of all tags of a page, which may be the same megabyte 65,535 times.

    Source: TIFF 6.0, section 2.
    """
    size = stream.seek(0, 2)
    try:
        claims = list(islice(_pages(stream), limits.max_frames + 1))
    except (struct.error, ValueError, OSError):
        raise ImageError(f"the TIFF file has a directory that cannot be read; {DAMAGED}") from None
    check_frame(frame, len(claims), limits)
    if max(claims) > size:
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
