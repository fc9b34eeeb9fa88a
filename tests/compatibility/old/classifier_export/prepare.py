"""From an image file to the network's input, as preprocessing.json says, with NumPy, OpenCV, Pillow and pydicom.

    import json, prepare
    contract = json.load(open("preprocessing.json"))
    image = prepare.image("film.dcm", contract)  # (C, S, S) float32

Every export contains this file, and any project may copy it (Apache-2.0). It is also the code that medmoco itself reads
images with, so that a network in use sees the pixels it was trained on, and no file is read by one and refused by the
other. It reads DICOM, PNG, JPEG, TIFF and, for a network of bands, NumPy arrays. What medmoco adds is protection from
hostile files: limits on their size, and worker processes that may crash.
"""

from __future__ import annotations

import logging
import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import BufferedReader, BytesIO, FileIO
from mmap import mmap
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import cv2
import numpy as np
import pydicom
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels import as_pixel_options, get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, HTJ2K, HTJ2KLossless,
    HTJ2KLosslessRPCL, ImplicitVRLittleEndian, JPEG2000Lossless, JPEG2000TransferSyntaxes, JPEGBaseline8Bit,
    JPEGExtended12Bit, JPEGLSLossless, JPEGLSTransferSyntaxes, JPEGLossless, JPEGLosslessSV1, RLELossless, UID,
)


# ======== grey levels ========

Pixels = NDArray[Any]
Floats = NDArray[np.float64]
Window = Literal["voi", "full"] | tuple[float, float]
Admit = Callable[[int, int, int], None]
"""Takes width, height and frames as the header states them, and raises what it likes to refuse the image."""

DAMAGED = "it is damaged or cut off; fetch it again from where it came from"
CONVERT = "convert it to 8- or 16-bit unsigned grayscale PNG or TIFF"

# What a user should know about an image that could be read.
CONSTANT = "constant: all pixels have the same value"
REPEATED = "stored in gray; repeated for red, green and blue"
LUMA = "stored in colour; reduced to luma (ITU-R BT.601)"
NO_WINDOW = "no VOI window in the file: spread from its smallest to its largest value"
DARK = "16-bit file that uses 12 bits or fewer: dark; set data.window: [centre, width]"
DARK_TABLE = "its VOI table uses less than a quarter of its range: dark; set data.window: [centre, width]"
NOT_SQUARE = "pixels are not square: scaled to their true proportions"
NOT_BELIEVED = "implausible pixel spacing, over 16 times as long as wide: pixels are treated as square"
FIRST_OF_SEVERAL = "only the first of several frames or pages is read: add a Frame column, with a row for each"
THUMBNAIL = "this page is a thumbnail of another one: name the full-size page in a Frame column"


class Unreadable(ValueError):
    """The reason why a file cannot be read. It holds nothing that could identify a patient."""


@dataclass(frozen=True)
class GrayImage:
    """A decoded image.

    Attributes:
        pixels: (H, W) uint8 or uint16, brighter is denser as displayed; (H, W, C) where channels are asked for.
        bits: White is 2**bits - 1.
        notices: What a user should know about how the pixels came about.
        full_size: Height and width in proportion to each other, where those of `pixels` are not: their decoding was at
            a reduced size, or they are not square.
    """

    pixels: Pixels
    bits: int
    notices: tuple[str, ...] = ()
    full_size: tuple[float, float] | None = None


def admit_all(width: int, height: int, frames: int) -> None:
    """Refuse only what has no pixels."""
    if width < 1 or height < 1:
        raise Unreadable(f"the header says {width} x {height} pixels; {DAMAGED}")


def worth_saying(notices: Sequence[str], *, frames_are_named: bool) -> tuple[str, ...]:
    """Leave out that there are more frames where the manifest says which one is meant."""
    return tuple(notice for notice in notices if not (frames_are_named and notice == FIRST_OF_SEVERAL))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' warnings off the console: they quote header values, which may identify a patient."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def check_frame(frame: int, frames: int) -> None:
    """Refuse a frame that the file does not have."""
    if not 1 <= frame <= frames:
        raise Unreadable(f"frame {frame} is asked for, but the file has {frames}; check the Frame column")


def of_several(frame: int, frames: int) -> tuple[str, ...]:
    """Return a notice where the first of several frames is read, perhaps since nobody asked for another."""
    return (FIRST_OF_SEVERAL,) if frame == 1 < frames else ()


# ---- ranges of grey levels ----


def dtype_of(bits: int) -> type[np.uint8] | type[np.uint16]:
    """Return the pixel type for a depth."""
    return np.uint8 if bits <= 8 else np.uint16


def quantise(shares: Floats, bits: int) -> Pixels:
    """Turn shares of white, 0 to 1, into grey levels of 8 or 16 bits."""
    levels: Pixels = np.rint(shares * (2**bits - 1)).astype(dtype_of(bits))
    return levels


def rescale(pixels: Pixels, bits: int, wanted: int) -> Pixels:
    """Map white = 2**bits - 1 to white = 2**wanted - 1, rounding to the nearest level."""
    if bits == wanted:
        return pixels
    return np.take(quantise(np.arange(2**bits) / (2**bits - 1), wanted), pixels, mode="clip")


def spread(values: Floats, between: Floats) -> Floats:
    """Turn values into shares of white: black and white are the extremes of `between`."""
    low, high = float(between.min()), float(between.max())
    return np.clip((values - low) / (high - low or 1.0), 0, 1)


def linear(values: Floats, centre: float, width: float) -> Floats:
    """Turn values into shares of white; a width of 1 is a threshold. Source: DICOM PS3.3 C.11.2.1.2.1."""
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def linear_exact(values: Floats, centre: float, width: float) -> Floats:
    """Turn values into shares of white. Source: DICOM PS3.3 C.11.2.1.3.2."""
    return np.clip((values - centre) / width + 0.5, 0, 1)


def sigmoid(values: Floats, centre: float, width: float) -> Floats:
    """Turn values into shares of white. Source: DICOM PS3.3 C.11.2.1.3.1."""
    shares: Floats = 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    return shares


WINDOWS = {"LINEAR": linear, "LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid}


def of_colours(pixels: Pixels, bits: int, *, rgb: bool) -> GrayImage:
    """Return (H, W, 3) red, green and blue as they are, or reduced to luma."""
    pixels = np.ascontiguousarray(pixels)
    return GrayImage(pixels, bits) if rgb else GrayImage(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), bits, (LUMA,))


def as_displayed(planes: Pixels, window: Window, *, rgb: bool) -> GrayImage:
    """Reduce (C, H, W) gray, gray + alpha, RGB or RGBA of a plain image file to one plane, or colours to three."""
    bits = 8 * planes.dtype.itemsize
    if len(planes) in (2, 4):
        if planes[-1].min() < 2**bits - 1:
            raise transparent()
        planes = planes[:-1]
    if len(planes) == 3:
        return of_colours(planes.transpose(1, 2, 0), bits, rgb=rgb)
    plane = np.ascontiguousarray(planes[0])
    if bits == 16 and isinstance(window, tuple):
        return GrayImage(quantise(linear(np.arange(2**16, dtype=np.float64), *window), 16)[plane], 16)
    return GrayImage(plane, bits, (DARK,) if bits == 16 and plane.max() < 2**12 else ())


def transparent() -> Unreadable:
    """Say why an image with transparent pixels is not read."""
    return Unreadable("it has transparent pixels, whose grey level is undefined; flatten it first")


# ---- canvas: the image at the size that training keeps ----


def on_canvas(found: GrayImage, longer_side: int, bits: int) -> Pixels:
    """Scale one plane (H, W) so that its longer side is `longer_side`, to a white of 2**bits - 1."""
    pixels = halved(found.pixels, longer_side)
    height, width = fitted(found.full_size or found.pixels.shape[:2], longer_side)
    if pixels.shape != (height, width):
        method = cv2.INTER_AREA if max(pixels.shape) > longer_side else cv2.INTER_LINEAR
        pixels = cv2.resize(pixels, (width, height), interpolation=method)
    return rescale(pixels, found.bits, bits)


def fitted(full_size: Sequence[float], longer_side: int) -> tuple[int, int]:
    """Return the height and width on its canvas of an image of those proportions."""
    height, width = (max(1, round(side * longer_side / max(full_size))) for side in full_size)
    return height, width


def halved(pixels: Pixels, wanted: int) -> Pixels:
    """Halve by the mean of 2 x 2 pixels while the longer side is at least twice the wanted one.

    This is the exact area filter and 20 times faster than cv2's fractional one; an odd last line is left out.
    """
    while max(pixels.shape) >= 2 * wanted and min(pixels.shape) >= 2:
        height, width = (side // 2 for side in pixels.shape)
        pixels = cv2.resize(pixels[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    return pixels


# ======== kinds ========

Kind = Literal["DICOM", "TIFF", "PNG", "JPEG", "NPY"]

_OTHER_KINDS = {
    b"SIMPLE  =": "a FITS file; convert it to .npy first, as docs/channels.md shows",
    b"\0\0\0\x0cjP": "a JPEG 2000 file",
    b"\xff\x4f\xff\x51": "a JPEG 2000 codestream",
    b"BM": "a BMP file",
    b"GIF8": "a GIF file",
    b"RIFF": "a WebP file",
    b"%PDF": "a PDF file",
    b"\x5c\x01\0\0": "a NIfTI file",
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"PK\3\4": "a ZIP archive; unpack it",
    b"version https://git-lfs": "a Git LFS pointer in the place of the file; fetch the file with git lfs pull",
    b"<": "a web page or XML in the place of the file; fetch the file again",
}
"""How files start that are not read -> what they are, with a remedy if converting is not the right one."""


def kind_of_file(path: Path) -> Kind:
    """Tell the type of a file; see `kind_of`."""
    with path.open("rb") as stream:
        return kind_of(stream.read(132))


def kind_of(start: bytes) -> Kind:
    """Tell the file type from the first 132 bytes.

    Raises:
        Unreadable: of no type that is read; names the type if it is known, and the remedy.
    """
    if not start:
        raise Unreadable("the file is empty; fetch it again from where it came from")
    if start[128:] == b"DICM":  # before TIFF, because a DICOM preamble may hold a TIFF header
        return "DICOM"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if start.startswith(b"\x93NUMPY"):
        return "NPY"
    for magic, what in _OTHER_KINDS.items():
        if start.startswith(magic):
            raise Unreadable(what if ";" in what else f"{what}; convert it to PNG, TIFF or DICOM first")
    raise Unreadable(
        "neither PNG, JPEG, TIFF nor DICOM by its content; convert it to one of them\n"
        "(a DICOM file must have its 128-byte preamble)"
    )


# ======== png jpeg ========

# ---- orientation ----


def upright(planes: Pixels, orientation: int) -> Pixels:
    """Turn (..., H, W) as the EXIF orientation says. Source: EXIF 2.32, section 4.6.4."""
    mirrored = planes[..., ::-1] if orientation in (2, 4, 5, 7) else planes
    quarters = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}.get(orientation, 0)
    return np.rot90(mirrored, quarters, axes=(-2, -1))


_XMP_ORIENTATION = re.compile(rb"tiff:Orientation\s*(?:=\s*[\"']|>)\s*([1-8])\b")


def orientation_of(exif: bytes, xmp: bytes) -> int:
    """Return the orientation, 1 to 8, that EXIF data name, or XMP data where those do not; else 1, as viewers do."""
    found = _exif_orientation(exif.removeprefix(b"Exif\0\0"))
    if found is None:
        match = _XMP_ORIENTATION.search(xmp)
        found = int(match[1]) if match else 1
    return found if 1 <= found <= 8 else 1


def _exif_orientation(tiff: bytes) -> int | None:
    """Return tag 274 of the first directory; None where there is none or the data are damaged."""
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

_MOST_TEXT = 2**20  # bytes that a text chunk may inflate to, as there are chunks that inflate to gigabytes


class PlainHeader(NamedTuple):
    """What a PNG or JPEG file says of itself.

    Attributes:
        channels: Samples of a pixel; 3 for the colours of a palette.
        width: In pixels, as stored.
        height: In pixels, as stored.
        bits: Of a sample.
        orientation: 1 to 8, see `upright`.
        transparent: Of a PNG file without an alpha channel, the samples of the colour that is transparent.
        coding: Of a JPEG file, the second byte of its frame header's marker.
    """

    channels: int
    width: int
    height: int
    bits: int
    orientation: int
    transparent: tuple[int, ...] = ()
    coding: int = 0

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width as displayed."""
        return (self.width, self.height) if self.orientation >= 5 else (self.height, self.width)


def png_header(data: bytes | mmap) -> PlainHeader:
    """Read the chunks of a PNG file. Source: PNG, third edition, section 11.

    Raises:
        Unreadable: its first chunk is not an image header.
    """
    exif = xmp = transparent = b""
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise Unreadable(f"the header cannot be read; {DAMAGED}")
    width, height, bits, colour = struct.unpack_from(">LLBB", data, 16)
    for name, body in _chunks(data):
        if name == b"tRNS":
            transparent = body
        elif name == b"eXIf":
            exif = body
        elif name == b"iTXt" and body.startswith(b"XML:com.adobe.xmp\0"):
            xmp = _international_text(body)
        elif name in (b"zTXt", b"tEXt") and body.startswith(b"Raw profile type "):  # as ImageMagick writes it
            exif = exif or _raw_profile(name, body)
    size = {0: 1, 2: 3}.get(colour, 0)  # palettes and alpha channels are the decoder's
    samples = struct.unpack_from(f">{size}H", transparent) if size and len(transparent) == 2 * size else ()
    channels = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}.get(colour, 0)
    orientation = orientation_of(exif, xmp)
    return PlainHeader(channels, width, height, bits, orientation, tuple(s & (2**bits - 1) for s in samples))


def _chunks(data: bytes | mmap) -> Iterator[tuple[bytes, bytes]]:
    position = 8
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">L", data, position)
        name = data[position + 4 : position + 8]
        yield name, data[position + 8 : position + 8 + length] if name != b"IDAT" else b""
        position += 12 + length


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
    """Return the EXIF data of a text chunk: a name, a length and hexadecimal digits on lines of their own."""
    keyword, _, text = body.partition(b"\0")
    if keyword.rsplit(b" ", 1)[-1] not in (b"exif", b"APP1"):
        return b""
    lines = (_inflated(text[1:]) if name == b"zTXt" else text).strip().split(b"\n", 2)
    try:
        return bytes.fromhex(lines[2].decode("ascii")) if len(lines) == 3 else b""
    except ValueError:
        return b""


def read_png(content: bytes, frame: int, window: Window, *, rgb: bool, admit: Admit = admit_all) -> GrayImage:
    """Decode a PNG file; see `medmoco.data.prepare.read`."""
    header = png_header(content)
    admit(header.width, header.height, 1)
    check_frame(frame, 1)
    if b"IEND\xaeB`\x82" not in content[-4096:]:
        raise Unreadable(f"the PNG file has no end; {DAMAGED}")
    # Not torchvision, which crashes on damaged rows, nor Pillow, which cuts 16-bit colours to 8.
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        raise _undecodable(header) from None
    if pixels is None:
        raise _undecodable(header)
    if pixels.ndim == 2:
        planes = pixels[None]
    else:  # BGR, or BGRA also for gray + alpha
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
_MOST_SCANS = 1000  # a progressive JPEG has some ten
# Frame headers of JPEG (all but the markers between them that mean something else) and of JPEG-LS.
FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_CODINGS = (0xC0, 0xC1, 0xC2)  # that libjpeg decodes: baseline, extended sequential, progressive


def segments(data: bytes | mmap) -> Iterator[tuple[int, int]]:
    """Yield marker and position of every segment of a JPEG stream, to its first scan or to a gap between segments."""
    position = 0
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        yield marker, position
        if marker == START_OF_SCAN[1]:
            return
        length = {_START_OF_IMAGE: 2, 0xFF: 1}.get(marker)  # fill bytes may precede a marker
        position += length or 2 + int.from_bytes(data[position + 2 : position + 4], "big")


def jpeg_header(data: bytes | mmap) -> PlainHeader:
    """Read the segments of a JPEG file before its pixels. Source: ITU-T T.81, B.2.2, and EXIF 2.32, section 4.7.2.

    Raises:
        Unreadable: no frame header, cut off, or coded in a way that is not read.
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
    """Refuse a JPEG file that is cut off, that no decoder here reads, or that is built to keep one busy.

    Inside coded data no marker can occur, as a zero follows each 0xFF there; a thumbnail before them has its own.
    """
    if header.coding == 0xF7:
        raise Unreadable("a JPEG-LS file; convert it to PNG first")
    if header.coding not in _CODINGS or header.bits != 8:
        what = (
            "lossless JPEG"
            if header.coding == 0xC3
            else f"JPEG of {header.bits} bits, coding process {header.coding:X}"
        )
        raise Unreadable(f"{what}, which no decoder here reads; convert it to PNG first")
    if header.channels not in (1, 3):
        raise Unreadable(
            f"its colours are {'CMYK' if header.channels == 4 else 'unknown'}; convert it to grayscale or RGB"
        )
    first_scan = max((position for _, position in segments(data)), default=0)
    if data.find(END_OF_IMAGE, first_scan) < 0:
        raise Unreadable(f"the JPEG file has no end; {DAMAGED}")
    if (scans := data.count(START_OF_SCAN, first_scan)) > _MOST_SCANS:
        raise Unreadable(f"the JPEG file has {scans} scans, which would take hours to decode; save it anew")


def read_jpeg(
    content: bytes, frame: int, *, rgb: bool, admit: Admit = admit_all, at_least: int | None = None
) -> GrayImage:
    """Decode a JPEG file; see `medmoco.data.prepare.read`, and for `at_least` `medmoco.data.images.read_image`.

    A reduced image is decoded by the low frequencies of each 8 x 8 block alone, which are its pixels' means at a scale
    of 8. On films the canvas differs from that of a full decode by 0.5 grey levels of 255 in the mean and by 3 at the
    99.9th percentile, at the most; some 0.25 is what rounding halves up at each halving adds to the full decode.
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
    turned = upright(planes, header.orientation)
    pixels = np.ascontiguousarray(turned[0] if len(turned) == 1 else turned.transpose(1, 2, 0))
    notices = (LUMA,) if header.channels == 3 and not coloured else ()
    return GrayImage(pixels, 8, notices, header.upright_size if scale > 1 else None)


def _may_reduce(header: PlainHeader, scale: int, at_least: int) -> bool:
    """Tell whether enough pixels are left, and none is incomplete that `halved` would leave out on another side."""
    ends_whole = header.width % scale == header.height % scale == 0
    return max(header.width, header.height) // scale >= at_least and (header.orientation == 1 or ends_whole)


def bomb() -> Unreadable:
    """Say that Pillow refuses to decode an image of that size."""
    return Unreadable(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels, which Pillow refuses; crop or shrink it")


# ======== tiff ========

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
_SHALLOW = ("1", "L", "LA", "P", "RGB", "RGBA")  # Pillow's modes of 8 bits that are shown
_MOST_TAGS = 4096  # some 80 are defined
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_LOOKED_AT = 9  # pages, for one that is larger than the first
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
        """Height and width as displayed: Pillow swaps them for the tag at once, but for XMP data when it decodes."""
        lies = _ORIENTATION not in self._tags and self.picture.getexif().get(_ORIENTATION) in range(5, 9)
        return self.picture.size if lies else self.picture.size[::-1]

    def unsupported(self) -> Unreadable:
        """Say what the page holds, which is not damaged."""
        order = self.picture.tag_v2.prefix  # type: ignore[attr-defined]
        return Unreadable(f"{_layout(self._tags, order)} is not supported;\n{self._remedy}")

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
    """Open a TIFF file; yield how many pages it has and what turns to one, from 1.

    What Pillow raises meanwhile becomes `Unreadable`. It is given a stream, not a path: it maps files into memory, and
    then takes the turned size of an uncompressed page for that of its stored rows.
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
        except (UnidentifiedImageError, SyntaxError):  # of the first page, of another
            raise _unknown_layout(stream, at, remedy) from None
        except _PILLOWS_ERRORS:
            raise Unreadable(f"the TIFF file cannot be decoded; {DAMAGED}") from None


def _count_pages(stream: BinaryIO, admit: Admit) -> int:
    """Count pages, unless their directories never end or would fill the memory.

    Pillow holds the data of all tags of a page, which may be the same megabyte 65,535 times.
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
    """Yield the bytes that the tags of each page claim. Source: TIFF 6.0, section 2.

    Raises:
        struct.error, ValueError: a directory cannot be read, or leads back to an earlier one.
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
    """Read one number of a struct format."""
    return int(struct.unpack(form, stream.read(struct.calcsize(form)))[0])


def tiff_size(path: Path, frame: int) -> tuple[int, int]:
    """Return the height and width of a page as displayed."""
    with tiff_pages(path, admit_all) as (count, page_of):
        check_frame(frame, count)
        return page_of(frame).size


def _unknown_layout(stream: BinaryIO, number: int, remedy: str) -> Unreadable:
    """Say what a page holds, where its directory can be read."""
    try:
        stream.seek(0)
        start = stream.read(8)
        tags = ImageFileDirectory_v2(start + stream.read(8) if 43 in start[2:4] else start)
        for _ in range(number):
            stream.seek(tags.next)
            tags.load(stream)
        if tags.get(_WIDTH) and tags.get(_PHOTOMETRIC) is not None:
            return Unreadable(f"{_layout(tags, start[:2])} is not supported;\n{remedy}")
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
        reduced = count > 1 and (page.reduced or (frame == 1 and _is_outsized(planes.shape[1:], count, page_of)))
    found = as_displayed(planes, window, rgb=rgb)
    return replace(found, notices=(*found.notices, *((THUMBNAIL,) if reduced else of_several(frame, count))))


def _is_outsized(shape: Sequence[int], count: int, page_of: Callable[[int], TiffPage]) -> bool:
    """Tell whether one of the next pages is larger, by height and by width."""
    with suppress(Exception):  # whatever is wrong with such a page: it is not the one that is wanted
        return any(min(np.subtract(page_of(number).size, shape)) > 0 for number in range(2, min(count, _LOOKED_AT) + 1))
    return False


# ======== bands ========

OWN_RANGE = "no data.band_ranges: each band is spread from its smallest to its largest value in the image"
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_BAND_MODES = ("L", "I;16", "I;16B", "I", "F", "RGB", "RGBA", "RGBX", "CMYK")
_NOT_ITS_BANDS = "make files of data.channels bands each, or set it to what they have"
_AS_BANDS = "save each band as a page of 8, 16 or 32 bits, or all as .npy"


def band_values(path: Path, count: int, frame: int = 1, admit: Admit = admit_all) -> Pixels:
    """Read a file of `count` bands, (C, H, W) of any type of number.

    Raises:
        Unreadable: of another kind or shape, damaged, or with values that are not numbers.
    """
    if frame != 1:
        raise Unreadable(f"frame {frame} is asked for, but the pages of a file are its bands; check the Frame column")
    kind = kind_of_file(path)
    if kind not in ("NPY", "TIFF"):
        raise Unreadable(
            f"a {kind} file, but data.channels = {count} reads bands from .npy and TIFF;\nset it to gray or rgb"
        )
    values = _npy_values(path, count, admit) if kind == "NPY" else _tiff_values(path, count, admit)
    if bad := np.count_nonzero(~np.isfinite(values)) if values.dtype.kind == "f" else 0:
        raise Unreadable(f"{bad} of {values.size} values are not finite; replace them where the file is made")
    return values


def levels_of(values: Pixels, scale: str, ranges: Sequence[Sequence[float]] | None) -> GrayImage:
    """Turn bands (C, H, W) of finite numbers into grey levels, (H, W, C), or (H, W) of one.

    Args:
        values: Of any type; 8-bit ones stay as they are where nothing else is asked for.
        scale: "linear" or "log".
        ranges: [low, high] of each band, or one pair for all.
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
    """Turn the values of a band into shares of white.

    Where the logarithm is taken, `low` is the floor of all below it, zero and negative values too; without a pair it
    is the smallest positive value. Source: grantmerz/moco, which has a floor of 0.1 in the place of values up to 0.
    """
    if scale == "linear":
        return spread(band, np.array(pair) if pair else band)
    positive = band[band > 0]
    low, high = pair or ((positive.min(), positive.max()) if positive.size else (1.0, 1.0))
    return spread(np.log10(np.maximum(band, low)), np.log10([low, high]))


def npy_header(path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and type of an array, having made sure that it is all there, holds numbers and no code.

    Raises:
        Unreadable: it does not.
    """
    try:
        with path.open("rb") as stream:
            shape, _, dtype = _NPY_HEADERS[np.lib.format.read_magic(stream)](stream)
            start, size = stream.tell(), stream.seek(0, 2)
    except Exception:  # of many kinds, whatever the header holds
        raise Unreadable(f"the header of the NumPy array cannot be read; {DAMAGED}") from None
    if dtype.kind not in "uif":
        raise Unreadable(f"a NumPy array of {dtype.name}; only plain whole or floating-point numbers can be read")
    if not all(side > 0 for side in shape):
        raise Unreadable(f"a NumPy array of shape {shape} is empty; {DAMAGED}")
    if size != start + math.prod(shape) * dtype.itemsize:
        raise Unreadable(f"the NumPy file ends inside its array, or does not end with it; {DAMAGED}")
    return shape, dtype


def band_axis(shape: tuple[int, ...], count: int) -> int | None:
    """Return which axis of an array is its bands, the first or the last; None where it is one plane without.

    Raises:
        Unreadable: neither, or it could be both.
    """
    if len(shape) == 2 and count == 1:
        return None
    first, last = len(shape) == 3 and shape[0] == count, len(shape) == 3 and shape[-1] == count
    if first and last:
        raise Unreadable(
            f"an array of shape {shape} may have its {count} bands first or last; pad or crop its sides, so that only\n"
            "one of them is data.channels"
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
    """Return a page's samples as the numbers that the file says they are; Pillow leaves some of them unsigned."""
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


# ======== dicom levels ========

def coloured(header: Dataset, pixels: Pixels, *, rgb: bool) -> GrayImage:
    """Return (H, W, 3) red, green and blue at their full depth, or their luma."""
    bits = int(header.BitsStored)
    found, depth = of_colours(pixels[..., :3], bits, rgb=rgb), 8 if bits <= 8 else 16
    return replace(found, pixels=rescale(found.pixels, bits, depth), bits=depth)


def grey(header: Dataset, pixels: Pixels, frame: int, window: Window) -> GrayImage:
    """Apply modality transform, VOI transform, polarity and padding to (H, W) stored values.

    Each is a function of the stored value alone, so they are worked out once per level and looked up per pixel.
    MONOCHROME1 alone decides on inversion: PresentationLUTShape INVERSE repeats it. Source: DICOM PS3.3 C.11.6.
    """
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    stored = int(header.BitsStored)
    lowest = -(2 ** (stored - 1)) if int(header.PixelRepresentation) == 1 else 0
    possible = np.arange(lowest, lowest + 2**stored)
    first, last = _padding(header, lowest, stored)
    values = _modality_values(header, possible, frame)

    def seen() -> Floats:
        anatomy = pixels[(pixels < first) | (pixels > last)] if first <= last else pixels
        anatomy = anatomy if anatomy.size else pixels
        ends = np.clip([int(anatomy.min()) - lowest, int(anatomy.max()) - lowest], 0, len(values) - 1)
        extremes: Floats = values[ends]
        return extremes

    shares, notices = _voi_shares(header, values, seen, frame, window)
    levels = quantise(1 - shares if inverted else shares, 8 if stored <= 8 else 16)
    levels[(possible >= first) & (possible <= last)] = 0
    index = pixels.astype(np.int32) - lowest if lowest else pixels
    # Clipping guards against lossy decoders that overshoot.
    return GrayImage(np.take(levels, index, mode="clip"), 8 * levels.itemsize, notices)


def _padding(header: Dataset, lowest: int, stored: int) -> tuple[int, int]:
    """Return the first and last stored value of padding, which is not part of the image and is shown black.

    Whatever the VR says, the numbers are of the type of the pixels. Source: DICOM PS3.3 C.7.5.1.1.2.
    """
    value, limit = (_first(header.get(name)) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit"))
    if value is None:
        return 1, 0
    ends = []
    for number in (int(value), int(value if limit is None else limit)):
        number %= 2**16
        if lowest and (number >= 2**15 or 2 ** (stored - 1) <= number < 2**stored):
            number -= 2**16 if number >= 2**15 else 2**stored
        ends.append(number)
    return min(ends), max(ends)


def _group(header: Dataset, frame: int, name: str) -> Dataset:
    """Return the frame's functional group of that name, the shared one, or the plain header."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[frame - 1 : frame], *shared[:1]):
        if macro := groups.get(name):
            return macro[0]  # type: ignore[no-any-return]
    return header


def _modality_values(header: Dataset, stored: Pixels, frame: int) -> Floats:
    """Turn stored values into the maker's units. Source: DICOM PS3.3 C.11.1."""
    if tables := header.get("ModalityLUTSequence"):
        return _look_up(header, tables[0], stored)[0]
    source = _group(header, frame, "PixelValueTransformationSequence")
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    values: Floats = stored * float(1 if slope is None else slope) + float(0 if intercept is None else intercept)
    return values


def _voi_shares(
    header: Dataset, values: Floats, seen: Callable[[], Floats], frame: int, window: Window
) -> tuple[Floats, tuple[str, ...]]:
    """Turn values into shares of white, 0 to 1; `seen` looks up the extremes of the image.

    Source: DICOM PS3.3 C.11.2.
    """
    if isinstance(window, tuple):
        return linear(values, *window), ()
    if window == "full":
        return spread(values, values), ()
    if tables := header.get("VOILUTSequence"):
        entries, bits = _look_up(header, tables[0], values)
        shares: Floats = entries / (2**bits - 1)
        return shares, (DARK_TABLE,) if shares.max() < 0.25 else ()
    source = _group(header, frame, "FrameVOILUTSequence")
    centre, width = _first(source.get("WindowCenter")), _first(source.get("WindowWidth"))
    function = str(source.get("VOILUTFunction") or "LINEAR").upper()
    if centre is not None and width is not None and width >= (1 if function == "LINEAR" else 1e-6):
        return WINDOWS.get(function, linear)(values, centre, width), ()
    if len(values) <= 2**8:
        return spread(values, values), ()
    return spread(values, seen()), (NO_WINDOW,)


def _first(value: Any) -> float | None:
    """Return the first of a DICOM element's values, which of windows is the maker's preferred one."""
    if value is None or isinstance(value, str):
        return None
    if isinstance(value, bytes):  # of an unknown VR
        return float(int.from_bytes(value[:2], "little")) if value else None
    return float(value[0]) if hasattr(value, "__len__") else float(value)


def _look_up(header: Dataset, table: Dataset, values: Pixels) -> tuple[Floats, int]:
    """Map values through a DICOM lookup table; return the entries and their depth in bits.

    pydicom's `apply_modality_lut` and `apply_voi_lut` index with the dtype of the pixels or entries, which wraps
    around for signed pixels and for 8-bit entries, and refuse 10- to 15-bit modality tables.
    """
    order = "<" if header.original_encoding[1] else ">"
    descriptor = table.LUTDescriptor
    descriptor = struct.unpack_from(f"{order}3H", descriptor) if isinstance(descriptor, bytes) else descriptor
    count, first, bits = (int(number) % 2**16 for number in descriptor)
    count = count or 2**16
    data = table.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data + b"\0" * (len(data) % 2), f"{order}u2")
    words = np.atleast_1d(data).astype("<u2")
    if len(words) < count <= 2 * len(words):  # two entries in a word, whatever the descriptor says of their bits
        words, bits = words.view(np.uint8), min(bits, 8)
    if len(words) < count:
        raise Unreadable(f"a lookup table of the DICOM file has {len(words)} of {count} entries; {DAMAGED}")
    words = words[:count]
    index = np.clip(np.rint(values).astype(np.int64) - _lut_start(first, count, values), 0, count - 1)
    return words[index].astype(np.float64), max(bits, int(words.max()).bit_length())


def _lut_start(first: int, count: int, values: Pixels) -> int:
    """Return the value that a table's first entry is for, of a number whose sign the VR does not tell.

    It is signed where values may be negative, but writers get that wrong in both directions; a table that no value
    reaches is not what anybody meant. Source: DICOM PS3.3 C.11.1.1.1 and C.11.2.1.1.
    """
    lowest, highest = float(values.min()), float(values.max())
    readings = [first, first - 2**16] if first >= 2**15 else [first]
    if lowest < 0:
        readings.reverse()
    reached = [start for start in readings if start <= highest and start + count > lowest]
    return (reached or readings)[0]


# Shape of the pixels

_MOST_OBLONG = 16


def pixel_aspect(header: Dataset, frame: int) -> tuple[float, tuple[str, ...]]:
    """Return the height of a pixel as a multiple of its width, 1 where they differ by less than 1 %, and a notice.

    Source: DICOM PS3.3 C.7.6.3.1.7: the aspect ratio counts only where there is no spacing.
    """
    measures = _group(header, frame, "PixelMeasuresSequence")
    plain = ("ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
    for spacing in (measures.get("PixelSpacing"), *(header.get(name) for name in plain)):
        try:
            down, across = (float(number) for number in spacing or ())
        except (TypeError, ValueError):
            continue
        if not (0 < down < math.inf and 0 < across < math.inf):
            continue
        aspect = down / across
        if not 1 / _MOST_OBLONG <= aspect <= _MOST_OBLONG:
            return 1.0, (NOT_BELIEVED,)
        return (1.0, ()) if abs(aspect - 1) < 0.01 else (aspect, (NOT_SQUARE,))
    return 1.0, ()


# ======== dicom ========

NO_IMAGE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
}
# One for each, so that an image does not depend on which others are installed. GDCM, which would come first wherever it
# can, is slower, and ends the process on some damaged streams; for lossless JPEG there is no other.
_DECODERS = {
    **dict.fromkeys((JPEGBaseline8Bit, JPEGExtended12Bit), "pillow"),
    **dict.fromkeys((JPEGLossless, JPEGLosslessSV1), "gdcm"),
    **dict.fromkeys(JPEGLSTransferSyntaxes, "pyjpegls"),
    **dict.fromkeys((*JPEG2000TransferSyntaxes, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL, RLELossless), "pylibjpeg"),
}
_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
_LOSSLESS = (
    *_NATIVE, RLELossless, JPEGLossless, JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless,
    HTJ2KLosslessRPCL,
)  # fmt: skip
_SAMPLES = {
    **dict.fromkeys(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"), 1),
    **dict.fromkeys(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), 3),
}
_NEEDED = ("SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation")
_JPEG_FAMILY = _DECODERS.keys() - {RLELossless}
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_UNDEFINED = 0xFFFFFFFF
_START_OF_CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000
_ITEM, _DELIMITER = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_NO_PIXELS = "the DICOM file holds no pixel data (or is cut off); take the row out or fetch it again"


def read_dicom(
    path: Path, frame: int, window: Window, *, rgb: bool, admit: Admit = admit_all, inflate_to: int = -1
) -> GrayImage:
    """Decode one frame of a DICOM file.

    Args:
        path: The file.
        frame: From 1.
        window: See `gray`.
        rgb: Keep the colours of a colour image, (H, W, 3).
        admit: Called before anything is decoded.
        inflate_to: Most bytes that a deflated file may inflate to; -1 is any number.

    Raises:
        Unreadable: damaged, cut off, not an image, contradictory, or stored in a way without a free decoder.
    """
    with _BoundedReader(FileIO(path)) as stream:
        with _in_our_words():
            header, source, syntax = _header(stream, inflate_to)
            width, height, frames = _check_header(header, syntax)
        admit(width, height, frames)
        check_frame(frame, frames)
        with _in_our_words():
            pixels = _decoded(header, source, syntax, frame, frames)
            found = (
                coloured(header, pixels, rgb=rgb)
                if pixels.ndim == 3
                else grey(header, _stored(header, pixels, syntax), frame, window)
            )
            aspect, notices = pixel_aspect(header, frame)
    full_size = None if aspect == 1 else (pixels.shape[0] * aspect, float(pixels.shape[1]))
    return replace(found, full_size=full_size, notices=(*found.notices, *notices, *of_several(frame, frames)))


class _BoundedReader(BufferedReader):
    """Reads what is there: for a length of gigabytes in a damaged file, Python would reserve them first."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most what is left of the file."""
        if size and size > 2**16:
            size = max(0, min(size, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Replace what libraries raise: their messages quote header values, which may identify a patient."""
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"the DICOM file cannot be decoded ({type(error).__name__}); {DAMAGED}") from None


def _header(stream: BinaryIO, inflate_to: int) -> tuple[Dataset, BinaryIO, UID]:
    """Return the header, a stream that stands at the element of the pixels, and the transfer syntax."""
    stream.seek(132)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    syntax = UID(str(meta.get("TransferSyntaxUID") or "").strip())
    if not syntax.is_valid or not syntax:
        raise Unreadable(f"the DICOM file does not name its transfer syntax; {DAMAGED}")
    if syntax not in _DECODERS and syntax not in _NATIVE:
        raise Unreadable(
            f"its pixels are stored as {syntax.name}{', a private transfer syntax' if syntax.is_private else ''},\n"
            "which is not supported; convert it first (DCMTK: dcmconv or dcmdjpeg; or the software of its maker)"
        )
    if syntax != DeflatedExplicitVRLittleEndian:
        stream.seek(0)
        return pydicom.dcmread(stream, stop_before_pixels=True), stream, syntax
    plain = BytesIO(_inflated_dataset(stream, inflate_to))
    header = read_dataset(plain, False, True, stop_when=lambda tag, vr, length: tag in _PIXEL_TAGS)
    header.file_meta = FileMetaDataset(meta)
    return header, plain, syntax


def _inflated_dataset(stream: BinaryIO, most: int) -> bytes:
    """Inflate a dataset, unless it is cut off, or small and inflates without bound, as pydicom would let it."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflater.decompress(stream.read(most), max(most, 0))
    if inflater.unconsumed_tail:
        raise Unreadable(f"it inflates to more than {most} bytes; raise data.max_pixels if it is meant to")
    if not inflater.eof:
        raise Unreadable(f"the deflated DICOM file has no end; {DAMAGED}")
    return plain


def _check_header(header: Dataset, syntax: UID) -> tuple[int, int, int]:
    """Refuse what is not a readable image, or says of itself what cannot be; return width, height and frames."""
    if kind := NO_IMAGE_CLASSES.get(str(header.get("SOPClassUID"))):
        raise Unreadable(f"it is {kind}, not an image; take the row out of the CSV")
    if "Rows" not in header or "Columns" not in header:
        raise Unreadable("the DICOM file holds no image (a report, or cut off); take the row out or fetch it again")
    if lacking := [name for name in _NEEDED if header.get(name) is None]:
        raise Unreadable(
            f"its header lacks {', '.join(lacking)}; correct it, or if its pixels are floating-point numbers,\n"
            "which are not supported, convert it to 16 bits"
        )
    wanted = _SAMPLES.get(str(header.get("PhotometricInterpretation")))
    if not wanted:
        raise Unreadable("its photometric interpretation is not supported; convert it to MONOCHROME2")
    if int(header.SamplesPerPixel) != wanted:
        raise Unreadable(
            f"its header says {header.SamplesPerPixel} samples per pixel and {header.PhotometricInterpretation},\n"
            f"which has {wanted}; correct the header"
        )
    stored, allocated = int(header.BitsStored), int(header.BitsAllocated)
    if not 1 <= stored <= min(16, allocated):
        raise Unreadable(f"{stored} bits stored of {allocated}: only 1 to 16 can be read; convert it to 16")
    if allocated not in (1, 8, 16, 32):
        raise Unreadable(f"{allocated} bits allocated: only 1, 8, 16 and 32 can be read; convert it to 16")
    if header.PixelRepresentation not in (0, 1):
        raise Unreadable(f"its Pixel Representation is neither 0 nor 1; {DAMAGED}")
    shift = _shift(header)
    # Of several samples or an encoded image, nobody but its writer knows where the samples lie.
    if shift < 0 or stored + shift > allocated or (shift and (wanted > 1 or syntax in _JPEG_FAMILY)):
        raise Unreadable(
            f"its High Bit is {stored - 1 + shift} for {stored} bits stored of {allocated}, where it must be"
            f" {stored - 1};\ncorrect the header, or convert the file with the software of its maker"
        )
    frames = int(header.get("NumberOfFrames") or 1)  # 0 and blank are written for 1
    if frames < 1:
        raise Unreadable(f"the header says {frames} frames; {DAMAGED}")
    return int(header.Columns), int(header.Rows), frames


def _shift(header: Dataset) -> int:
    """Return how far above the lowest bit of its cell a sample lies. Source: DICOM PS3.5 8.1.1."""
    high = header.get("HighBit")
    return 0 if high is None else int(high) + 1 - int(header.BitsStored)


def _decoded(header: Dataset, stream: BinaryIO, syntax: UID, frame: int, frames: int) -> Pixels:
    """Return the wanted frame: (H, W) cells as they are stored, or (H, W, 3) RGB."""
    vr, length = _value_of_pixels(stream, header)
    options = as_pixel_options(
        header, transfer_syntax_uid=syntax, pixel_keyword="PixelData", pixel_vr=vr, number_of_frames=frames,
        correct_unused_bits=not _shift(header),
    )  # fmt: skip
    source, index = stream, frame - 1
    if syntax.is_encapsulated:
        data = _encoded_frame(stream, length, header, frame, frames)
        if syntax in _JPEG_FAMILY:
            check_codestream(data, int(header.Columns), int(header.Rows), int(header.SamplesPerPixel))
        # Only what was checked is decoded.
        source, index = BytesIO(encapsulate([data], has_bot=False)), 0
        options = {**options, "number_of_frames": 1}
        options.pop("extended_offsets", None)
    else:
        _check_length(header, stream, length, frames)
    try:
        decoder = get_decoder(syntax)
        pixels: Pixels
        pixels, _ = decoder.as_array(source, index=index, decoding_plugin=_DECODERS.get(syntax, ""), **options)
    except (RuntimeError, NotImplementedError):
        raise _undecodable_syntax(syntax) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the RLE decoder's Rust, and not an Exception
            raise
        raise _undecodable_syntax(syntax) from None
    if header.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(_stored(header, pixels, syntax), header)
        header.BitsStored = 8 * pixels.dtype.itemsize
    return pixels


def _value_of_pixels(stream: BinaryIO, header: Dataset) -> tuple[str, int | None]:
    """Read the element of the pixels up to its value; return its VR, and its length if that is defined."""
    implicit, little = header.original_encoding
    order = "<" if little else ">"
    element = stream.read(8 if implicit else 12)
    if len(element) < (8 if implicit else 12):
        raise Unreadable(_NO_PIXELS)
    if struct.unpack_from(f"{order}HH", element) != (0x7FE0, 0x0010):
        raise Unreadable("its pixels are floating-point numbers, which is not supported; convert it to 16 bits")
    vr = "OW" if implicit else element[4:6].decode("latin-1")
    if vr not in ("OW", "OB", "UN"):
        raise Unreadable(f"its Pixel Data have a value representation that pixels cannot have; {DAMAGED}")
    (length,) = struct.unpack_from(f"{order}L", element, len(element) - 4)
    return vr, None if length == _UNDEFINED else length


def _size(stream: BinaryIO) -> int:
    at = stream.tell()
    size = stream.seek(0, 2)
    stream.seek(at)
    return size


def _check_length(header: Dataset, stream: BinaryIO, length: int | None, frames: int) -> None:
    """Refuse pixels that end too soon: the rest would be read from what lies behind them. Source: DICOM PS3.5 8.1.1."""
    samples = int(header.Rows) * int(header.Columns) * int(header.SamplesPerPixel) * frames
    if header.PhotometricInterpretation == "YBR_FULL_422":
        samples = samples * 2 // 3
    needed = math.ceil(samples * int(header.BitsAllocated) / 8)
    if _size(stream) - stream.tell() < needed:
        raise Unreadable(f"the DICOM file ends inside its pixel data; {DAMAGED}")
    if length is None or length < needed:
        held = "of undefined length" if length is None else f"{length} bytes long"
        raise Unreadable(f"its Pixel Data are {held}, but its header asks for {needed} bytes; {DAMAGED}")


def _encoded_frame(stream: BinaryIO, length: int | None, header: Dataset, frame: int, frames: int) -> bytes:
    """Return the encoded bytes of a frame. Source: DICOM PS3.5 A.4.

    A writer that leaves out the delimiter behind the last fragment has not lost anything, so the fragments decide.
    """
    start, size = stream.tell(), _size(stream)
    end = size if length is None else min(size, start + length)
    fragments, last, delimited = 0, start, False
    while last + 8 <= end:
        *tag, item = struct.unpack("<HHL", stream.read(8))
        if delimited := tuple(tag) == _DELIMITER:
            break
        if tuple(tag) != _ITEM or stream.seek(item, 1) > end:
            break
        fragments, last = fragments + 1, stream.tell()
    if not delimited and fragments - 1 < frames:  # the first is the table of offsets
        raise Unreadable(f"the DICOM file ends inside its pixel data; {DAMAGED}")
    stream.seek(start)
    source = stream if delimited else BytesIO(stream.read(last - start))
    offsets = header.get("ExtendedOffsetTable"), header.get("ExtendedOffsetTableLengths")
    return get_frame(
        source, frame - 1, number_of_frames=frames, extended_offsets=offsets if offsets[0] is not None else None
    )


def check_codestream(data: bytes, width: int, height: int, samples: int) -> None:
    """Refuse a JPEG, JPEG-LS or JPEG 2000 stream of another size than the header around it, or without an end.

    A decoder allocates what the stream asks for, and fills up what it lacks.

    Source: ITU-T T.81 B.2.2, T.87 C.2.2 and T.800 A.5.1.
    """
    if END_OF_IMAGE not in data[-16:]:  # some writers pad
        raise Unreadable(f"the DICOM file ends inside its pixel data; {DAMAGED}")
    found = _stream_size(data)
    if not found:
        raise Unreadable(f"its compressed image does not start as one; {DAMAGED}")
    if found != (width, height, samples):
        raise Unreadable(
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
        for marker, position in segments(data):
            if marker in FRAME_HEADERS:
                height, width, samples = struct.unpack_from(">HHB", data, position + 5)
                size = (width, height, samples)
    except (struct.error, ValueError):
        return ()
    return size if marker == START_OF_SCAN[1] else ()


def _undecodable_syntax(syntax: UID) -> Unreadable:
    if syntax != JPEGExtended12Bit:
        return Unreadable(f"its {syntax.name} pixels cannot be decoded; {DAMAGED}")
    return Unreadable(
        f"its pixels are stored as {syntax.name},\n"
        "which no freely licensed decoder reads at this depth; uncompress the file first (DCMTK: dcmdjpeg IN OUT)"
    )


def _stored(header: Dataset, cells: Pixels, syntax: UID) -> Pixels:
    """Return the values of samples, without the unused bits of their cells, which may hold anything."""
    stored, shift, signed = int(header.BitsStored), _shift(header), int(header.PixelRepresentation) == 1
    lowest = -(2 ** (stored - 1)) if signed else 0
    if syntax not in _LOSSLESS or (not shift and lowest <= cells.min() and cells.max() < lowest + 2**stored):
        return cells  # a lossy decoder overshoots, and what is above white should become white
    values: Pixels = (cells.astype(np.int32) >> shift) & (2**stored - 1)
    values = (values ^ -lowest) + lowest
    return values


# ======== prepare ========

def image(file: str | Path, contract: Mapping[str, Any], frame: int = 1) -> NDArray[np.float32]:
    """Return the network's input for one image.

    Args:
        file: DICOM, PNG, JPEG or TIFF, known by its content; for a network of bands a NumPy array or TIFF.
        contract: Content of preprocessing.json.
        frame: Of a DICOM file, or page of a TIFF file, from 1.

    Returns:
        (C, S, S), normalised.

    Raises:
        ValueError: the file is none of these, or cannot be read as an image; says why.
    """
    canvas, resize, normalise = contract["canvas"], contract["resize"], contract["normalise"]
    with quiet():
        found = _as_the_contract_says(file, contract, frame)
    bits = int(canvas["white"]).bit_length()
    planes = []
    for plane in [found.pixels] if found.pixels.ndim == 2 else cv2.split(found.pixels):
        pixels = halved(on_canvas(replace(found, pixels=plane), canvas["longer_side"], bits), resize["height"])
        planes.append(cv2.resize(pixels, (resize["width"], resize["height"]), interpolation=cv2.INTER_LINEAR))
    mean, std = (np.reshape(np.asarray(normalise[name], np.float64), (-1, 1, 1)) for name in ("mean", "std"))
    shares = np.stack(planes).astype(np.float32) * (1 / (canvas["white"] * std)).astype(np.float32)
    prepared: NDArray[np.float32] = shares - (mean / std).astype(np.float32)
    return prepared


def _as_the_contract_says(file: str | Path, contract: Mapping[str, Any], frame: int) -> GrayImage:
    if "bands" in contract:
        step = contract["bands"]
        return levels_of(band_values(Path(file), step["channels"], frame), step["scale"], step["ranges"])
    window = contract["colour" if "colour" in contract else "grayscale"]["window"]
    rgb, at_least = "colour" in contract, contract["canvas"]["longer_side"]
    return read(Path(file), frame, _window_of(window), rgb=rgb, at_least=at_least)


def _window_of(given: Window | Sequence[float]) -> Window:
    """Return a window, of which JSON makes a list."""
    return given if isinstance(given, str) else (given[0], given[1])


def gray(file: str | Path, window: Window | Sequence[float] = "voi", frame: int = 1) -> tuple[Pixels, int]:
    """Return (H, W) gray levels of 8 or 16 bits, dense tissue bright, and the level that is white.

    Args:
        file: DICOM, PNG, JPEG or TIFF.
        window: "voi", "full", or centre and width.
        frame: Of a DICOM file, or page of a TIFF file, from 1.
    """
    with quiet():
        found = read(Path(file), frame, _window_of(window), rgb=False)
    return found.pixels, 2**found.bits - 1


def colours(file: str | Path, window: Window | Sequence[float] = "voi", frame: int = 1) -> tuple[Pixels, int]:
    """Return (H, W, 3) red, green and blue of 8 or 16 bits and the level that is white; arguments as of `gray`."""
    with quiet():
        found = read(Path(file), frame, _window_of(window), rgb=True)
    return (found.pixels if found.pixels.ndim == 3 else np.repeat(found.pixels[..., None], 3, 2)), 2**found.bits - 1


def bands(file: str | Path, step: Mapping[str, Any]) -> tuple[Pixels, int]:
    """Return (H, W, C) levels of a file of bands, (H, W) of one, and the level that is white.

    Args:
        file: .npy or TIFF.
        step: "bands" of preprocessing.json.
    """
    with quiet():
        values = band_values(Path(file), step["channels"])
    found = levels_of(values, step["scale"], step["ranges"])
    return found.pixels, 2**found.bits - 1


# ---- which kind of file, and who reads it ----


def read(
    path: Path,
    frame: int,
    window: Window,
    *,
    rgb: bool,
    at_least: int | None = None,
    admit: Admit = admit_all,
    inflate_to: int = -1,
) -> GrayImage:
    """Decode a PNG, JPEG, TIFF or DICOM file to one grayscale plane, or a colour file to three where `rgb` is set.

    Args:
        path: The file.
        frame: Of a DICOM file, or page of a TIFF file, from 1.
        window: See `gray`.
        rgb: Keep the colours of a colour image, (H, W, 3).
        at_least: A JPEG file may be decoded at half, a quarter or an eighth of its size, as long as its longer side
            keeps so many pixels.
        admit: Called before anything is decoded.
        inflate_to: Most bytes that a deflated DICOM file may inflate to; -1 is any number.

    Raises:
        Unreadable: see the message.
    """
    kind = kind_of_file(path)
    if kind == "DICOM":
        return read_dicom(path, frame, window, rgb=rgb, admit=admit, inflate_to=inflate_to)
    if kind == "TIFF":
        return read_tiff(path, frame, window, rgb=rgb, admit=admit)
    if kind == "NPY":
        raise Unreadable("a NumPy array; set data.channels to the number of its bands")
    if kind == "PNG":
        return read_png(path.read_bytes(), frame, window, rgb=rgb, admit=admit)
    return read_jpeg(path.read_bytes(), frame, rgb=rgb, at_least=at_least, admit=admit)
