"""The probabilities of an image of any size, from those of overlapping windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def padded(views: NDArray[Any], size: int) -> tuple[NDArray[Any], tuple[slice, ...]]:
    """Return views that are at least as large as a window, with black around them, and where in these the views are.

    The margin is black, as that of a training crop; MONAI would pad the normalised image, where 0 is gray.

    Args:
        views: (B, C, H, W) or (B, C, X, Y, Z).
        size: Side of a window.
    """
    sides = views.shape[2:]
    missing = [max(0, size - side) for side in sides]
    around = [(0, 0), (0, 0), *((all_ // 2, all_ - all_ // 2) for all_ in missing)]
    inside = (slice(before, before + side) for (before, _), side in zip(around[2:], sides, strict=True))
    return np.pad(views, around), tuple(inside)


def number_of_windows(sides: Sequence[int], size: int, overlap: float) -> int:
    """Return how many windows `blended` predicts for an image with these sides."""
    step = max(1, int(size * (1 - overlap)))
    return math.prod(1 + math.ceil(max(0, side - size) / step) for side in sides)


def blended(
    predict: Callable[[Tensor], Tensor], images: Tensor, size: int, overlap: float, batch: int
) -> NDArray[np.float32]:
    """Return the mean of what is predicted for all windows of each image, weighted by a Gaussian about their centres.

    Source: nnU-Net, Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z); the code is MONAI's.

    Args:
        predict: (N, C, S, ...) -> (N, K, S, ...).
        images: (B, C, ...) normalised, at least as large as a window.
        size: Side S of a window.
        overlap: Overlap of neighbouring windows, as a share of their side.
        batch: Number of windows N that are predicted at a time.

    Returns:
        (B, K, ...), on the CPU.
    """
    from monai.inferers import sliding_window_inference  # not at the top, because importing MONAI takes seconds

    sides = (size,) * (images.ndim - 2)
    found: Any = sliding_window_inference(images, sides, batch, predict, overlap, mode="gaussian", device="cpu")
    mean: NDArray[np.float32] = found.numpy()
    return mean
