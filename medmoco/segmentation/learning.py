"""Training of a segmentation network, and its predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medmoco.config import RunSettings
from medmoco.data.augment.normalisation import to_float
from medmoco.data.augment.views import channels_first
from medmoco.data.loading.loading import Batch, Batches, batches_of
from medmoco.data.loading.sampler import Share, StepOrder
from medmoco.errors import CheckpointError, Stopped
from medmoco.evaluation.metrics.auroc import ratio
from medmoco.models.batch_norm import forget_statistics, settle_statistics
from medmoco.segmentation.annotated.cases import Case
from medmoco.segmentation.annotated.crops import CropDataset
from medmoco.segmentation.annotated.grids import onto_image
from medmoco.segmentation.masks.masks import IGNORED, Numbers
from medmoco.segmentation.networks import SegmentationNetwork
from medmoco.segmentation.windows import blended, number_of_windows, padded
from medmoco.training.context import RunContext
from medmoco.training.device import autocast
from medmoco.training.distributed import gradients_stay_here

Probabilities = NDArray[np.float32]


def crop_batches(
    cases: Sequence[Case], settings: RunSettings, order: StepOrder, start_step: int, share: Share
) -> Batches:
    """Yield this process's share of the training crops from a step on; see `loading.training_batches`."""
    return batches_of(CropDataset(cases, settings, share), order.from_step(start_step), settings)


# Training


class Segmenting:
    """The task of the training loop: cross-entropy plus the Dice loss, over what is not ignored."""

    def __init__(self, model: SegmentationNetwork, context: RunContext) -> None:
        self.model = model
        self._apply = context.group.wrap(model, context.device)
        self._context = context

    def losses(self, batch: Batch, measure: bool) -> Iterator[dict[str, Tensor]]:
        """Yield the losses of each part of a batch."""
        context = self._context
        train, device = context.settings.train, context.device
        parts = train.accumulation_steps
        views, numbers = batch.views
        for part, (own, truth) in enumerate(zip(views.chunk(parts), numbers.chunk(parts), strict=True)):
            images = to_float(own, context.settings.views, device, channels_last=train.channels_last)
            with gradients_stay_here(self._apply, part < parts - 1):
                with autocast(device, context.precision):
                    scores = self._apply(images)
                entropy, dice = segmentation_losses(scores.float(), truth.to(device))
                yield {
                    "loss": (entropy + dice) / parts,
                    **({"cross_entropy": entropy / parts, "dice_loss": dice / parts} if measure else {}),
                }

    def after_step(self) -> None:
        """Update the running statistics."""
        settle_statistics(self.model)

    def skip_step(self) -> None:
        """Discard the update of the running statistics."""
        forget_statistics(self.model)


def segmentation_losses(scores: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy and the Dice loss.

    The Dice loss is that of the classes, without the background, over all crops together. Both are 0 if everything is
    ignored. Source: nnU-Net, Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z), and its batch Dice.

    Args:
        scores: (B, 1 + C, ...) log-odds up to a constant.
        truth: (B, ...) uint8 class numbers.
    """
    counts = truth != IGNORED
    numbers = torch.where(counts, truth, 0).long()
    entropies = functional.cross_entropy(scores, numbers, reduction="none")
    entropy = (entropies * counts).sum() / counts.sum().clamp(min=1)
    mask = counts.unsqueeze(1)
    shares = (scores.softmax(1) * mask)[:, 1:]
    one_hot = torch.zeros_like(scores).scatter_(1, numbers.unsqueeze(1), 1.0)
    is_class = (one_hot * mask)[:, 1:]
    axes = (0, *range(2, scores.ndim))
    overlap, total = (shares * is_class).sum(axes), (shares + is_class).sum(axes)
    return entropy, (1 - (2 * overlap + _SMOOTH) / (total + _SMOOTH)).mean()


_SMOOTH = 1e-5
"""Added to overlap and total, so that a class that is neither there nor predicted has a loss of 0. Source: nnU-Net."""


# Prediction

_SHARE_OF_BATCH = {2: 1, 3: 8}
"""Number by which `evaluate.batch_size` is divided: the finest maps of a decoder are as large as its input."""


def probabilities_of(
    model: SegmentationNetwork,
    canvases: Sequence[NDArray[Any]],
    settings: RunSettings,
    device: torch.device,
    precision: str,
) -> Probabilities:
    """Return the probabilities of background and classes on canvases, from overlapping windows; see `windows.blended`.

    Args:
        model: The network, on `device`.
        canvases: B of one shape: (H, W) or (H, W, C) of images or (X, Y, Z) of volumes, uint8 or uint16.
        settings: `views.size` is the side of a window, `segmentation.overlap` their overlap.
        device: Device of the network.
        precision: Precision of its arithmetic.

    Returns:
        (B, 1 + C, H, W) or (B, 1 + C, X, Y, Z), on the CPU.

    Raises:
        CheckpointError: they are not finite.
    """
    whole = np.stack(canvases)[:, None] if settings.data.dimensions == 3 else channels_first(canvases)
    views, inside = padded(whole, settings.views.size)
    images = to_float(torch.from_numpy(views), settings.views, device, channels_last=False)

    def predict(windows: Tensor) -> Tensor:
        with autocast(device, precision):
            scores: Tensor = model(windows)
        return scores.float().softmax(1)

    model.eval()
    with torch.inference_mode():
        found = blended(predict, images, settings.views.size, settings.segmentation.overlap, _windows_at_once(settings))
    probabilities: Probabilities = found[(slice(None), slice(None), *inside)]
    if not np.isfinite(probabilities).all():
        raise CheckpointError("the network's scores are not finite; its training diverged, so lower segmentation.lr")
    return probabilities


def _windows_at_once(settings: RunSettings) -> int:
    return max(1, settings.evaluate.batch_size // _SHARE_OF_BATCH[settings.data.dimensions])


def probabilities_of_cases(
    model: SegmentationNetwork,
    cases: Sequence[Case],
    settings: RunSettings,
    device: torch.device,
    precision: str = "fp32",
    stop_asked: Callable[[], bool] = lambda: False,
) -> Iterator[Probabilities]:
    """Yield the probabilities on the canvas of each image, see `probabilities_of`.

    Raises:
        CheckpointError: they are not finite.
        Stopped: `stop_asked` returned True.
    """
    for canvases in _of_one_shape([case.canvas.pixels for case in cases], settings):
        if stop_asked():
            raise Stopped("stopped during prediction")
        yield from probabilities_of(model, canvases, settings, device, precision)


def _of_one_shape(canvases: Sequence[NDArray[Any]], settings: RunSettings) -> Iterator[Sequence[NDArray[Any]]]:
    """Yield neighbours of one shape, as many as fill a batch of windows: one by one, small images take far longer."""
    for shape, alike in groupby(canvases, key=lambda canvas: canvas.shape):
        own, sides = list(alike), shape[: settings.data.dimensions]
        windows = number_of_windows(sides, settings.views.size, settings.segmentation.overlap)
        count = max(1, _windows_at_once(settings) // windows)
        yield from (own[start : start + count] for start in range(0, len(own), count))


def segment_cases(
    model: SegmentationNetwork, cases: Sequence[Case], settings: RunSettings, device: torch.device
) -> Iterator[Numbers]:
    """Yield the class numbers of each image, on its own grid; raises CheckpointError as `probabilities_of_cases`."""
    found = probabilities_of_cases(model, cases, settings, device)
    return (onto_image(own, case.grid) for own, case in zip(found, cases, strict=True))


def dice_on_canvases(
    probabilities: Iterable[Probabilities], cases: Sequence[Case], classes: int
) -> NDArray[np.float64]:
    """Return the mean Dice of each class, (C,), on the grid of the canvases.

    It chooses the epoch; scores are on the grids of the images. Both are over the images with the class in the truth or
    in the prediction, so that what is found where there is nothing counts as 0.
    """
    found = np.full((len(cases), classes), np.nan)
    for i, (own, case) in enumerate(zip(probabilities, cases, strict=True)):
        predicted, counts = own.argmax(0), case.numbers != IGNORED
        for place in range(classes):
            truth, shown = case.numbers == place + 1, (predicted == place + 1) & counts
            if truth.any() or shown.any():
                found[i, place] = 2 * (truth & shown).sum() / (truth.sum() + shown.sum())
    known = ~np.isnan(found)
    return ratio(np.where(known, found, 0).sum(0), known.sum(0))
