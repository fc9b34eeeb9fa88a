"""One DICOM file in, one grayscale frame out.

Source: DICOM PS3.3 C.11 (modality, VOI, polarity) and PS3.5 A.4 (encapsulated frames).
"""

from __future__ import annotations

import math
import os
import struct
import zlib
from dataclasses import replace
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    HTJ2K,
    UID,
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000TransferSyntaxes,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSTransferSyntaxes,
    RLELossless,
)

from medmoco.data.grey_levels import (
    DAMAGED,
    WINDOWS,
    GrayImage,
    Pixels,
    Window,
    linear,
    of_colours,
    quantise,
    rescale,
    spread,
)
from medmoco.data.limits import Limits, check_frame, check_size
from medmoco.data.structure import check_codestream
from medmoco.errors import ImageError

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
_JPEG_FAMILY = _DECODERS.keys() - {RLELossless}
_PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def read_dicom(path: Path, frame: int, window: Window, limits: Limits, *, rgb: bool = False) -> GrayImage:
    """Decode one frame; the arguments are those of `medmoco.data.images.read_image`.

    Raises:
        ImageError: damaged, cut off, too large, not an image, or stored in a syntax without a free decoder.
    """
    try:
        with _Stream(FileIO(path)) as stream:
            header, pixels = _decode_dicom(stream, frame, limits)
        if pixels.ndim == 3:
            return _color_image(pixels, int(header.BitsStored), rgb=rgb)
        return _grey_image(header, pixels, frame, window)
    except ImageError:
        raise
    except Exception as error:
        # The text of pydicom's errors quotes header values, which may identify a patient.
        raise ImageError(f"the DICOM file cannot be decoded ({type(error).__name__}); {DAMAGED}") from None


class _Stream(BufferedReader):
    """Reads what is there: for a length of gigabytes in a damaged file, Python would reserve them first."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size and size > 2**16:
            size = max(0, min(size, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def _decode_dicom(stream: BinaryIO, frame: int, limits: Limits) -> tuple[Dataset, Pixels]:
    """Return the header and the wanted frame: (H, W) stored values, or (H, W, 3) RGB."""
    stream.seek(132)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    syntax = UID(meta.get("TransferSyntaxUID") or "")
    if not syntax:
        raise ImageError(f"the DICOM file does not name its transfer syntax; {DAMAGED}")
    deflated = syntax == DeflatedExplicitVRLittleEndian
    if deflated:
        header = _inflate(stream, 2 * limits.max_pixels + 2**24)
        header.file_meta = FileMetaDataset(meta)
    else:
        stream.seek(0)
        header = pydicom.dcmread(stream, stop_before_pixels=True)
    frames = _check_header(header, limits)
    check_frame(frame, frames, limits)
    if not deflated:
        _check_complete(stream, header, syntax, frame, frames)
    try:
        source = header if deflated else stream
        pixels = pixel_array(source, index=frame - 1, decoding_plugin=_DECODERS.get(syntax, ""))
    except (RuntimeError, NotImplementedError):
        raise _undecodable(syntax) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of the RLE decoder's Rust, and no Exception
            raise
        raise _undecodable(syntax) from None
    if header.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, header)
        header.BitsStored = 8 * pixels.dtype.itemsize
    return header, pixels


def _inflate(stream: BinaryIO, limit: int) -> Dataset:
    """Read a deflated dataset, unless it is cut off, or small and inflates without bound, as pydicom would let it."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflater.decompress(stream.read(limit), limit)
    if inflater.unconsumed_tail:
        raise ImageError(f"it inflates to more than {limit} bytes; raise data.max_pixels if it is meant to")
    if not inflater.eof:
        raise ImageError(f"the deflated DICOM file has no end; {DAMAGED}")
    return read_dataset(BytesIO(plain), is_implicit_VR=False, is_little_endian=True)


def _check_header(header: Dataset, limits: Limits) -> int:
    """Refuse what is not a readable image; return the number of frames."""
    if kind := NO_IMAGE_CLASSES.get(str(header.get("SOPClassUID"))):
        raise ImageError(f"it is {kind}, not an image; take the row out of the CSV")
    if "Rows" not in header or "Columns" not in header:
        raise ImageError("the DICOM file holds no image (a report, or cut off); take the row out or fetch it again")
    check_size(int(header.Columns), int(header.Rows), limits)
    if header.get("PhotometricInterpretation") not in _PHOTOMETRIC:
        raise ImageError("its photometric interpretation is not supported; convert it to MONOCHROME2")
    if not 1 <= int(header.BitsStored) <= min(16, int(header.BitsAllocated)):
        raise ImageError(
            f"{header.BitsStored} bits stored of {header.BitsAllocated}: only 1 to 16 can be read; convert it to 16"
        )
    return max(1, int(header.get("NumberOfFrames") or 1))


def _check_complete(stream: BinaryIO, header: Dataset, syntax: UID, frame: int, frames: int) -> None:
    """Refuse pixel data that end too soon: the decoders would fill the rest or return half an image.

    The stream stands at the pixel data element, and again when this returns.
    """
    start = stream.tell()
    size = stream.seek(0, 2)
    stream.seek(start)
    implicit, little = header.original_encoding
    element = stream.read(8 if implicit else 12)
    if len(element) < (8 if implicit else 12):
        raise ImageError("the DICOM file holds no pixel data (or is cut off); take the row out or fetch it again")
    if struct.unpack_from("<HH" if little else ">HH", element) != (0x7FE0, 0x0010):
        raise ImageError("its pixels are floating-point numbers, which is not supported; convert it to 16 bits")
    if syntax.is_encapsulated:
        whole = _fragments_end(stream, size)
    else:
        samples = int(header.Rows) * int(header.Columns) * int(header.SamplesPerPixel) * frames
        if header.PhotometricInterpretation == "YBR_FULL_422":
            samples = samples * 2 // 3
        whole = size - start - len(element) >= math.ceil(samples * int(header.BitsAllocated) / 8)
    if not whole:
        raise ImageError(f"the DICOM file ends inside its pixel data; {DAMAGED}")
    if syntax in _JPEG_FAMILY:
        stream.seek(start + len(element))
        offsets = header.get("ExtendedOffsetTable"), header.get("ExtendedOffsetTableLengths")
        data = get_frame(
            stream, frame - 1, number_of_frames=frames, extended_offsets=offsets if offsets[0] is not None else None
        )
        check_codestream(data, int(header.Columns), int(header.Rows), int(header.SamplesPerPixel))
    stream.seek(start)


def _fragments_end(stream: BinaryIO, size: int) -> bool:
    """Say whether the encapsulated stream runs to its delimiter. Source: DICOM PS3.5 A.4."""
    while len(item := stream.read(8)) == 8:
        group, element, length = struct.unpack("<HHL", item)
        if (group, element) == (0xFFFE, 0xE0DD):
            return True
        if (group, element) != (0xFFFE, 0xE000) or stream.seek(length, 1) > size:
            return False
    return False


def _undecodable(syntax: UID) -> ImageError:
    if syntax != JPEGExtended12Bit and (syntax in _DECODERS or not syntax.is_encapsulated):
        return ImageError(f"its {syntax.name} pixels cannot be decoded; {DAMAGED}")
    return ImageError(
        f"its pixels are stored as {syntax.name},\n"
        "which no freely licensed decoder reads at this depth; uncompress the file first (DCMTK: dcmdjpeg IN OUT)"
    )


def _color_image(pixels: Pixels, bits: int, *, rgb: bool) -> GrayImage:
    image, depth = of_colours(pixels[..., :3], bits, rgb=rgb), 8 if bits <= 8 else 16
    return replace(image, pixels=rescale(image.pixels, bits, depth), bits=depth)


def _grey_image(header: Dataset, pixels: Pixels, frame: int, window: Window) -> GrayImage:
    """Apply modality transform, VOI transform and polarity to (H, W) stored values.

    Each is a function of the stored value alone, so they are worked out once per level and looked up per pixel.
    MONOCHROME1 alone decides on inversion: PresentationLUTShape INVERSE repeats it. Source: DICOM PS3.3 C.11.6.
    """
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    stored, signed = int(header.BitsStored), int(header.get("PixelRepresentation", 0)) == 1
    lowest = -(2 ** (stored - 1)) if signed else 0
    values = _modality_values(header, np.arange(lowest, lowest + 2**stored), frame)
    shares, notices = _voi_shares(header, values, pixels, lowest, frame, window)
    levels = quantise(1 - shares if inverted else shares, 8 if stored <= 8 else 16)
    index = pixels.astype(np.int32) - lowest if signed else pixels
    # Clipping guards against lossy decoders that overshoot.
    return GrayImage(np.take(levels, index, mode="clip"), 8 * levels.itemsize, notices)


def _macro(header: Dataset, frame: int, name: str) -> Dataset:
    """Return the frame's functional group of that name, the shared one, or the plain header."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[frame - 1 : frame], *shared[:1]):
        if macro := groups.get(name):
            return macro[0]  # type: ignore[no-any-return]
    return header


def _modality_values(header: Dataset, stored: NDArray[Any], frame: int) -> NDArray[np.float64]:
    """Turn stored values into the maker's units. Source: DICOM PS3.3 C.11.1."""
    if tables := header.get("ModalityLUTSequence"):
        return _look_up(header, tables[0], stored)[0]
    source = _macro(header, frame, "PixelValueTransformationSequence")
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    return stored * float(1 if slope is None else slope) + float(0 if intercept is None else intercept)


def _voi_shares(
    header: Dataset, values: NDArray[np.float64], pixels: Pixels, lowest: int, frame: int, window: Window
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Turn values into shares of white, 0 to 1. Source: DICOM PS3.3 C.11.2."""
    if isinstance(window, tuple):
        return linear(values, *window), ()
    if window == "full":
        return spread(values, values), ()
    if tables := header.get("VOILUTSequence"):
        entries, bits = _look_up(header, tables[0], values)
        return entries / (2**bits - 1), ()
    source = _macro(header, frame, "FrameVOILUTSequence")
    centre, width = _first(source.get("WindowCenter")), _first(source.get("WindowWidth"))
    function = str(source.get("VOILUTFunction") or "LINEAR").upper()
    if centre is not None and width is not None and width >= (1 if function == "LINEAR" else 1e-6):
        return WINDOWS.get(function, linear)(values, centre, width), ()
    if len(values) <= 2**8:
        return spread(values, values), ()
    padding = header.get("PixelPaddingValue")
    seen = pixels[pixels != int(padding)] if padding is not None else pixels
    seen = seen if seen.size else pixels
    used = values[np.clip([int(seen.min()) - lowest, int(seen.max()) - lowest], 0, len(values) - 1)]
    return spread(values, used), ("no VOI window in the file: spread from its smallest to its largest value",)


def _first(value: Any) -> float | None:
    """Return the first of a DICOM element's values: the maker's preferred window."""
    if value is None or isinstance(value, str):
        return None
    return float(value[0]) if hasattr(value, "__len__") else float(value)


def _look_up(header: Dataset, table: Dataset, values: NDArray[Any]) -> tuple[NDArray[np.float64], int]:
    """Map values through a DICOM lookup table; return the entries and their depth in bits.

    pydicom's `apply_modality_lut` and `apply_voi_lut` index with the dtype of the pixels or entries, which wraps
    around for signed pixels and for 8-bit entries, and refuse 10- to 15-bit modality tables.
    """
    entries, first, bits = (int(number) for number in table.LUTDescriptor)
    entries = entries % 2**16 or 2**16
    data = table.LUTData
    little = header.original_encoding[1]
    words = np.frombuffer(data, "<u2" if little else ">u2") if isinstance(data, bytes) else np.atleast_1d(data)
    words = words.astype("<u2")
    if bits == 8 and len(words) < entries:  # two entries in a word
        words = words.view(np.uint8)
    if len(words) < entries:
        raise ImageError(f"a lookup table of the DICOM file has {len(words)} of {entries} entries; {DAMAGED}")
    words = words[:entries]
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, entries - 1)
    return words[index].astype(np.float64), max(bits, int(words.max()).bit_length())
