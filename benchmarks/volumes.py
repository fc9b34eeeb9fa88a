"""Two 96-voxel views per volume on one core, from canvases in memory, compared with MONAI and TorchIO.

All make the same kinds of views, with the ranges and probabilities of the recipe ct: crop, zoom, rotation and flips,
blur, brightness, contrast, gamma, simulated low resolution and noise. MONAI's and TorchIO's views need not overlap, and
TorchIO has no brightness and contrast. Their volumes are float32 already, and ours are normalised, though in training
that is the device's work. TorchIO is optional: it is left out if it cannot be imported.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from monai import transforms

from benchmarks.turns import report, seconds_per_round
from medmoco.config import ViewSettings
from medmoco.config.views import VOLUME_RECIPES
from medmoco.data.augment.volume_views import draw, render
from medmoco.data.volume_io.volume import VolumeCanvas

ROUNDS, VOLUMES, SIZE, SHAPE = 5, 4, 96, (160, 160, 120)
CT = ViewSettings(recipe="ct", **VOLUME_RECIPES["ct"])
FLIPS = ("front_back", "head_foot")  # off by default, but common elsewhere
SMALLEST_ZOOM, LARGEST_ZOOM = CT.zoom
MEAN, STD = 0.5, 0.25  # the defaults
ANGLE = math.radians(CT.rotation)

Views = list[torch.Tensor]


def ours(canvases: list[VolumeCanvas], settings: ViewSettings) -> Views:
    """Two views of each canvas, normalised."""
    samples = np.arange(len(canvases))
    drawn = [draw(settings, canvases, seed=0, epoch=0, samples=samples, view=view) for view in range(2)]
    return [_normalised(view) for view in render(settings, canvases, drawn)]


def by_monai(axes: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """MONAI's transforms, with one affine resampling to the size of a view."""
    shifts = [(length - SIZE) / 2 for length in SHAPE]
    recipe: Callable[[torch.Tensor], torch.Tensor] = transforms.Compose([
        transforms.RandAffine(
            prob=1, rotate_range=(ANGLE,) * 3 if axes == "all" else (0, 0, ANGLE), translate_range=shifts,
            scale_range=[(SMALLEST_ZOOM - 1, LARGEST_ZOOM - 1)] * 3, spatial_size=(SIZE,) * 3, padding_mode="zeros",
        ),
        transforms.RandFlip(CT.flip_probability, 1),
        transforms.RandFlip(CT.flip_probability, 2),
        transforms.RandGaussianSmooth(CT.blur_sigma, CT.blur_sigma, CT.blur_sigma, prob=CT.blur_probability),
        transforms.RandScaleIntensity(CT.brightness, prob=CT.jitter_probability),
        transforms.RandScaleIntensityFixedMean(prob=CT.jitter_probability, factors=CT.contrast),
        transforms.RandAdjustContrast(CT.jitter_probability, (math.exp(-CT.gamma), math.exp(CT.gamma))),
        transforms.RandSimulateLowResolution(CT.low_resolution_probability),
        transforms.RandGaussianNoise(CT.noise_probability, std=CT.noise),
    ])  # fmt: skip
    return recipe


def by_torchio(axes: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """TorchIO's transforms of the part of a volume that the largest rotated view needs; its middle is the view."""
    tio = importlib.import_module("torchio")
    importlib.import_module("SimpleITK").ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    rng = np.random.default_rng(0)
    wide = math.ceil(SIZE * LARGEST_ZOOM * (math.cos(ANGLE) + math.sin(ANGLE)))
    part = [min(wide, length) for length in SHAPE]
    recipe = tio.Compose([
        tio.RandomAffine(
            scales=(1 / LARGEST_ZOOM, 1 / SMALLEST_ZOOM), isotropic=True,
            degrees=CT.rotation if axes == "all" else (0, 0, 0, 0, -CT.rotation, CT.rotation),
        ),
        tio.CropOrPad(SIZE),
        tio.RandomFlip(axes=(1, 2), flip_probability=CT.flip_probability),
        tio.RandomBlur(std=CT.blur_sigma, p=CT.blur_probability),
        tio.RandomGamma(log_gamma=CT.gamma, p=CT.jitter_probability),
        tio.RandomAnisotropy(downsampling=(1, 2), p=CT.low_resolution_probability),
        tio.RandomNoise(std=(0, CT.noise), p=CT.noise_probability),
    ])  # fmt: skip

    def view(volume: torch.Tensor) -> torch.Tensor:
        first = [int(rng.integers(length - side + 1)) for length, side in zip(SHAPE, part, strict=True)]
        x, y, z = (slice(at, at + side) for at, side in zip(first, part, strict=True))
        made: Any = recipe(tio.ScalarImage(tensor=volume[:, x, y, z]))
        tensor: torch.Tensor = made.data
        return tensor

    return view


def run() -> None:
    """Print a table of views of canvases that are in memory."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    canvases = [_canvas(number) for number in range(VOLUMES)]
    tensors = [torch.from_numpy(canvas.pixels)[None].to(torch.float32) / 255 for canvas in canvases]
    contestants: dict[str, Callable[[], object]] = {}
    for axes in ("slice", "all"):
        for library, maker in (("MONAI", by_monai), ("TorchIO", by_torchio)):
            try:
                contestants[f"{library}, {axes}"] = partial(_two_each, maker(axes), tensors)
            except ImportError:
                print(f"{library} cannot be imported and is left out")
    for recipe, own in VOLUME_RECIPES.items():
        for axes in ("slice", "all"):
            settings = ViewSettings(**{"recipe": recipe, **own, "rotation_axes": axes, "flip_axes": FLIPS})
            contestants[f"medmoco {recipe}, {axes}"] = partial(ours, canvases, settings)
    contestants["copies of voxels"] = lambda: _copies(canvases)
    times = seconds_per_round(contestants, ROUNDS)
    title = f"two {SIZE}-voxel views of volumes of {' x '.join(map(str, SHAPE))} voxels in memory, one core"
    report(title, times, per_round=VOLUMES, unit="volumes", reference="MONAI, slice")


def _canvas(number: int) -> VolumeCanvas:
    """Return noisy smooth structures."""
    rng = np.random.default_rng(number)
    smooth = rng.random([-(-side // 8) for side in SHAPE])
    for axis, side in enumerate(SHAPE):
        smooth = smooth.repeat(8, axis).take(range(side), axis)
    pixels = np.clip(40 + 160 * smooth + rng.normal(0, 3, SHAPE), 0, 255).astype(np.uint8)
    return VolumeCanvas(pixels, (1.0, 1.0, 1.0))


def _two_each(recipe: Callable[[torch.Tensor], torch.Tensor], volumes: list[torch.Tensor]) -> Views:
    return [recipe(volume) for volume in volumes for _ in range(2)]


def _copies(canvases: list[VolumeCanvas]) -> Views:
    """The memory bound: two crops of each canvas, copied and normalised without any augmentation."""
    crops = (slice(at, at + SIZE) for at in (0, 24))
    return [_normalised(np.stack([canvas.pixels[crop, crop, crop] for canvas in canvases])) for crop in crops]


def _normalised(views: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(views).to(torch.float32).mul_(1 / (255 * STD)).sub_(MEAN / STD)
