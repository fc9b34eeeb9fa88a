"""Pictures of a few images side by side, with captions. They show patients, so they are written only on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from medmoco.config import DataSettings, RunSettings
from medmoco.data.augment.color import displayed
from medmoco.data.loading.loading import read_canvases, whole_maker
from medmoco.data.manifest.manifest import Split
from medmoco.errors import SettingsError

_INCHES, _LINE, _GAP = 1.9, 0.15, 0.1  # side of a tile, height of a line of its caption, and gap above the caption
_RESOLUTION = 120  # pixels per inch
TRUTH, FOUND = (86, 180, 233), (230, 159, 0)
"""Colours of what is true and what was predicted: sky blue and orange, which colour-blind readers can tell apart."""

_SIDE = 240  # pixels of an enlarged image, about the size of a tile
_LOWEST_OPACITY, _HIGHEST_OPACITY = 0.0, 0.6  # of a map at 0 and 1, so that the image shows through


@dataclass(frozen=True)
class Tile:
    """One image in a picture.

    Attributes:
        pixels: (S, S) uint8 or uint16, or (H, W, 3) uint8 in colour.
        caption: A few short lines.
        overlay: (S, S), 0 to 1, drawn in colour over the pixels.
        outlined: (h, w) bool, the cells of a grid over the image to outline.
    """

    pixels: NDArray[Any]
    caption: str
    overlay: NDArray[np.floating[Any]] | None = None
    outlined: NDArray[np.bool_] | None = None


def read_views(split: Split, positions: NDArray[np.int64], settings: RunSettings) -> NDArray[Any]:
    """Return the whole-image views of a few rows, (B, C, S, S) or (B, 1, S, S, S) uint8 or uint16.

    Raises:
        DataError: an image cannot be used.
    """
    canvases, _ = read_canvases(split, positions, settings)
    size = settings.evaluate.size or settings.views.size
    return np.asarray(whole_maker(settings.data.dimensions, size, "resized")(canvases, positions))


def enlarged(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an image (H, W) or (H, W, 3) as RGB of 8 bits in the size of a tile, so that lines on it are thin."""
    scale = _SIDE / max(pixels.shape)
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    eight = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    large = np.asarray(cv2.resize(np.ascontiguousarray(eight), size, interpolation=cv2.INTER_LINEAR), np.uint8)
    return large if large.ndim == 3 else np.repeat(large[..., None], 3, axis=2)


def shown(view: NDArray[Any], data: DataSettings, at: Sequence[int] | None = None) -> NDArray[Any]:
    """Return channels (C, S, S) as a tile's pixels: (S, S, 3) uint8 for rgb, or the mean of bands; see `displayed`."""
    pixels = displayed(view, rgb=data.channels == "rgb", at=at)
    return (pixels >> 8).astype(np.uint8) if pixels.ndim == 3 and pixels.dtype == np.uint16 else pixels


def write_picture(lines: Sequence[Sequence[Tile]], out: Path) -> None:
    """Write a PNG with lines of tiles.

    Raises:
        SettingsError: the file cannot be written.
    """
    height, width = len(lines), max(map(len, lines))
    longest = max(tile.caption.count("\n") + 1 for line in lines for tile in line)
    row = _INCHES + _LINE * longest + _GAP
    figure = Figure(figsize=(_INCHES * width, row * height), dpi=_RESOLUTION)
    for y, line in enumerate(lines):
        for x, tile in enumerate(line):
            axes = figure.add_axes((x / width, 1 - (y + 1) / height, 0.97 / width, _INCHES / row / height))
            axes.set_axis_off()
            axes.set_title(tile.caption, fontsize=7.5, pad=2)
            axes.imshow(tile.pixels, cmap="gray", vmin=0, vmax=np.iinfo(tile.pixels.dtype).max)
            if tile.overlay is not None:
                opacity = np.interp(tile.overlay, (0, 1), (_LOWEST_OPACITY, _HIGHEST_OPACITY))
                axes.imshow(tile.overlay, cmap="inferno", vmin=0, vmax=1, alpha=opacity)
            if tile.outlined is not None:
                _outline(axes, tile.outlined, tile.pixels.shape[0])
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, format="png")
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}") from None


def _outline(axes: Axes, places: NDArray[np.bool_], size: int) -> None:
    height, width = size / places.shape[0], size / places.shape[1]
    for y, x in np.argwhere(places):
        corner = (x * width - 0.5, y * height - 0.5)  # the centre of the first pixel is at 0
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="cyan", linewidth=0.8))


def positives(split: Split, position: int) -> str:
    """Return the positive labels of a row as text, with at most two names."""
    values = split.labels[position]
    names = [name for name, value in zip(split.label_names, values, strict=True) if value == 1]
    if names:
        return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
    if not len(values) or np.isnan(values).all():
        return "no known label"
    return "no positive label"
