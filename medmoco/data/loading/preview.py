"""A picture of a few images and the views that training makes of them, for a person to judge."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.config import RunSettings
from medmoco.data.augment.color import displayed
from medmoco.data.augment.views import Pixels, channels_first, draw, render, whole
from medmoco.data.image_io.images import Canvas
from medmoco.data.loading.loading import check_images, read_canvases, trained_rows
from medmoco.data.loading.pairs import Partners
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.errors import SettingsError

_GAP = 4  # pixels between tiles
_LABEL_WIDTH = 96

Samples = NDArray[np.int64]
Picture = NDArray[np.uint8]


def preview(settings: RunSettings, out: Path, *, images: int = 6, views: int = 6, split: str = "train") -> Path:
    """Write one PNG: per line an image's row number, the whole image, then its views of epochs 0, 1, ...

    The picture shows patients; it is written only because someone asked for it.

    Args:
        settings: Of the run.
        out: PNG file; its folder is made, a file of that name replaced.
        images: Lines, evenly spread over the split; fewer where it has fewer.
        views: Per image, in turn what the query and the key encoder would see, the latter of its partner where keys are
            of another image of the patient.
        split: Name in the manifest.

    Raises:
        SettingsError: the file cannot be written.
        DataError: a row or an image cannot be used.
    """
    found = trained_rows(load_manifest(settings.data, (split,))[split], settings.data)
    samples = np.unique(np.linspace(0, len(found) - 1, images).astype(np.int64))
    shown = _images_of_views(settings, found, samples, views)
    wanted = np.unique(np.concatenate([samples, *shown]))
    few = found.select(wanted)
    check_images(few, settings.data)
    canvases, _ = read_canvases(few, np.arange(len(few)), settings)
    tiles = _tiles(settings, canvases, wanted, samples, shown)
    lines = [
        np.concatenate([_label(f"row {row}", line[0].shape), *map(_framed, line)], axis=1)
        for row, line in zip(found.rows[samples], tiles, strict=True)
    ]
    _write_png(np.concatenate(lines), out)
    return out


def _images_of_views(settings: RunSettings, split: Split, samples: Samples, views: int) -> list[Samples]:
    """Return for each view which images it is of: where keys are of partners, every other one of those."""
    if settings.positives.image == "same":
        return [samples] * views
    partners = Partners(split, settings.positives, settings.seed)
    return [partners.of(samples, number // 2) if number % 2 else samples for number in range(views)]


def _tiles(
    settings: RunSettings, canvases: list[Canvas], read: Samples, samples: Samples, shown: list[Samples]
) -> list[list[Picture]]:
    """Return per image the whole of it and its views, each (size, size) uint8, or (size, size, 3) of colours.

    Args:
        settings: Of the run.
        canvases: N images.
        read: (N,) which they are, in rising order.
        samples: (B,) those that have a line.
        shown: For each view (B,) the images that it is of.
    """
    places = [np.searchsorted(read, of_view) for of_view in shown]
    drawn = [
        draw(
            settings.views, [canvases[i] for i in of_view], seed=settings.seed, epoch=number // 2,
            samples=read[of_view], view=number % 2,
        )
        for number, of_view in enumerate(places)
    ]  # fmt: skip
    made = render(settings.views, canvases, drawn, places)
    own = [canvases[i] for i in np.searchsorted(read, samples)]
    wholes = channels_first([whole(canvas, settings.views.size) for canvas in own])
    return [
        [_tile(planes, rgb=own[0].rgb) for planes in (seen, *(view[i] for view in made))]
        for i, seen in enumerate(wholes)
    ]


def _tile(planes: Pixels, *, rgb: bool) -> Picture:
    """Return channels (C, size, size) as a picture, (size, size), or (size, size, 3) of colours."""
    pixels = displayed(planes, rgb=rgb)
    return (pixels // 257 if pixels.dtype == np.uint16 else pixels).astype(np.uint8)


def _framed(tile: Picture) -> Picture:
    return np.pad(tile, [(_GAP // 2, _GAP // 2)] * 2 + [(0, 0)] * (tile.ndim - 2))


def _label(text: str, shape: tuple[int, ...]) -> Picture:
    strip = np.zeros((shape[0], _LABEL_WIDTH, *shape[2:]), np.uint8)
    white = (255,) * (3 if len(shape) == 3 else 1)
    cv2.putText(strip, text, (4, shape[0] // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.5, white, 1, cv2.LINE_AA)
    return _framed(strip)


def _write_png(picture: Picture, out: Path) -> None:
    _, encoded = cv2.imencode(".png", picture[..., ::-1] if picture.ndim == 3 else picture)  # OpenCV writes BGR
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(encoded.tobytes())
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}") from None
