"""The augmentation as a callable on one image, for the transforms of other data sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import get_worker_info

from medmoco.config import Channels, ViewSettings, load
from medmoco.data.augment.normalisation import to_float
from medmoco.data.augment.views import Pixels, draw, render
from medmoco.data.image_io.images import Canvas
from medmoco.errors import ImageError
from medmoco.utils.rng import hashed

_MODES = ("L", "RGB", "I;16")
_MOST_CHANNELS = 256  # as data.channels


class Augmentation:
    """Makes random views of single images, as `medmoco pretrain` makes them.

    A view has the type of its image: an array (H, W) or (H, W, C) gives (S, S) or (S, S, C) of the same dtype, a PIL
    image gives a PIL image. Arrays are uint8, uint16, or floats from 0 to 1, which are processed with 16 bits. Three
    channels are red, green and blue. With `to_tensor`, the view is a float32 tensor (C, S, S) instead, normalised as in
    pretraining.

    Views are cut from the image as it is; `TwoViews` first scales it to `data.canvas_size`.

    Examples:
        >>> import medmoco
        >>> import numpy as np
        >>> image = np.random.default_rng(0).integers(0, 65536, (300, 250), dtype=np.uint16)
        >>> augmentation = medmoco.Augmentation("xray", size=64, flip_probability=0)
        >>> view = augmentation(image)
        >>> view.shape, view.dtype
        ((64, 64), dtype('uint16'))
        >>> again = augmentation(image, sample=0)  # the first view was that of sample 0
        >>> bool((view == again).all())
        True
        >>> transform = medmoco.Augmentation("moco_v2", size=64, to_tensor=True)  # of a torchvision data set
        >>> transform(image).shape
        torch.Size([1, 64, 64])
    """

    def __init__(
        self, recipe: str = "xray", size: int = 224, seed: int = 0, *, to_tensor: bool = False, **overrides: Any
    ) -> None:
        """Check the recipe.

        Args:
            recipe: Preset: xray, moco_v1, moco_v2 or moco_cxr.
            size: Side S of a view in pixels.
            seed: Seed of all views.
            to_tensor: Return normalised tensors.
            **overrides: Replace values of the recipe, such as `crop_scale=(0.5, 1.0)`; `medmoco config` lists them
                under `views`.

        Raises:
            SettingsError: a recipe or key is unknown, or a value is invalid.
        """
        self._given = {"recipe": recipe, "size": size, **overrides}
        self._seed, self._to_tensor, self._count = seed, to_tensor, 0
        self._views: dict[Channels, ViewSettings] = {}
        self._views_of("rgb")

    def __call__(
        self, image: NDArray[Any] | Image.Image, *, sample: int | None = None, epoch: int = 0, view: int = 0
    ) -> Any:
        """Return one view of an image.

        Args:
            image: (H, W) or (H, W, C), or a PIL image of mode L, RGB or I;16.
            sample: Number of the image: the same sample, epoch and view give the same random numbers, those of
                `TwoViews`. Without it every call draws anew; in the workers of a `DataLoader` that depends on
                `torch.manual_seed` too.
            epoch: From 0.
            view: 0 for the query, 1 for the key.

        Raises:
            ImageError: the image is of another type.
            SettingsError: the settings do not fit its channels.
        """
        pixels = _pixels(image)
        rgb = pixels.shape[2:] == (3,)
        settings = self._views_of("rgb" if rgb else "gray" if pixels.ndim == 2 else pixels.shape[2])
        canvas = Canvas(pixels, pixels.shape[0], pixels.shape[1], rgb)
        number = np.array([self._next_sample() if sample is None else sample])
        drawn = draw(settings, [canvas], seed=self._seed, epoch=epoch, samples=number, view=view)
        made = render(settings, [canvas], [drawn])[0]
        if self._to_tensor:
            return to_float(torch.from_numpy(made), settings, torch.device("cpu"), channels_last=False)[0]
        return _as_given(made[0].transpose(1, 2, 0) if pixels.ndim == 3 else made[0, 0], image)

    def __repr__(self) -> str:
        given = ", ".join(f"{key}={value!r}" for key, value in self._given.items())
        return f"Augmentation({given}, seed={self._seed}{', to_tensor=True' * self._to_tensor})"

    def _views_of(self, channels: Channels) -> ViewSettings:
        if channels not in self._views:
            data = {"manifest": ".", "root": ".", "channels": channels, "canvas_size": 4096}
            tree = {"out": ".", "data": data, "views": self._given}
            self._views[channels] = load(tree).views
        return self._views[channels]

    def _next_sample(self) -> int:
        """Return a number that no other call has: each worker counts its calls and has its own seed."""
        self._count += 1
        worker = get_worker_info()
        return int(hashed(worker.seed, self._count)[0] >> 1) if worker else self._count - 1


def _pixels(image: Any) -> Pixels:
    """Return an image as uint8 or uint16, (H, W) or (H, W, C).

    Raises:
        ImageError: it is of another type.
    """
    if isinstance(image, Image.Image):
        if image.mode not in _MODES:
            raise ImageError(f"a PIL image of mode {image.mode}; convert it to one of {', '.join(_MODES)}")
        return np.asarray(image)
    if not isinstance(image, np.ndarray):
        raise ImageError(f"{type(image).__name__} is neither a NumPy array nor a PIL image")
    if image.ndim not in (2, 3) or not image.size or (image.ndim == 3 and image.shape[2] > _MOST_CHANNELS):
        raise ImageError(f"an array of shape {image.shape} is not an image (H, W) or (H, W, C)")
    if image.dtype in (np.uint8, np.uint16):
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise ImageError(f"an array of {image.dtype}; convert it to uint8, uint16 or floats from 0 to 1")
    if not (image.min() >= 0 and image.max() <= 1):
        raise ImageError("an array of floats outside 0 to 1, or of nan; scale it to 0 for black and 1 for white")
    return np.rint(image.astype(np.float64) * 65535).astype(np.uint16)


def _as_given(view: Pixels, image: NDArray[Any] | Image.Image) -> Any:
    """Return a view with the type of its image."""
    if isinstance(image, Image.Image):
        return Image.fromarray(np.ascontiguousarray(view))
    return (view / 65535).astype(image.dtype) if np.issubdtype(image.dtype, np.floating) else np.ascontiguousarray(view)
