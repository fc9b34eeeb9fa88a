"""Weights of a view's pixels in the decoder's loss, where empty space counts less.

Weights are images too: they are made on the canvas and then warped with the same geometry as the view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medmoco.config import DataSettings, DecoderSettings
from medmoco.data.augment.parameters import ViewParameters
from medmoco.data.augment.views import Pixels, render_weights
from medmoco.data.image_io.images import Canvas, read_canvas
from medmoco.data.manifest.file_checks import check_files
from medmoco.data.manifest.manifest import Split, require_column
from medmoco.data.manifest.tables.paths import path_fault, relative, slashed
from medmoco.errors import ImageError, ManifestError

Samples = NDArray[np.int64]


def masks_of(split: Split, data: DataSettings, decoder: DecoderSettings) -> Split | None:
    """Return the rows of a split with their masks instead of their images; None if no mask column is set.

    Raises:
        ManifestError: the column is missing, or a Path in it is blank or leaves the root.
    """
    if decoder.mask is None:
        return None
    require_column(split, decoder.mask, "decoder.mask names")
    paths = relative(slashed(split.table[decoder.mask].astype(str).tolist()), data.root, split.name)
    faults = np.array([path_fault(path) for path in paths], dtype=object)
    if (faults != "").any():
        row = int(np.argmax(faults != ""))
        raise ManifestError(
            f"{split.csv.name} row {split.rows[row]}: in column {decoder.mask}, {faults[row]}\n"
            f"({(faults != '').sum()} rows of {len(split)})"
        )
    root = data.root.replace("{split}", split.name)
    files = np.array([f"{root}/{path.strip()}" for path in paths], dtype=split.files.dtype)
    return replace(split, files=files)


def check_masks(split: Split, data: DataSettings, decoder: DecoderSettings) -> None:
    """Raise ManifestError if a mask column is set and a row has no mask."""
    masks = masks_of(split, data, decoder)
    if masks is not None:
        check_files(masks, data, column=decoder.mask or "")


class Emptiness:
    """Makes the pixel weights of views of a split's images."""

    def __init__(self, split: Split, data: DataSettings, decoder: DecoderSettings) -> None:
        """Look up the masks, if a mask column is set.

        Raises:
            ManifestError: see `masks_of`.
        """
        self._decoder = decoder
        self._masks = masks_of(split, data, decoder)
        # Masks are gray whatever their images are, have no window, and are read at 8 bits, which every file has.
        plain = {"channels": "gray", "scale": "linear", "band_ranges": None, "window": "full", "bit_depth": 8}
        self._data = data.model_copy(update=plain)

    def weights(self, canvases: Sequence[Canvas], samples: Samples, params: ViewParameters, size: int) -> Pixels:
        """Return 255 where pixels of a view count, and 0 where they show empty space.

        Args:
            canvases: B images.
            samples: (B,) positions of these images in the split.
            params: Parameters of their views.
            size: Side S of the views, in pixels.

        Returns:
            (B, 1, S, S) uint8.

        Raises:
            ImageError: a mask cannot be read, or differs from its image in shape.
        """
        counting = [self._counting(canvas, int(sample)) for canvas, sample in zip(canvases, samples, strict=True)]
        return render_weights(counting, params, size, reflect=self._decoder.empty != "outside")

    def _counting(self, canvas: Canvas, sample: int) -> Canvas:
        """Return a canvas with 255 where pixels count and 0 where they are empty."""
        if self._masks is not None:
            return self._mask(canvas, self._masks, sample)
        counts = np.full(canvas.pixels.shape[:2], 255, np.uint8)
        if self._decoder.empty == "threshold":
            white = np.iinfo(canvas.pixels.dtype).max
            dark = canvas.pixels <= self._decoder.threshold * white
            counts[dark if dark.ndim == 2 else dark.all(-1)] = 0  # a pixel of several bands is empty if all bands are
        return replace(canvas, pixels=counts)

    def _mask(self, canvas: Canvas, masks: Split, sample: int) -> Canvas:
        cell = f"{masks.csv.name} row {masks.rows[sample]}, column {self._decoder.mask}"
        try:
            mask, _ = read_canvas(masks.files[sample], 1, self._data)
        except ImageError as error:
            raise ImageError(f"{cell}: {error}") from None
        if (mask.height, mask.width) != (canvas.height, canvas.width):
            raise ImageError(
                f"{cell}: the mask differs from its image in shape: {mask.width} x {mask.height} pixels on the canvas,"
                f" the image {canvas.width} x {canvas.height}"
            )
        return replace(mask, pixels=np.where(mask.pixels > 127, 255, 0).astype(np.uint8))
