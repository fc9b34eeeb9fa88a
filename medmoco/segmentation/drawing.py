"""Draw true and predicted contours on a few images. The picture shows patients, so it is written on request only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.config import DataSettings
from medmoco.data.augment.color import displayed
from medmoco.data.augment.views import channels_first
from medmoco.plotting.pictures import Tile, write_picture
from medmoco.segmentation.annotated.cases import Annotated, Case
from medmoco.segmentation.annotated.grids import Numbers, onto_canvas
from medmoco.segmentation.masks.masks import IGNORED

_TRUTH, _FOUND = (86, 180, 233), (230, 159, 0)  # sky blue and orange, which are safe for colour-blind readers
_SIDE = 240  # pixels of a tile, about its size in the picture
_LINE = 2  # pixels, so that resampling does not lose a line
_IMAGES = 8
_COLUMNS = 4  # of images; a volume takes a line of three slices

Picture = NDArray[np.uint8]


def draw_contours(annotated: Annotated, predicted: Sequence[Numbers], data: DataSettings, out: Path) -> None:
    """Write a picture of a few images of a split, evenly spaced among those that show a class.

    Volumes are shown as three slices through the middle of their mask: to the patient's axes x, y and z.

    Args:
        annotated: N images.
        predicted: N predicted masks, on the images' own grids.
        data: Data settings.
        out: PNG file to write or replace.

    Raises:
        SettingsError: it cannot be written.
    """
    shown = [position for position, case in enumerate(annotated.cases) if case.places] or list(range(len(annotated)))
    places = np.unique(np.linspace(0, len(shown) - 1, _IMAGES).astype(int)).tolist()
    lines = []
    for position in (shown[place] for place in places):
        case = annotated.cases[position]
        found = onto_canvas(predicted[position], case.grid, case.numbers.shape)
        row = f"row {annotated.rows.split.rows[position]}"
        lines.append([_tile(*slice_, row) for slice_ in _slices(case, found, data)])
    if data.dimensions == 2:
        tiles = [tile for line in lines for tile in line]
        lines = [tiles[start : start + _COLUMNS] for start in range(0, len(tiles), _COLUMNS)]
    write_picture(lines, out)


def _slices(case: Case, found: Numbers, data: DataSettings) -> list[tuple[Picture, Numbers, Numbers]]:
    """Return gray levels, true and predicted class numbers of the slices to show, as a viewer displays them."""
    pixels = case.canvas.pixels
    if data.dimensions == 2:
        part = tuple(slice(0, side) for side in case.grid.size)
        seen = displayed(channels_first([pixels[part]])[0], rgb=case.canvas.rgb)
        return [(_eight(seen), case.numbers[part], found[part])]
    middle = case.places[0].mean(0).astype(int) if case.places else np.array(found.shape) // 2
    return [
        (
            _eight(_upright(pixels.take(at, axis))),
            _upright(case.numbers.take(at, axis)),
            _upright(found.take(at, axis)),
        )
        for axis, at in enumerate(middle.tolist())
    ]


def _upright(plane: NDArray[Any]) -> NDArray[Any]:
    """Return a slice with its second axis upwards, as both axes grow to the right, the front or the head."""
    return plane.T[::-1]


def _eight(pixels: NDArray[Any]) -> Picture:
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)


def _tile(pixels: Picture, truth: Numbers, found: Numbers, row: str) -> Tile:
    """Return an enlarged slice with the contours of every class."""
    scale = _SIDE / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    large: Picture = np.asarray(
        cv2.resize(np.ascontiguousarray(pixels), size, interpolation=cv2.INTER_LINEAR), np.uint8
    )
    if large.ndim == 2:
        large = np.repeat(large[..., None], 3, axis=2)
    for numbers, colour in ((truth, _TRUTH), (found, _FOUND)):
        for value in np.unique(numbers).tolist():
            if value in (0, IGNORED):
                continue
            own = np.ascontiguousarray(numbers == value).astype(np.uint8)
            enlarged = cv2.resize(own, size, interpolation=cv2.INTER_NEAREST)
            contours, _ = cv2.findContours(enlarged, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(large, contours, -1, colour, _LINE)
    return Tile(large, f"{row}\nmask (blue), predicted (orange)")
