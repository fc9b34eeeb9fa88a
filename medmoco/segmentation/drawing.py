"""Draw true and predicted contours on a few images. The picture shows patients, so it is written on request only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.config import DataSettings
from medmoco.data.augment.color import displayed, three_slices
from medmoco.data.augment.views import channels_first
from medmoco.plotting.pictures import FOUND, TRUTH, Tile, enlarged, write_picture
from medmoco.segmentation.annotated.cases import Annotated, Case
from medmoco.segmentation.annotated.grids import onto_canvas
from medmoco.segmentation.masks.masks import IGNORED, Numbers

_LINE = 2  # pixels, so that resampling does not lose a line
_IMAGES = 8
_COLUMNS = 4  # of images; a volume takes a line of three slices

Picture = NDArray[Any]  # of gray levels or colours


def choose(annotated: Annotated) -> list[int]:
    """Return the positions of the images to show, evenly spaced among those that show a class."""
    shown = [position for position, case in enumerate(annotated.cases) if case.places] or list(range(len(annotated)))
    places = np.unique(np.linspace(0, len(shown) - 1, _IMAGES).astype(int)).tolist()
    return [shown[place] for place in places]


def draw_contours(annotated: Annotated, predicted: Mapping[int, Numbers], data: DataSettings, out: Path) -> None:
    """Write a picture of a few images of a split; volumes are shown as three slices through the middle of a class.

    Args:
        annotated: N images.
        predicted: Predicted masks by the position of their image, on the images' own grids.
        data: Data settings.
        out: PNG file to write or replace.

    Raises:
        SettingsError: it cannot be written.
    """
    lines = []
    for position, numbers in predicted.items():
        case = annotated.cases[position]
        found = onto_canvas(numbers, case.grid, case.numbers.shape)
        row = f"row {annotated.rows.split.rows[position]}"
        lines.append([_tile(*slice_, row) for slice_ in _slices(case, found, data)])
    if data.dimensions == 2:
        tiles = [tile for line in lines for tile in line]
        lines = [tiles[start : start + _COLUMNS] for start in range(0, len(tiles), _COLUMNS)]
    write_picture(lines, out)


def _slices(case: Case, found: Numbers, data: DataSettings) -> list[tuple[Picture, Numbers, Numbers]]:
    """Return gray levels or colours, true and predicted class numbers of the slices to show."""
    pixels = case.canvas.pixels
    if data.dimensions == 2:
        part = tuple(slice(0, side) for side in case.grid.size)
        seen = displayed(channels_first([pixels[part]])[0], rgb=case.canvas.rgb)
        return [(seen, case.numbers[part], found[part])]
    middle = case.places[0].mean(0).astype(int).tolist() if case.places else None
    return list(zip(*(three_slices(one, middle) for one in (pixels, case.numbers, found)), strict=True))


def _tile(pixels: Picture, truth: Numbers, found: Numbers, row: str) -> Tile:
    """Return an enlarged slice with the contours of every class."""
    picture = enlarged(pixels)
    for numbers, colour in ((truth, TRUTH), (found, FOUND)):
        for value in np.unique(numbers).tolist():
            if value in (0, IGNORED):
                continue
            own = np.ascontiguousarray(numbers == value).astype(np.uint8)
            large = cv2.resize(own, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
            contours, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
            cv2.drawContours(picture, contours, -1, colour, _LINE)
    return Tile(picture, f"{row}\nmask (blue), predicted (orange)")
