"""Grey levels: what a decoded image is, how it comes to its canvas, and the mappings that all file types share."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

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
