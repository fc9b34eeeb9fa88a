"""Decode one frame of a DICOM file.

Source: DICOM PS3.5 8.1 (position of samples in their cells) and A.4 (encapsulated frames).
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels import as_pixel_options, get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import (
    HTJ2K,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from medmoco.data.image_io.formats.jpeg2000 import decode_reduced
from medmoco.data.image_io.formats.png_jpeg import END_OF_IMAGE, FRAME_HEADERS, START_OF_SCAN, segments
from medmoco.data.image_io.intensity import (
    DAMAGED,
    Admit,
    GrayImage,
    Pixels,
    Unreadable,
    Window,
    admit_all,
    check_frame,
    of_several,
)
from medmoco.data.image_io.windowing import coloured, grey, may_average, needs_extremes, pixel_aspect

NO_IMAGE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
}
# One decoder per syntax, so that the result does not depend on which others are installed. GDCM, which pydicom would
# prefer, is slower and terminates the process on some damaged streams; for lossless JPEG there is no other.
_WAVELETS = (*JPEG2000TransferSyntaxes, HTJ2K, HTJ2KLossless, HTJ2KLosslessRPCL)
DECODERS = {
    **dict.fromkeys((JPEGBaseline8Bit, JPEGExtended12Bit), "pillow"),
    **dict.fromkeys((JPEGLossless, JPEGLosslessSV1), "gdcm"),
    **dict.fromkeys(JPEGLSTransferSyntaxes, "pyjpegls"),
    **dict.fromkeys((*_WAVELETS, RLELossless), "pylibjpeg"),
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
_JPEG_FAMILY = DECODERS.keys() - {RLELossless}
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_UNDEFINED = 0xFFFFFFFF
_START_OF_CODESTREAM = b"\xff\x4f\xff\x51"  # of JPEG 2000
_ITEM, _DELIMITER = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_NO_PIXELS = "the DICOM file contains no pixel data (or is truncated); remove the row or obtain the file again"


def read_dicom(
    path: Path,
    frame: int,
    window: Window,
    *,
    rgb: bool,
    at_least: int | None = None,
    admit: Admit = admit_all,
    inflate_to: int = -1,
) -> GrayImage:
    """Decode one frame of a DICOM file.

    Args:
        path: The file.
        frame: Frame, counted from 1.
        window: Window, see `gray`.
        rgb: Keep the colours of a colour image, (H, W, 3).
        at_least: See `medmoco.data.image_io.preprocessing.read`.
        admit: Called with the size before decoding; may raise to refuse the image.
        inflate_to: Largest size, in bytes, to which a deflated file may inflate; -1 means no limit.

    Raises:
        Unreadable: the file is damaged, truncated, not an image, inconsistent, or has no free decoder.
    """
    with BoundedReader(FileIO(path)) as stream:
        with _without_header_values():
            header, source, syntax = parse_header(stream, inflate_to)
            width, height, frames = check_header(header, syntax)
        admit(width, height, frames)
        check_frame(frame, frames)
        with _without_header_values():
            averages = may_average(header, frame, window)  # asked of every file, so that all sizes refuse it alike
            # Twice the size, so that an area filter follows, as after a full decode.
            halve_to = 2 * at_least if at_least and averages else None
            decode_to = None if halve_to and needs_extremes(header, frame, window) else halve_to
            pixels = decode_frame(header, source, syntax, frame, frames, decode_to)
            image = (
                coloured(header, pixels, rgb=rgb)
                if pixels.ndim == 3
                else grey(header, sample_values(header, pixels, syntax), frame, window, halve_to)
            )
            aspect, notices = pixel_aspect(header, frame)
    full_size = None if aspect == 1 and image.pixels.shape[:2] == (height, width) else (height * aspect, float(width))
    return replace(image, full_size=full_size, notices=(*image.notices, *notices, *of_several(frame, frames)))


class BoundedReader(BufferedReader):
    """A reader that allocates no more than the file has: Python would reserve gigabytes if a damaged length says so."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read at most the rest of the file."""
        if size and size > 2**16:
            size = max(0, min(size, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


@contextmanager
def _without_header_values() -> Iterator[None]:
    """Replace exceptions of libraries, whose messages quote header values that may identify a patient."""
    try:
        yield
    except Unreadable:
        raise
    except Exception as error:
        raise Unreadable(f"the DICOM file cannot be decoded ({type(error).__name__}); {DAMAGED}") from None


def parse_header(stream: BinaryIO, inflate_to: int) -> tuple[Dataset, BinaryIO, UID]:
    """Return the header, a stream positioned at the pixel data element, and the transfer syntax."""
    stream.seek(132)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    syntax = UID(str(meta.get("TransferSyntaxUID") or "").strip())
    if not syntax.is_valid or not syntax:
        raise Unreadable(f"the DICOM file does not state its transfer syntax; {DAMAGED}")
    if syntax not in DECODERS and syntax not in _NATIVE:
        raise Unreadable(
            f"its pixels are stored as {syntax.name}{', a private transfer syntax' if syntax.is_private else ''},\n"
            "which is not supported; convert it first (DCMTK's dcmconv or dcmdjpeg, or the manufacturer's software)"
        )
    if syntax != DeflatedExplicitVRLittleEndian:
        stream.seek(0)
        return pydicom.dcmread(stream, stop_before_pixels=True), stream, syntax
    plain = BytesIO(_inflated_dataset(stream, inflate_to))
    header = read_dataset(plain, False, True, stop_when=lambda tag, vr, length: tag in _PIXEL_TAGS)
    header.file_meta = FileMetaDataset(meta)
    return header, plain, syntax


def _inflated_dataset(stream: BinaryIO, most: int) -> bytes:
    """Return a dataset inflated, refusing truncated data and, unlike pydicom, unlimited inflation."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflater.decompress(stream.read(most), max(most, 0))
    if inflater.unconsumed_tail:
        raise Unreadable(f"it inflates to more than {most} bytes; raise data.max_pixels if it is really that large")
    if not inflater.eof:
        raise Unreadable(f"the deflated DICOM file has no end marker; {DAMAGED}")
    return plain


def check_header(header: Dataset, syntax: UID) -> tuple[int, int, int]:
    """Refuse files that are not readable images or have an inconsistent header; return width, height and frames."""
    if kind := NO_IMAGE_CLASSES.get(str(header.get("SOPClassUID"))):
        raise Unreadable(f"it is {kind}, not an image; remove the row from the CSV")
    if "Rows" not in header or "Columns" not in header:
        raise Unreadable(
            "the DICOM file contains no image (a report, or truncated); remove the row or obtain the file again"
        )
    if lacking := [name for name in _NEEDED if header.get(name) is None]:
        raise Unreadable(
            f"its header lacks {', '.join(lacking)}; correct it, or if its pixels are floating-point numbers,\n"
            "which are not supported, convert it to 16 bits"
        )
    samples = _SAMPLES.get(str(header.get("PhotometricInterpretation")))
    if not samples:
        raise Unreadable("its photometric interpretation is not supported; convert it to MONOCHROME2")
    if int(header.SamplesPerPixel) != samples:
        raise Unreadable(
            f"its header states {header.SamplesPerPixel} samples per pixel and {header.PhotometricInterpretation},\n"
            f"which has {samples}; correct the header"
        )
    stored, allocated = int(header.BitsStored), int(header.BitsAllocated)
    if not 1 <= stored <= min(16, allocated):
        raise Unreadable(f"{stored} bits stored of {allocated}: only 1 to 16 are supported; convert it to 16")
    if allocated not in (1, 8, 16, 32):
        raise Unreadable(f"{allocated} bits allocated: only 1, 8, 16 and 32 are supported; convert it to 16")
    if header.PixelRepresentation not in (0, 1):
        raise Unreadable(f"its Pixel Representation is not 0 or 1; {DAMAGED}")
    shift = _shift(header)
    # With several samples or an encoded image, only the writer knows where the samples lie.
    if shift < 0 or stored + shift > allocated or (shift and (samples > 1 or syntax in _JPEG_FAMILY)):
        raise Unreadable(
            f"its High Bit is {stored - 1 + shift} for {stored} bits stored of {allocated}, but must be"
            f" {stored - 1};\ncorrect the header, or convert the file with the manufacturer's software"
        )
    frames = int(header.get("NumberOfFrames") or 1)  # 0 and blank are written for 1
    if frames < 1:
        raise Unreadable(f"the header states {frames} frames; {DAMAGED}")
    return int(header.Columns), int(header.Rows), frames


def _shift(header: Dataset) -> int:
    """Return the number of bits in a cell below its sample. Source: DICOM PS3.5 8.1.1."""
    high = header.get("HighBit")
    return 0 if high is None else int(high) + 1 - int(header.BitsStored)


def decode_frame(
    header: Dataset, stream: BinaryIO, syntax: UID, frame: int, frames: int, decode_to: int | None
) -> Pixels:
    """Return a frame: (H, W) cells as stored, or (H, W, 3) RGB; of JPEG 2000 perhaps reduced."""
    vr, length = _value_of_pixels(stream, header)
    options = as_pixel_options(
        header, transfer_syntax_uid=syntax, pixel_keyword="PixelData", pixel_vr=vr, number_of_frames=frames,
        correct_unused_bits=not _shift(header) and syntax not in _NATIVE, view_only=True,
    )  # fmt: skip
    source, index = stream, frame - 1
    if syntax.is_encapsulated:
        data = _encoded_frame(stream, length, header, frame, frames)
        if syntax in _JPEG_FAMILY:
            check_codestream(data, int(header.Columns), int(header.Rows), int(header.SamplesPerPixel))
        if decode_to and syntax in _WAVELETS:
            signed = header.PixelRepresentation == 1
            reduced = decode_reduced(data, int(header.BitsStored), signed=signed, at_least=decode_to)
            if reduced is not None:
                return reduced
        # Decode exactly the bytes that were checked.
        source, index = BytesIO(encapsulate([data], has_bot=False)), 0
        options = {**options, "number_of_frames": 1}
        options.pop("extended_offsets", None)
    else:
        _check_length(header, stream, length, frames)
    try:
        decoder = get_decoder(syntax)
        pixels: Pixels
        pixels, _ = decoder.as_array(source, index=index, decoding_plugin=DECODERS.get(syntax, ""), **options)
    except (RuntimeError, NotImplementedError):
        raise _undecodable_syntax(syntax) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the RLE decoder, in Rust; not a subclass of Exception
            raise
        raise _undecodable_syntax(syntax) from None
    if header.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(sample_values(header, pixels, syntax), header)
        header.BitsStored = 8 * pixels.dtype.itemsize
    return pixels


def _value_of_pixels(stream: BinaryIO, header: Dataset) -> tuple[str, int | None]:
    """Read the pixel data element up to its value; return its VR, and its length or None if undefined."""
    implicit, little = header.original_encoding
    order = "<" if little else ">"
    element = stream.read(8 if implicit else 12)
    if len(element) < (8 if implicit else 12):
        raise Unreadable(_NO_PIXELS)
    if struct.unpack_from(f"{order}HH", element) != (0x7FE0, 0x0010):
        raise Unreadable("its pixels are floating-point numbers, which is not supported; convert it to 16 bits")
    vr = "OW" if implicit else element[4:6].decode("latin-1")
    if vr not in ("OW", "OB", "UN"):
        raise Unreadable(f"its Pixel Data have an invalid value representation; {DAMAGED}")
    (length,) = struct.unpack_from(f"{order}L", element, len(element) - 4)
    return vr, None if length == _UNDEFINED else length


def _size(stream: BinaryIO) -> int:
    at = stream.tell()
    size = stream.seek(0, 2)
    stream.seek(at)
    return size


def _check_length(header: Dataset, stream: BinaryIO, length: int | None, frames: int) -> None:
    """Refuse pixel data that are too short: the rest would be read from later data. Source: DICOM PS3.5 8.1.1."""
    samples = int(header.Rows) * int(header.Columns) * int(header.SamplesPerPixel) * frames
    if header.PhotometricInterpretation == "YBR_FULL_422":
        samples = samples * 2 // 3
    needed = math.ceil(samples * int(header.BitsAllocated) / 8)
    if _size(stream) - stream.tell() < needed:
        raise Unreadable(f"the DICOM file ends inside its pixel data; {DAMAGED}")
    if length is None or length < needed:
        size = "of undefined length" if length is None else f"{length} bytes long"
        raise Unreadable(f"its Pixel Data are {size}, but its header requires {needed} bytes; {DAMAGED}")


def _encoded_frame(stream: BinaryIO, length: int | None, header: Dataset, frame: int, frames: int) -> bytes:
    """Return the encoded bytes of a frame. Source: DICOM PS3.5 A.4.

    A file without the delimiter after the last fragment is still complete, so the fragments are counted.
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
    """Refuse a JPEG, JPEG-LS or JPEG 2000 stream whose size differs from the DICOM header, or that has no end marker.

    A decoder would allocate whatever size the stream states, and fill in what is missing.

    Source: ITU-T T.81 B.2.2, T.87 C.2.2 and T.800 A.5.1.
    """
    if END_OF_IMAGE not in data[-16:]:  # may be followed by padding
        raise Unreadable(f"the DICOM file ends inside its pixel data; {DAMAGED}")
    size = _stream_size(data)
    if not size:
        raise Unreadable(f"its compressed image has no valid header; {DAMAGED}")
    if size != (width, height, samples):
        raise Unreadable(
            f"its header states {width} x {height} pixels of {samples} sample(s),\n"
            f"but its compressed image {size[0]} x {size[1]} of {size[2]}; {DAMAGED}"
        )


def _stream_size(data: bytes) -> tuple[int, ...]:
    """Return width, height and samples per pixel; empty if the stream does not state them.

    The segments before a JPEG stream's pixels must have no gaps, on which GDCM terminates the process.
    """
    size: tuple[int, ...] = ()
    marker = None
    try:
        if data[:2] != b"\xff\xd8":
            start = data.index(_START_OF_CODESTREAM)  # not 0 in a JP2 file
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
        "which no freely licensed decoder supports at this depth; decompress the file first (DCMTK: dcmdjpeg IN OUT)"
    )


def sample_values(header: Dataset, cells: Pixels, syntax: UID) -> Pixels:
    """Return the sample values, without the unused bits of their cells, which may be arbitrary."""
    stored, shift, signed = int(header.BitsStored), _shift(header), int(header.PixelRepresentation) == 1
    lowest = -(2 ** (stored - 1)) if signed else 0
    if syntax not in _LOSSLESS or (not shift and lowest <= cells.min() and cells.max() < lowest + 2**stored):
        return cells  # a lossy decoder may overshoot, and values above white must stay white
    values: Pixels = (cells.astype(np.int32) >> shift) & (2**stored - 1)
    values = (values ^ -lowest) + lowest
    return values
