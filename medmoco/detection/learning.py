"""Training of a detector and its predictions, as boxes in pixels of the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medmoco.config import RunSettings
from medmoco.data.augment import views as view_maker
from medmoco.data.image_io.images import Canvas
from medmoco.data.image_io.intensity import fitted
from medmoco.data.loading.loading import Batch, Batches, evaluation_batches, training_batches
from medmoco.data.loading.pairs import ONE_VIEW
from medmoco.data.loading.sampler import WHOLE, Share, StepOrder
from medmoco.detection.boxes import Annotated, Corners, Integers
from medmoco.detection.detectors import FIRST_LABEL
from medmoco.errors import CheckpointError, Stopped
from medmoco.models.batch_norm import forget_statistics, settle_statistics
from medmoco.training.context import RunContext
from medmoco.training.device import autocast
from medmoco.training.distributed import gradients_stay_here

Target = dict[str, Tensor]


@dataclass(frozen=True)
class Detections:
    """The boxes a detector predicts in the N images of a split.

    Attributes:
        images: (M,) positions in the split, ascending.
        corners: (M, 4) in pixels of the image: x_min, y_min, x_max, y_max.
        labels: (M,) from 0.
        scores: (M,) 0 to 1.
    """

    images: Integers
    corners: Corners
    labels: Integers
    scores: NDArray[np.float64]


# Views: the whole image in its canvas, mirrored and with changed gray levels


def detector_batches(
    annotated: Annotated, settings: RunSettings, order: StepOrder, start_step: int, share: Share = WHOLE
) -> Batches:
    """Yield this process's share of the training batches, with each image in its canvas; see `training_batches`."""
    make = partial(_training_views, settings=settings)
    return training_batches(annotated.split, settings, order, start_step, share, ONE_VIEW, make)


def _training_views(
    canvases: list[Canvas], samples: NDArray[np.int64], epoch: int, *, settings: RunSettings
) -> view_maker.Pixels:
    params = view_maker.draw(settings.views, canvases, seed=settings.seed, epoch=epoch, samples=samples, view=0)
    return view_maker.toned(canvases, params)


def _plain_views(canvases: list[Canvas], samples: NDArray[np.int64]) -> view_maker.Pixels:
    return view_maker.channels_first([canvas.pixels for canvas in canvases])


def _is_mirrored(settings: RunSettings, samples: NDArray[np.int64], epoch: int) -> NDArray[np.bool_]:
    """Return which images `_training_views` mirrors; only the settings, samples and epoch determine it."""
    anything = [Canvas(np.zeros((1, 1), np.uint8), 1, 1)] * len(samples)
    return view_maker.draw(
        settings.views, anything, seed=settings.seed, epoch=epoch, samples=samples, view=0
    ).mirrored  # fmt: skip


def images_in(views: Tensor, sizes: list[tuple[int, int]], device: torch.device) -> list[Tensor]:
    """Crop images from their canvases: (B, C, S, S) uint8 or uint16 to B tensors (C, H, W) float32, 0 to 1."""
    white = 255.0 if views.dtype == torch.uint8 else 65535.0
    floats = views.to(device, non_blocking=True).to(torch.float32).mul_(1 / white)
    return [image[:, :height, :width] for image, (height, width) in zip(floats, sizes, strict=True)]


def sizes_in_canvas(annotated: Annotated, samples: NDArray[np.int64], settings: RunSettings) -> list[tuple[int, int]]:
    """Return the height and width of images in their canvases."""
    sizes = annotated.sizes[samples].astype(np.float64)
    if annotated.aspects is not None:
        sizes[:, 0] *= annotated.aspects[samples]
    return [fitted(size, settings.data.canvas_size) for size in sizes.tolist()]


# Training


class Detecting:
    """The task of the training loop: the sum of the losses of torchvision's detectors."""

    def __init__(self, model: nn.Module, annotated: Annotated, context: RunContext) -> None:
        self.model = model
        self._apply = context.group.wrap(model, context.device)
        self._annotated = annotated
        self._context = context
        self._settings, self._device = context.settings, context.device

    def losses(self, batch: Batch, measure: bool) -> Iterator[dict[str, Tensor]]:
        """Yield the losses of each part of a batch."""
        parts = self._settings.train.accumulation_steps
        samples = batch.samples.numpy()
        targets = targets_of(self._annotated, samples, batch.epoch, self._settings, self._device)
        images = images_in(
            batch.views[0], sizes_in_canvas(self._annotated, samples, self._settings), self._device
        )  # fmt: skip
        size = len(images) // parts
        for part in range(0, len(images), size):
            own = slice(part, part + size)
            with gradients_stay_here(self._apply, part + size < len(images)):
                with autocast(self._device, self._context.precision):
                    found: dict[str, Tensor] = self._apply(images[own], targets[own])
                values = {name: value.float() / parts for name, value in found.items()}
                yield {"loss": torch.stack(list(values.values())).sum(), **(values if measure else {})}

    def after_step(self) -> None:
        """Update the running statistics."""
        settle_statistics(self.model)

    def skip_step(self) -> None:
        """Discard the update of the running statistics."""
        forget_statistics(self.model)


def targets_of(
    annotated: Annotated, samples: NDArray[np.int64], epoch: int, settings: RunSettings, device: torch.device
) -> list[Target]:
    """Return the boxes of training views in pixels of the view, in torchvision's format."""
    first = FIRST_LABEL[settings.detection.detector]
    targets = []
    mirrored = _is_mirrored(settings, samples, epoch)
    sizes = sizes_in_canvas(annotated, samples, settings)
    for sample, flip, (height, width) in zip(samples.tolist(), mirrored.tolist(), sizes, strict=True):
        own = annotated.boxes_of(sample)
        full_height, full_width = annotated.sizes[sample]
        scale = np.array([width / full_width, height / full_height] * 2)
        corners = annotated.corners[own] * scale
        if flip:
            corners[:, [0, 2]] = width - corners[:, [2, 0]]
        targets.append({
            "boxes": torch.from_numpy(corners).float().to(device),
            "labels": torch.from_numpy(annotated.labels[own] + first).to(device),
        })  # fmt: skip
    return targets


# Prediction


def find_boxes(
    model: nn.Module,
    annotated: Annotated,
    settings: RunSettings,
    device: torch.device,
    precision: str = "fp32",
    stop_asked: Callable[[], bool] = lambda: False,
) -> Detections:
    """Apply a detector to every image of a split.

    Raises:
        CheckpointError: its scores are not finite.
        DataError: an image cannot be used.
        Stopped: `stop_asked` returned True.
    """
    batch_size = settings.train.global_batch_size // settings.train.accumulation_steps
    chosen = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"batch_size": batch_size})})
    first = FIRST_LABEL[settings.detection.detector]
    rows: list[NDArray[np.float64]] = [np.empty((0, 7))]
    model.eval()
    with torch.inference_mode(), autocast(device, precision):
        for batch in evaluation_batches(annotated.split, chosen, settings.data.canvas_size, _plain_views):
            if stop_asked():
                raise Stopped("stopped during prediction")
            samples = batch.samples.numpy()
            sizes = sizes_in_canvas(annotated, samples, settings)
            outputs: list[Target] = model(images_in(batch.views[0], sizes, device))
            for sample, (height, width), found in zip(samples.tolist(), sizes, outputs, strict=True):
                full_height, full_width = annotated.sizes[sample]
                scale = np.array([full_width / width, full_height / height] * 2)
                rows.append(_rows(sample, found, scale, first))
    table = np.concatenate(rows)
    if not np.isfinite(table).all():
        raise CheckpointError("the detector's scores are not finite; its training diverged, so lower detection.lr")
    return Detections(
        table[:, 0].astype(np.int64), table[:, 1:5], table[:, 5].astype(np.int64), table[:, 6]
    )  # fmt: skip


def _rows(sample: int, found: dict[str, Any], scale: NDArray[np.float64], first: int) -> NDArray[np.float64]:
    """Return position, corners in pixels of the image, label and score of each predicted box."""
    corners, labels, scores = (found[name].double().cpu().numpy() for name in ("boxes", "labels", "scores"))
    return np.column_stack([np.full(len(scores), sample), corners * scale, labels - first, scores])
