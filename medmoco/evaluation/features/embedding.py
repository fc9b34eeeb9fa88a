"""Images to outputs, as evaluation computes them: what `Encoder.embed` and `Classifier.predict` share."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Literal, NamedTuple

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
    whole_views,
)
from medmoco.data.loading.preprocessing import NO_DATA, Preprocessing
from medmoco.data.manifest.manifest import SPLITS
from medmoco.errors import ImageError, MedmocoError, SettingsError, first_line
from medmoco.evaluation.features.features import Features, encode, refuse_not_finite
from medmoco.evaluation.features.image_sets import Images, ImageSet, image_set
from medmoco.training.device import choose_device
from medmoco.utils.progress import track

PathLike = str | os.PathLike[str]
Unreadable = Literal["raise", "nan"]

_SHOWN = 3  # unreadable images that a message names


class Options(NamedTuple):
    """How outputs are computed; see `Encoder.embed`."""

    root: PathLike | None = None
    unreadable: Unreadable = "raise"
    batch_size: int | None = None
    device: str | torch.device | None = None
    progress: bool = False


class Computed(NamedTuple):
    """What a network gives for N images.

    Attributes:
        rows: (N,), see `ImageSet`.
        values: (N, F) float32; NaN for images that cannot be read.
        errors: N reasons, blank for images that could be read.
    """

    rows: NDArray[np.int64]
    values: Features
    errors: list[str]


def compute(
    module: nn.Module, preprocessing: Preprocessing, settings: RunSettings, images: Images, options: Options
) -> Computed:
    """Return what a network gives for images, as evaluation computes it.

    Args:
        module: (B, C, S, S) -> (B, F).
        preprocessing: Of the images.
        settings: Name the data and the machine.
        images: See `Encoder.embed`.
        options: See `Encoder.embed`.

    Raises:
        ImageError, CheckpointError, SettingsError: see `Encoder.embed`.
    """
    if options.unreadable not in ("raise", "nan"):
        raise SettingsError(f"unreadable={options.unreadable!r} is neither 'raise' nor 'nan'")
    settings = _settings_of(preprocessing, settings, images, options)
    found = image_set(images, options.root, settings)
    count = len(found.rows)
    if not count:
        raise SettingsError("there are no images: what was given is empty")
    if found.in_memory:  # workers would only copy them
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"workers": 0})})
    device = _place(module, settings, options.device)
    dataset = _TolerantDataset(found.read, partial(whole_views, size=preprocessing.size), _blank(preprocessing))
    errors: dict[int, str] = {}
    with closing(whole_batches(dataset, count, settings)) as batches:
        checked = _noting(batches, found, errors, options.unreadable)
        if options.progress:
            checked = track(checked, -(-count // settings.evaluate.batch_size), "batches")
        values = encode({"encoder": module}, checked, settings, device).features["encoder"]
    bad = list(errors)
    refuse_not_finite("encoder", np.delete(values, bad, 0), np.delete(found.rows, bad), f"images ({found.what})")
    if bad:
        values[bad] = np.nan
        shown = f"{', '.join(str(found.rows[at]) for at in bad[:10])}{', ...' * (len(bad) > 10)} ({found.what})"
        warnings.warn(f"{len(bad)} of {count} images cannot be read and have NaN: {shown}", stacklevel=3)
    return Computed(found.rows, values, [errors.get(at, "") for at in range(count)])


def _settings_of(preprocessing: Preprocessing, settings: RunSettings, images: Images, options: Options) -> RunSettings:
    """Return settings that prepare images as told."""
    if isinstance(images, str) and images in SPLITS and settings.data.manifest == NO_DATA:
        raise SettingsError(
            f"the manifest that {images!r} is a split of is not known: load with a config that names it, or give a\n"
            f"folder as './{images}'"
        )
    settings, _ = preprocessing.apply_to(settings)
    if options.batch_size is None:
        return settings
    if options.batch_size < 1:
        raise SettingsError(f"batch_size={options.batch_size} is not a positive number")
    chosen = settings.evaluate.model_copy(update={"batch_size": options.batch_size})
    return settings.model_copy(update={"evaluate": chosen})


class _TolerantDataset(WholeDataset):
    """Puts a blank canvas in the place of each image that cannot be read, so that the others of its batch remain."""

    def __init__(self, read: CanvasReader, make: ViewMaker, blank: Canvas) -> None:
        super().__init__(read, make)
        self.blank = blank

    def __getitem__(self, samples: Samples) -> Batch | MedmocoError:
        found = super().__getitem__(samples)
        if not isinstance(found, ImageError):
            return found
        canvases: list[Canvas] = []
        unread: list[tuple[int, str]] = []
        for sample in samples:
            try:
                canvases += self.read(sample[None])[0]
            except ImageError as error:
                canvases.append(self.blank)
                unread.append((int(sample), str(error)))
        batch = WholeDataset(lambda _: (canvases, ()), self.make)[samples]
        return replace(batch, unread=tuple(unread)) if isinstance(batch, Batch) else batch


def _blank(preprocessing: Preprocessing) -> Canvas:
    """Return what stands for images that cannot be read."""
    side, channels = preprocessing.canvas_size, preprocessing.channel_count
    shape = (side, side) if channels == 1 else (side, side, channels)
    return Canvas(np.zeros(shape, dtype_of(preprocessing.bit_depth)), side, side, preprocessing.channels == "rgb")


def _noting(
    batches: Iterable[Batch], images: ImageSet, errors: dict[int, str], unreadable: Unreadable
) -> Iterator[Batch]:
    """Pass batches on, and note or refuse what they could not read."""
    for batch in batches:
        errors |= dict(batch.unread)
        if errors and unreadable == "raise":
            listed = [f"image {images.rows[at]}: {text.splitlines()[0]}" for at, text in errors.items()][:_SHOWN]
            first = f"{len(errors)} of the first {int(batch.samples[-1]) + 1} images ({images.what}) cannot be read;"
            raise ImageError("\n".join([f"{first} unreadable='nan' gives NaN for them", *listed]))
        yield batch


def _place(module: nn.Module, settings: RunSettings, device: str | torch.device | None) -> torch.device:
    """Move a module to a device, or to where the settings want it."""
    try:
        place = choose_device(settings.train) if device is None else torch.device(device)
        module.to(place)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device {str(device)!r} cannot be used: {first_line(error)}") from None
    return place
