from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medmoco.config import RunSettings
from medmoco.data.image_io.images import Canvas
from medmoco.errors import CheckpointError, Stopped
from medmoco.segmentation.annotated.cases import Case
from medmoco.segmentation.annotated.grids import Grid
from medmoco.segmentation.learning import (
    dice_on_canvases,
    probabilities_of,
    probabilities_of_cases,
    segment_cases,
    segmentation_losses,
)
from medmoco.segmentation.masks.image_grid import ImageGrid
from medmoco.segmentation.masks.masks import IGNORED
from tests.helpers.blobs import make_settings

CPU = torch.device("cpu")


class Brightness(nn.Module):
    """Scores each pixel by its brightness alone: class 1 where the normalised image is positive."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([-10 * images, 10 * images, torch.full_like(images, -100.0)], 1)


class Broken(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.full((len(images), 3, *images.shape[2:]), torch.nan)


def settings_of(dimensions: int, *overrides: str) -> RunSettings:
    return make_settings(Path("nowhere"), dimensions, *overrides)


def case_of(pixels: np.ndarray, numbers: np.ndarray) -> Case:
    side = pixels.shape[0]
    grid = Grid(numbers.shape, tuple(slice(0, n) for n in numbers.shape), numbers.shape)
    return Case(Canvas(pixels, side, side), numbers, grid, ImageGrid(numbers.shape), (0, 1), (), "")


def oracle_losses(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Return both losses by plain loops."""
    classes, entropies = scores.shape[1], []
    overlap, total = np.zeros(classes), np.zeros(classes)
    for place in np.ndindex(truth.shape):
        if truth[place] == IGNORED:
            continue
        odds = np.exp(scores[(place[0], slice(None), *place[1:])])
        shares = odds / odds.sum()
        entropies.append(-np.log(shares[truth[place]]))
        for value in range(classes):
            overlap[value] += shares[value] * (truth[place] == value)
            total[value] += shares[value] + (truth[place] == value)
    return float(np.mean(entropies)), float(np.mean(1 - (2 * overlap[1:] + 1e-5) / (total[1:] + 1e-5)))


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 2)])
def test_segmentation_losses__equal_plain_loops(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    scores, truth = rng.normal(size=(2, 3, *shape)), rng.integers(0, 3, (2, *shape)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.2] = IGNORED
    found = segmentation_losses(torch.from_numpy(scores), torch.from_numpy(truth))
    assert [float(each) for each in found] == pytest.approx(oracle_losses(scores, truth), rel=1e-6)


def test_segmentation_losses__what_is_ignored_has_no_gradient() -> None:
    scores = torch.randn(1, 3, 4, 4, requires_grad=True)
    truth = torch.ones(1, 4, 4, dtype=torch.uint8)
    truth[0, :2] = IGNORED
    torch.stack(segmentation_losses(scores, truth)).sum().backward()
    assert scores.grad is not None
    assert not scores.grad[:, :, :2].any()
    assert scores.grad[:, :, 2:].all()


def test_segmentation_losses__all_ignored_is_zero() -> None:
    found = segmentation_losses(torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), IGNORED, dtype=torch.uint8))
    assert [float(each) for each in found] == [0, 0]


@pytest.mark.parametrize(("dimensions", "shape"), [(2, (40, 40)), (2, (20, 20)), (3, (20, 12, 18))])
def test_probabilities_of__windows_cover_the_canvas(dimensions: int, shape: tuple[int, ...]) -> None:
    """Canvases larger and smaller than a window: every pixel gets the score of its own brightness."""
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    settings = settings_of(dimensions)
    (found,) = probabilities_of(Brightness(), [pixels], settings, CPU, "fp32")  # type: ignore[arg-type]
    assert found.shape == (3, *shape)
    np.testing.assert_allclose(found.sum(0), 1, atol=1e-5)
    expected = 1 / (1 + np.exp(-20 * (pixels / 255 - settings.views.mean) / settings.views.std))
    np.testing.assert_allclose(found[1], expected, atol=1e-4)


class Counted(Brightness):
    """Notes how many windows it is given at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.windows: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.windows.append(len(images))
        return super().forward(images)


@pytest.mark.parametrize(
    ("dimensions", "shapes", "windows"),
    [
        # Windows of 32 pixels that overlap by half: 4 in the larger canvases; 6 at a time.
        (2, [(20, 32)] * 7 + [(40, 48)] + [(32, 32)] * 2 + [(48, 48)] * 2, [6, 1, 4, 2, 4, 4]),
        (3, [(8, 8, 8)] * 3 + [(24, 16, 16)], [2, 1, 2]),
    ],
)
def test_probabilities_of_cases__neighbours_of_one_shape_share_batches(
    dimensions: int, shapes: list[tuple[int, ...]], windows: list[int]
) -> None:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
    cases = [case_of(own, np.zeros_like(own)) for own in pixels]
    settings = settings_of(dimensions, f"evaluate.batch_size={6 if dimensions == 2 else 16}")
    network: Any = Counted()
    found = list(probabilities_of_cases(network, cases, settings, CPU))
    assert network.windows == windows
    for own, alone in zip(found, pixels, strict=True):
        np.testing.assert_array_equal(own, probabilities_of(network, [alone], settings, CPU, "fp32")[0])


def test_segment_cases__puts_the_classes_on_the_image() -> None:
    pixels = np.zeros((32, 32), np.uint8)
    pixels[4:12, 6:20] = 255
    grid = Grid((64, 64), (slice(0, 64), slice(0, 64)), (32, 32))
    case = Case(Canvas(pixels, 32, 32), (pixels > 0).astype(np.uint8), grid, ImageGrid((64, 64)), (0, 1), (), "")
    (numbers,) = segment_cases(Brightness(), [case], settings_of(2), CPU)  # type: ignore[arg-type]
    assert numbers.shape == (64, 64)
    assert numbers[9:23, 13:39].all()
    assert numbers.sum() <= 16 * 28


def test_segment_cases__refuses_scores_that_are_not_finite() -> None:
    case = case_of(np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8))
    with pytest.raises(CheckpointError, match="diverged"):
        list(segment_cases(Broken(), [case], settings_of(2), CPU))  # type: ignore[arg-type]


def test_dice_on_canvases__is_that_of_what_counts() -> None:
    pixels, numbers = np.zeros((32, 32), np.uint8), np.zeros((32, 32), np.uint8)
    pixels[:16], numbers[8:24] = 255, 1
    pixels[24:28], numbers[24:28] = 255, IGNORED
    empty = np.zeros_like(numbers)
    cases = [case_of(pixels, numbers), case_of(pixels, empty), case_of(empty, empty)]

    def measure(**changes: Any) -> np.ndarray:
        network: Any = Brightness()
        return dice_on_canvases(probabilities_of_cases(network, cases, settings_of(2), CPU, **changes), cases, 2)

    np.testing.assert_allclose(measure(), [(2 * 8 / 32 + 0) / 2, np.nan])  # the last image is right, and does not count
    with pytest.raises(Stopped):
        measure(stop_asked=lambda: True)
