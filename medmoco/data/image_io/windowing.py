"""From the stored values of a DICOM image to grey levels: padding, modality and VOI transform, polarity, aspect ratio.

Source: DICOM PS3.3 C.11.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from medmoco.data.image_io.intensity import (
    DAMAGED,
    DARK_TABLE,
    NO_WINDOW,
    NOT_BELIEVED,
    NOT_SQUARE,
    WINDOWS,
    Floats,
    GrayImage,
    Pixels,
    Unreadable,
    Window,
    halved,
    linear,
    of_colours,
    quantise,
    rescale,
    spread,
)


def coloured(header: Dataset, pixels: Pixels, *, rgb: bool) -> GrayImage:
    """Return (H, W, 3) red, green and blue at their full depth, or their luma."""
    bits = int(header.BitsStored)
    image, depth = of_colours(pixels[..., :3], bits, rgb=rgb), 8 if bits <= 8 else 16
    return replace(image, pixels=rescale(image.pixels, bits, depth), bits=depth)


def grey(header: Dataset, pixels: Pixels, frame: int, window: Window, halve_to: int | None = None) -> GrayImage:
    """Return (H, W) stored values after modality transform, VOI transform, polarity and padding.

    Each depends only on the stored value, so they are computed once per level and looked up per pixel.
    MONOCHROME1 alone decides on inversion: PresentationLUTShape INVERSE only repeats it. Source: DICOM PS3.3 C.11.6.

    Stored values are halved by averaging first, as long as the longer side keeps `halve_to` pixels.
    """
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    stored = int(header.BitsStored)
    lowest = -(2 ** (stored - 1)) if int(header.PixelRepresentation) == 1 else 0
    possible = np.arange(lowest, lowest + 2**stored)
    first, last = padding_values(header, lowest, stored)
    values = modality_values(header, possible, frame)

    def actual_range() -> Floats:
        anatomy = pixels[(pixels < first) | (pixels > last)] if first <= last else pixels
        anatomy = anatomy if anatomy.size else pixels
        ends = np.clip([int(anatomy.min()) - lowest, int(anatomy.max()) - lowest], 0, len(values) - 1)
        extremes: Floats = values[ends]
        return extremes

    shares, notices = _voi_shares(header, values, actual_range, frame, window)
    levels = quantise(1 - shares if inverted else shares, 8 if stored <= 8 else 16)
    levels[(possible >= first) & (possible <= last)] = 0
    index = pixels
    if lowest or pixels.dtype not in (np.uint8, np.uint16):
        index = np.clip(pixels.astype(np.int32) - lowest, 0, len(levels) - 1).astype(np.uint16)
    if halve_to:
        index = halved(index, halve_to)
    # Clipped because lossy decoders may overshoot.
    return GrayImage(np.take(levels, index, mode="clip"), 8 * levels.itemsize, notices)


def may_average(header: Dataset, frame: int, window: Window) -> bool:
    """Whether the grey level of an average of stored values is about the average of their grey levels.

    It is not if values are colours of a palette or padding, if rounding the average would lose much of it, or if a
    narrow window, as of CT, shows both sides of an edge as black or white.
    """
    if not str(header.PhotometricInterpretation).startswith("MONOCHROME"):
        return False
    stored = int(header.BitsStored)
    if header.get("PixelPaddingValue") is not None or not 8 <= stored <= int(header.BitsAllocated) <= 16:
        return False
    if isinstance(window, tuple):
        width = window[1]
    elif window == "voi" and not header.get("VOILUTSequence") and (stated := _window_in(header, frame)):
        width = stated[2]
    else:
        return True
    first, last = modality_values(header, np.array([0, 2**stored - 1]), frame)
    return bool(width >= abs(last - first) / 4)


def needs_extremes(header: Dataset, frame: int, window: Window) -> bool:
    """Whether grey levels depend on the smallest and largest value of the image, which only its full size has."""
    if window != "voi" or header.get("VOILUTSequence") or int(header.BitsStored) <= 8:
        return False
    return _window_in(header, frame) is None


def padding_values(header: Dataset, lowest: int, stored: int) -> tuple[int, int]:
    """Return the first and last stored value of padding, which is not part of the image and is shown in black.

    The numbers have the type of the pixels, regardless of their VR. Source: DICOM PS3.3 C.7.5.1.1.2.
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


def functional_group(header: Dataset, frame: int, name: str) -> Dataset:
    """Return the frame's functional group of that name, the shared one, or the header itself."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for groups in (*per_frame[frame - 1 : frame], *shared[:1]):
        if macro := groups.get(name):
            return macro[0]  # type: ignore[no-any-return]
    return header


def modality_values(header: Dataset, stored: Pixels, frame: int) -> Floats:
    """Return stored values in the manufacturer's units. Source: DICOM PS3.3 C.11.1."""
    if tables := header.get("ModalityLUTSequence"):
        return _look_up(header, tables[0], stored)[0]
    source = functional_group(header, frame, "PixelValueTransformationSequence")
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    values: Floats = stored * float(1 if slope is None else slope) + float(0 if intercept is None else intercept)
    return values


def _voi_shares(
    header: Dataset, values: Floats, actual_range: Callable[[], Floats], frame: int, window: Window
) -> tuple[Floats, tuple[str, ...]]:
    """Return values as fractions of white, 0 to 1, and notices; `actual_range` computes the extremes of the image.

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
    if stated := _window_in(header, frame):
        function, centre, width = stated
        return WINDOWS.get(function, linear)(values, centre, width), ()
    if not needs_extremes(header, frame, window):
        return spread(values, values), ()
    return spread(values, actual_range()), (NO_WINDOW,)


def _window_in(header: Dataset, frame: int) -> tuple[str, float, float] | None:
    """Return the function, centre and width of the header's window; None without a valid one."""
    source = functional_group(header, frame, "FrameVOILUTSequence")
    centre, width = _first(source.get("WindowCenter")), _first(source.get("WindowWidth"))
    function = str(source.get("VOILUTFunction") or "LINEAR").upper()
    if centre is None or width is None or width < (1 if function == "LINEAR" else 1e-6):
        return None
    return function, centre, width


def _first(value: Any) -> float | None:
    """Return the first of a DICOM element's values; of several windows it is the manufacturer's preferred one."""
    if value is None or isinstance(value, str):
        return None
    if isinstance(value, bytes):  # of an unknown VR
        return float(int.from_bytes(value[:2], "little")) if value else None
    return float(value[0]) if hasattr(value, "__len__") else float(value)


def _look_up(header: Dataset, table: Dataset, values: Pixels) -> tuple[Floats, int]:
    """Map values through a DICOM look-up table; return the entries and their depth in bits.

    pydicom's `apply_modality_lut` and `apply_voi_lut` index with the dtype of the pixels or entries, which wraps
    around for signed pixels and for 8-bit entries, and they refuse 10- to 15-bit modality tables.
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
    if len(words) < count <= 2 * len(words):  # two entries per word, whatever depth the descriptor states
        words, bits = words.view(np.uint8), min(bits, 8)
    if len(words) < count:
        raise Unreadable(f"a look-up table of the DICOM file has only {len(words)} of {count} entries; {DAMAGED}")
    words = words[:count]
    index = np.clip(np.rint(values).astype(np.int64) - _lut_start(first, count, values), 0, count - 1)
    return words[index].astype(np.float64), max(bits, int(words.max()).bit_length())


def _lut_start(first: int, count: int, values: Pixels) -> int:
    """Return the value of a table's first entry, whose sign the VR leaves open.

    It is signed if values may be negative, but writers get that wrong in both directions; a reading in which no value
    reaches the table is rejected. Source: DICOM PS3.3 C.11.1.1.1 and C.11.2.1.1.
    """
    lowest, highest = float(values.min()), float(values.max())
    readings = [first, first - 2**16] if first >= 2**15 else [first]
    if lowest < 0:
        readings.reverse()
    reached = [start for start in readings if start <= highest and start + count > lowest]
    return (reached or readings)[0]


# Aspect ratio

MOST_OBLONG = 16


def pixel_aspect(header: Dataset, frame: int) -> tuple[float, tuple[str, ...]]:
    """Return the height of a pixel divided by its width (1 if they differ by less than 1 %), and a notice.

    Source: DICOM PS3.3 C.7.6.3.1.7: the aspect ratio is used only if there is no spacing.
    """
    measures = functional_group(header, frame, "PixelMeasuresSequence")
    plain = ("ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
    for spacing in (measures.get("PixelSpacing"), *(header.get(name) for name in plain)):
        try:
            down, across = (float(number) for number in spacing or ())
        except (TypeError, ValueError):
            continue
        if not (0 < down < math.inf and 0 < across < math.inf):
            continue
        aspect = down / across
        if not 1 / MOST_OBLONG <= aspect <= MOST_OBLONG:
            return 1.0, (NOT_BELIEVED,)
        return (1.0, ()) if abs(aspect - 1) < 0.01 else (aspect, (NOT_SQUARE,))
    return 1.0, ()
