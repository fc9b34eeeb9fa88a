"""Compute the outputs of a network for images, as in evaluation: shared by `Encoder.embed` and `Classifier.predict`."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
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
from medmoco.evaluation.features.features import Digests, Features, first_copies, outputs_of, refuse_not_finite
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


@dataclass(frozen=True)
class Outputs:
    """The outputs of a network for n images, as it returns them."""

    values: Features  # (n, F) float32; of no meaning for unreadable images
    digests: Digests  # n digests of canvases, see `fingerprints.canvas_digest`
    errors: Sequence[str]  # n reasons why an image is unreadable, blank for the others

    def __len__(self) -> int:
        return len(self.values)


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
    if not len(found.rows):
        raise SettingsError("there are no images: the argument is empty")
    with closing(compute_batches(module, preprocessing, settings, found, options)) as batches:
        shown = track(batches, len(found.rows), "images", size=len) if options.progress else batches
        outputs = list(shown)
    return put_together(outputs, found, options.unreadable)


def compute_batches(
    module: nn.Module, preprocessing: Preprocessing, settings: RunSettings, images: ImageSet, options: Options
) -> Generator[Outputs, None, None]:
    """Yield the outputs of a network for images, `evaluate.batch_size` at a time; raises as `Encoder.embed`.

    Batches of other images or another size may change the last bits of an output.

    Args:
        module: (B, C, S, S) -> (B, F); moved to the device.
        preprocessing: How images are converted to its input.
        settings: Settings with this preprocessing.
        images: N images.
        options: `root` and `progress` are ignored.
    """
    if images.in_memory:  # workers would only copy them
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"workers": 0})})
    device = _move(module, settings, options.device)
    make = whole_maker(preprocessing.dimensions, preprocessing.size, preprocessing.volumes)
    dataset = _TolerantDataset(images.read, make, _blank(preprocessing))
    with (
        closing(whole_batches(dataset, len(images.rows), settings)) as batches,
        closing(
            outputs_of({"encoder": module}, _checked(batches, images, options.unreadable), settings, device)
        ) as outputs,
    ):
        for batch, values in outputs:
            unread = dict(batch.unread)
            errors = [unread.get(sample, "") for sample in batch.samples.tolist()]
            yield Outputs(values["encoder"].numpy(), batch.digests, errors)


def put_together(outputs: Sequence[Outputs], images: ImageSet, unreadable: Unreadable) -> Computed:
    """Return the outputs of consecutive batches: copies of an image get those of the first, unreadable ones NaN.

    Raises:
        CheckpointError: outputs are not finite.
        ImageError: images are unreadable, and `unreadable` is "raise".
    """
    values = np.concatenate([part.values for part in outputs])
    errors = [error for part in outputs for error in part.errors]
    first = first_copies([digest for part in outputs for digest in part.digests])
    if first is not None:
        values = values[first]
    bad = [position for position, error in enumerate(errors) if error]
    if bad and unreadable == "raise":
        raise _unreadable({position: errors[position] for position in bad}, len(errors), images)
    refuse_not_finite("encoder", np.delete(values, bad, 0), np.delete(images.rows, bad), f"images ({images.what})")
    if bad:
        values[bad] = np.nan
        shown = f"{', '.join(map(str, images.rows[bad[:10]]))}{', ...' * (len(bad) > 10)} ({images.what})"
        warnings.warn(f"{len(bad)} of {len(errors)} images cannot be read and have NaN: {shown}", stacklevel=4)
    return Computed(images.rows, values, errors)


def as_table(computed: Computed, unreadable: Unreadable) -> pd.DataFrame:
    """Return a table of features: `row`, `feature_0` and so on, and with unreadable="nan" also `error`."""
    columns = {f"feature_{number}": column for number, column in enumerate(computed.values.T)}
    errors = {"error": computed.errors} if unreadable == "nan" else {}
    return pd.DataFrame({"row": computed.rows, **columns, **errors})


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


def _checked(batches: Iterable[Batch], images: ImageSet, unreadable: Unreadable) -> Iterator[Batch]:
    """Yield the batches; with unreadable="raise", refuse the first one with unreadable images."""
    for batch in batches:
        if batch.unread and unreadable == "raise":
            raise _unreadable(dict(batch.unread), int(batch.samples[-1]) + 1, images)
        yield batch


def _unreadable(errors: Mapping[int, str], read: int, images: ImageSet) -> ImageError:
    listed = [f"image {images.rows[index]}: {text.splitlines()[0]}" for index, text in errors.items()][:_SHOWN]
    first = f"{len(errors)} of the first {read} images ({images.what}) cannot be read;"
    return ImageError("\n".join([f"{first} unreadable='nan' gives NaN for them", *listed]))


def _move(module: nn.Module, settings: RunSettings, device: str | torch.device | None) -> torch.device:
    """Move a module to a device, by default that of the settings, and return the device."""
    try:
        chosen = choose_device(settings.train) if device is None else torch.device(device)
        module.to(chosen)
    except (RuntimeError, AssertionError) as error:
        raise SettingsError(f"device {str(device)!r} cannot be used: {first_line(error)}") from None
    return chosen
