"""Read PNG and JPEG files: their headers, orientation and pixels."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from mmap import mmap
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from medmoco.data.image_io.intensity import (
    DAMAGED,
    LUMA,
    Admit,
    GrayImage,
    Pixels,
    Unreadable,
    Window,
    admit_all,
    as_displayed,
    check_frame,
    transparent,
)

# ---- orientation ----


def upright(planes: Pixels, orientation: int) -> Pixels:
    """Return (..., H, W) rotated and flipped according to the EXIF orientation. Source: EXIF 2.32, section 4.6.4."""
    mirrored = planes[..., ::-1] if orientation in (2, 4, 5, 7) else planes
    quarters = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.rot90(mirrored, quarters, axes=(-2, -1))


_XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])\b")


def orientation_of(exif: bytes, xmp: bytes) -> int:
    """Return the orientation, 1 to 8, from EXIF data, else from XMP data, else 1, as viewers do."""
    orientation = _exif_orientation(exif.removeprefix(b"Exif\0\0"))
    if orientation is None:
        match = _XMP_ORIENTATION.search(xmp)
        orientation = int(match[1]) if match else 1
    return orientation if 1 <= orientation <= 8 else 1


def _exif_orientation(tiff: bytes) -> int | None:
    """Return tag 274 of the first directory; None if it is missing or the data are damaged."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if not order:
        return None
    try:
        (start,) = struct.unpack_from(f"{order}L", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, form = struct.unpack_from(f"{order}HH", tiff, at)
            if tag == 274 and form in (1, 3, 4):  # byte, short, long
                return int(struct.unpack_from(order + {1: "B", 3: "H", 4: "L"}[form], tiff, at + 8)[0])
    except struct.error:
        pass
    return None


# ---- PNG ----

_MOST_TEXT = 2**20  # bytes to which a text chunk may inflate; hostile chunks inflate to gigabytes
_COMPRESSED = (b"zTXt", b"iTXt", b"iCCP")  # texts and colour profiles


class PlainHeader(NamedTuple):
    """The header of a PNG or JPEG file."""

    channels: int  # samples per pixel; 3 for a palette of colours
    width: int  # width as stored, in pixels
    height: int  # height as stored, in pixels
    bits: int  # bits per sample
    orientation: int  # 1 to 8, see `upright`
    transparent: tuple[int, ...] = ()  # samples of the transparent colour of a PNG file without an alpha channel
    coding: int = 0  # second byte of the marker of a JPEG file's frame header

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width as displayed, in pixels."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def png_header(data: bytes | mmap) -> PlainHeader:
    """Return the header of a PNG file, read from its chunks. Source: PNG, third edition, section 11.

    Raises:
        Unreadable: the first chunk is not an image header.
    """
    exif = xmp = transparent = b""
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise Unreadable(f"the header cannot be read; {DAMAGED}")
    width, height, bits, colour = struct.unpack_from(">LLBB", data, 16)
    for _, name, body in _chunks(data):
        if name == b"tRNS":
            transparent = body
        elif name == b"eXIf":
            exif = body
        elif name == b"iTXt" and body.startswith(b"XML:com.adobe.xmp\0"):
            xmp = _international_text(body)
        elif name in (b"zTXt", b"tEXt") and body.startswith(b"Raw profile type "):  # as ImageMagick writes it
            exif = exif or _raw_profile(name, body)
    size = {0: 1, 2: 3}.get(colour, 0)  # palettes and alpha channels are left to the decoder
    samples = struct.unpack_from(f">{size}H", transparent) if size and len(transparent) == 2 * size else ()
    channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(colour, 0)
    orientation = orientation_of(exif, xmp)
    return PlainHeader(channels, width, height, bits, orientation, tuple(s & (2**bits - 1) for s in samples))


def _chunks(data: bytes | mmap) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield the position, name and content of each chunk, of pixels without the content."""
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">L", data, position)
        name = data[position + 4 : position + 8]
        yield position, name, data[position + 8 : position + 8 + length] if name != b"IDAT" else b""
        position += 12 + length


def _without_texts(data: bytes) -> bytes:
    """Return a PNG file without the chunks that libpng would inflate to any size, and that have no pixels."""
    parts, kept = [], 0
    for position, name, body in _chunks(data):
        if name in _COMPRESSED:
            parts.append(data[kept:position])
            kept = position + 12 + len(body)
    return b"".join([*parts, data[kept:]]) if parts else data


def _inflated(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MOST_TEXT)
    except zlib.error:
        return b""


def _international_text(body: bytes) -> bytes:
    rest = body.partition(b"\0")[2]
    compressed, text = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    return _inflated(text) if compressed else text


def _raw_profile(name: bytes, body: bytes) -> bytes:
    """Return the EXIF data in a text chunk, which has a name, a length and hexadecimal digits on separate lines."""
    keyword, _, text = body.partition(b"\0")
    if keyword.rsplit(b" ", 1)[-1] not in (b"exif", b"APP1"):
        return b""
    lines = (_inflated(text[1:]) if name == b"zTXt" else text).strip().split(b"\n", 2)
    try:
        return bytes.fromhex(lines[2].decode("ascii")) if len(lines) == 3 else b""
    except ValueError:
        return b""


def read_png(content: bytes, frame: int, window: Window, *, rgb: bool, admit: Admit = admit_all) -> GrayImage:
    """Decode a PNG file; see `medmoco.data.image_io.preprocessing.read`."""
    header = png_header(content)
    admit(header.width, header.height, 1)
    check_frame(frame, 1)
    if b"IEND\xaeB`\x82" not in content[-4096:]:
        raise Unreadable(f"the PNG file has no end marker; {DAMAGED}")
    # Neither torchvision, which crashes on damaged rows, nor Pillow, which truncates 16-bit colours to 8 bits.
    try:
        pixels = cv2.imdecode(np.frombuffer(_without_texts(content), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        raise _undecodable(header) from None
    if pixels is None:
        raise _undecodable(header)
    if pixels.ndim == 2:
        planes = pixels[None]
    else:  # BGR, or BGRA (also for gray + alpha)
        planes = pixels.transpose(2, 0, 1)[[0, 3] if header.channels == 2 else [2, 1, 0, 3][: pixels.shape[2]]]
    if header.transparent and len(planes) == len(header.transparent):
        white = 2**header.bits - 1
        levels = [level * 255 // white if header.bits < 8 else level for level in header.transparent]
        if np.all([plane == level for plane, level in zip(planes, levels, strict=True)], axis=0).any():
            raise transparent()
    return as_displayed(upright(planes, header.orientation), window, rgb=rgb)


def _undecodable(header: PlainHeader) -> Unreadable:
    return Unreadable(f"the {header.width} x {header.height} image cannot be decoded; {DAMAGED}")


# ---- JPEG ----

END_OF_IMAGE, START_OF_SCAN = b"\xff\xd9", b"\xff\xda"
_START_OF_IMAGE, _APP1 = 0xD8, 0xE1
_MOST_SCANS = 1000  # a progressive JPEG has about ten
# Frame headers of JPEG (without the markers in this range that have other meanings) and of JPEG-LS.
FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_CODINGS = (0xC0, 0xC1, 0xC2)  # supported by libjpeg: baseline, extended sequential, progressive


def segments(data: bytes | mmap) -> Iterator[tuple[int, int]]:
    """Yield marker and position of every segment of a JPEG stream, up to its first scan or a gap between segments."""
    position = 0
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        yield marker, position
        if marker == START_OF_SCAN[1]:
            return
        length = {_START_OF_IMAGE: 2, 0xFF: 1}.get(marker)  # fill bytes may precede a marker
        position += length or 2 + int.from_bytes(data[position + 2 : position + 4], "big")


def jpeg_header(data: bytes | mmap) -> PlainHeader:
    """Return the header of a JPEG file. Source: ITU-T T.81, B.2.2, and EXIF 2.32, section 4.7.2.

    Raises:
        Unreadable: there is no frame header.
    """
    exif = xmp = b""
    frame = None
    for marker, position in segments(data):
        body = data[position + 4 : position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")]
        if marker in FRAME_HEADERS and len(body) >= 6:
            frame = frame or (*struct.unpack_from(">BHHB", body), marker)
        elif marker == _APP1 and body.startswith(b"Exif\0"):
            exif = exif or body
        elif marker == _APP1 and body.startswith(b"http://ns.adobe.com/xap/1.0/\0"):
            xmp = xmp or body
    if not frame:
        raise Unreadable(f"the header cannot be read; {DAMAGED}")
    bits, height, width, channels, coding = frame
    return PlainHeader(channels, width, height, bits, orientation_of(exif, xmp), coding=coding)


def check_jpeg(data: bytes, header: PlainHeader) -> None:
    """Refuse a JPEG file that is truncated, of an unsupported coding, or made to take hours to decode.

    Coded data cannot contain markers, as a zero follows each 0xFF there; a thumbnail before them has its own markers.
    """
    if header.coding == 0xF7:
        raise Unreadable("it is a JPEG-LS file; convert it to PNG first")
    if header.coding not in _CODINGS or header.bits != 8:
        what = (
            "lossless JPEG"
            if header.coding == 0xC3
            else f"JPEG of {header.bits} bits, coding process {header.coding:X}"
        )
        raise Unreadable(f"it is {what}, which is not supported; convert it to PNG first")
    if header.channels not in (1, 3):
        raise Unreadable(
            f"its colours are {'CMYK' if header.channels == 4 else 'unknown'}; convert it to grayscale or RGB"
        )
    first_scan = max((position for _, position in segments(data)), default=0)
    if data.find(END_OF_IMAGE, first_scan) < 0:
        raise Unreadable(f"the JPEG file has no end marker; {DAMAGED}")
    if (scans := data.count(START_OF_SCAN, first_scan)) > _MOST_SCANS:
        raise Unreadable(f"the JPEG file has {scans} scans, which would take hours to decode; save it again")


def read_jpeg(
    content: bytes, frame: int, *, rgb: bool, admit: Admit = admit_all, at_least: int | None = None
) -> GrayImage:
    """Decode a JPEG file; see `medmoco.data.image_io.preprocessing.read`, and for `at_least` `images.read_image`.

    Decoding at a reduced size uses only the low frequencies of each 8 x 8 block; at a scale of 8 these are the means of
    its pixels. On radiographs, the canvas differs from that of a full decode by at most 0.5 grey levels of 255 on
    average and 3 at the 99.9th percentile; about 0.25 of it comes from rounding up at each halving of the full decode.
    """
    header = jpeg_header(content)
    admit(header.width, header.height, 1)
    check_frame(frame, 1)
    check_jpeg(content, header)
    scale = next((scale for scale in (8, 4, 2) if at_least and _may_reduce(header, scale, at_least)), 1)
    width, height = (max(1, side // scale) for side in (header.width, header.height))
    coloured = rgb and header.channels == 3
    try:
        with Image.open(BytesIO(content), formats=["JPEG"]) as picture:
            picture.draft("RGB" if coloured else "L", (width, height))
            planes = np.atleast_3d(np.asarray(picture)[:height, :width]).transpose(2, 0, 1)
    except Image.DecompressionBombError:
        raise bomb() from None
    except (OSError, SyntaxError, ValueError, struct.error):
        raise _undecodable(header) from None
    planes = upright(planes, header.orientation)
    pixels = np.ascontiguousarray(planes[0] if len(planes) == 1 else planes.transpose(1, 2, 0))
    notices = (LUMA,) if header.channels == 3 and not coloured else ()
    return GrayImage(pixels, 8, notices, header.upright_size if scale > 1 else None)


def _may_reduce(header: PlainHeader, scale: int, at_least: int) -> bool:
    """Return whether enough pixels remain, and no partial ones that `halved` would drop on another side."""
    ends_whole = header.width % scale == header.height % scale == 0
    return max(header.width, header.height) // scale >= at_least and (header.orientation == 1 or ends_whole)


def bomb() -> Unreadable:
    """Return the error for an image that Pillow refuses to decode because of its size."""
    return Unreadable(
        f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, which Pillow refuses; crop or downscale it"
    )
