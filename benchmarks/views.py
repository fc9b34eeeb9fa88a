"""Two 224-pixel views per image on one core, from canvases in memory."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import transforms
from torchvision.transforms import v2

from benchmarks.turns import report, seconds_per_round
from medmoco.config import RECIPES, DataSettings, ViewSettings
from medmoco.data.augment.views import draw, render
from medmoco.data.image_io.images import Canvas

IMAGES, ROUNDS, CANVAS = 64, 5, 256  # images of a usual batch
DATA = DataSettings(manifest=Path(), root=".", canvas_size=CANVAS)


def published() -> Callable[[Image.Image], torch.Tensor]:
    """The MoCo v2 recipe of facebookresearch/moco: PIL, RGB, image by image. Source: Chen et al. 2020."""
    recipe: Callable[[Image.Image], torch.Tensor] = transforms.Compose([
        transforms.RandomResizedCrop(224, scale=(0.2, 1.0)),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
        transforms.RandomApply([transforms.Lambda(_blur_by_pillow)], p=0.5),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])  # fmt: skip
    return recipe


def _blur_by_pillow(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def torchvision_gray() -> Callable[[torch.Tensor], torch.Tensor]:
    """The same recipe without what does nothing to one channel, by torchvision's v2 transforms on uint8 tensors."""
    recipe: Callable[[torch.Tensor], torch.Tensor] = v2.Compose([
        v2.RandomResizedCrop(224, scale=(0.2, 1.0), antialias=True),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4)], p=0.8),
        v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=0.5),
        v2.RandomHorizontalFlip(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5], [0.25]),
    ])  # fmt: skip
    return recipe


def ours(canvases: list[Canvas], recipe: str) -> list[torch.Tensor]:
    """Two views of each canvas, normalised, though in training that is the device's work."""
    settings = ViewSettings(**{"recipe": recipe, **RECIPES[recipe]})
    samples = np.arange(len(canvases))
    drawn = [draw(settings, canvases, seed=0, epoch=0, samples=samples, view=view) for view in range(2)]
    views = [torch.from_numpy(view) for view in render(settings, canvases, drawn)]
    return [view.to(torch.float32).mul_(1 / (255 * 0.25)).sub_(2.0) for view in views]


def run() -> None:
    """Print a table of views of canvases that are in memory."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    canvases = [_canvas(number) for number in range(IMAGES)]
    pictures = [Image.fromarray(canvas.pixels) for canvas in canvases]
    tensors = [torch.from_numpy(canvas.pixels)[None] for canvas in canvases]
    recipe, gray = published(), torchvision_gray()
    contestants = {
        "published recipe (PIL, RGB)": lambda: [recipe(i) for p in pictures for i in [p.convert("RGB")] * 2],
        "torchvision v2, grayscale": lambda: [gray(tensor) for tensor in tensors for _ in range(2)],
        "medmoco, moco_v2": lambda: ours(canvases, "moco_v2"),
        "medmoco, xray": lambda: ours(canvases, "xray"),
        "copies of pixels": lambda: _copies(canvases),
    }
    times = seconds_per_round(contestants, ROUNDS)
    title = f"two views from {CANVAS}-pixel canvases in memory, one core"
    report(title, times, per_round=len(canvases), unit="images", reference="published recipe (PIL, RGB)")


def _canvas(number: int) -> Canvas:
    """Return a noisy gradient with structure."""
    rng = np.random.default_rng(number)
    smooth = cv2.resize(rng.random((32, 32)), (CANVAS, CANVAS), interpolation=cv2.INTER_CUBIC)
    pixels = np.clip(40 + 160 * smooth + rng.normal(0, 3, (CANVAS, CANVAS)), 0, 255).astype(np.uint8)
    return Canvas(pixels, CANVAS, CANVAS)


def _copies(canvases: list[Canvas]) -> list[torch.Tensor]:
    """The memory bound: two crops of each canvas, copied and normalised without any augmentation."""
    views = [
        torch.from_numpy(np.stack([canvas.pixels[k : k + 224, k : k + 224] for canvas in canvases])) for k in (0, 32)
    ]
    return [view.to(torch.float32).mul_(1 / (255 * 0.25)).sub_(2.0) for view in views]
