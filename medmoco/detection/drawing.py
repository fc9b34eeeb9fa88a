"""Draw true boxes and detections on a few images. The picture shows patients, so it is written on request only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.config import RunSettings
from medmoco.data.augment.color import displayed
from medmoco.data.augment.views import channels_first
from medmoco.data.loading.loading import read_canvases
from medmoco.detection.boxes import Annotated, Corners
from medmoco.detection.learning import Detections
from medmoco.plotting.pictures import FOUND, TRUTH, Tile, enlarged, write_picture

_LINE = 2  # pixels, so that resampling does not lose a line
_COLUMNS, _IMAGES = 4, 8
_SHOWN = 3  # detections per image, by highest score

Picture = NDArray[np.uint8]


def draw_detections(
    annotated: Annotated, detections: Detections, labels: Sequence[str], settings: RunSettings, out: Path
) -> None:
    """Write a picture of a few images of a split, evenly spaced among those with boxes and those without.

    Raises:
        SettingsError: `out`, a PNG file, cannot be written.
        DataError: an image cannot be used.
    """
    positions = choose(annotated)
    canvases, _ = read_canvases(annotated.split, positions, settings)
    tiles = []
    for position, canvas in zip(positions.tolist(), canvases, strict=True):
        image = canvas.pixels[: canvas.height, : canvas.width]
        seen = displayed(channels_first([image])[0], rgb=canvas.rgb)
        found = np.flatnonzero(detections.images == position)
        best = found[np.argsort(-detections.scores[found], kind="stable")][:_SHOWN]
        truth = annotated.boxes_of(position)
        picture = enlarged(seen)
        scale = np.array(picture.shape[1::-1]) / annotated.sizes[position][::-1]
        paint(picture, annotated.corners[truth] * np.tile(scale, 2), TRUTH)
        paint(picture, detections.corners[best] * np.tile(scale, 2), FOUND)
        found_words = "nothing found"
        if best.size:  # name only the best: the tile is too narrow for all names
            scores = ", ".join(f"{value:.2f}" for value in detections.scores[best])
            found_words = f"{labels[detections.labels[best[0]]][:20]} {scores}"
        caption = f"row {annotated.split.rows[position]}, {truth.stop - truth.start} true (blue)"
        tiles.append(Tile(picture, f"{caption}\n{found_words}"))
    write_picture([tiles[start : start + _COLUMNS] for start in range(0, len(tiles), _COLUMNS)], out)


def choose(annotated: Annotated) -> NDArray[np.int64]:
    """Return the positions of the images to show: three quarters have boxes, if there are enough of both."""
    has_box = np.isin(np.arange(len(annotated)), annotated.images)
    sick, well = np.flatnonzero(has_box), np.flatnonzero(~has_box)
    count_well = min(len(well), max(_IMAGES // 4, _IMAGES - len(sick)))
    count_sick = min(len(sick), _IMAGES - count_well)
    parts = [(sick, count_sick), (well, count_well)]
    chosen = [part[np.linspace(0, len(part) - 1, count).astype(np.int64)] for part, count in parts if count]
    return np.concatenate(chosen)


def paint(picture: Picture, corners: Corners, colour: tuple[int, int, int]) -> None:
    """Draw boxes, in pixels of the picture, on it."""
    for x_min, y_min, x_max, y_max in np.rint(corners).astype(int).tolist():
        cv2.rectangle(picture, (x_min, y_min), (x_max - 1, y_max - 1), colour, _LINE)
