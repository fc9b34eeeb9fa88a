"""Images of a few rows, side by side and captioned. They show patients: written only where someone asked for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from medmoco.config import DataSettings, RunSettings
from medmoco.data.augment.color import displayed
from medmoco.data.loading.loading import read_canvases, whole_views
from medmoco.data.manifest.manifest import Split
from medmoco.errors import SettingsError

_INCHES, _LINE, _GAP = 1.9, 0.15, 0.1  # side of a tile; height of a line of text above it, and of what is above that
_RESOLUTION = 120  # pixels per inch
_SEEN_FROM, _STRONGEST = 0.0, 0.6  # opacity of a map where it is 0 and 1, so that the image shows through


@dataclass(frozen=True)
class Tile:
    """One image of a picture.

    Attributes:
        pixels: (S, S) uint8 or uint16, or (H, W, 3) uint8 in colour.
        caption: A few short lines.
        overlay: (S, S), 0 to 1, drawn in colour over the pixels.
        outlined: (h, w) true where a place of a grid over the whole image gets a frame.
    """

    pixels: NDArray[Any]
    caption: str
    overlay: NDArray[np.floating[Any]] | None = None
    outlined: NDArray[np.bool_] | None = None


def read_views(split: Split, positions: NDArray[np.int64], settings: RunSettings) -> NDArray[Any]:
    """Return the whole-image views of a few rows as encoders see them, (B, C, S, S) uint8 or uint16.

    Raises:
        DataError: an image cannot be used.
    """
    canvases, _ = read_canvases(split, positions, settings)
    return whole_views(canvases, positions, size=settings.evaluate.size or settings.views.size)


def shown(view: NDArray[Any], data: DataSettings) -> NDArray[Any]:
    """Return channels (C, S, S) as a tile's pixels: colours as (S, S, 3) uint8, bands as their mean."""
    pixels = displayed(view, rgb=data.channels == "rgb")
    return (pixels >> 8).astype(np.uint8) if pixels.ndim == 3 and pixels.dtype == np.uint16 else pixels


def write_picture(lines: Sequence[Sequence[Tile]], out: Path) -> None:
    """Write a PNG with one line of tiles after the other.

    Raises:
        SettingsError: the file cannot be written.
    """
    height, width = len(lines), max(map(len, lines))
    longest = max(tile.caption.count("\n") + 1 for line in lines for tile in line)
    row = _INCHES + _LINE * longest + _GAP
    figure = Figure(figsize=(_INCHES * width, row * height), dpi=_RESOLUTION)
    for y, line in enumerate(lines):
        for x, tile in enumerate(line):
            place = (x / width, 1 - (y + 1) / height, 0.97 / width, _INCHES / row / height)
            axes = figure.add_axes(place)
            axes.set_axis_off()
            axes.set_title(tile.caption, fontsize=7.5, pad=2)
            axes.imshow(tile.pixels, cmap="gray", vmin=0, vmax=np.iinfo(tile.pixels.dtype).max)
            if tile.overlay is not None:
                opacity = np.interp(tile.overlay, (0, 1), (_SEEN_FROM, _STRONGEST))
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
        corner = (x * width - 0.5, y * height - 0.5)  # the middle of the first pixel is 0
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="cyan", linewidth=0.8))


def positives(split: Split, position: int) -> str:
    """Say which labels of a row are positive: at most two by name."""
    values = split.labels[position]
    names = [name for name, value in zip(split.label_names, values, strict=True) if value == 1]
    if names:
        return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
    if not len(values) or np.isnan(values).all():
        return "no label known"
    return "no label positive"
