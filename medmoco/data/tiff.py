"""TIFF files: their pages, upright, and what those say of their samples."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from medmoco.data.grey_levels import (
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
from medmoco.data.png_jpeg import bomb

_WIDTH, _BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES_PER_PIXEL = 256, 258, 259, 262, 274, 277
_STRIP_BYTES, _TILE_WIDTH, _TILE_HEIGHT, _TILE_BYTES, _SAMPLE_FORMAT = 279, 322, 323, 325, 339
_NEW_SUBFILE, _OLD_SUBFILE = 254, 255
_PHOTOMETRICS = {0: "WhiteIsZero", 1: "BlackIsZero", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELab"}
_SAMPLE_FORMATS = {1: "unsigned", 2: "signed", 3: "floating-point", 4: "unsigned", 5: "complex", 6: "complex"}
_SHALLOW = ("1", "L", "LA", "P", "RGB", "RGBA")  # Pillow's modes of 8 bits that are shown
_PILLOWS_ERRORS = (
    OSError, SyntaxError, ValueError, KeyError, IndexError, TypeError, OverflowError, EOFError, struct.error,
)  # fmt: skip


class TiffPage:
    """A page of an open TIFF file.

    Attributes:
        picture: Turned to the page, not decoded yet.
        bits: The most of a sample.
        form: "unsigned", "signed", "floating-point", "complex" or "mixed".
        declared: Samples of a pixel.
        reduced: It says that it is a smaller version of another page.
    """

    def __init__(self, picture: Image.Image, number: int, admit: Admit) -> None:
        picture.seek(number - 1)
        self.picture = picture
        self._tags = tags = dict(picture.tag_v2)  # type: ignore[attr-defined]
        self.bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
        self.form = _form_of(tags)
        self.declared = int(tags.get(_SAMPLES_PER_PIXEL, 1))
        self.reduced = bool(tags.get(_NEW_SUBFILE, 0) & 1 or tags.get(_OLD_SUBFILE) == 2)
        admit(picture.width, picture.height, 1)
        admit(tags.get(_TILE_WIDTH, 1), tags.get(_TILE_HEIGHT, 1), 1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as displayed: Pillow swaps them for the tag at once, but for XMP data when it decodes."""
        lies = _ORIENTATION not in self._tags and self.picture.getexif().get(_ORIENTATION, 1) >= 5
        return self.picture.size if lies else self.picture.size[::-1]

    def unsupported(self, wanted: str = CONVERT) -> Unreadable:
        """Say what the page holds, which is not damaged."""
        order = self.picture.tag_v2.prefix  # type: ignore[attr-defined]
        return Unreadable(f"a TIFF page of {_layout(self._tags, order)}, which is not supported;\n{wanted}")

    def samples(self) -> Pixels:
        """Decode to (C, H, W) as Pillow does: WhiteIsZero turned round up to 8 bits, a palette as its colours."""
        self._check_whole()
        plain = self.picture.convert("RGBA") if self.picture.mode == "P" else self.picture
        pixels = np.asarray(plain.convert("L") if plain.mode == "1" else plain)
        if self._tags.get(_PHOTOMETRIC) == 0 and self.bits > 8:
            if self.form != "unsigned" or self.bits > 16:
                raise self.unsupported()
            pixels = 2**self.bits - 1 - pixels
        return np.atleast_3d(pixels).transpose(2, 0, 1)

    def _check_whole(self) -> None:
        """Refuse rows that are shorter than the image, as Pillow would take the rest from what lies behind them."""
        tags, (height, width) = self._tags, self.picture.size[::-1]
        if tags.get(_ORIENTATION, 1) >= 5:
            width, height = height, width
        bits, held = sum(tags.get(_BITS_PER_SAMPLE, (1,))), tags.get(_STRIP_BYTES)
        needed = math.ceil(width * bits / 8) * height
        if _TILE_BYTES in tags:
            across, down, held = tags[_TILE_WIDTH], tags[_TILE_HEIGHT], tags[_TILE_BYTES]
            needed = math.ceil(across * bits / 8) * down * math.ceil(width / across) * math.ceil(height / down)
        if tags.get(_COMPRESSION, 1) == 1 and held is not None and np.sum(held) < needed:
            raise Unreadable(f"the rows of the TIFF page are shorter than its image; {DAMAGED}")


def _form_of(tags: Mapping[int, Any]) -> str:
    forms = {_SAMPLE_FORMATS.get(form, "unknown") for form in tags.get(_SAMPLE_FORMAT, (1,))}
    return forms.pop() if len(forms) == 1 else "mixed"


def _layout(tags: Mapping[int, Any], order: bytes) -> str:
    bits, photometric = tags.get(_BITS_PER_SAMPLE, (1,)), tags.get(_PHOTOMETRIC, -1)
    return (
        f"{len(bits)} {_form_of(tags)} sample(s) of {max(bits)} bits ({'little' if order == b'II' else 'big'}-endian), "
        f"{_PHOTOMETRICS.get(photometric, f'photometric interpretation {photometric}')},"
        f" compression {tags.get(_COMPRESSION, 1)}"
    )


@contextmanager
def tiff_pages(path: Path, admit: Admit) -> Iterator[tuple[int, Callable[[int], TiffPage]]]:
    """Open a TIFF file; yield how many pages it has and what opens one, from 1.

    What Pillow raises meanwhile becomes `Unreadable`. It is given a stream, not a path: it maps files into memory, and
    then takes the turned size of an uncompressed page for that of its stored rows.
    """
    with path.open("rb") as stream:
        try:
            with Image.open(stream, formats=["TIFF"]) as picture:
                yield picture.n_frames, lambda number: TiffPage(picture, number, admit)  # type: ignore[attr-defined]
        except Unreadable:
            raise
        except Image.DecompressionBombError:
            raise bomb() from None
        except UnidentifiedImageError:
            raise _unknown_layout(stream) from None
        except _PILLOWS_ERRORS:
            raise Unreadable(f"the TIFF file cannot be decoded; {DAMAGED}") from None


def tiff_size(path: Path, frame: int) -> tuple[int, int]:
    """Return the height and width of a page as displayed."""
    with tiff_pages(path, admit_all) as (count, page_of):
        check_frame(frame, count)
        return page_of(frame).size


def _unknown_layout(stream: BinaryIO) -> Unreadable:
    """Say what the first page holds, where its directory can be read."""
    try:
        stream.seek(0)
        start = stream.read(8)
        tags = ImageFileDirectory_v2(start + stream.read(8) if 43 in start[2:4] else start)
        stream.seek(tags.next)
        tags.load(stream)
        if tags.get(_WIDTH) and tags.get(_PHOTOMETRIC) is not None:
            return Unreadable(f"a TIFF page of {_layout(tags, start[:2])}, which is not supported;\n{CONVERT}")
    except _PILLOWS_ERRORS:
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
    found = as_displayed(planes, window, rgb=rgb)
    notices = (THUMBNAIL,) if page.reduced and count > 1 else of_several(frame, count)
    return replace(found, notices=(*found.notices, *notices))
