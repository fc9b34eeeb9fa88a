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
