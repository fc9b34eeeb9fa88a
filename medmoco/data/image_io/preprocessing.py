"""Preprocess an image file into the network's input, as defined in preprocessing.json.

    import json, prepare
    contract = json.load(open("preprocessing.json"))
    image = prepare.image("film.dcm", contract)  # (C, S, S) float32

Every export contains this file, and any project may copy it (Apache-2.0); it needs NumPy, OpenCV, Pillow and pydicom.
medmoco reads images with the same code, so that a deployed network receives the same pixels as in training, and both
read the same files. It reads DICOM, PNG, JPEG, TIFF and, for networks of several bands, NumPy arrays. medmoco adds
protection from hostile files: limits on their size, and worker processes that may crash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.data.image_io.file_format import kind_of_file
from medmoco.data.image_io.formats.bands import band_values, levels_of
from medmoco.data.image_io.formats.dicom import read_dicom
from medmoco.data.image_io.formats.png_jpeg import read_jpeg, read_png
from medmoco.data.image_io.formats.tiff import read_tiff
from medmoco.data.image_io.intensity import (
    Admit,
    GrayImage,
    Pixels,
    Unreadable,
    Window,
    admit_all,
    halved,
    on_canvas,
    quiet,
)


def image(file: str | Path, contract: Mapping[str, Any], frame: int = 1) -> NDArray[np.float32]:
    """Return the network's input for one image.

    Args:
        file: DICOM, PNG, JPEG or TIFF, detected by its content; for a network of bands a NumPy array or TIFF.
        contract: Content of preprocessing.json.
        frame: Frame of a DICOM file or page of a TIFF file, counted from 1.

    Returns:
        (C, S, S), normalised.

    Raises:
        ValueError: the file has another type or cannot be read as an image; gives the reason.
    """
    canvas, resize = contract["canvas"], contract["resize"]
    with quiet():
        decoded = read_by_contract(file, contract, frame)
    bits = int(canvas["white"]).bit_length()
    planes = []
    for plane in [decoded.pixels] if decoded.pixels.ndim == 2 else cv2.split(decoded.pixels):
        pixels = halved(on_canvas(replace(decoded, pixels=plane), canvas["longer_side"], bits), resize["height"])
        planes.append(cv2.resize(pixels, (resize["width"], resize["height"]), interpolation=cv2.INTER_LINEAR))
    return normalised(np.stack(planes), contract)


def normalised(levels: Pixels, contract: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return levels (C, ...), or (N, 1, ...) of one channel, normalised: (level / white - mean) / std."""
    white, shape = contract["canvas"]["white"], (-1, *[1] * (levels.ndim - 1))
    mean, std = (np.reshape(np.asarray(contract["normalise"][name], np.float64), shape) for name in ("mean", "std"))
    prepared: NDArray[np.float32] = levels.astype(np.float32) * (1 / (white * std)).astype(np.float32)
    prepared -= (mean / std).astype(np.float32)
    return prepared


def read_by_contract(file: str | Path, contract: Mapping[str, Any], frame: int, *, whole: bool = False) -> GrayImage:
    """Return the levels of a file, (H, W) or (H, W, C), decoded as the contract says.

    Args:
        file: See `image`.
        contract: Content of preprocessing.json.
        frame: See `image`.
        whole: Decode at full size, although the canvas is smaller.
    """
    if "bands" in contract:
        step = contract["bands"]
        return levels_of(band_values(Path(file), step["channels"], frame), step["scale"], step["ranges"])
    window = contract["colour" if "colour" in contract else "grayscale"]["window"]
    rgb, at_least = "colour" in contract, None if whole else contract["canvas"]["longer_side"]
    decoded = read(Path(file), frame, _window_of(window), rgb=rgb, at_least=at_least)
    return replace(decoded, pixels=_three_planes(decoded.pixels)) if rgb else decoded


def _three_planes(pixels: Pixels) -> Pixels:
    """Return red, green and blue (H, W, 3); of a gray image three equal planes."""
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)


def _window_of(given: Window | Sequence[float]) -> Window:
    """Return a window, which JSON represents as a list."""
    return given if isinstance(given, str) else (given[0], given[1])


def gray(file: str | Path, window: Window | Sequence[float] = "voi", frame: int = 1) -> tuple[Pixels, int]:
    """Return (H, W) gray levels of 8 or 16 bits, with dense tissue bright, and the level of white.

    Args:
        file: DICOM, PNG, JPEG or TIFF.
        window: "voi", "full", or centre and width.
        frame: Frame of a DICOM file or page of a TIFF file, counted from 1.
    """
    with quiet():
        decoded = read(Path(file), frame, _window_of(window), rgb=False)
    return decoded.pixels, 2**decoded.bits - 1


def colours(file: str | Path, window: Window | Sequence[float] = "voi", frame: int = 1) -> tuple[Pixels, int]:
    """Return (H, W, 3) red, green and blue of 8 or 16 bits, and the level of white; arguments as for `gray`."""
    with quiet():
        decoded = read(Path(file), frame, _window_of(window), rgb=True)
    return _three_planes(decoded.pixels), 2**decoded.bits - 1


def bands(file: str | Path, step: Mapping[str, Any]) -> tuple[Pixels, int]:
    """Return (H, W, C) levels of a file of bands, or (H, W) of a single band, and the level of white.

    Args:
        file: .npy or TIFF.
        step: The value of "bands" in preprocessing.json.
    """
    with quiet():
        values = band_values(Path(file), step["channels"])
    decoded = levels_of(values, step["scale"], step["ranges"])
    return decoded.pixels, 2**decoded.bits - 1


# ---- dispatch by file type ----


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
    """Decode a PNG, JPEG, TIFF or DICOM file to one grayscale plane, or a colour file to three planes if `rgb` is set.

    Args:
        path: The file.
        frame: Frame of a DICOM file or page of a TIFF file, counted from 1.
        window: Window, see `gray`.
        rgb: Keep the colours of a colour image, (H, W, 3).
        at_least: A JPEG file may be decoded at half, a quarter or an eighth of its size, as long as its longer side
            keeps at least this number of pixels; a DICOM file may be halved as long as it keeps twice this number. Its
            stored values are averaged before the window, and JPEG 2000 is decoded at that size.
        admit: Called with the size before decoding; may raise to refuse the image.
        inflate_to: Largest size, in bytes, to which a deflated DICOM file may inflate; -1 means no limit.

    Raises:
        Unreadable: the file cannot be read; the message gives the reason.
    """
    kind = kind_of_file(path)
    if kind == "DICOM":
        return read_dicom(path, frame, window, rgb=rgb, at_least=at_least, admit=admit, inflate_to=inflate_to)
    if kind == "TIFF":
        return read_tiff(path, frame, window, rgb=rgb, admit=admit)
    if kind == "NPY":
        raise Unreadable("it is a NumPy array; set data.channels to its number of bands")
    if kind == "PNG":
        return read_png(path.read_bytes(), frame, window, rgb=rgb, admit=admit)
    return read_jpeg(path.read_bytes(), frame, rgb=rgb, at_least=at_least, admit=admit)
