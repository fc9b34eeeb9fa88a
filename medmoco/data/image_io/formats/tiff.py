"""Read TIFF files: their pages, upright, and the format of their samples."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from medmoco.data.image_io.formats.png_jpeg import bomb
from medmoco.data.image_io.intensity import (
    CONVERT,
    DAMAGED,
    THUMBNAIL,
    Admit,
    GrayImage,
    Pixels,
    Unreadable,
    Window,
    admit_all,
    as_displayed,
    check_frame,
    of_several,
    rescale,
)

_WIDTH, _BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES_PER_PIXEL = 256, 258, 259, 262, 274, 277
_STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILE_BYTES, _SAMPLE_FORMAT = 279, 322, 323, 325, 339
_NEW_SUBFILE, _OLD_SUBFILE = 254, 255
_PHOTOMETRICS = {0: "WhiteIsZero", 1: "BlackIsZero", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELab"}
_COMPRESSIONS = {
    1: "uncompressed", 2: "CCITT RLE", 3: "CCITT Group 3", 4: "CCITT Group 4", 5: "LZW", 6: "old-style JPEG", 7: "JPEG",
    8: "Deflate", 32773: "PackBits", 32946: "Deflate", 34712: "JPEG 2000", 34892: "lossy JPEG", 34925: "LZMA",
    50000: "Zstandard", 50001: "WebP",
}  # fmt: skip
_SAMPLE_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "unsigned", 5: "complex", 6: "complex"}
_SHALLOW = ("1", "L", "LA", "P", "RGB", "RGBA")  # Pillow's displayable modes of up to 8 bits
_MOST_TAGS = 4096  # about 80 are defined
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_MOST_COMPARED = 9  # pages compared with the first to find a larger one
_PILLOW_ERRORS = (
    OSError, SyntaxError, ValueError, KeyError, IndexError, TypeError, OverflowError, EOFError, struct.error,
)  # fmt: skip


class TiffPage:
    """A page of an open TIFF file.

    Attributes:
        picture: Pillow's image, positioned at the page, not decoded yet.
        bits: Largest number of bits per sample.
        form: "unsigned", "signed", "floating-point", "complex" or "mixed".
        declared: Samples per pixel.
        reduced: Whether the page is marked as a smaller version of another page.
    """

    def __init__(self, picture: Image.Image, admit: Admit, remedy: str) -> None:
        self.picture, self._remedy = picture, remedy
        self._tags = tags = dict(picture.tag_v2)  # type: ignore[attr-defined]
        self.bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
        self.form = _form_of(tags)
        self.declared = int(tags.get(_SAMPLES_PER_PIXEL, 1))
        self.reduced = bool(tags.get(_NEW_SUBFILE, 0) & 1 or tags.get(_OLD_SUBFILE) == 2)
        admit(picture.width, picture.height, 1)
        admit(tags.get(_TILE_WIDTH, 1), tags.get(_TILE_HEIGHT, 1), 1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as displayed: Pillow swaps them at once for the tag, but for XMP data only on decoding."""
        swapped = _ORIENTATION not in self._tags and self.picture.getexif().get(_ORIENTATION) in range(5, 9)
        return self.picture.size if swapped else self.picture.size[::-1]

    def unsupported(self) -> Unreadable:
        """Return the error for a page that is intact, but of an unsupported format."""
        order = self.picture.tag_v2.prefix  # type: ignore[attr-defined]
        return Unreadable(f"{_layout(self._tags, order)} is not supported;\n{self._remedy}")

    def samples(self) -> Pixels:
        """Return the decoded page, (C, H, W): WhiteIsZero is inverted, and a palette replaced by its colours."""
        self.check_whole()
        plain = self.picture.convert("RGBA") if self.picture.mode == "P" else self.picture
        pixels = np.asarray(plain.convert("L") if plain.mode == "1" else plain)
        if self._tags.get(_PHOTOMETRIC) == 0 and self.bits > 8:
            if self.form != "unsigned" or self.bits > 16:
                raise self.unsupported()
            pixels = 2**self.bits - 1 - pixels
        return np.atleast_3d(pixels).transpose(2, 0, 1)

    def check_whole(self) -> None:
        """Refuse rows that are shorter than the image, since Pillow would read the rest from later data."""
        tags, (height, width) = self._tags, self.picture.size[::-1]
        if tags.get(_ORIENTATION, 1) >= 5:
            width, height = height, width
        bits, stored = sum(tags.get(_BITS_PER_SAMPLE, (1,))), tags.get(_STRIP_BYTES)
        needed = math.ceil(width * bits / 8) * height
        if _TILE_BYTES in tags:
            across, down, stored = tags[_TILE_WIDTH], tags[_TILE_HEIGHT], tags[_TILE_BYTES]
            needed = math.ceil(across * bits / 8) * down * math.ceil(width / across) * math.ceil(height / down)
        if tags.get(_COMPRESSION, 1) == 1 and stored is not None and np.sum(stored) < needed:
            raise Unreadable(f"the rows of the TIFF page are shorter than its image; {DAMAGED}")


def _form_of(tags: Mapping[int, Any]) -> str:
    forms = {_SAMPLE_FORMATS.get(form, "unknown") for form in tags.get(_SAMPLE_FORMAT, (1,))}
    return forms.pop() if len(forms) == 1 else "mixed"


def _layout(tags: Mapping[int, Any], order: bytes) -> str:
    bits, photometric, coding = tags.get(_BITS_PER_SAMPLE, (1,)), tags.get(_PHOTOMETRIC, -1), tags.get(_COMPRESSION, 1)
    count = f"{len(bits)} x " if len(bits) > 1 else ""
    facts = (
        "little-endian" if order == b"II" else "big-endian",
        _PHOTOMETRICS.get(photometric, f"photometric interpretation {photometric}"),
        _COMPRESSIONS.get(coding, f"compression {coding}"),
    )
    return f"a TIFF page of {count}{max(bits)}-bit {_form_of(tags)} samples ({', '.join(facts)})"


@contextmanager
def tiff_pages(path: Path, admit: Admit, remedy: str = CONVERT) -> Iterator[tuple[int, Callable[[int], TiffPage]]]:
    """Open a TIFF file; yield its number of pages and a function that returns a page, counted from 1.

    Pillow's exceptions become `Unreadable`. Pillow is given a stream, not a path: it would map a file into memory, and
    then mistake the rotated size of an uncompressed page for that of its stored rows.
    """
    at = 1

    def page_of(number: int) -> TiffPage:
        nonlocal at
        at = number
        picture.seek(number - 1)
        return TiffPage(picture, admit, remedy)

    with path.open("rb") as stream:
        count = _count_pages(stream, admit)
        try:
            with Image.open(stream, formats=["TIFF"]) as picture:
                yield count, page_of
        except Unreadable:
            raise
        except Image.DecompressionBombError:
            raise bomb() from None
        except (UnidentifiedImageError, SyntaxError):  # for the first page, for others
            raise _unknown_layout(stream, at, remedy) from None
        except _PILLOW_ERRORS:
            raise Unreadable(f"the TIFF file cannot be decoded; {DAMAGED}") from None


def _count_pages(stream: BinaryIO, admit: Admit) -> int:
    """Return the number of pages; refuse directories that never end or would exhaust the memory.

    Pillow loads the data of all tags of a page, which may be the same megabyte 65,535 times.
    """
    size = stream.seek(0, 2)
    try:
        claims = list(claims_of_pages(stream))
    except (struct.error, ValueError, OSError):
        raise Unreadable(f"the TIFF file has a directory that cannot be read; {DAMAGED}") from None
    admit(1, 1, len(claims))
    if max(claims, default=0) > size:
        raise Unreadable(f"the tags of a TIFF page claim more bytes than the file has; {DAMAGED}")
    stream.seek(0)
    return len(claims)


def claims_of_pages(stream: BinaryIO) -> Iterator[int]:
    """Yield the number of bytes that the tags of each page claim. Source: TIFF 6.0, section 2.

    Raises:
        struct.error, ValueError: a directory cannot be read, or points back to an earlier one.
    """
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
    """Return one number, read in a struct format."""
    return int(struct.unpack(form, stream.read(struct.calcsize(form)))[0])


def tiff_size(path: Path, frame: int) -> tuple[int, int]:
    """Return the height and width of a page as displayed."""
    with tiff_pages(path, admit_all) as (count, page_of):
        check_frame(frame, count)
        return page_of(frame).size


def _unknown_layout(stream: BinaryIO, number: int, remedy: str) -> Unreadable:
    """Return the error for a page that Pillow does not recognise, with its format if the directory can be read."""
    try:
        stream.seek(0)
        start = stream.read(8)
        tags = ImageFileDirectory_v2(start + stream.read(8) if 43 in start[2:4] else start)
        for _ in range(number):
            stream.seek(tags.next)
            tags.load(stream)
        if tags.get(_WIDTH) and tags.get(_PHOTOMETRIC) is not None:
            return Unreadable(f"{_layout(tags, start[:2])} is not supported;\n{remedy}")
    except _PILLOW_ERRORS:
        pass
    return Unreadable(f"the TIFF file cannot be decoded; {DAMAGED}")


def read_tiff(path: Path, frame: int, window: Window, *, rgb: bool, admit: Admit = admit_all) -> GrayImage:
    """Decode a page of a TIFF file; see `read`."""
    with tiff_pages(path, admit) as (count, page_of):
        check_frame(frame, count)
        page = page_of(frame)
        deep = page.picture.mode.startswith("I;16")
        if page.form != "unsigned" or not (deep or (page.bits <= 8 and page.picture.mode in _SHALLOW)):
            raise page.unsupported()
        planes = rescale(page.samples().astype(np.uint16), page.bits, 16) if deep else page.samples()
        reduced = count > 1 and (page.reduced or (frame == 1 and _is_outsized(planes.shape[1:], count, page_of)))
    image = as_displayed(planes, window, rgb=rgb)
    return replace(image, notices=(*image.notices, *((THUMBNAIL,) if reduced else of_several(frame, count))))


def _is_outsized(shape: Sequence[int], count: int, page_of: Callable[[int], TiffPage]) -> bool:
    """Return whether one of the next pages is larger in height and width."""
    last = min(count, _MOST_COMPARED)
    with suppress(Exception):  # errors of other pages do not matter
        return any(min(np.subtract(page_of(number).size, shape)) > 0 for number in range(2, last + 1))
    return False
