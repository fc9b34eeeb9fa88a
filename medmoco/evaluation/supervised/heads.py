"""The network of a classifier: an encoder and a linear layer on pooled features or on those of each patch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from medmoco.evaluation.features.probes import Probe, Standard, one_versus_rest
from medmoco.models.backbones import Backbone
from medmoco.models.patches import patch_features


class ClassifierNetwork(nn.Module):
    """A backbone and a linear layer, on pooled features or on those of each patch.

    Attributes:
        backbone: The encoder, with F features.
        head: The linear layer, with one output for each of L labels.
        mirror: In evaluation, average the features over the image and its mirror image.
        exclusive: The labels are classes, of which an image has exactly one.
        top_patches: Number of highest patch scores whose mean is the image's score; None to pool features instead.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Linear,
        *,
        mirror: bool = False,
        exclusive: bool = False,
        top_patches: int | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.mirror = mirror
        self.exclusive = exclusive
        self.top_patches = top_patches

    def forward(self, views: Tensor) -> Tensor:
        """Return scores: log-odds of each label, (B, C, S, S) -> (B, L) float32."""
        if self.top_patches is not None:
            return self.pool(self.score_patches(views))
        features = self.backbone(views)
        if self.mirror and not self.training:
            left_right = 2 if views.ndim == 5 else -1
            features = (features + self.backbone(views.flip(left_right))) / 2
        with torch.autocast(views.device.type, enabled=False):  # in half precision, log-odds would tie
            logits: Tensor = self.head(features.float())
        return one_versus_rest(logits) if self.exclusive else logits

    def score_patches(self, views: Tensor) -> Tensor:
        """Return the scores of each patch, (B, C, S, S) -> (B, L, h, w) float32.

        They are log-odds, or logits of softmax for exclusive labels, averaged over the mirror image if `mirror` is set.
        """
        scores = self._score_side(views)
        if self.mirror and not self.training:
            scores = (scores + self._score_side(views.flip(-1)).flip(-1)) / 2
        return scores

    def _score_side(self, views: Tensor) -> Tensor:
        features = patch_features(self.backbone, views)
        with torch.autocast(views.device.type, enabled=False):
            scores: Tensor = self.head(features.float())
        return scores.permute(0, 3, 1, 2)

    def pool(self, patches: Tensor) -> Tensor:
        """Return the mean of each label's highest patch scores, (B, L, h, w) -> (B, L).

        Source: Durand et al. 2016, "WELDON" (CVPR), without the lowest instances.
        """
        assert self.top_patches is not None
        logits = patches.flatten(2).topk(self.top_patches).values.mean(2)
        return one_versus_rest(logits) if self.exclusive else logits


def fold_probe(standard: Standard, probes: Sequence[Probe]) -> nn.Linear:
    """Return the linear layer that gives on raw features the scores of L linear probes on standardised ones."""
    weight = np.stack([probe.weights for probe in probes]) / standard.scale
    bias = np.array([probe.bias for probe in probes]) - weight @ standard.mean
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(bias))
    return head
