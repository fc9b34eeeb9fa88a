"""One image file in, one grayscale array out: PNG, JPEG, TIFF and DICOM at their full bit depth.

The content decides the file type, not the suffix, and the size is checked before anything is decoded. A file that is
cut off is refused, never returned in part. Brighter is denser, as a viewer displays it. Messages and notices carry
neither paths nor patient data; the caller adds the row.
"""

from __future__ import annotations

import logging
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import cv2
import numpy as np
import pydicom
import torch
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_file_meta_info
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEGTransferSyntaxes, RLELossless
from torchvision.io import ImageReadMode, decode_image

from medmoco.errors import ImageError

Pixels = NDArray[Any]
Window = Literal["voi", "full"] | tuple[float, float]

_LUMA = "stored in colour; reduced to luma (ITU-R BT.601)"
_DAMAGED = "it is damaged or cut off; fetch it again from where it came from"
_NO_IMAGE_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map",
    "1.2.840.10008.5.1.4.1.1.30": "a parametric map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
}
_PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


@dataclass(frozen=True)
class GrayImage:
    """A decoded image.

    Attributes:
        pixels: (H, W) uint8 or uint16, brighter is denser as displayed.
        bits: White is 2**bits - 1.
        notices: What a user should know about how the pixels came about.
    """

    pixels: Pixels
    bits: int
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Canvas:
    """An image scaled to a square.

    Attributes:
        pixels: (S, S) uint8 or uint16, zero below and to the right of the image.
        height: Rows of the image; the longer of height and width is S.
        width: Columns of the image.
    """

    pixels: Pixels
    height: int
    width: int


def read_image(
    file: str | Path, *, frame: int = 1, window: Window = "voi", max_pixels: int = 100_000_000
) -> GrayImage:
    """Decode a PNG, JPEG, TIFF or DICOM file to one grayscale plane.

    Args:
        file: The file.
        frame: Frame of a multi-frame DICOM file or page of a TIFF file, from 1.
        window: "voi" is the VOI table or window of a DICOM file; without one, 8-bit files keep their full range and
            deeper ones are spread from their smallest to their largest pixel value, with a notice. "full" is the full
            range of the stored values. (centre, width) is in DICOM values after the modality transform, or in stored
            values of a 16-bit PNG or TIFF file. Colour and 8-bit PNG, JPEG and TIFF files are taken as displayed.
        max_pixels: Larger images are refused.

    Raises:
        ImageError: missing, damaged, cut off, too large, transparent, of an unknown type, or not an image.
    """
    path = Path(file)
    try:
        with path.open("rb") as stream:
            reader = _reader_for(stream.read(132))
    except FileNotFoundError:
        raise ImageError("the file does not exist; check the Path column and data.root") from None
    except OSError as error:
        raise ImageError(f"the file cannot be opened: {error.strerror}") from None
    with _quiet():
        image = reader(path, frame, window, max_pixels)
    if image.pixels.min() == image.pixels.max():
        return GrayImage(image.pixels, image.bits, (*image.notices, "constant: all pixels have the same value"))
    return image


def to_canvas(image: GrayImage, size: int, bit_depth: int) -> Canvas:
    """Scale an image so that its longer side is `size`, and pad it to a square.

    Args:
        image: (H, W) image.
        size: Side S of the canvas in pixels.
        bit_depth: 8 or 16; white becomes 255 or 65535.
    """
    pixels = image.pixels
    # Halving is the exact area filter and 20 times faster than cv2's fractional one; an odd last line is left out.
    while max(pixels.shape) >= 2 * size and min(pixels.shape) >= 2:
        height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
        pixels = cv2.resize(pixels[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    longer = max(image.pixels.shape)
    height, width = (max(1, round(side * size / longer)) for side in image.pixels.shape)
    if pixels.shape != (height, width):
        method = cv2.INTER_AREA if max(pixels.shape) > size else cv2.INTER_LINEAR
        pixels = cv2.resize(pixels, (width, height), interpolation=method)
    canvas = np.zeros((size, size), _dtype(bit_depth))
    canvas[:height, :width] = _rescale(pixels, image.bits, bit_depth)
    return Canvas(canvas, height, width)


def _dtype(bits: int) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if bits <= 8 else np.uint16


def _quantise(shares: NDArray[np.float64], bits: int) -> Pixels:
    """Turn shares of white, 0 to 1, into grey levels of 8 or 16 bits."""
    return np.rint(shares * (2**bits - 1)).astype(_dtype(bits))


def _rescale(pixels: Pixels, bits: int, wanted: int) -> Pixels:
    """Map white = 2**bits - 1 to white = 2**wanted - 1, rounding to the nearest level."""
    if bits == wanted:
        return pixels
    return np.take(_quantise(np.arange(2**bits) / (2**bits - 1), wanted), pixels, mode="clip")


@contextmanager
def _quiet() -> Iterator[None]:
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


_Reader = Callable[[Path, int, Window, int], GrayImage]


def _reader_for(start: bytes) -> _Reader:
    if not start:
        raise ImageError("the file is empty; fetch it again from where it came from")
    if start[128:] == b"DICM":  # before TIFF, because a DICOM preamble may hold a TIFF header
        return _read_dicom
    if start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return _read_png_or_jpeg
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return _read_tiff
    raise ImageError(
        "neither PNG, JPEG, TIFF nor DICOM by its content; convert it to one of them\n"
        "(a DICOM file must have its 128-byte preamble)"
    )


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"the header says {width} x {height} pixels; {_DAMAGED}")
    if width * height > max_pixels:
        raise ImageError(
            f"{width} x {height} pixels are more than data.max_pixels = {max_pixels};\n"
            "raise it if the image is meant to be that large"
        )


def _check_frame(frame: int, frames: int) -> None:
    if not 1 <= frame <= frames:
        raise ImageError(f"frame {frame} is asked for, but the file has {frames}; check the Frame column")


# PNG, JPEG, TIFF


def _read_png_or_jpeg(path: Path, frame: int, window: Window, max_pixels: int) -> GrayImage:
    mode, width, height = _header(path, max_pixels)
    _check_frame(frame, 1)
    if mode == "CMYK":
        raise ImageError("its colours are CMYK; convert it to grayscale or RGB")
    data = np.fromfile(path, np.uint8)
    if data[0] == 0x89 and b"IEND\xaeB`\x82" not in data[-4096:].tobytes():
        raise ImageError(f"the PNG file has no end; {_DAMAGED}")
    # torchvision returns a palette's indices unless it is asked for colours.
    wanted = ImageReadMode.RGB_ALPHA if mode == "P" else ImageReadMode.UNCHANGED
    try:
        planes = decode_image(torch.from_numpy(data), wanted, apply_exif_orientation=True).numpy()
    except RuntimeError:
        raise ImageError(f"the {width} x {height} image cannot be decoded; {_DAMAGED}") from None
    return _as_displayed(planes, window)


def _header(path: Path, max_pixels: int) -> tuple[str, int, int]:
    """Return Pillow's mode, the width and the height, without decoding."""
    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as image:
            width, height = image.size
            mode = image.mode
    except Image.DecompressionBombError:
        raise ImageError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels are not read; crop or shrink it") from None
    except Exception:
        raise ImageError(f"the header cannot be read; {_DAMAGED}") from None
    _check_size(width, height, max_pixels)
    return mode, width, height


def _read_tiff(path: Path, frame: int, window: Window, max_pixels: int) -> GrayImage:
    try:
        with Image.open(path, formats=["TIFF"]) as image:
            _check_frame(frame, getattr(image, "n_frames", 1))
            image.seek(frame - 1)
            _check_size(*image.size, max_pixels)
            depths, dark_zero = image.tag_v2.get(258, (1,)), image.tag_v2.get(262) != 0  # type: ignore[attr-defined]
            planes = _tiff_planes(image, depths)
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0)} pixels are not read; crop or shrink it") from None
    except Exception:
        raise ImageError(f"the TIFF file cannot be decoded; {_DAMAGED}") from None
    if planes.dtype == np.uint16:
        bits = min(16, max(depths))
        # Pillow turns "white is zero" round for 8 bits, but not for 16.
        planes = _rescale(planes if dark_zero else np.uint16(2**bits - 1) - planes, bits, 16)
    return _as_displayed(planes, window)


def _tiff_planes(image: Image.Image, depths: tuple[int, ...]) -> Pixels:
    """Return (C, H, W) uint8 or uint16 of the current page."""
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)[None]
    if max(depths) > 8 or image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
        raise ImageError(
            f"TIFF pixels of {max(depths)} bits in Pillow's mode {image.mode} are not supported;\n"
            "convert it to 8- or 16-bit unsigned grayscale"
        )
    plain = image.convert({"1": "L", "P": "RGBA"}.get(image.mode, image.mode))
    return np.atleast_3d(np.asarray(plain)).transpose(2, 0, 1)


def _as_displayed(planes: Pixels, window: Window) -> GrayImage:
    """Reduce (C, H, W) gray, gray + alpha, RGB or RGBA of a plain image file to one plane."""
    bits = 8 * planes.dtype.itemsize
    if len(planes) in (2, 4):
        if planes[-1].min() < 2**bits - 1:
            raise ImageError("it has transparent pixels, whose grey level is undefined; flatten it first")
        planes = planes[:-1]
    if len(planes) == 3:
        return GrayImage(cv2.cvtColor(planes.transpose(1, 2, 0).copy(), cv2.COLOR_RGB2GRAY), bits, (_LUMA,))
    plane = np.ascontiguousarray(planes[0])
    if bits == 16 and isinstance(window, tuple):
        levels = _linear(np.arange(2**16, dtype=np.float64), *window)
        return GrayImage(_quantise(levels, 16)[plane], 16, ())
    if bits == 16 and plane.max() < 2**12:
        return GrayImage(plane, 16, ("16-bit file that uses 12 bits or fewer: dark; set data.window: [centre, width]",))
    return GrayImage(plane, bits, ())


# DICOM


def _read_dicom(path: Path, frame: int, window: Window, max_pixels: int) -> GrayImage:
    try:
        with path.open("rb") as stream:
            header, pixels = _decode_dicom(path, stream, frame, max_pixels)
        if pixels.ndim == 3:
            return _color_image(pixels, int(header.BitsStored))
        return _grey_image(header, pixels, frame, window)
    except ImageError:
        raise
    except Exception as error:
        # The text of pydicom's errors quotes header values, which may identify a patient.
        raise ImageError(f"the DICOM file cannot be decoded ({type(error).__name__}); {_DAMAGED}") from None


def _decode_dicom(path: Path, stream: BinaryIO, frame: int, max_pixels: int) -> tuple[Dataset, Pixels]:
    """Return the header and the wanted frame: (H, W) stored values, or (H, W, 3) RGB."""
    meta = read_file_meta_info(path)
    syntax = UID(meta.get("TransferSyntaxUID") or "")
    if not syntax:
        raise ImageError(f"the DICOM file does not name its transfer syntax; {_DAMAGED}")
    deflated = syntax == DeflatedExplicitVRLittleEndian
    if deflated:
        _check_inflated_size(stream, 144 + int(meta.FileMetaInformationGroupLength), 2 * max_pixels + 2**24)
    header = pydicom.dcmread(stream, stop_before_pixels=not deflated)
    frames = _check_header(header, max_pixels)
    _check_frame(frame, frames)
    if not deflated:
        _check_complete(stream, header, syntax, frame, frames)
    try:
        pixels = pixel_array(header if deflated else stream, index=frame - 1)
    except (RuntimeError, NotImplementedError):
        raise _undecodable(syntax) from None
    if header.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, header)
        header.BitsStored = 8 * pixels.dtype.itemsize
    return header, pixels


def _check_inflated_size(stream: BinaryIO, offset: int, limit: int) -> None:
    """Refuse a deflated dataset that is cut off, or a small file that inflates without bound."""
    stream.seek(offset)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(stream.read(), limit)
    stream.seek(0)
    if inflater.unconsumed_tail:
        raise ImageError(f"it inflates to more than {limit} bytes; raise data.max_pixels if it is meant to")
    if not inflater.eof:
        raise ImageError(f"the deflated DICOM file has no end; {_DAMAGED}")


def _check_header(header: Dataset, max_pixels: int) -> int:
    """Refuse what is not a readable image; return the number of frames."""
    if kind := _NO_IMAGE_CLASSES.get(str(header.get("SOPClassUID"))):
        raise ImageError(f"it is {kind}, not an image; take the row out of the CSV")
    if "Rows" not in header or "Columns" not in header:
        raise ImageError("the DICOM file holds no image (a report, or cut off); take the row out or fetch it again")
    _check_size(int(header.Columns), int(header.Rows), max_pixels)
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
        whole = _fragments_end(stream, size) and _frame_ends(stream, start + len(element), syntax, frame, frames)
    else:
        samples = int(header.Rows) * int(header.Columns) * int(header.SamplesPerPixel) * frames
        if header.PhotometricInterpretation == "YBR_FULL_422":
            samples = samples * 2 // 3
        whole = size - start - len(element) >= math.ceil(samples * int(header.BitsAllocated) / 8)
    if not whole:
        raise ImageError(f"the DICOM file ends inside its pixel data; {_DAMAGED}")
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


def _frame_ends(stream: BinaryIO, start: int, syntax: UID, frame: int, frames: int) -> bool:
    """Say whether a JPEG, JPEG-LS or JPEG 2000 frame runs to its end marker, after which some writers pad."""
    if syntax not in JPEGTransferSyntaxes:
        return True
    stream.seek(start)
    return b"\xff\xd9" in get_frame(stream, frame - 1, number_of_frames=frames)[-16:]


def _undecodable(syntax: UID) -> ImageError:
    if syntax in (RLELossless, *JPEGTransferSyntaxes) and syntax != "1.2.840.10008.1.2.4.51":
        return ImageError(f"its {syntax.name} pixels cannot be decoded; {_DAMAGED}")
    return ImageError(
        f"its pixels are stored as {syntax.name},\n"
        "which no freely licensed decoder reads at this depth; store it uncompressed first, such as with dcmdjpeg"
    )


def _color_image(pixels: Pixels, bits: int) -> GrayImage:
    luma = cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_RGB2GRAY)
    return GrayImage(_rescale(luma, bits, 8 if bits <= 8 else 16), 8 if bits <= 8 else 16, (_LUMA,))


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
    levels = _quantise(1 - shares if inverted else shares, 8 if stored <= 8 else 16)
    # Clipping guards against lossy decoders that overshoot.
    return GrayImage(np.take(levels, pixels.astype(np.int32) - lowest, mode="clip"), 8 * levels.itemsize, notices)


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
        return _linear(values, *window), ()
    if window == "full":
        return _spread(values, values), ()
    if tables := header.get("VOILUTSequence"):
        entries, bits = _look_up(header, tables[0], values)
        return entries / (2**bits - 1), ()
    source = _macro(header, frame, "FrameVOILUTSequence")
    centre, width = _first(source.get("WindowCenter")), _first(source.get("WindowWidth"))
    function = str(source.get("VOILUTFunction") or "LINEAR").upper()
    if centre is not None and width is not None and width >= (1 if function == "LINEAR" else 1e-6):
        return _WINDOWS.get(function, _linear)(values, centre, width), ()
    if len(values) <= 2**8:
        return _spread(values, values), ()
    padding = header.get("PixelPaddingValue")
    seen = pixels[pixels != int(padding)] if padding is not None else pixels
    seen = seen if seen.size else pixels
    used = values[np.clip([int(seen.min()) - lowest, int(seen.max()) - lowest], 0, len(values) - 1)]
    return _spread(values, used), ("no VOI window in the file: spread from its smallest to its largest value",)


def _first(value: Any) -> float | None:
    """Return the first of a DICOM element's values: the maker's preferred window."""
    if value is None or isinstance(value, str):
        return None
    return float(value[0]) if hasattr(value, "__len__") else float(value)


def _spread(values: NDArray[np.float64], between: NDArray[np.float64]) -> NDArray[np.float64]:
    low, high = float(between.min()), float(between.max())
    return np.clip((values - low) / (high - low or 1.0), 0, 1)


def _linear(values: NDArray[np.float64], centre: float, width: float) -> NDArray[np.float64]:
    """Source: DICOM PS3.3 C.11.2.1.2.1, where a width of 1 is a threshold."""
    return np.clip((values - (centre - 0.5)) / max(width - 1, 1e-9) + 0.5, 0, 1)


def _linear_exact(values: NDArray[np.float64], centre: float, width: float) -> NDArray[np.float64]:
    """Source: DICOM PS3.3 C.11.2.1.3.2."""
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _sigmoid(values: NDArray[np.float64], centre: float, width: float) -> NDArray[np.float64]:
    """Source: DICOM PS3.3 C.11.2.1.3.1."""
    return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))


_WINDOWS = {"LINEAR": _linear, "LINEAR_EXACT": _linear_exact, "SIGMOID": _sigmoid}


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
        raise ImageError(f"a lookup table of the DICOM file has {len(words)} of {entries} entries; {_DAMAGED}")
    words = words[:entries]
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, entries - 1)
    return words[index].astype(np.float64), max(bits, int(words.max()).bit_length())
