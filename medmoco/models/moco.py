"""Momentum contrast: query encoder, key encoder, queue, InfoNCE. Reads in the order of the paper's algorithm 1.

Legend: B batch, D embedding, K queue.
Source: He et al. 2020 (arXiv:1911.05722); MLP projector and temperature of Chen et al. 2020 (arXiv:2003.04297).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from medmoco.config import MethodSettings
from medmoco.models.backbones import Backbone


def projector(kind: str, feature_dim: int, embedding_dim: int) -> nn.Module:
    """Build the layers between features and embedding, (B, F) -> (B, D).

    `linear` is v1's and `mlp` v2's. `mlp_bn` normalises its hidden layer as v3 does: features behind a ReLU share one
    large direction, which short trainings otherwise spend their time on.
    """
    if kind == "linear":
        return nn.Linear(feature_dim, embedding_dim)
    norm = [nn.BatchNorm1d(feature_dim)] if kind == "mlp_bn" else []
    hidden = nn.Linear(feature_dim, feature_dim, bias=not norm)
    return nn.Sequential(hidden, *norm, nn.ReLU(), nn.Linear(feature_dim, embedding_dim))


class Encoder(nn.Module):
    """Backbone and projector."""

    def __init__(self, backbone: Backbone, method: MethodSettings) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector(method.projector, backbone.feature_dim, method.embedding_dim)

    def forward(self, views: Tensor) -> Tensor:
        """Return embeddings before normalisation, (B, 1, H, W) -> (B, D).

        From the projector on, arithmetic is never below float32: early cosines differ by less than bf16 can tell.
        """
        features = self.backbone(views)
        with torch.autocast(views.device.type, enabled=False):
            embedding: Tensor = self.projector(features.to(views.dtype))
        return embedding


class MoCo(nn.Module):
    """The two encoders and the queue.

    Attributes:
        query_encoder: Trained by the loss.
        key_encoder: Follows it as a moving average of its parameters; batch-norm statistics are its own.
        queue: (K, D) unit L2 norm, negative keys, the oldest at `pointer`.
        pointer: Where the next keys go, scalar int64.
    """

    queue: Tensor
    pointer: Tensor

    def __init__(self, query_encoder: nn.Module, queue: Tensor, *, key_momentum: float, temperature: float) -> None:
        super().__init__()
        self.query_encoder = query_encoder
        self.key_encoder = copy.deepcopy(query_encoder).requires_grad_(False)
        self.key_momentum = key_momentum
        self.temperature = temperature
        self.register_buffer("queue", queue)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def forward(self, query_views: Tensor, key_views: Tensor, shuffle: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embed both views of B samples and compare.

        Args:
            query_views: (B, 1, H, W).
            key_views: (B, 1, H, W), in the order of the queries.
            shuffle: (B,) int64, the order in which the key encoder sees them.

        Returns:
            Queries (B, D) and keys (B, D), unit L2 norm; similarities over temperature of each query with its own key,
            (B,), and with the queue, (B, K).
        """
        q = functional.normalize(self.query_encoder(query_views), dim=1)  # (B, D)
        k = self._keys(key_views, shuffle)  # (B, D)
        with torch.autocast(q.device.type, enabled=False):
            positive, negative = similarities(q, k, self.queue, self.temperature)  # (B,), (B, K)
        return q, k, positive, negative

    @torch.no_grad()
    def _keys(self, key_views: Tensor, shuffle: Tensor) -> Tensor:
        self._update_key_encoder()
        shuffled = functional.normalize(self.key_encoder(key_views[shuffle]), dim=1)  # (B, D)
        return shuffled[torch.argsort(shuffle)]  # back to the order of the queries

    @torch.no_grad()
    def _update_key_encoder(self) -> None:
        """Move the key encoder's parameters towards the query encoder's. Source: He et al. 2020, eq. 2."""
        keys: list[Tensor] = list(self.key_encoder.parameters())
        queries: list[Tensor] = list(self.query_encoder.parameters())
        torch._foreach_mul_(keys, self.key_momentum)
        torch._foreach_add_(keys, queries, alpha=1 - self.key_momentum)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest negatives by `keys` (B, D), wrapping at the end at any batch size.

        Called after the backward pass, which still needs the old queue; so no copy of it is ever made.
        """
        size = len(self.queue)
        keys = keys[-size:]
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % size
        self.queue[places] = keys
        self.pointer.copy_((self.pointer + len(keys)) % size)


def create_moco(backbone: Backbone, method: MethodSettings, *, seed: int) -> MoCo:
    """Build the method around a backbone; projector and queue depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(backbone, method)
        queue = functional.normalize(torch.randn(method.queue_size, method.embedding_dim), dim=1)
    return MoCo(encoder, queue, key_momentum=method.key_momentum, temperature=method.temperature)


def similarities(q: Tensor, k: Tensor, queue: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compare queries with their keys and with the queue.

    Args:
        q: Queries, (B, D), unit L2 norm.
        k: Their keys, (B, D), unit L2 norm, detached.
        queue: Negative keys, (K, D), unit L2 norm.
        temperature: Divides the cosines.

    Returns:
        (B,) and (B, K).
    """
    q = q / temperature  # B * D divisions instead of B * K
    return (q * k).sum(1), q @ queue.T


def info_nce(positive: Tensor, negative: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of picking the own key among 1 + K; chance is ln(1 + K).

    The positive column is joined inside the log-sum-exp, which spares copies of the (B, 1 + K) logits.

    Args:
        positive: (B,) logits.
        negative: (B, K) logits.

    Source: He et al. 2020, eq. 1.
    """
    return (torch.logaddexp(positive, negative.logsumexp(1)) - positive).mean()
