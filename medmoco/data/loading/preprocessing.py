"""Preprocessing from an image to the network's input, as one object that runs, classifiers and exports share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from medmoco.config import (
    Channels,
    DataSettings,
    Float,
    Fraction,
    Int,
    Positive,
    RunSettings,
    Settings,
    Tree,
    channel_count,
    load,
)
from medmoco.data.augment.normalisation import to_float
from medmoco.data.image_io.formats.bands import band_axis, levels_of
from medmoco.data.image_io.images import Canvas, read_canvas, to_canvas
from medmoco.data.image_io.intensity import GrayImage, Pixels, Unreadable, as_displayed, quantise
from medmoco.data.loading.loading import whole_maker
from medmoco.data.volume_io.canvases import read_volume_canvas, to_volume_canvas
from medmoco.data.volume_io.volume import Volume, VolumeCanvas
from medmoco.errors import ImageError

NO_DATA = Path("no-data")
"""`data.manifest` in settings without data."""

Image = str | Path | ArrayLike
"""A file, or the pixels of an image."""


def without_data(overrides: Sequence[str] = ()) -> RunSettings:
    """Return settings that name no data, for files and arrays; `overrides` are texts such as "train.device=cpu".

    Raises:
        SettingsError: an override is invalid.
    """
    return load({"out": ".", "data": {"manifest": str(NO_DATA), "root": "."}}, overrides)


class CanvasPart(Settings):
    """From a file to its canvas; the names are those in the settings `data`."""

    canvas_size: Int
    bit_depth: Literal[8, 16]
    window: Literal["voi", "full", "percentiles"] | tuple[Float, Positive]
    dimensions: Literal[2, 3] = 2
    spacing: tuple[Positive, Positive, Positive] | None = None
    channels: Channels = "gray"  # these three are missing in older classifiers, which were for gray images only
    scale: Literal["linear", "log"] = "linear"
    band_ranges: tuple[tuple[Float, Float], ...] | None = None


class NormalisationPart(Settings):
    """From grey levels, as fractions of white, to the network's input; the names are those in the settings `views`."""

    mean: Fraction | tuple[Fraction, ...]
    std: Positive | tuple[Positive, ...]


class Preprocessing(CanvasPart, NormalisationPart):
    """How images are prepared for an encoder.

    Attributes:
        canvas_size: Longer side of the canvas, in pixels.
        bit_depth: 8 or 16.
        window: "voi", "full", "percentiles", or centre and width.
        dimensions: 2 for images, 3 for volumes.
        spacing: Distances between the voxels of a volume, in mm; None for those of each file.
        mean: Mean subtracted from pixels as fractions of white; one number, or one per channel.
        std: Standard deviation by which they are then divided; one number, or one per channel.
        size: Side of the network's input, in pixels or voxels.
        volumes: "sliding" or "resized", see `evaluate.volumes`.
        mirror: Average the outputs for the image and its mirror image.
        channels: "gray", "rgb" or a number of bands.
        scale: Intensity scale of bands, "linear" or "log".
        band_ranges: [low, high] of the bands; None for the range of each image.
    """

    size: Annotated[Int, Field(ge=1)]
    mirror: bool = False
    volumes: Literal["sliding", "resized"] = "sliding"

    @classmethod
    def of(cls, settings: RunSettings) -> Preprocessing:
        """Return how `medmoco evaluate` prepares images with these settings."""
        parts = {key: getattr(settings.data, key) for key in CanvasPart.model_fields}
        parts |= {key: getattr(settings.views, key) for key in NormalisationPart.model_fields}
        size = settings.evaluate.size or settings.views.size
        return cls(**parts, size=size, mirror=settings.evaluate.mirror, volumes=settings.evaluate.volumes)

    def apply_to(self, settings: RunSettings) -> tuple[RunSettings, list[str]]:
        """Return settings that prepare images this way, and one line for each setting that this changes."""
        own: dict[str, Tree] = {
            "data": {key: getattr(self, key) for key in CanvasPart.model_fields},
            "views": {key: getattr(self, key) for key in NormalisationPart.model_fields},
            "evaluate": {"mirror": self.mirror, "size": self.size, "volumes": self.volumes},
        }
        before = Preprocessing.of(settings)
        changes = [
            f"{group}.{key} is {value}, as in training, not {getattr(before, key)}"
            for group, values in own.items()
            for key, value in values.items()
            if getattr(before, key) != value
        ]
        groups = {group: getattr(settings, group).model_copy(update=values) for group, values in own.items()}
        return settings.model_copy(update=groups), changes

    @property
    def settings(self) -> RunSettings:
        """Settings that prepare images this way, without data."""
        return _settings_of(self)

    def canvas(self, image: Image, frame: int = 1, series: str = "") -> Canvas | VolumeCanvas:
        """Read a file or take an array, and scale it to a canvas.

        Args:
            image: See `prepare`.
            frame: Frame of a DICOM file or page of a TIFF file, from 1.
            series: SeriesInstanceUID of a volume, if its folder has several series.

        Raises:
            ImageError: the image cannot be used; the message contains no path.
        """
        if self.dimensions == 3:
            return self._volume_canvas(image, series)
        if isinstance(image, str | Path):
            return read_canvas(image, frame, self.settings.data)[0]
        try:
            return to_canvas(self._levels_of(np.asarray(image)), self.canvas_size, self.bit_depth)
        except Unreadable as error:
            raise ImageError(str(error)) from None

    def prepare(self, image: Image) -> NDArray[np.float32]:
        """Return the network's input for one image, exactly as evaluation makes it.

        Args:
            image: A DICOM, PNG, JPEG or TIFF file (.npy or TIFF for bands). Or an array (H, W) or (H, W, C): uint8 or
                uint16 are read as a PNG file of these pixels; floats are fractions of white, 0 to 1. For bands, arrays
                contain the values of the .npy file. For volumes a NIfTI, NRRD or MetaImage file, the folder of a DICOM
                series, or an array (X, Y, Z) with the axes of RAS and the spacing of the settings.

        Returns:
            (C, size, size), normalised; for volumes (1, size, size, size), or (W, 1, size, size, size) if they are
            shown as W windows, see `evaluate.volumes`.

        Raises:
            ImageError: the image cannot be used.

        >>> import numpy as np
        >>> gray = Preprocessing(canvas_size=32, bit_depth=8, window="voi", mean=0.5, std=0.25, size=16)
        >>> gray.prepare(np.full((40, 30), 255, np.uint8)).max()
        np.float32(2.0)
        """
        made = whole_maker(self.dimensions, self.size, self.volumes)([self.canvas(image)], np.zeros(1, np.int64))
        shown = made[0] if isinstance(made, list) else made
        prepared = to_float(torch.from_numpy(shown), self, torch.device("cpu"), channels_last=False).numpy()
        return prepared if isinstance(made, list) else prepared[0]

    def _volume_canvas(self, image: Image, series: str) -> VolumeCanvas:
        if isinstance(image, str | Path):
            return read_volume_canvas(image, series, self.settings.data)[0]
        values = np.asarray(image)
        if values.ndim != 3 or 0 in values.shape or values.dtype.kind not in "uif":
            raise ImageError(f"an array of shape {values.shape} and {values.dtype} is not a volume; give (X, Y, Z)")
        affine = np.diag([*(self.spacing or (1.0, 1.0, 1.0)), 1.0])
        return to_volume_canvas(Volume(values.astype(np.float32), affine), self.settings.data)

    def _levels_of(self, pixels: Pixels) -> GrayImage:
        """Return an array as a decoded image."""
        if 0 in pixels.shape or pixels.ndim not in (2, 3):
            raise Unreadable(f"an array of shape {pixels.shape} is not an image; give (H, W) or (H, W, C)")
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise Unreadable("the array contains values that are not finite; replace them first")
        if isinstance(self.channels, int):
            if pixels.dtype.kind not in "uif":
                raise Unreadable(f"an array of {pixels.dtype} holds no numbers; convert it first")
            axis = band_axis(pixels.shape, self.channels)
            return levels_of(
                pixels[None] if axis is None else np.moveaxis(pixels, axis, 0), self.scale, self.band_ranges
            )
        planes = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
        if len(planes) not in (1, 3):
            raise Unreadable(f"an array of shape {pixels.shape} has neither 1 nor 3 channels; give (H, W) or (H, W, 3)")
        window = self.window
        assert window != "percentiles"  # of volumes only
        if pixels.dtype.kind == "f":
            if pixels.min() < 0 or pixels.max() > 1:
                raise Unreadable(
                    "floats must be fractions of white, from 0 to 1; divide by white, or give uint8 or uint16"
                )
            planes, window = quantise(planes.astype(np.float64), 16), "full"
        elif pixels.dtype not in (np.uint8, np.uint16):
            raise Unreadable(f"an array of {pixels.dtype}; give uint8, uint16, or floats from 0 to 1")
        found = as_displayed(planes, window, rgb=self.channels == "rgb")
        if self.channels == "rgb" and found.pixels.ndim == 2:
            return GrayImage(np.repeat(found.pixels[..., None], 3, 2), found.bits)
        return found

    # Descriptions and numbers per channel, for the files of exports

    @property
    def channel_count(self) -> int:
        """Number of channels of the network's input."""
        return channel_count(self.channels)

    @property
    def means(self) -> list[float]:
        """The mean of each channel."""
        return self._of_each(self.mean)

    @property
    def stds(self) -> list[float]:
        """The standard deviation of each channel."""
        return self._of_each(self.std)

    def _of_each(self, value: float | tuple[float, ...]) -> list[float]:
        return list(value) if isinstance(value, tuple) else [value] * self.channel_count

    @property
    def input(self) -> str:
        """Size and normalisation in a few words, such as "224 x 224 pixels, mean 0.498, std 0.502"."""
        mean, std = ("/".join(f"{value:.3f}" for value in dict.fromkeys(each)) for each in (self.means, self.stds))
        return f"{self.sides}, mean {mean}, std {std}"

    @property
    def sides(self) -> str:
        """Size in a few words, such as "224 x 224 pixels"."""
        return f"{' x '.join([str(self.size)] * self.dimensions)} {'voxels' if self.dimensions == 3 else 'pixels'}"

    @property
    def levels(self) -> str:
        """Description of how stored values become grey levels."""
        if self.dimensions == 3:
            return "percentiles of the body" if self.window == "percentiles" else f"window {self.window}"
        if isinstance(self.channels, int):
            return f"{self.scale} scale, band ranges {self.band_ranges or 'of each image'}"
        return f"bright is dense, window {self.window}" if self.channels == "gray" else "colours as displayed"

    @property
    def images(self) -> str:
        """Description of the network's input."""
        if self.dimensions == 3:
            return "volumes"
        words = {"gray": "one-channel images", "rgb": "RGB images"}
        return words.get(str(self.channels), f"images of {self.channels} band{'s' * (self.channels != 1)}")


@lru_cache(maxsize=16)  # not in the object, whose copies would include it
def _settings_of(preprocessing: Preprocessing) -> RunSettings:
    settings, _ = preprocessing.apply_to(RunSettings(out=Path(), data=DataSettings(manifest=NO_DATA, root=".")))
    return settings
