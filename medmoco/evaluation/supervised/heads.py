"""Encoder and linear layer as one: on pooled features, or on those of each patch."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medmoco.models.backbones import Backbone
from medmoco.models.patches import patch_features

Floats = NDArray[np.float64]


class ClassifierNetwork(nn.Module):
    """A backbone and a linear layer, on pooled features or on those of each patch.

    Attributes:
        backbone: The encoder, of F features.
        head: One row for each of L labels.
        mirror: Outside of training, features are the mean of those of the image and of its mirror image.
        exclusive: The labels are classes of which an image has exactly one.
        top_patches: An image's score is the mean of so many of its patches' highest; None pools features instead.
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
            features = (features + self.backbone(views.flip(-1))) / 2
        with torch.autocast(views.device.type, enabled=False):  # log-odds of 8 bits would tie
            logits: Tensor = self.head(features.float())
        return one_versus_rest(logits) if self.exclusive else logits

    def score_patches(self, views: Tensor) -> Tensor:
        """Return the head's answer to each patch, (B, C, S, S) -> (B, L, h, w) float32.

        They are log-odds, of exclusive labels what softmax takes. Where the classifier mirrors, a patch has the mean of
        its own and of its mirror image's.
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
        """Return an image's scores from its patches', (B, L, h, w) -> (B, L): the mean of the highest of each label.

        Source: Durand et al. 2016, "WELDON" (CVPR), select top instances; without its lowest ones.
        """
        assert self.top_patches is not None
        logits = patches.flatten(2).topk(self.top_patches).values.mean(2)
        return one_versus_rest(logits) if self.exclusive else logits


def one_versus_rest(logits: Tensor) -> Tensor:
    """Return the log-odds log(p / (1 - p)) of softmax probabilities p.

    Classes are then scored, calibrated and thresholded as independent labels are; their order stays that of p.

    Args:
        logits: (B, L), L at least 2.
    """
    top = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, top, -torch.inf).logsumexp(1, keepdim=True)
    log_p = logits.log_softmax(1)
    # Of the largest p, 1 - p would lose its digits; the rest are at most one half.
    rest = log_p - torch.log1p(-log_p.exp().clamp(max=0.5))
    return rest.scatter(1, top, logits.gather(1, top) - others)


def fold_probe(mean: Floats, scale: Floats, coefficients: Floats, intercepts: Floats) -> nn.Linear:
    """Return the linear layer that gives on raw features what a linear probe gives on standardised ones.

    Args:
        mean: (F,) subtracted from the features.
        scale: (F,) that divides them then; scikit-learn's `StandardScaler.scale_`.
        coefficients: (L, F) of the probe.
        intercepts: (L,).
    """
    weight = coefficients / scale
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight))
        head.bias.copy_(torch.from_numpy(intercepts - weight @ mean))
    return head
