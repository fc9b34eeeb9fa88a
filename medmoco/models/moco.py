"""Momentum contrast: query encoder, key encoder, queue, InfoNCE. Reads in the order of the paper's algorithm 1.

Several processes share a batch: of B samples each handles b, and the queue is the same on all of them, or divided.

Legend: B batch, b this process's share of it, D embedding, K queue, P processes.
Source: He et al. 2020 (arXiv:1911.05722); MLP projector and temperature of Chen et al. 2020 (arXiv:2003.04297).
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from medmoco.config import MethodSettings
from medmoco.data.order import Share
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


class Processes(Protocol):
    """How the processes that share a batch exchange tensors."""

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def gather(self, own: Tensor) -> Tensor:
        """Join (b, ...) of every process, in the order of their ranks, to (B, ...); without gradient."""

    def reduce(self, terms: Tensor) -> Tensor:
        """Add (B, ...) of every process and return this one's share, (b, ...); without gradient."""


class _Alone:
    rank, size = 0, 1

    def gather(self, own: Tensor) -> Tensor:
        return own

    def reduce(self, terms: Tensor) -> Tensor:
        return terms


ALONE: Processes = _Alone()


class MoCo(nn.Module):
    """The two encoders and the queue.

    Attributes:
        query_encoder: Trained by the loss.
        key_encoder: Follows it as a moving average of its parameters; batch-norm statistics are its own.
        queue: (K, D) unit L2 norm, negative keys, the oldest at `pointer`; (K / P, D) where it is divided.
        pointer: Where in the whole queue the next keys go, scalar int64.
    """

    queue: Tensor
    pointer: Tensor

    def __init__(
        self,
        query_encoder: nn.Module,
        queue: Tensor,
        *,
        key_momentum: float,
        temperature: float,
        processes: Processes = ALONE,
        sharded: bool = False,
    ) -> None:
        """Take over the encoder and the whole queue, (K, D), of which a divided one keeps its part."""
        super().__init__()
        self.query_encoder = query_encoder
        self.key_encoder = copy.deepcopy(query_encoder).requires_grad_(False)
        self.key_momentum = key_momentum
        self.temperature = temperature
        self.processes = processes
        self._share = Share(processes.rank, processes.size)
        self.sharded = sharded and processes.size > 1
        self.queue_size = len(queue)
        self.register_buffer("queue", self.own_part(queue).clone())
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def whole_queue(self) -> Tensor:
        """Return the queue of all processes, (K, D)."""
        return self.processes.gather(self.queue) if self.sharded else self.queue

    def own_part(self, queue: Tensor) -> Tensor:
        """Return what of the whole queue, (K, D), this process keeps."""
        return queue[self._share.of(len(queue))] if self.sharded else queue

    @torch.no_grad()
    def embed_keys(self, key_views: Tensor, shuffle: Tensor, parts: int = 1) -> Tensor:
        """Move the key encoder on, and embed the keys of the whole batch.

        Only embeddings travel between processes: the views of a shuffled batch were made where they are needed.

        Args:
            key_views: (b, 1, H, W), in the order in which the key encoder is to see them.
            shuffle: (B,) int64, that order over all processes: positions in the order of the queries.
            parts: Forward passes to embed them in.

        Returns:
            (B, D) unit L2 norm, in the order of the queries.
        """
        self._update_key_encoder()
        k = torch.cat([self.key_encoder(part) for part in key_views.chunk(parts)])  # (b, D)
        k = self.processes.gather(functional.normalize(k, dim=1))  # (B, D)
        return k[torch.argsort(shuffle)]  # back to the order of the queries

    def compare(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Compare queries with their own keys and with the queue; see `similarities`.

        Returns:
            (b,) and (b, K); where the queue is divided (b, 1), the log-sum-exp of what would be (b, K).
        """
        with torch.autocast(q.device.type, enabled=False):
            if not self.sharded:
                return similarities(q, k, self.queue, self.temperature)
            q = q / self.temperature
            logsumexp: Tensor = _ShardedLogSumExp.apply(q, self.queue, self.processes)
            return (q * k).sum(1), logsumexp[:, None]

    @torch.no_grad()
    def hardest_negative(self, q: Tensor) -> Tensor:
        """Return the similarity over temperature of queries (b, D) and the nearest key in the queue, (b,)."""
        q = q.to(self.queue.dtype) / self.temperature
        if not self.sharded:
            return (q @ self.queue.T).amax(1)
        nearest = (self.processes.gather(q) @ self.queue.T).amax(1)  # (B,)
        nearest = self.processes.gather(nearest).view(self.processes.size, -1).amax(0)
        return nearest[self._share.of(len(nearest))]

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
        size = self.queue_size
        keys = keys[-size:]
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % size
        self.pointer.copy_((self.pointer + len(keys)) % size)
        if self.sharded:
            own = self._share.of(size)
            here = (places >= own.start) & (places < own.stop)
            places, keys = places[here] - own.start, keys[here]
        self.queue[places] = keys


def create_moco(backbone: Backbone, method: MethodSettings, *, seed: int, processes: Processes = ALONE) -> MoCo:
    """Build the method around a backbone; projector and queue depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(backbone, method)
        queue = functional.normalize(torch.randn(method.queue_size, method.embedding_dim), dim=1)
    return MoCo(
        encoder, queue, key_momentum=method.key_momentum, temperature=method.temperature,
        processes=processes, sharded=method.queue_sharded,
    )  # fmt: skip


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


class _ShardedLogSumExp(torch.autograd.Function):
    """Log-sum-exp of each own query's similarities to a queue of which every process holds a part.

    Queries travel, (b, D) from each process, instead of the queue; each process sums over its part, and the sums are
    added. The gradient of a query is the sum of what every process's part contributes.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, shard: Tensor, processes: Processes) -> Tensor:
        """Take (b, D) queries, divided by the temperature, and (K / P, D) keys to (b,)."""
        logits = processes.gather(q) @ shard.T  # (B, K / P)
        total = processes.gather(logits.logsumexp(1)).view(processes.size, -1).logsumexp(0)  # (B,)
        ctx.save_for_backward(logits, total, shard)
        ctx.processes = processes
        return total.view(processes.size, -1)[processes.rank].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Take (b,) to (b, D)."""
        logits, total, shard = ctx.saved_tensors
        share = torch.exp(logits - total[:, None]) * ctx.processes.gather(gradient)[:, None]  # (B, K / P)
        return ctx.processes.reduce(share @ shard), None, None


def info_nce(positive: Tensor, negative: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of picking the own key among 1 + K; chance is ln(1 + K).

    The positive column is joined inside the log-sum-exp, which spares copies of the (B, 1 + K) logits.

    Args:
        positive: (B,) logits.
        negative: (B, K) logits, or their log-sum-exp as (B, 1).

    Source: He et al. 2020, eq. 1.
    """
    return (torch.logaddexp(positive, negative.logsumexp(1)) - positive).mean()
