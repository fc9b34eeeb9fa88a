"""Images that look a little like films: large shapes in soft grey levels, each seed its own."""

import cv2
import numpy as np
from numpy.typing import NDArray

Film = NDArray[np.uint8]


def film(seed: int, height: int = 96, width: int = 80) -> Film:
    coarse = np.random.default_rng(seed).uniform(20, 235, (7, 6)).astype(np.float32)
    return np.clip(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


def edited(pixels: Film, how: str) -> Film:
    """The same exposure as another software stores it."""
    if how == "jpeg":
        return cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_GRAYSCALE)
    if how == "half":
        return cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    if how == "gamma":
        return (255 * (pixels / 255) ** 0.7).astype(np.uint8)
    if how == "window":
        return np.clip((pixels.astype(np.float64) - 20) / 215 * 255, 0, 255).astype(np.uint8)
    assert how == "equalised"
    return cv2.equalizeHist(pixels)


EDITS = ("jpeg", "half", "gamma", "window", "equalised")
