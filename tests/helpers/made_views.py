"""Views of fixed images, to be compared between CPUs: `python -m tests.helpers.made_views FILE.npz`."""

from __future__ import annotations

import sys

import numpy as np

from medmoco.config import RECIPES, ViewSettings
from medmoco.data.augment.noise import noise_tile
from medmoco.data.augment.parameters import ViewParameters
from medmoco.data.augment.views import draw, render, toned, whole_view
from medmoco.data.augment.warps import geometry_of
from medmoco.data.image_io.images import Canvas, to_canvas
from medmoco.data.image_io.intensity import GrayImage
from medmoco.utils.rng import permutation

IMAGES, SIZE = 12, 64
GRAY = ("moco_cxr", "moco_v1", "moco_v2", "xray")


def pattern(height: int, width: int, dtype: type, *, bend: int = 0) -> np.ndarray:
    """Return an image with edges and slopes that is made of whole numbers alone."""
    y, x = np.mgrid[:height, :width]
    return (((x * (7 + bend) + y * 13 + x * y // 5) % 251) * (np.iinfo(dtype).max // 255)).astype(dtype)


def canvases(dtype: type, *, channels: int = 1) -> list[Canvas]:
    """Return images of several shapes, in the corner of a square."""
    made = []
    for image in range(IMAGES):
        planes = [pattern(200, 140 + image, dtype, bend=image + plane) for plane in range(channels)]
        pixels = np.zeros((200, 200, channels), dtype)
        pixels[:, : 140 + image] = np.stack(planes, axis=-1)
        made.append(Canvas(pixels if channels > 1 else pixels[..., 0], 200, 140 + image, rgb=channels == 3))
    return made


def drawn(recipe: str, images: list[Canvas]) -> tuple[ViewSettings, ViewParameters]:
    """Draw with everything that the recipe leaves out by default as well."""
    also = {"recipe": recipe, "size": SIZE, "cutout_probability": 0.5}
    settings = ViewSettings(**{**RECIPES[recipe], **also})
    return settings, draw(settings, images, seed=3, epoch=1, samples=np.arange(len(images)), view=0)


def numbers() -> dict[str, np.ndarray]:
    """Return what decides a view: all that is drawn, and where it looks."""
    made = {"order": permutation(1, 2, length=1000), "tile": noise_tile()}
    images = canvases(np.uint8)
    for recipe in RECIPES:
        settings, parameters = drawn(recipe, images)
        made |= {f"{recipe} {name}": values for name, values in vars(parameters).items()}
        geometry = geometry_of(parameters, images, settings.size)
        made |= {f"{recipe} matrices": geometry.matrices, f"{recipe} boxes": np.array(geometry.boxes)}
    return made


def pictures() -> dict[str, np.ndarray]:
    """Return canvases and views."""
    made = {}
    for dtype in (np.uint8, np.uint16):
        images, name = canvases(dtype), np.dtype(dtype).name
        for recipe in GRAY:
            settings, parameters = drawn(recipe, images)
            (made[f"{name} {recipe}"],) = render(settings, images, [parameters])
        made[f"{name} toned"] = toned(images, parameters)
        made[f"{name} whole"] = whole_view(images[0], 40)
        film = GrayImage(pattern(300, 211, dtype), 8 * np.dtype(dtype).itemsize, ())
        made[f"{name} canvas"] = to_canvas(film, 64, 8).pixels
        colours = canvases(dtype, channels=3)
        settings, parameters = drawn("moco_v2", colours)
        (made[f"{name} colours"],) = render(settings, colours, [parameters])
    return made


if __name__ == "__main__":
    np.savez(sys.argv[1], **numbers(), **pictures())
