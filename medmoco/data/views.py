"""Canvas -> augmented view: one warp, one separable blur, one point-wise table, then noise and cut-out.

Every random parameter is drawn for a whole batch at once from (seed, epoch, sample, view, parameter), see `order.py`;
the pixels are then made image by image, which beats every batched formulation on a CPU (benchmarks/views.py). Order and
distributions are torchvision's (RandomResizedCrop, ColorJitter, GaussianBlur) with these deviations: crop, flip and
rotation are one resampling; a crop that does not fit is clamped to the image instead of drawn again; brightness,
contrast and gamma come in fixed order; blur comes before them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.config import ViewSettings
from medmoco.data.images import Canvas
from medmoco.data.order import VIEW, uniform

Pixels = NDArray[Any]  # uint8 or uint16; OpenCV's stubs cannot tell
Floats = NDArray[np.float64]

# The number of a parameter is part of its random stream: append, never reorder.
_PARAMETERS = (
    "area", "ratio", "left", "top", "flip", "angle", "jitter", "brightness", "contrast", "gamma", "blur", "sigma",
    "noise", "noise_std", "noise_x", "noise_y", "cutout", "cutout_area", "cutout_ratio", "cutout_x", "cutout_y",
)  # fmt: skip

REFERENCE_SIZE = 224  # views.blur_sigma and views.noise are meant for a view this large
_TILE, _TILE_STD = 1024, 32.0  # side and standard deviation of the fixed noise that views take windows from


@dataclass(frozen=True)
class ViewParameters:
    """What was drawn for B views; every array is (B,)."""

    centre_x: Floats  # pixels of the canvas
    centre_y: Floats
    width: Floats
    height: Floats
    mirrored: NDArray[np.bool_]
    angle: Floats  # radians
    brightness: Floats  # factor
    contrast: Floats  # factor, about the image's mean
    gamma: Floats  # exponent
    sigma: Floats  # pixels of the view, 0 is no blur
    noise: Floats  # standard deviation as a share of white, 0 is none
    noise_at: NDArray[np.int64]  # (B, 2), corner of the window in the noise tile
    cutout: NDArray[np.int64]  # (B, 4), x0 y0 x1 y1 in pixels of the view, all 0 is none


def draw(
    settings: ViewSettings, canvases: Sequence[Canvas], *, seed: int, epoch: int, samples: NDArray[np.int64], view: int
) -> ViewParameters:
    """Draw one view's parameters for each of B canvases.

    Args:
        settings: The recipe.
        canvases: The B images; only their valid heights and widths matter here.
        seed: Of the run.
        epoch: From 0.
        samples: (B,) positions in the split.
        view: 0 for the query, 1 for the key.
    """
    u = {name: uniform(seed, VIEW, epoch, samples, view, number) for number, name in enumerate(_PARAMETERS)}
    valid_width = np.array([canvas.width for canvas in canvases], np.float64)
    valid_height = np.array([canvas.height for canvas in canvases], np.float64)

    area = _between(u["area"], settings.crop_scale) * valid_width * valid_height
    ratio = np.exp(_between(u["ratio"], np.log(settings.crop_ratio)))
    width = np.minimum(np.sqrt(area * ratio), valid_width)
    height = np.minimum(np.sqrt(area / ratio), valid_height)

    jittered = u["jitter"] < settings.jitter_probability
    blurred = u["blur"] < settings.blur_probability
    noisy = u["noise"] < settings.noise_probability
    detail = settings.size / REFERENCE_SIZE
    windows = max(_TILE - settings.size, 0) + 1
    return ViewParameters(
        centre_x=width / 2 + u["left"] * (valid_width - width),
        centre_y=height / 2 + u["top"] * (valid_height - height),
        width=width,
        height=height,
        mirrored=u["flip"] < settings.flip_probability,
        angle=np.deg2rad(_around_zero(u["angle"], settings.rotation)),
        brightness=1 + jittered * _around_zero(u["brightness"], settings.brightness),
        contrast=1 + jittered * _around_zero(u["contrast"], settings.contrast),
        gamma=np.exp(jittered * _around_zero(u["gamma"], settings.gamma)),
        sigma=np.where(blurred, _between(u["sigma"], settings.blur_sigma) * detail, 0.0),
        noise=np.where(noisy, u["noise_std"] * settings.noise * detail, 0.0),
        noise_at=(np.stack([u["noise_x"], u["noise_y"]], 1) * windows).astype(np.int64),
        cutout=_draw_rectangle(settings, u),
    )


def render(settings: ViewSettings, canvases: Sequence[Canvas], drawn: Sequence[ViewParameters]) -> list[Pixels]:
    """Make V views of each of B canvases.

    Args:
        settings: The recipe.
        canvases: B images of one bit depth.
        drawn: V sets of parameters for them.

    Returns:
        V arrays (B, 1, size, size) of the canvases' dtype.
    """
    dtype = canvases[0].pixels.dtype
    views = [np.empty((len(canvases), 1, settings.size, settings.size), dtype) for _ in drawn]
    means = np.array([cv2.mean(canvas.pixels[: canvas.height, : canvas.width])[0] for canvas in canvases])
    tables = [None if dtype == np.uint16 else _tables(p, means, 255) for p in drawn]
    for i, canvas in enumerate(canvases):
        levels = [canvas.pixels[: canvas.height, : canvas.width]]
        for view, parameters, table in zip(views, drawn, tables, strict=True):
            pixels = _warp(levels, parameters, i, settings.size)
            if parameters.sigma[i] > 0:
                pixels = _blur(pixels, float(parameters.sigma[i]))
            if table is not None:
                pixels = cv2.LUT(pixels, table[i])
            else:
                pixels = _tables(parameters, means, 65535, only=i)[0][pixels]
            if parameters.noise[i] > 0:
                pixels = _add_noise(pixels, parameters, i)
            x0, y0, x1, y1 = parameters.cutout[i]
            pixels[y0:y1, x0:x1] = means[i]
            view[i, 0] = pixels
    return views


def whole(canvas: Canvas, size: int) -> Pixels:
    """Return the whole valid image as one (size, size) view: what evaluation and clinical use see.

    Aspect ratio is not kept, so that neither padding nor a shape can tell an image's origin.
    """
    parameters = ViewParameters(
        centre_x=np.array([canvas.width / 2]),
        centre_y=np.array([canvas.height / 2]),
        width=np.array([float(canvas.width)]),
        height=np.array([float(canvas.height)]),
        mirrored=np.array([False]),
        angle=np.zeros(1),
        brightness=np.ones(1),
        contrast=np.ones(1),
        gamma=np.ones(1),
        sigma=np.zeros(1),
        noise=np.zeros(1),
        noise_at=np.zeros((1, 2), np.int64),
        cutout=np.zeros((1, 4), np.int64),
    )
    return _warp([canvas.pixels[: canvas.height, : canvas.width]], parameters, 0, size)


def _between(u: Floats, bounds: Sequence[float] | Floats) -> Floats:
    return bounds[0] + u * (bounds[1] - bounds[0])


def _around_zero(u: Floats, largest: float) -> Floats:
    return (2 * u - 1) * largest


def _draw_rectangle(settings: ViewSettings, u: dict[str, Floats]) -> NDArray[np.int64]:
    chosen = u["cutout"] < settings.cutout_probability
    area = np.where(chosen, _between(u["cutout_area"], settings.cutout_scale), 0.0)
    ratio = np.exp(_between(u["cutout_ratio"], np.log((0.5, 2.0))))
    width, height = np.minimum(np.sqrt(area * ratio), 1), np.minimum(np.sqrt(area / ratio), 1)
    x, y = u["cutout_x"] * (1 - width), u["cutout_y"] * (1 - height)
    corners: NDArray[np.int64] = np.rint(np.stack([x, y, x + width, y + height], 1) * settings.size).astype(np.int64)
    return corners


def _warp(levels: list[Pixels], drawn: ViewParameters, i: int, size: int) -> Pixels:
    """Crop, resize, mirror and rotate in one bilinear resampling.

    Bilinear sampling reads every source pixel up to a shrinkage of two. Beyond that, exact halvings by an area filter
    come first; `levels` collects them, so that the views of one image share them.
    """
    level = max(0, int(np.log2(max(drawn.width[i], drawn.height[i]) / size)))
    while len(levels) <= level:
        height, width = (side // 2 for side in levels[-1].shape)
        even = levels[-1][: 2 * height, : 2 * width]
        levels.append(cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA))
    shrink = 0.5**level
    if drawn.angle[i] == 0:
        return _crop(levels[level], drawn, i, size, shrink)
    step_x, step_y = drawn.width[i] * shrink / size, drawn.height[i] * shrink / size
    if drawn.mirrored[i]:
        step_x = -step_x
    cos, sin = np.cos(drawn.angle[i]), np.sin(drawn.angle[i])
    matrix = np.array([[cos * step_x, -sin * step_y, 0.0], [sin * step_x, cos * step_y, 0.0]])
    # The middle of the view looks at the middle of the crop; pixel centres lie at half-integers.
    middle = (size - 1) / 2
    matrix[:, 2] = (drawn.centre_x[i] * shrink - 0.5, drawn.centre_y[i] * shrink - 0.5)
    matrix[:, 2] -= matrix[:, 0] * middle + matrix[:, 1] * middle
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    # Reflection: rotated corners show plausible anatomy instead of black wedges that give the angle away.
    return cv2.warpAffine(levels[level], matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def _crop(image: Pixels, drawn: ViewParameters, i: int, size: int, shrink: float) -> Pixels:
    """Crop, resize and mirror without rotation: edges on whole pixels, three times faster than the general warp."""
    spans = []
    for centre, length, limit in (
        (drawn.centre_y[i], drawn.height[i], image.shape[0]),
        (drawn.centre_x[i], drawn.width[i], image.shape[1]),
    ):
        start = min(round((centre - length / 2) * shrink), limit - 1)
        spans.append(slice(start, min(max(round((centre + length / 2) * shrink), start + 1), limit)))
    pixels = cv2.resize(image[spans[0], spans[1]], (size, size), interpolation=cv2.INTER_LINEAR)
    return cv2.flip(pixels, 1) if drawn.mirrored[i] else pixels


def _blur(pixels: Pixels, sigma: float) -> Pixels:
    side = 2 * int(np.ceil(3 * sigma)) + 1
    return cv2.GaussianBlur(pixels, (side, side), sigma)


def _tables(drawn: ViewParameters, means: Floats, white: int, only: int | None = None) -> Pixels:
    """Return brightness, contrast and gamma as look-up tables, (B, white + 1), or (1, white + 1) for one image."""
    chosen = slice(None) if only is None else slice(only, only + 1)
    brightness, contrast, gamma = (
        values[chosen, None].astype(np.float32) for values in (drawn.brightness, drawn.contrast, drawn.gamma)
    )
    grey = np.linspace(0, 1, white + 1, dtype=np.float32)[None]
    mean = (means[chosen, None] / white).astype(np.float32) * brightness
    out = np.clip((grey * brightness - mean) * contrast + mean, 0, 1) ** gamma
    return np.rint(out * white).astype(np.uint8 if white == 255 else np.uint16)


@lru_cache(maxsize=1)
def _noise_tile() -> Pixels:
    """Make fixed Gaussian noise about 128; a window at a random place costs a tenth of drawing per pixel."""
    u = uniform(VIEW, 0, np.arange(_TILE * _TILE)), uniform(VIEW, 1, np.arange(_TILE * _TILE))
    normal = np.sqrt(-2 * np.log1p(-u[0])) * np.cos(2 * np.pi * u[1])  # Box and Muller 1958
    tile: Pixels = np.clip(np.rint(128 + _TILE_STD * normal), 0, 255).astype(np.uint8).reshape(_TILE, _TILE)
    return tile


def _add_noise(pixels: Pixels, drawn: ViewParameters, i: int) -> Pixels:
    size = pixels.shape[0]
    x, y = drawn.noise_at[i]
    window = _noise_tile().take(range(y, y + size), 0, mode="wrap").take(range(x, x + size), 1, mode="wrap")
    white = float(np.iinfo(pixels.dtype).max)
    scale = drawn.noise[i] * white / _TILE_STD
    return cv2.addWeighted(pixels, 1.0, window.astype(pixels.dtype), scale, -128.0 * scale)
