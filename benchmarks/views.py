"""Two 224-pixel views per image on one core: from files of 1024 pixels, and from canvases held in memory."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter
from torchvision import io, transforms
from torchvision.transforms import v2

from benchmarks.turns import report, seconds_per_round
from medmoco.config import RECIPES, DataSettings, ViewSettings
from medmoco.data.augment.views import draw, render
from medmoco.data.image_io.images import Canvas, read_canvas

IMAGES, ROUNDS, CANVAS = 16, 5, 256
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
    """Print both tables."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        for suffix in ("png", "jpg"):
            files = _write_images(Path(name), suffix)
            times = seconds_per_round(_from_files(files), ROUNDS)
            title = f"two views from 1024-pixel {suffix.upper()} files, one core"
            report(title, times, per_round=IMAGES, unit="images", reference="published recipe (PIL, RGB)")

        canvases = [read_canvas(file, 1, DATA)[0] for file in files] * 4  # a usual batch of 64
        pictures = [Image.fromarray(canvas.pixels) for canvas in canvases]
        tensors = [torch.from_numpy(canvas.pixels)[None] for canvas in canvases]
        recipe, gray = published(), torchvision_gray()
        contestants = {
            "published recipe (PIL, RGB)": lambda: [recipe(i) for p in pictures for i in [p.convert("RGB")] * 2],
            "torchvision v2, grayscale": lambda: [gray(tensor) for tensor in tensors for _ in range(2)],
            "medmoco, moco_v2": lambda: ours(canvases, "moco_v2"),
            "medmoco, xray": lambda: ours(canvases, "xray"),
        }
        times = seconds_per_round(contestants, ROUNDS)
        title = f"two views from {CANVAS}-pixel canvases in memory, one core"
        report(title, times, per_round=len(canvases), unit="images", reference="published recipe (PIL, RGB)")


def _from_files(files: list[Path]) -> dict[str, Callable[[], object]]:
    recipe, gray = published(), torchvision_gray()
    return {
        "published recipe (PIL, RGB)": lambda: [
            recipe(image) for file in files for image in [Image.open(file).convert("RGB")] * 2
        ],
        "torchvision v2, grayscale": lambda: [
            gray(image) for file in files for image in [io.decode_image(str(file), io.ImageReadMode.GRAY)] * 2
        ],
        "medmoco, moco_v2": lambda: ours([read_canvas(f, 1, DATA)[0] for f in files], "moco_v2"),
        "medmoco, xray": lambda: ours([read_canvas(f, 1, DATA)[0] for f in files], "xray"),
    }


def _write_images(folder: Path, suffix: str) -> list[Path]:
    """Noisy gradients with structure: what matters here is their size and that they do not compress to nothing."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(IMAGES):
        smooth = cv2.resize(rng.random((32, 32)), (1024, 1024), interpolation=cv2.INTER_CUBIC)
        pixels = np.clip(40 + 160 * smooth + rng.normal(0, 3, (1024, 1024)), 0, 255).astype(np.uint8)
        files.append(folder / f"{number}.{suffix}")
        Image.fromarray(pixels).save(files[-1], quality=95)  # PNG ignores the quality
    return files
