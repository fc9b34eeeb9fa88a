"""Draw a few images and the views that training makes of them, for visual inspection."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.config import ConfigSource, RunSettings, load
from medmoco.data.augment.color import displayed
from medmoco.data.augment.views import Pixels
from medmoco.data.image_io.images import Canvas
from medmoco.data.loading.loading import check_images, maker_of, read_canvases, trained_rows, whole_maker
from medmoco.data.loading.pairs import Partners
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.errors import SettingsError
from medmoco.utils.files import PathLike

_GAP = 4  # pixels between tiles
_LABEL_WIDTH = 96

Samples = NDArray[np.int64]
Picture = NDArray[np.uint8]


def preview(config: ConfigSource, out: PathLike, *, images: int = 6, views: int = 6, split: str = "train") -> Path:
    """Write a PNG with one line per image: its row number, the whole image, and its views of epochs 0, 1, ...

    The picture shows patients, so it is written only on request.

    Args:
        config: See `load_config`.
        out: PNG file; its folder is created, and an existing file is replaced.
        images: Number of lines, spread evenly over the split; fewer if the split has fewer rows.
        views: Views per image, alternating between query and key encoder; a key's view is of the partner if keys are of
            another image of the patient.
        split: Name of the split.

    Returns:
        The file.

    Raises:
        SettingsError: the file cannot be written.
        DataError: a row or an image cannot be used.

    Examples:
        >>> import medmoco
        >>> medmoco.preview("config.yaml", "views.png", images=2, views=4).name
        'views.png'
    """
    settings, out = load(config), Path(out)
    rows = trained_rows(load_manifest(settings.data, (split,))[split], settings.data)
    samples = rows.spread(images)
    shown = _images_of_views(settings, rows, samples, views)
    to_read = np.unique(np.concatenate([samples, *shown]))
    selected = rows.select(to_read)
    check_images(selected, settings.data)
    canvases, _ = read_canvases(selected, np.arange(len(selected)), settings)
    tiles = _tiles(settings, canvases, to_read, samples, shown)
    lines = [
        np.concatenate([_label(f"row {row}", line[0].shape), *map(_framed, line)], axis=1)
        for row, line in zip(rows.rows[samples], tiles, strict=True)
    ]
    _write_png(np.concatenate(lines), out)
    return out


def _images_of_views(settings: RunSettings, split: Split, samples: Samples, views: int) -> list[Samples]:
    """Return the images of each view: the samples, and for every other view their partners if keys are of those."""
    if settings.positives.image == "same":
        return [samples] * views
    partners = Partners(split, settings.positives, settings.seed)
    return [partners.of(samples, number // 2) if number % 2 else samples for number in range(views)]


def _tiles(
    settings: RunSettings, canvases: list[Canvas], read: Samples, samples: Samples, shown: list[Samples]
) -> list[list[Picture]]:
    """Return for each sample the whole image and its views, as pictures in uint8; see `displayed`.

    `read` (N,) are the positions of the canvases, ascending; `samples` and for each view `shown` (B,) those of images.
    """
    places, maker = [np.searchsorted(read, of_view) for of_view in shown], maker_of(settings.data)
    params = [
        maker.draw(
            settings.views, [canvases[i] for i in of_view], seed=settings.seed, epoch=number // 2,
            samples=read[of_view], view=number % 2,
        )
        for number, of_view in enumerate(places)
    ]  # fmt: skip
    made = maker.render(settings.views, canvases, params, places)
    own = [canvases[i] for i in np.searchsorted(read, samples)]
    wholes = whole_maker(settings.data.dimensions, settings.views.size, "resized")(own, samples)
    return [
        [_tile(planes, rgb=own[0].rgb) for planes in (seen, *(view[i] for view in made))]
        for i, seen in enumerate(wholes)
    ]


def _tile(planes: Pixels, *, rgb: bool) -> Picture:
    """Return channels (C, size, size) as a picture, (size, size), or (size, size, 3) for colour images."""
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
