"""Grey levels: what a decoded image is, and the mappings between ranges that all file types share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]
Window = Literal["voi", "full"] | tuple[float, float]

CONSTANT = "constant: all pixels have the same value"
LUMA = "stored in colour; reduced to luma (ITU-R BT.601)"
REPEATED = "stored in gray; repeated for red, green and blue"
DAMAGED = "it is damaged or cut off; fetch it again from where it came from"


@dataclass(frozen=True)
class GrayImage:
    """A decoded image.

    Attributes:
        pixels: (H, W) uint8 or uint16, brighter is denser as displayed; (H, W, C) where channels are asked for.
        bits: White is 2**bits - 1.
        notices: What a user should know about how the pixels came about.
        full_size: Height and width in the file, where the pixels were decoded at a reduced size.
    """

    pixels: Pixels
    bits: int
    notices: tuple[str, ...]
    full_size: tuple[int, int] | None = None


def of_colours(pixels: Pixels, bits: int, *, rgb: bool) -> GrayImage:
    """Return (H, W, 3) red, green and blue as they are, or reduced to luma."""
    pixels = np.ascontiguousarray(pixels)
    return GrayImage(pixels, bits, ()) if rgb else GrayImage(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), bits, (LUMA,))


def dtype_of(bits: int) -> type[np.uint8] | type[np.uint16]:
    """Return the pixel type for a depth."""
    return np.uint8 if bits <= 8 else np.uint16


def quantise(shares: NDArray[np.float64], bits: int) -> Pixels:
    """Turn shares of white, 0 to 1, into grey levels of 8 or 16 bits."""
    levels: Pixels = np.rint(shares * (2**bits - 1)).astype(dtype_of(bits))
    return levels


def rescale(pixels: Pixels, bits: int, wanted: int) -> Pixels:
    """Map white = 2**bits - 1 to white = 2**wanted - 1, rounding to the nearest level."""
    if bits == wanted:
        return pixels
    return np.take(quantise(np.arange(2**bits) / (2**bits - 1), wanted), pixels, mode="clip")


def spread(values: NDArray[np.float64], between: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn values into shares of white: black and white are the extremes of `between`."""
    low, high = float(between.min()), float(between.max())
    return np.clip((values - low) / (high - low or 1.0), 0, 1)


def linear(values: NDArray[np.float64], centre: float, width: float) -> NDArray[np.float64]:
    """Turn values into shares of white; a width of 1 is a threshold. Source: DICOM PS3.3 C.11.2.1.2.1."""
    if width <= 1:
        return (values > centre - 0.5).astype(np.float64)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)


def linear_exact(values: NDArray[np.float64], centre: float, width: float) -> NDArray[np.float64]:
    """Turn values into shares of white. Source: DICOM PS3.3 C.11.2.1.3.2."""
    return np.clip((values - centre) / width + 0.5, 0, 1)


def sigmoid(values: NDArray[np.float64], centre: float, width: float) -> NDArray[np.float64]:
    """Turn values into shares of white. Source: DICOM PS3.3 C.11.2.1.3.1."""
    return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))


WINDOWS = {"LINEAR": linear, "LINEAR_EXACT": linear_exact, "SIGMOID": sigmoid}
