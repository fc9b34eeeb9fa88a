"""Elongated images: a canvas keeps their proportions, and so fewer pixels of their shorter side than a view has."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from medmoco.config import RunSettings
from medmoco.data.image_io.images import size_in_header
from medmoco.data.manifest.manifest import Split
from medmoco.data.pack.pack import open_pack
from medmoco.data.pack.pack_cache import local_folder

Sizes = NDArray[np.integer]

ELONGATED = 1.6
"""Ratio of the sides above which an image is elongated; 3:2 and the golden ratio are not."""

_SAMPLE = 32  # images whose size is read
_STEP = 16  # recommended canvases are multiples of it
_MOST = 4096  # pixels of a canvas; Source: data.canvas_size


def least_canvas(size: int, ratio: float) -> int:
    """Return the smallest canvas that keeps `size` pixels of the shorter side of images with this ratio of sides."""
    return min(_MOST, _STEP * math.ceil(size * ratio / _STEP))


def elongation(sizes: Sizes, settings: RunSettings) -> str:
    """Return a warning if most images are elongated and the canvas is too small for them; blank if not.

    Args:
        sizes: (N, 2) heights and widths in pixels, of files or of images on canvases.
        settings: Their canvas and views.
    """
    if not len(sizes):
        return ""
    canvas, view = settings.data.canvas_size, max(settings.views.size, settings.evaluate.size or 0)
    ratio = float(np.median(sizes.max(axis=1) / np.maximum(sizes.min(axis=1), 1)))
    kept, larger = round(canvas / ratio), least_canvas(view, ratio)
    if ratio <= ELONGATED or kept >= view or larger <= canvas:
        return ""
    return (
        f"most images are elongated, the median ratio of their sides is {ratio:.1f}: of the shorter side, a canvas of"
        f" {canvas} keeps {kept} pixels, which views of {view} x {view} enlarge; set data.canvas_size={larger}"
    )


def training_elongation(split: Split, settings: RunSettings) -> str:
    """Return the warning of `elongation` for a split, from a few images in its pack or the headers of a few files.

    Raises:
        SettingsError, DataError: the pack cannot be used.
    """
    data = settings.data
    if data.dimensions == 3:  # their views have the spacing of the canvas, whatever its shape
        return ""
    few = split.select(split.spread(_SAMPLE))
    if data.pack:
        pack = open_pack(local_folder(data), data)
        records = pack.index[pack.find(few, data)]
        return elongation(np.stack([records["height"], records["width"]], axis=1), settings)
    found = [size for file in few.files if (size := size_in_header(file))]
    return elongation(np.array(found).reshape(-1, 2), settings)
