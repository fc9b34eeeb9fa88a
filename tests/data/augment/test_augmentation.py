from __future__ import annotations

import doctest
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

import medmoco
from medmoco.config import RECIPES, RGB_RECIPES, ViewSettings
from medmoco.data.augment import augmentation as module
from medmoco.data.augment.augmentation import Augmentation
from medmoco.data.augment.views import draw, render
from medmoco.data.image_io.images import Canvas
from medmoco.errors import ImageError, SettingsError

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (60, 50), dtype=np.uint8)
COLOURS = RNG.integers(0, 256, (60, 50, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (60, 50), dtype=np.uint16)


def by_hand(image: np.ndarray, settings: dict[str, Any], sample: int, epoch: int, view: int) -> np.ndarray:
    canvas = Canvas(image, *image.shape[:2], rgb=image.ndim == 3)
    views = ViewSettings(**{**settings, "size": 32})
    drawn = draw(views, [canvas], seed=7, epoch=epoch, samples=np.array([sample]), view=view)
    made = render(views, [canvas], [drawn])[0][0]
    return made[0] if image.ndim == 2 else made.transpose(1, 2, 0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_augmentation__makes_the_views_of_its_recipe(recipe: str) -> None:
    augmentation = Augmentation(recipe, 32, seed=7)
    made = augmentation(GRAY, sample=3, epoch=1, view=1)
    np.testing.assert_array_equal(made, by_hand(GRAY, RECIPES[recipe], 3, 1, 1))
    rgb = {**RECIPES[recipe], **RGB_RECIPES.get(recipe, {})}
    np.testing.assert_array_equal(augmentation(COLOURS, sample=3), by_hand(COLOURS, rgb, 3, 0, 0))


def test_augmentation__overrides_replace_values_of_the_recipe() -> None:
    made = Augmentation("moco_v2", 32, seed=7, crop_scale=(0.9, 1.0))(GRAY, sample=0)
    np.testing.assert_array_equal(made, by_hand(GRAY, {**RECIPES["moco_v2"], "crop_scale": (0.9, 1.0)}, 0, 0, 0))


def test_augmentation__counts_its_views() -> None:
    augmentation = Augmentation(size=32)
    made = [augmentation(GRAY) for _ in range(3)]
    for sample, view in enumerate(made):
        np.testing.assert_array_equal(view, augmentation(GRAY, sample=sample))
    assert not np.array_equal(made[0], made[1])


@pytest.mark.parametrize(
    "image",
    [GRAY, GRAY[..., None], DEEP, COLOURS, np.dstack([DEEP] * 5), (GRAY / 255).astype(np.float32), COLOURS / 255,
     GRAY[:, ::-1], COLOURS.transpose(1, 0, 2)],
)  # fmt: skip
def test_augmentation__views_have_the_type_of_their_image(image: np.ndarray) -> None:
    view = Augmentation(size=32)(image)
    assert view.shape == (32, 32, *image.shape[2:])
    assert view.dtype == image.dtype
    if view.dtype.kind == "f":
        assert 0 <= view.min() < view.max() <= 1


def test_augmentation__floats_are_images_of_16_bits() -> None:
    augmentation = Augmentation(size=32)
    np.testing.assert_array_equal(augmentation(DEEP / 65535, sample=1), augmentation(DEEP, sample=1) / 65535)


@pytest.mark.parametrize(("pixels", "mode"), [(GRAY, "L"), (COLOURS, "RGB"), (DEEP, "I;16")])
def test_augmentation__takes_and_returns_pil_images(pixels: np.ndarray, mode: str) -> None:
    augmentation = Augmentation("moco_v2", 32)
    view = augmentation(Image.fromarray(pixels), sample=4)
    assert isinstance(view, Image.Image)
    assert view.mode == mode
    np.testing.assert_array_equal(np.asarray(view), augmentation(pixels, sample=4))


@pytest.mark.parametrize("image", [GRAY, DEEP, COLOURS, Image.fromarray(COLOURS)])
def test_augmentation__as_tensors_are_normalised(image: Any) -> None:
    tensor = Augmentation(size=32, mean=0.4, std=0.2, to_tensor=True)(image, sample=2)
    view = np.atleast_3d(np.asarray(Augmentation(size=32)(image, sample=2))).transpose(2, 0, 1)
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor, (view / np.iinfo(view.dtype).max - 0.4) / 0.2, atol=1e-5)


class Transformed(Dataset[torch.Tensor]):
    """Eight times the same image, so that views differ by what was drawn alone."""

    transform = Augmentation(size=32, to_tensor=True)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(GRAY)


@pytest.mark.parametrize("persistent", [False, True])
def test_augmentation__in_data_workers_never_repeats_and_follows_torch_s_seed(persistent: bool) -> None:
    def two_epochs() -> torch.Tensor:
        torch.manual_seed(5)
        loader = DataLoader(Transformed(), batch_size=4, num_workers=2, persistent_workers=persistent)
        return torch.cat([batch for _ in range(2) for batch in loader])

    views = two_epochs()
    assert len(torch.unique(views.flatten(1), dim=0)) == 16
    assert torch.equal(two_epochs(), views)


def test_augmentation__pickles_and_prints() -> None:
    augmentation = Augmentation("moco_v1", 32, flip_probability=0)
    assert repr(augmentation) == "Augmentation(recipe='moco_v1', size=32, flip_probability=0, seed=0)"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(augmentation))(GRAY), augmentation(GRAY))


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"recipe": "xry"}, "'xray', 'moco_v1'"), ({"flip": 0}, "unknown key 'views.flip'"), ({"size": 4}, "views.size")],
)
def test_augmentation__settings_that_cannot_be_used(given: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError, match=expected):
        Augmentation(**given)


def test_augmentation__colours_alone_have_a_saturation() -> None:
    augmentation = Augmentation(size=32, saturation=0.3)
    assert augmentation(COLOURS).shape == (32, 32, 3)
    with pytest.raises(SettingsError, match="saturation needs colour images"):
        augmentation(GRAY)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (torch.zeros(1, 8, 8), "Tensor is neither"), (np.zeros((3, 400, 400)), r"\(H, W, C\)"),
        (np.zeros(8), r"\(H, W\)"), (np.zeros((0, 8)), r"\(H, W\)"), (np.zeros((8, 8), int), "array of int64"),
        (np.full((8, 8), 255.0), "outside 0 to 1"), (np.full((8, 8), np.nan), "nan"),
        (Image.new("RGBA", (8, 8)), "mode RGBA"),
    ],
)  # fmt: skip
def test_augmentation__other_arrays_and_objects_are_refused(image: Any, expected: str) -> None:
    with pytest.raises(ImageError, match=expected):
        Augmentation(size=32)(image)


def test_augmentation__the_documented_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medmoco, "Augmentation", Augmentation, raising=False)
    tests = doctest.DocTestFinder(recurse=False).find(Augmentation, globs={}, module=module)
    assert doctest.DocTestRunner().run(tests[0]).failed == 0
