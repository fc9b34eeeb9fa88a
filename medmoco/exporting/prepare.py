"""From an image file to the network's input, as preprocessing.json says: NumPy, OpenCV and pydicom, nothing else.

    import json, prepare
    contract = json.load(open("preprocessing.json"))
    image = prepare.image("film.dcm", contract)  # (C, S, S) float32

This file is part of an export and may be copied into any project (Apache-2.0). It reads DICOM (with the decoders that
pydicom finds), PNG and JPEG, and for bands NumPy arrays. It trusts its input: the size of an image is not limited, and
a damaged file is noticed only where the decoders notice it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, pixel_array

Pixels = NDArray[Any]
Floats = NDArray[np.float64]


def image(file: str | Path, contract: Mapping[str, Any], frame: int = 1) -> NDArray[np.float32]:
    """Return the network's input for one image.

    Args:
        file: DICOM, PNG or JPEG, known by its content; for a network of bands a NumPy array.
        contract: Content of preprocessing.json.
        frame: Of a DICOM file, from 1.

    Returns:
        (C, S, S), normalised.

    Raises:
        ValueError: the file is none of these, or cannot be decoded.
    """
    canvas, resize, normalise = contract["canvas"], contract["resize"], contract["normalise"]
    if "bands" in contract:
        levels, white = bands(file, contract["bands"])
    elif "colour" in contract:
        levels, white = colours(file, contract["colour"]["window"], frame)
    else:
        levels, white = gray(file, contract["grayscale"]["window"], frame)
    planes = []
    for plane in [levels] if levels.ndim == 2 else cv2.split(levels):
        pixels = _to_canvas(plane, white, canvas["longer_side"], canvas["white"])
        pixels = _halved(pixels, resize["height"])
        planes.append(cv2.resize(pixels, (resize["width"], resize["height"]), interpolation=cv2.INTER_LINEAR))
    mean, std = (np.reshape(np.asarray(normalise[name], np.float64), (-1, 1, 1)) for name in ("mean", "std"))
    shares = np.stack(planes).astype(np.float32) * (1 / (canvas["white"] * std)).astype(np.float32)
    prepared: NDArray[np.float32] = shares - (mean / std).astype(np.float32)
    return prepared


def gray(file: str | Path, window: str | list[float], frame: int = 1) -> tuple[Pixels, int]:
    """Return (H, W) gray levels of 8 or 16 bits, dense tissue bright, and the level that is white.

    Args:
        file: DICOM, PNG or JPEG.
        window: "voi", "full", or centre and width.
        frame: Of a DICOM file, from 1.
    """
    return _read(file, window, frame, rgb=False)


def colours(file: str | Path, window: str | list[float], frame: int = 1) -> tuple[Pixels, int]:
    """Return (H, W, 3) red, green and blue of 8 or 16 bits and the level that is white; arguments as of `gray`."""
    pixels, white = _read(file, window, frame, rgb=True)
    return (pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)), white


def bands(file: str | Path, step: Mapping[str, Any]) -> tuple[Pixels, int]:
    """Return (H, W, C) levels of a NumPy array's bands, (H, W) of one, and the level that is white.

    Args:
        file: .npy.
        step: "bands" of preprocessing.json.
    """
    values, count = np.load(file, allow_pickle=False), step["channels"]
    if values.ndim == 2 and count == 1:
        values = values[None]
    elif values.ndim != 3 or (values.shape[0] == count) == (values.shape[2] == count):
        raise ValueError(f"an array of shape {values.shape} does not have {count} bands at one of its ends")
    elif values.shape[2] == count:
        values = np.moveaxis(values, 2, 0)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError("values that are not finite")
    if values.dtype == np.uint8 and step["scale"] == "linear" and not step["ranges"]:
        planes, white = list(values), 255
    else:
        ranges = step["ranges"] or [None]
        ranges = ranges * count if len(ranges) == 1 else ranges
        planes, white = [_band(*each, step["scale"]) for each in zip(values, ranges, strict=True)], 65535
    return (planes[0] if count == 1 else np.stack(planes, axis=-1)), white


def _band(values: Pixels, pair: list[float] | None, scale: str) -> Pixels:
    band = values.astype(np.float64)
    if scale == "linear":
        return _quantised(_spread(band, np.array(pair) if pair else band), 65535)
    positive = band[band > 0]
    low, high = pair or ((positive.min(), positive.max()) if positive.size else (1.0, 1.0))
    return _quantised(_spread(np.log10(np.maximum(band, low)), np.log10([low, high])), 65535)


def _read(file: str | Path, window: str | list[float], frame: int, *, rgb: bool) -> tuple[Pixels, int]:
    """Return (H, W) gray levels, or of a colour file (H, W, 3) where `rgb` says so, and the level that is white."""
    content = np.fromfile(file, np.uint8)
    if content[128:132].tobytes() == b"DICM":
        return _dicom(pydicom.dcmread(file), window, frame, rgb=rgb)
    is_known = content[:4].tobytes() == b"\x89PNG" or content[:3].tobytes() == b"\xff\xd8\xff"
    pixels = cv2.imdecode(content, cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR) if is_known else None
    if pixels is None:
        raise ValueError("neither DICOM, PNG nor JPEG, or damaged")
    white = 255 if pixels.dtype == np.uint8 else 65535
    if pixels.ndim == 3:
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if rgb else cv2.COLOR_BGR2GRAY), white
    if white == 65535 and not isinstance(window, str):
        return _quantised(_linear(np.arange(65536.0), *window), white)[pixels], white
    return pixels, white


# ---- canvas: the image at the size that training kept ----


def _to_canvas(pixels: Pixels, white: int, longer_side: int, canvas_white: int) -> Pixels:
    longer = max(pixels.shape)
    height, width = (max(1, round(side * longer_side / longer)) for side in pixels.shape)
    pixels = _halved(pixels, longer_side)
    if pixels.shape != (height, width):
        method = cv2.INTER_AREA if max(pixels.shape) > longer_side else cv2.INTER_LINEAR
        pixels = cv2.resize(pixels, (width, height), interpolation=method)
    return pixels if white == canvas_white else _quantised(np.arange(white + 1) / white, canvas_white)[pixels]


def _halved(pixels: Pixels, wanted: int) -> Pixels:
    """Halve by the mean of 2 x 2 pixels while the longer side is at least twice the wanted one."""
    while max(pixels.shape) >= 2 * wanted and min(pixels.shape) >= 2:
        height, width = (side // 2 for side in pixels.shape)
        pixels = cv2.resize(pixels[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)
    return pixels


# ---- DICOM: PS3.3 C.11.1 modality, C.11.2 VOI, C.7.6.3.1.2 polarity ----


def _dicom(header: Dataset, window: str | list[float], frame: int, *, rgb: bool) -> tuple[Pixels, int]:
    pixels, stored = pixel_array(header, index=frame - 1), int(header.BitsStored)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, header)
        stored = 8 * pixels.dtype.itemsize
    if not 1 <= stored <= 16 or pixels.dtype.kind == "f":
        raise ValueError(f"{stored} bits stored: only whole numbers of 1 to 16 bits can be read")
    white = 255 if stored <= 8 else 65535
    if pixels.ndim == 3:
        own = np.ascontiguousarray(pixels[..., :3])
        own = own if rgb else cv2.cvtColor(own, cv2.COLOR_RGB2GRAY)
        return _quantised(np.arange(2**stored) / (2**stored - 1), white)[own], white
    # A gray level depends on the stored value alone: worked out once for each value, looked up for each pixel.
    lowest = -(2 ** (stored - 1)) if header.get("PixelRepresentation", 0) == 1 else 0
    values = _modality(header, np.arange(lowest, lowest + 2**stored), frame)
    shares = _voi(header, values, pixels, lowest, window, frame)
    levels = _quantised(1 - shares if header.PhotometricInterpretation == "MONOCHROME1" else shares, white)
    return np.take(levels, pixels.astype(np.int32) - lowest, mode="clip"), white


def _modality(header: Dataset, stored: Pixels, frame: int) -> Floats:
    if tables := header.get("ModalityLUTSequence"):
        return _look_up(header, tables[0], stored)[0]
    source = _group(header, frame, "PixelValueTransformationSequence")
    slope, intercept = source.get("RescaleSlope"), source.get("RescaleIntercept")
    values: Floats = stored * float(1 if slope is None else slope) + float(0 if intercept is None else intercept)
    return values


def _voi(header: Dataset, values: Floats, pixels: Pixels, lowest: int, window: str | list[float], frame: int) -> Floats:
    """Return the share of white of each value."""
    if not isinstance(window, str):
        return _linear(values, *window)
    if window == "full":
        return _spread(values, values)
    if tables := header.get("VOILUTSequence"):
        entries, bits = _look_up(header, tables[0], values)
        shares: Floats = entries / (2**bits - 1)
        return shares
    source = _group(header, frame, "FrameVOILUTSequence")
    centre, width = (_first(source.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = str(source.get("VOILUTFunction") or "LINEAR").upper()
    if centre is not None and width is not None and width >= (1 if function == "LINEAR" else 1e-6):
        return _WINDOWS.get(function, _linear)(values, centre, width)
    if len(values) <= 256:
        return _spread(values, values)
    padding = header.get("PixelPaddingValue")
    seen = pixels[pixels != int(padding)] if padding is not None else pixels
    seen = seen if seen.size else pixels
    return _spread(values, values[np.clip([int(seen.min()) - lowest, int(seen.max()) - lowest], 0, len(values) - 1)])


def _group(header: Dataset, frame: int, name: str) -> Dataset:
    """Return the frame's functional group of that name, the shared one, or the plain header."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    found: list[Dataset] = [
        groups[name].value[0] for groups in (*per_frame[frame - 1 : frame], *shared[:1]) if groups.get(name)
    ]
    return found[0] if found else header


def _first(value: Any) -> float | None:
    if value is None or isinstance(value, str):
        return None
    return float(value[0]) if hasattr(value, "__len__") else float(value)


def _look_up(header: Dataset, table: Dataset, values: Pixels) -> tuple[Floats, int]:
    """Return the table's entry for each value, and the entries' bits."""
    entries, first, bits = (int(number) for number in table.LUTDescriptor)
    entries = entries % 65536 or 65536
    data, order = table.LUTData, "<" if header.original_encoding[1] else ">"
    words = np.frombuffer(data, f"{order}u2") if isinstance(data, bytes) else np.atleast_1d(data)
    words = words.astype("<u2")
    if bits == 8 and len(words) < entries:  # two entries in a word
        words = words.view(np.uint8)
    if len(words) < entries:
        raise ValueError("a lookup table of the DICOM file is incomplete")
    words = words[:entries]
    found = words[np.clip(np.rint(values).astype(np.int64) - first, 0, entries - 1)]
    return found.astype(np.float64), max(bits, int(words.max()).bit_length())


def _linear(values: Floats, centre: float, width: float) -> Floats:
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def _linear_exact(values: Floats, centre: float, width: float) -> Floats:
    return np.clip((values - centre) / width + 0.5, 0, 1)


def _sigmoid(values: Floats, centre: float, width: float) -> Floats:
    shares: Floats = 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    return shares


_WINDOWS = {"LINEAR": _linear, "LINEAR_EXACT": _linear_exact, "SIGMOID": _sigmoid}


def _spread(values: Floats, between: Floats) -> Floats:
    low, high = float(between.min()), float(between.max())
    return np.clip((values - low) / (high - low or 1.0), 0, 1)


def _quantised(shares: Floats, white: int) -> Pixels:
    return np.rint(shares * white).astype(np.uint8 if white == 255 else np.uint16)
