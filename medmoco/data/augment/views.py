"""Make augmented views of canvases: one warp, one separable blur, one look-up table, colours, noise and cutout.

All random parameters of a batch are drawn at once from (seed, epoch, sample, view, parameter), see `utils/rng.py`; the
pixels are then computed image by image, which is faster than every batched formulation on a CPU (benchmarks/views.py).
Order and distributions are torchvision's (RandomResizedCrop, ColorJitter, GaussianBlur) with these deviations: crop,
flip and rotation are one resampling; a crop that does not fit is clamped to the image instead of drawn again;
brightness, contrast, gamma, saturation, hue and grayscale are applied in a fixed order; blur precedes them.

All channels use the same parameters. Contrast changes about the mean of each band, or of the luma of colour images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from medmoco.config import ViewSettings
from medmoco.data.augment.color import LUMA_WEIGHTS, recolour
from medmoco.data.augment.noise import add_noise, noise_windows
from medmoco.data.augment.parameters import ToneParameters, ViewParameters
from medmoco.data.augment.warps import Pyramid, geometry_of, warp
from medmoco.data.image_io.images import Canvas
from medmoco.utils.portable_math import POWER_STEP, exp, log, power
from medmoco.utils.rng import VIEW, uniform

Pixels = NDArray[Any]  # uint8 or uint16; OpenCV's stubs cannot tell
Floats = NDArray[np.float64]

# The number of a parameter is part of its random stream: append, never reorder.
_PARAMETERS = (
    "area", "ratio", "left", "top", "flip", "angle", "jitter", "brightness", "contrast", "gamma", "blur", "sigma",
    "noise", "noise_std", "noise_x", "noise_y", "cutout", "cutout_area", "cutout_ratio", "cutout_x", "cutout_y",
    "saturation", "hue", "grayscale",
)  # fmt: skip

REFERENCE_SIZE = 224  # view size to which views.blur_sigma and views.noise refer


def draw(
    settings: ViewSettings, canvases: Sequence[Canvas], *, seed: int, epoch: int, samples: NDArray[np.int64], view: int
) -> ViewParameters:
    """Return random parameters of one view for each of B canvases.

    Args:
        settings: Augmentation settings.
        canvases: The B images, of which only the valid height and width are used.
        seed: Seed of the run.
        epoch: Epoch, counted from 0.
        samples: (B,) positions in the split.
        view: 0 for the query, 1 for the key.
    """
    numbers = np.arange(len(_PARAMETERS))[:, None]
    u = dict(zip(_PARAMETERS, uniform(seed, VIEW, epoch, samples, view, numbers), strict=True))
    valid_width = np.array([canvas.width for canvas in canvases], np.float64)
    valid_height = np.array([canvas.height for canvas in canvases], np.float64)

    area = between(u["area"], settings.crop_scale) * valid_width * valid_height
    ratio = _ratio(u["ratio"], settings.crop_ratio)
    width = np.minimum(np.sqrt(area * ratio), valid_width)
    height = np.minimum(np.sqrt(area / ratio), valid_height)

    jittered = u["jitter"] < settings.jitter_probability
    blurred = u["blur"] < settings.blur_probability
    noisy = u["noise"] < settings.noise_probability
    detail = settings.size / REFERENCE_SIZE
    windows = noise_windows(settings.size)
    return ViewParameters(
        centre_x=width / 2 + u["left"] * (valid_width - width),
        centre_y=height / 2 + u["top"] * (valid_height - height),
        width=width,
        height=height,
        mirrored=u["flip"] < settings.flip_probability,
        angle=np.deg2rad(around_zero(u["angle"], settings.rotation)),
        brightness=1 + jittered * around_zero(u["brightness"], settings.brightness),
        contrast=1 + jittered * around_zero(u["contrast"], settings.contrast),
        gamma=np.rint(exp(jittered * around_zero(u["gamma"], settings.gamma)) / POWER_STEP) * POWER_STEP,
        sigma=np.where(blurred, between(u["sigma"], settings.blur_sigma) * detail, 0.0),
        noise=np.where(noisy, u["noise_std"] * settings.noise * detail, 0.0),
        noise_at=(np.stack([u["noise_x"], u["noise_y"]], 1) * windows).astype(np.int64),
        cutout=_draw_rectangle(settings, u),
        saturation=1 + jittered * around_zero(u["saturation"], settings.saturation),
        hue=jittered * around_zero(u["hue"], settings.hue),
        grayscale=u["grayscale"] < settings.grayscale_probability,
    )


def render(
    settings: ViewSettings,
    canvases: Sequence[Canvas],
    params: Sequence[ViewParameters],
    places: Sequence[NDArray[np.int64]] | None = None,
) -> list[Pixels]:
    """Return V views of each canvas, or V sets of views of some canvases.

    Args:
        settings: Augmentation settings.
        canvases: N images with the same bit depth and number of channels.
        params: V sets of parameters.
        places: For each set, the positions of its B canvases; by default all canvases.

    Returns:
        V arrays (B, C, size, size) of the canvases' dtype.
    """
    if places is None:
        places = [np.arange(len(canvases))] * len(params)
    dtype = canvases[0].pixels.dtype
    planes = [_planes(canvas) for canvas in canvases]
    means = _means(planes)
    views = [np.empty((len(place), len(planes[0]), settings.size, settings.size), dtype) for place in places]
    uses: list[list[tuple[int, int]]] = [[] for _ in canvases]  # for each canvas: number of the set, position in it
    geometry, tones = [], []
    for number, (parameters, place) in enumerate(zip(params, places, strict=True)):
        geometry.append(geometry_of(parameters, [canvases[i] for i in place], settings.size))
        tones.append(_tones(parameters, means[place], dtype, rgb=canvases[0].rgb))
        for position, i in enumerate(place.tolist()):
            uses[i].append((number, position))
    for i, canvas in enumerate(canvases):
        pyramids = [Pyramid(plane) for plane in planes[i]]
        for number, position in uses[i]:
            parameters = params[number]
            kernel = blur_kernel(parameters.sigma[position])
            view = list(views[number][position])  # in place: allocating memory costs as much as a step
            for channel, pixels in enumerate(view):
                warp(pyramids[channel], geometry[number], position, pixels)
                blur(pixels, kernel)
                tones[number][channel].apply(pixels, position)
            if canvas.rgb:
                _recolour(views[number][position], parameters, position)
            for channel, pixels in enumerate(view):
                if parameters.noise[position] > 0:
                    add_noise(pixels, parameters.noise[position], parameters.noise_at[position], channel)
                if settings.cutout_probability:
                    x0, y0, x1, y1 = parameters.cutout[position]
                    pixels[y0:y1, x0:x1] = means[i, channel]
    return views


def render_weights(weights: Sequence[Canvas], params: ViewParameters, size: int, *, reflect: bool) -> Pixels:
    """Return B weight images warped like the views: the same crops, flips and rotations, without other augmentation.

    Args:
        weights: B canvases of the images' shapes, 255 where a pixel counts.
        params: Parameters of the views.
        size: Side S of the views, in pixels.
        reflect: Whether areas outside the image in a rotated view get the weights of reflected pixels instead of 0.

    Returns:
        (B, 1, S, S) uint8.
    """
    views = np.empty((len(weights), 1, size, size), np.uint8)
    geometry = geometry_of(params, weights, size)
    for i, canvas in enumerate(weights):
        (plane,) = _planes(canvas)
        warp(Pyramid(plane), geometry, i, views[i, 0], cv2.BORDER_REFLECT_101 if reflect else cv2.BORDER_CONSTANT)
    return views


def toned(canvases: Sequence[Canvas], params: ViewParameters) -> Pixels:
    """Return the canvases with intensity and colour augmentation and flips, without crops, for detection.

    Args:
        canvases: B images of one size and bit depth.
        params: Their parameters, of which those of intensity and colour and `mirrored` are used.

    Returns:
        (B, C, S, S), each image in the top left corner, with zeros below and to the right.
    """
    inside = [_planes(canvas) for canvas in canvases]
    pixels = np.zeros((len(canvases), len(inside[0]), *canvases[0].pixels.shape[:2]), canvases[0].pixels.dtype)
    tones = _tones(params, _means(inside), pixels.dtype, rgb=canvases[0].rgb)
    for number, (canvas, planes) in enumerate(zip(canvases, inside, strict=True)):
        for channel, image in enumerate(planes):
            own = cv2.flip(image, 1) if params.mirrored[number] else image.copy()
            tones[channel].apply(own, number)
            pixels[number, channel, : own.shape[0], : own.shape[1]] = own
        if canvas.rgb:
            _recolour(pixels[number, :, : canvas.height, : canvas.width], params, number)
    return pixels


def whole_view(canvas: Canvas, size: int) -> Pixels:
    """Return the whole valid image as one view, (size, size) or (size, size, C), as in evaluation and inference.

    The aspect ratio is not kept, so that neither padding nor shape reveals an image's origin.
    """
    geometry, planes = geometry_of(unchanged([canvas]), [canvas], size), []
    for plane in _planes(canvas):
        planes.append(np.empty((size, size), canvas.pixels.dtype))
        warp(Pyramid(plane), geometry, 0, planes[-1])
    return planes[0] if len(planes) == 1 else np.stack(planes, axis=-1)


def channels_first(images: Sequence[Pixels]) -> Pixels:
    """Return B images (S, S) or (S, S, C) stacked as (B, C, S, S)."""
    stacked = np.stack(images)
    return stacked[:, None] if stacked.ndim == 3 else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))


def unchanged(canvases: Sequence[Canvas]) -> ViewParameters:
    """Return the parameters of views that show B whole images without any augmentation."""
    width = np.array([canvas.width for canvas in canvases], np.float64)
    height = np.array([canvas.height for canvas in canvases], np.float64)
    zeros, ones = np.zeros(len(canvases)), np.ones(len(canvases))
    return ViewParameters(
        centre_x=width / 2, centre_y=height / 2, width=width, height=height, mirrored=zeros.astype(bool), angle=zeros,
        brightness=ones, contrast=ones, gamma=ones, sigma=zeros, noise=zeros,
        noise_at=np.zeros((len(canvases), 2), np.int64), cutout=np.zeros((len(canvases), 4), np.int64),
        saturation=ones, hue=zeros, grayscale=zeros.astype(bool),
    )  # fmt: skip


def between(u: Floats, bounds: Sequence[float] | Floats) -> Floats:
    """Return numbers from a range for uniform ones."""
    return bounds[0] + u * (bounds[1] - bounds[0])


def around_zero(u: Floats, largest: float) -> Floats:
    """Return numbers from -largest to largest for uniform ones."""
    return (2 * u - 1) * largest


def _ratio(u: Floats, bounds: Sequence[float]) -> Floats:
    return exp(between(u, log(np.array(bounds))))


def _draw_rectangle(settings: ViewSettings, u: dict[str, Floats]) -> NDArray[np.int64]:
    if not settings.cutout_probability:
        return np.zeros((len(u["cutout"]), 4), np.int64)
    chosen = u["cutout"] < settings.cutout_probability
    area = np.where(chosen, between(u["cutout_area"], settings.cutout_scale), 0.0)
    ratio = _ratio(u["cutout_ratio"], (0.5, 2.0))
    width, height = np.minimum(np.sqrt(area * ratio), 1), np.minimum(np.sqrt(area / ratio), 1)
    x, y = u["cutout_x"] * (1 - width), u["cutout_y"] * (1 - height)
    corners: NDArray[np.int64] = np.rint(np.stack([x, y, x + width, y + height], 1) * settings.size).astype(np.int64)
    return corners


def _planes(canvas: Canvas) -> list[Pixels]:
    """Return the valid part of each channel, (height, width)."""
    image = canvas.pixels[: canvas.height, : canvas.width]
    return [image] if image.ndim == 2 else list(cv2.split(image))


def _means(planes: Sequence[Sequence[Pixels]]) -> Floats:
    """Return the mean of each plane, (N, C)."""
    return np.array([[cv2.mean(plane)[0] for plane in image] for image in planes])


def blur_kernel(sigma: float) -> Floats | None:
    """Return a kernel that omits less than 1/512 of the Gaussian, half a grey level of 8 bits, or None for one tap."""
    radius = math.ceil(3.1 * sigma - 0.5)
    return np.asarray(cv2.getGaussianKernel(2 * radius + 1, sigma), np.float64) if radius > 0 else None


def blur(pixels: Pixels, kernel: Floats | None) -> None:
    """Blur an image in place, along both axes."""
    if kernel is not None:
        # Three times faster than cv2.GaussianBlur on 8 bits, and closer to the exact result.
        cv2.sepFilter2D(pixels, -1, kernel, kernel, dst=pixels)


class Tones:
    """Brightness, contrast and gamma of B views: one multiplication if gamma is 1, else a look-up table."""

    def __init__(self, params: ToneParameters, means: Floats, dtype: np.dtype[Any]) -> None:
        self._params, self._means, self._white = params, means, int(np.iinfo(dtype).max)
        self._curved = (params.gamma != 1).tolist()
        self._slopes = (params.brightness * params.contrast).tolist()
        self._shifts = (means * params.brightness * (1 - params.contrast)).tolist()
        # The tables of a batch are made together, except for 16 bits, where one is as large as an image.
        self._tables = _tables(params, means, self._white) if self._white == 255 and any(self._curved) else None

    def apply(self, pixels: Pixels, i: int) -> None:
        """Change the pixels of view i in place."""
        if self._curved[i] and self._tables is not None:
            cv2.LUT(pixels, self._tables[i], dst=pixels)
        elif self._curved[i]:
            pixels[:] = _tables(self._params, self._means, self._white, only=i)[0][pixels]
        elif self._slopes[i] != 1 or self._shifts[i] != 0:
            cv2.addWeighted(pixels, self._slopes[i], pixels, 0, self._shifts[i], dst=pixels)


def _tones(params: ViewParameters, means: Floats, dtype: np.dtype[Any], *, rgb: bool) -> list[Tones]:
    """Return the tone changes of each channel; means are (B, C)."""
    if rgb:
        red, green, blue = (means * LUMA_WEIGHTS).T
        return [Tones(params, red + green + blue, dtype)] * 3  # not by BLAS, whose rounding depends on the CPU
    return [Tones(params, mean, dtype) for mean in means.T]


def _recolour(planes: Pixels, params: ViewParameters, i: int) -> None:
    recolour(planes, float(params.saturation[i]), float(params.hue[i]), grayscale=bool(params.grayscale[i]))


def _tables(params: ToneParameters, means: Floats, white: int, only: int | None = None) -> Pixels:
    """Return brightness, contrast and gamma as look-up tables, (B, white + 1), or (1, white + 1) for one image."""
    chosen = slice(None) if only is None else slice(only, only + 1)
    brightness, contrast = (values[chosen, None].astype(np.float32) for values in (params.brightness, params.contrast))
    grey = np.linspace(0, 1, white + 1, dtype=np.float32)[None]
    mean = (means[chosen, None] / white).astype(np.float32) * brightness
    out = np.clip((grey * brightness - mean) * contrast + mean, 0, 1)
    tables: Pixels
    if only is None:
        tables = np.rint(power(out, params.gamma) * white).astype(np.uint8)
    else:
        tables = _curve(float(params.gamma[only]))[np.rint(out * white).astype(np.uint16)]
    return tables


@lru_cache(maxsize=128)  # the multiples of POWER_STEP within the default range of views.gamma; 16 MiB
def _curve(gamma: float) -> Pixels:
    """Return gamma correction as a 16-bit look-up table, (65536,)."""
    grey = np.linspace(0, 1, 65536, dtype=np.float32)[None]
    curve: Pixels = np.rint(power(grey, np.array([gamma]))[0] * 65535).astype(np.uint16)
    return curve
