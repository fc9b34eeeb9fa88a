"""Compute the outputs of a network for images, as in evaluation: shared by `Encoder.embed` and `Classifier.predict`."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medmoco.config import RunSettings
from medmoco.data.image_io.images import Canvas
from medmoco.data.image_io.intensity import dtype_of
from medmoco.data.loading.loading import (
    Batch,
    CanvasReader,
    Samples,
    ViewMaker,
    WholeDataset,
    whole_batches,
    whole_maker,
)
from medmoco.data.loading.preprocessing import NO_DATA, Preprocessing
from medmoco.data.manifest.manifest import SPLITS
from medmoco.data.volume_io.volume import VolumeCanvas
from medmoco.errors import ImageError, MedmocoError, SettingsError, first_line
from medmoco.evaluation.features.features import Features, encode, refuse_not_finite
from medmoco.evaluation.features.image_sets import Images, ImageSet, image_set
from medmoco.training.device import choose_device
from medmoco.utils.files import PathLike
from medmoco.utils.progress import track

Unreadable = Literal["raise", "nan"]

_SHOWN = 3  # unreadable images that an error message lists


class Options(NamedTuple):
    """How outputs are computed; see `Encoder.embed`."""

    root: PathLike | None = None
    unreadable: Unreadable = "raise"
    batch_size: int | None = None
    device: str | torch.device | None = None
    progress: bool = False


class Computed(NamedTuple):
    """The outputs of a network for N images.

    Attributes:
        rows: (N,), see `ImageSet`.
        values: (N, F) float32; NaN for unreadable images.
        errors: N reasons why an image is unreadable, blank for the others.
    """

    rows: NDArray[np.int64]
    values: Features
    errors: list[str]


def compute(
    module: nn.Module, preprocessing: Preprocessing, settings: RunSettings, images: Images, options: Options
) -> Computed:
    """Return the outputs of a network, (B, C, S, S) -> (B, F), for images; raises as `Encoder.embed`."""
    if options.unreadable not in ("raise", "nan"):
        raise SettingsError(f"unreadable={options.unreadable!r} is neither 'raise' nor 'nan'")
    settings = _settings_for(preprocessing, settings, images, options)
    found = image_set(images, options.root, settings)
    count = len(found.rows)
    if not count:
        raise SettingsError("there are no images: the argument is empty")
    if found.in_memory:  # workers would only copy them
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"workers": 0})})
    device = _move(module, settings, options.device)
    make = whole_maker(preprocessing.dimensions, preprocessing.size, preprocessing.volumes)
    dataset = _TolerantDataset(found.read, make, _blank(preprocessing))
    errors: dict[int, str] = {}
    with closing(whole_batches(dataset, count, settings)) as batches:
        checked = _collect_errors(batches, found, errors, options.unreadable)
        if options.progress:
            checked = track(checked, count, "images", size=len)
        values = encode({"encoder": module}, checked, settings, device).features["encoder"]
    bad = list(errors)
    refuse_not_finite("encoder", np.delete(values, bad, 0), np.delete(found.rows, bad), f"images ({found.what})")
    if bad:
        values[bad] = np.nan
        shown = f"{', '.join(map(str, found.rows[bad[:10]]))}{', ...' * (len(bad) > 10)} ({found.what})"
        warnings.warn(f"{len(bad)} of {count} images cannot be read and have NaN: {shown}", stacklevel=3)
    return Computed(found.rows, values, [errors.get(index, "") for index in range(count)])


def _settings_for(preprocessing: Preprocessing, settings: RunSettings, images: Images, options: Options) -> RunSettings:
    """Return the settings with this preprocessing and batch size."""
    if isinstance(images, str) and images in SPLITS and settings.data.manifest == NO_DATA:
        raise SettingsError(
            f"{images!r} is the name of a split, but the settings name no manifest: load with a config that does, or\n"
            f"write './{images}' for a folder of this name"
        )
    settings, _ = preprocessing.apply_to(settings)
    if options.batch_size is None:
        return settings
    if options.batch_size < 1:
        raise SettingsError(f"batch_size={options.batch_size} is not a positive number")
    chosen = settings.evaluate.model_copy(update={"batch_size": options.batch_size})
    return settings.model_copy(update={"evaluate": chosen})


class _TolerantDataset(WholeDataset):
    """Replaces each unreadable image by a blank canvas, so that the other images of its batch are kept."""

    def __init__(self, read: CanvasReader, make: ViewMaker, blank: Canvas | VolumeCanvas) -> None:
        super().__init__(read, make)
        self.blank = blank

    def __getitem__(self, samples: Samples) -> Batch | MedmocoError:
        found = super().__getitem__(samples)
        if not isinstance(found, ImageError):
            return found
        canvases: list[Any] = []
        unread: list[tuple[int, str]] = []
        for sample in samples:
            try:
                canvases += self.read(sample[None])[0]
            except ImageError as error:
                canvases.append(self.blank)
                unread.append((int(sample), str(error)))
        batch = WholeDataset(lambda _: (canvases, ()), self.make)[samples]
        return replace(batch, unread=tuple(unread)) if isinstance(batch, Batch) else batch


def _blank(preprocessing: Preprocessing) -> Canvas | VolumeCanvas:
    """Return the canvas that replaces unreadable images."""
    if preprocessing.dimensions == 3:
        return VolumeCanvas(np.zeros([preprocessing.size] * 3, dtype_of(preprocessing.bit_depth)), (1.0, 1.0, 1.0))
    side, channels = preprocessing.canvas_size, preprocessing.channel_count
    shape = (side, side) if channels == 1 else (side, side, channels)
    return Canvas(np.zeros(shape, dtype_of(preprocessing.bit_depth)), side, side, preprocessing.channels == "rgb")


def _collect_errors(
    batches: Iterable[Batch], images: ImageSet, errors: dict[int, str], unreadable: Unreadable
) -> Iterator[Batch]:
    """Yield the batches, and collect or raise the errors of their unreadable images."""
    for batch in batches:
        errors |= dict(batch.unread)
        if errors and unreadable == "raise":
            listed = [f"image {images.rows[index]}: {text.splitlines()[0]}" for index, text in errors.items()][:_SHOWN]
            first = f"{len(errors)} of the first {int(batch.samples[-1]) + 1} images ({images.what}) cannot be read;"
            raise ImageError("\n".join([f"{first} unreadable='nan' gives NaN for them", *listed]))
        yield batch


def _move(module: nn.Module, settings: RunSettings, device: str | torch.device | None) -> torch.device:
    """Move a module to a device, by default that of the settings, and return the device."""
    try:
        chosen = choose_device(settings.train) if device is None else torch.device(device)
        module.to(chosen)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device {str(device)!r} cannot be used: {first_line(error)}") from None
    return chosen
