"""The task of fine-tuning: predict labels from one view of each image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from medmoco.data.augment.normalisation import to_float
from medmoco.data.loading.loading import Batch
from medmoco.evaluation.supervised.heads import ClassifierNetwork
from medmoco.evaluation.supervised.training_labels import TrainingLabels
from medmoco.models.batch_norm import forget_statistics, settle_statistics
from medmoco.training.context import RunContext
from medmoco.training.device import autocast
from medmoco.training.distributed import gradients_stay_here


class Supervision:
    """The task of the training loop: all known labels of a batch have the same weight, missing ones have none."""

    def __init__(
        self,
        model: ClassifierNetwork,
        labels: TrainingLabels,
        context: RunContext,
    ) -> None:
        settings = context.settings
        self.model = model
        self._context = context
        self._settings, self._device, self._group = settings, context.device, context.group
        self._score = context.group.wrap(model, context.device)
        self._targets = torch.from_numpy(labels.targets)
        self._weights = class_weights(labels, settings.finetune.class_weights).to(context.device)
        self._gamma = settings.finetune.focal_gamma if settings.finetune.loss == "focal" else 0.0
        self._frozen = not any(parameter.requires_grad for parameter in model.backbone.parameters())

    def losses(self, batch: Batch, measure: bool) -> Iterator[dict[str, Tensor]]:
        """Yield the loss of each part of a one-view batch."""
        if self._frozen:
            self.model.backbone.eval()  # keeps its batch-norm statistics unchanged
        parts, exclusive = self._settings.train.accumulation_steps, self.model.exclusive
        targets = self._targets_of(batch.samples)  # (B, L)
        # Over all processes, whose gradients are averaged, so that a label has the same weight in each.
        known = self._group.mean(counted(targets, exclusive=exclusive).sum().double()).clamp(min=1 / self._group.size)
        for part, (views, own) in enumerate(zip(batch.views[0].chunk(parts), targets.chunk(parts), strict=True)):
            floats = to_float(
                views, self._settings.views, self._device, channels_last=self._settings.train.channels_last
            )
            with gradients_stay_here(self._score, part < parts - 1):
                with autocast(self._device, self._context.precision):
                    scores = self._score(floats)  # (b, L)
                losses = cell_losses(scores, own, self._weights, gamma=self._gamma, exclusive=exclusive)
                yield {"loss": losses.sum() / known.to(losses.dtype)}

    def _targets_of(self, samples: Tensor) -> Tensor:
        targets = self._targets[samples].to(self._device)
        if not self.model.exclusive:
            return targets
        return one_hot(targets, self.model.head.out_features).float()

    def after_step(self) -> None:
        """Update the running statistics."""
        settle_statistics(self.model)

    def skip_step(self) -> None:
        """Discard the update of the running statistics."""
        forget_statistics(self.model)


def counted(targets: Tensor, *, exclusive: bool) -> Tensor:
    """Return the mask (B, L) of targets with a loss: known labels, or the true class of exclusive labels."""
    return targets == 1 if exclusive else ~targets.isnan()


def cell_losses(scores: Tensor, targets: Tensor, weights: Tensor, *, gamma: float, exclusive: bool) -> Tensor:
    """Return -w (1 - p)^gamma log p, with p the predicted probability of the true label; 0 if it is missing.

    Source: Lin et al. 2017 (arXiv:1708.02002), equation 5; gamma 0 is cross-entropy.

    Args:
        scores: (B, L) log-odds.
        targets: (B, L), 1, 0 or nan.
        weights: (2, L) weights w of negatives and positives.
        gamma: Exponent of the focal loss.
        exclusive: Whether the labels are classes, see `probes.one_versus_rest`.

    Returns:
        (B, L), nats.
    """
    positive = targets == 1
    log_p = logsigmoid(torch.where(positive, scores, -scores))
    losses = -torch.where(positive, weights[1], weights[0]) * log_p
    if gamma:
        # If p rounds to 1, the derivative of a power below 1 would be infinite.
        losses = losses * (-torch.expm1(log_p)).clamp(min=1e-6) ** gamma
    return torch.where(counted(targets, exclusive=exclusive), losses, 0.0)


def class_weights(labels: TrainingLabels, kind: str) -> Tensor:
    """Return the weights (2, L) of negatives and positives; "balanced" ones have a mean of 1 over the training rows."""
    count = len(labels.names)
    if kind == "none":
        return torch.ones(2, count)
    if labels.exclusive:
        counts = np.bincount(labels.targets, minlength=count)
        balanced = counts.sum() / (count * counts)
        return torch.tensor(np.stack([balanced, balanced]), dtype=torch.float32)
    positives, negatives = (labels.targets == 1).sum(0), (labels.targets == 0).sum(0)
    total = positives + negatives
    return torch.tensor(np.stack([total / (2 * negatives), total / (2 * positives)]), dtype=torch.float32)


def accuracies(targets: NDArray[Any], scores: NDArray[Any]) -> dict[str, float]:
    """Return the top1 and top5 accuracy of scores (N, L) for targets (N, L) of classes, or nan.

    Ties are broken at random in expectation, so that a classifier with equal scores has the accuracy of chance.
    """
    known = ~np.isnan(targets).any(axis=1)
    truth = np.argmax(targets[known], axis=1)
    own = np.take_along_axis(scores[known], truth[:, None], 1)
    higher, equal = (scores[known] > own).sum(1), (scores[known] == own).sum(1)
    return {f"top{k}": float(np.clip((k - higher) / equal, 0, 1).mean()) for k in (1, 5) if k < targets.shape[1]}
