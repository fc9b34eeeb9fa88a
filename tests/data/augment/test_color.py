from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from medmoco.config import RECIPES, RGB_RECIPES, ViewSettings
from medmoco.data.augment.color import displayed, recolour
from medmoco.data.augment.views import draw, render, toned, unchanged
from medmoco.data.image_io.images import Canvas

RANDOM = np.random.default_rng(8)
PHOTO = cv2.resize(RANDOM.integers(0, 256, (9, 11, 3), np.uint8), (72, 64), interpolation=cv2.INTER_CUBIC)


def recoloured(saturation: float = 1.0, hue: float = 0.0, *, grayscale: bool = False, factor: int = 1) -> torch.Tensor:
    planes = np.ascontiguousarray(PHOTO.transpose(2, 0, 1)).astype(np.uint8 if factor == 1 else np.uint16) * factor
    recolour(planes, saturation, hue, grayscale=grayscale)
    return torch.from_numpy(planes // factor).int()


def photo() -> torch.Tensor:
    return torch.from_numpy(PHOTO.transpose(2, 0, 1).copy())


@pytest.mark.parametrize("factor", [1, 257])
@pytest.mark.parametrize("hue", [-0.5, -0.3, -0.02, 0.1, 0.25, 0.5])
def test_recolour__hue_is_torchvisions(hue: float, factor: int) -> None:
    assert (recoloured(hue=hue, factor=factor) - functional.adjust_hue(photo(), hue).int()).abs().max() <= 1


@pytest.mark.parametrize("saturation", [0.0, 0.6, 1.4, 2.0])
def test_recolour__saturation_is_torchvisions(saturation: float) -> None:
    difference = recoloured(saturation) - functional.adjust_saturation(photo(), saturation).int()
    assert difference.abs().max() <= 2  # torchvision cuts off fractions twice
    assert difference.float().abs().mean() < 0.8


def test_recolour__grayscale_is_torchvisions_and_nothing_is_nothing() -> None:
    found = recoloured(grayscale=True)
    assert (found - functional.rgb_to_grayscale(photo(), 3).int()).abs().max() <= 1
    assert torch.equal(found[0], found[1])
    assert torch.equal(recoloured(), photo().int())


def test_displayed__colours_bands_and_gray() -> None:
    planes = RANDOM.integers(0, 256, (3, 4, 5), np.uint8)
    np.testing.assert_array_equal(displayed(planes, rgb=True), planes.transpose(1, 2, 0))
    np.testing.assert_array_equal(displayed(planes, rgb=False), np.rint(planes.mean(0)))
    np.testing.assert_array_equal(displayed(planes[:1], rgb=False), planes[0])


# ---- views of channels ----


def canvas(channels: int, *, rgb: bool = False) -> Canvas:
    pixels = cv2.resize(RANDOM.random((6, 7, 3)), (60, 70), interpolation=cv2.INTER_CUBIC)
    many = np.clip(np.concatenate([pixels * (0.4 + 0.1 * k) for k in range(channels)], 2)[..., :channels], 0, 1)
    square = np.zeros((70, 70, channels), np.uint8)
    square[:70, :60] = np.rint(many * 255)
    return Canvas(square, 70, 60, rgb)


def settings_of(recipe: str = "moco_v2", **other: float) -> ViewSettings:
    return ViewSettings(**{"recipe": recipe, "size": 32, **RECIPES[recipe], **RGB_RECIPES.get(recipe, {}), **other})


def views_of(settings: ViewSettings, canvases: list[Canvas]) -> np.ndarray:
    drawn = draw(settings, canvases, seed=4, epoch=2, samples=np.arange(len(canvases)), view=1)
    return render(settings, canvases, [drawn])[0]


def test_render__a_band_is_what_it_would_be_alone() -> None:
    settings = ViewSettings(size=32, noise_probability=0.0, cutout_probability=0.5)
    bands = [canvas(6) for _ in range(8)]
    together = views_of(settings, bands)
    assert together.shape == (8, 6, 32, 32)
    for channel in range(6):
        alone = [Canvas(np.ascontiguousarray(one.pixels[..., channel]), one.height, one.width) for one in bands]
        np.testing.assert_array_equal(together[:, channel], views_of(settings, alone)[:, 0])


def test_render__noise_of_channels_is_not_the_same() -> None:
    flat = Canvas(np.full((40, 40, 3), 128, np.uint8), 40, 40)
    settings = ViewSettings(size=32, noise_probability=1.0, noise=0.5, jitter_probability=0.0, blur_probability=0.0)
    noisy = views_of(settings, [flat] * 8).astype(int)
    strongest = int(noisy.std((1, 2, 3)).argmax())
    first, second = (noisy[strongest, channel].ravel() for channel in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2


def test_render__colours_keep_one_contrast_and_some_views_lose_them() -> None:
    photos = [canvas(3, rgb=True) for _ in range(60)]
    views = views_of(settings_of(grayscale_probability=0.5), photos).astype(int)
    gray = (views[:, 0] == views[:, 1]).all((1, 2)) & (views[:, 1] == views[:, 2]).all((1, 2))
    assert 15 < gray.sum() < 45


def test_render__contrast_of_colours_is_about_luma() -> None:
    photo = canvas(3, rgb=True)
    settings = ViewSettings(
        size=70, crop_scale=(1, 1), crop_ratio=(1, 1), flip_probability=0.0, rotation=0.0, brightness=0.4,
        contrast=0.4, gamma=0.0, jitter_probability=1.0, blur_probability=0.0, noise_probability=0.0,
    )  # fmt: skip
    drawn = draw(settings, [photo], seed=1, epoch=0, samples=np.array([0]), view=0)
    found = torch.from_numpy(toned([photo], drawn)[0, :, :70, :60].copy()).double()
    seen = torch.from_numpy(photo.pixels[:, :60].transpose(2, 0, 1).copy()).double() / 255
    expected = functional.adjust_contrast(
        functional.adjust_brightness(seen, float(drawn.brightness[0])), float(drawn.contrast[0])
    )
    clipped = (expected * 255).round()
    inside = (clipped > 2) & (clipped < 253)
    assert (found - clipped)[inside].abs().max() <= 3
    assert unchanged([photo]).saturation.tolist() == [1]
