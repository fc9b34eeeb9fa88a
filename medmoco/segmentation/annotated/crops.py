"""Training crops: a part of an image and the classes in it, cut and augmented alike.

A share of the crops, `segmentation.foreground`, is centred on a pixel or voxel of a class, each class of the image
being equally likely: otherwise small structures would hardly be seen. Every random number depends only on the seed, the
epoch and the sample, as for other views, so that an encoder and its controls learn from the same crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from medmoco.config import RunSettings
from medmoco.data.augment import views as view_maker
from medmoco.data.augment import volume_views
from medmoco.data.augment.parameters import ViewParameters, VolumeViewParameters
from medmoco.data.augment.views import between
from medmoco.data.augment.volume_warps import warp
from medmoco.data.image_io.images import Canvas
from medmoco.data.loading.loading import Batch
from medmoco.data.loading.sampler import BatchKey, Share
from medmoco.data.volume_io.volume import VolumeCanvas
from medmoco.segmentation.annotated.cases import Case
from medmoco.segmentation.annotated.grids import largest
from medmoco.segmentation.masks.masks import Numbers
from medmoco.utils.rng import CROP, uniform

Integers = NDArray[np.int64]
_DRAWN = ("foreground", "class", "place", "zoom", "x", "y", "z")  # append, never reorder


class CropDataset(Dataset[Batch]):
    """Maps a BatchKey to this process's share of the crops: their pixels and their class numbers."""

    def __init__(self, cases: Sequence[Case], settings: RunSettings, share: Share) -> None:
        self.cases, self.settings, self.share = cases, settings, share

    def __getitem__(self, key: BatchKey) -> Batch:
        samples = key.samples[self.share.of(len(key.samples))]
        # An epoch uses few images several times; the samples are then more than the cases, and so are the crops.
        cases = [self.cases[sample % len(self.cases)] for sample in samples.tolist()]
        made = make_crops(cases, samples, key.epoch, self.settings)
        return Batch([torch.from_numpy(each) for each in made], torch.from_numpy(samples), key.step, key.epoch)


def make_crops(
    cases: Sequence[Case], samples: Integers, epoch: int, settings: RunSettings
) -> tuple[NDArray[Any], Numbers]:
    """Return crops of B images.

    Args:
        cases: B images.
        samples: (B,) numbers of the samples, on which their random numbers depend.
        epoch: Epoch, counted from 0.
        settings: `views` has the size and the changes of intensity, `segmentation` where the crops are.

    Returns:
        Pixels (B, C, S, S) or (B, 1, S, S, S), and class numbers (B, S, S) or (B, S, S, S).
    """
    start, extent = _boxes(cases, samples, epoch, settings)
    maker: Any = volume_views if settings.data.dimensions == 3 else view_maker
    canvases: Any = [case.canvas for case in cases]
    drawn = maker.draw(settings.views, canvases, seed=settings.seed, epoch=epoch, samples=samples, view=0)
    if settings.data.dimensions == 3:
        params = replace(drawn, start=start, extent=extent)
        numbers = _volume_numbers(cases, params, settings.views.size)
    else:
        centre_y, centre_x = (start + extent / 2).T
        height, width = extent.T.astype(np.float64)
        params = replace(drawn, centre_x=centre_x, centre_y=centre_y, width=width, height=height)
        numbers = _image_numbers(cases, params, settings.views.size)
    (pixels,) = maker.render(settings.views, canvases, [params])
    return pixels, numbers


def _boxes(cases: Sequence[Case], samples: Integers, epoch: int, settings: RunSettings) -> tuple[Integers, Integers]:
    """Return the first pixel or voxel of each crop's box in the canvas and its sides, (B, 2 or 3)."""
    chosen, size = settings.segmentation, settings.views.size
    u = dict(zip(_DRAWN, uniform(settings.seed, CROP, epoch, samples, np.arange(len(_DRAWN))[:, None]), strict=True))
    shapes = np.array([case.numbers.shape for case in cases])
    dimensions = shapes.shape[1]
    side = np.maximum(np.rint(between(u["zoom"], chosen.zoom) * size), 1).astype(np.int64)
    extent = np.repeat(side[:, None], dimensions, axis=1)
    if dimensions == 2:
        extent = np.minimum(extent, shapes)  # images are reflected at their border, which would repeat their classes
    low, high = volume_views.limits_of_boxes(shapes - extent)
    start = low + np.floor(np.stack([u[axis] for axis in "xyz"[:dimensions]], 1) * (high - low + 1)).astype(np.int64)
    for i, case in enumerate(cases):
        if case.places and u["foreground"][i] < chosen.foreground:
            places = case.places[int(u["class"][i] * len(case.places))]
            start[i] = places[int(u["place"][i] * len(places))] - extent[i] // 2
    return np.clip(start, low, high), extent


# Class numbers are warped by the code that warps the pixels, each class as an image of its own.


@dataclass(frozen=True)
class _Plane:
    """Where a value is, as the pixels of a canvas: 255 there, 0 elsewhere; computed only where it is needed."""

    numbers: Numbers
    value: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.numbers.shape

    def __getitem__(self, part: tuple[slice, ...]) -> Numbers:
        return np.where(self.numbers[part] == self.value, np.uint8(255), np.uint8(0))


def _volume_numbers(cases: Sequence[Case], params: VolumeViewParameters, size: int) -> Numbers:
    """Return the class numbers of crops, (B, S, S, S)."""

    def plane(i: int, value: int) -> Numbers:
        canvas, out = cases[i].canvas, np.empty((size, size, size), np.uint8)
        assert isinstance(canvas, VolumeCanvas)
        warp(replace(canvas, pixels=_Plane(cases[i].numbers, value)), params, i, out)
        return out

    each = [
        largest(((value, plane(i, value)) for value in case.values), (size, size, size))
        for i, case in enumerate(cases)
    ]  # fmt: skip
    return np.stack(each)


def _image_numbers(cases: Sequence[Case], params: ViewParameters, size: int) -> Numbers:
    """Return the class numbers of crops, (B, S, S)."""

    def planes(value: int) -> Numbers:
        where = [_Plane(case.numbers, value)[:, :] for case in cases]
        canvases = [Canvas(pixels, *pixels.shape) for pixels in where]
        return view_maker.render_weights(canvases, params, size, reflect=True)[:, 0]

    values = sorted({value for case in cases for value in case.values})
    return largest(((value, planes(value)) for value in values), (len(cases), size, size))
