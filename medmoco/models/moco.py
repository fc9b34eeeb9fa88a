"""Momentum contrast: query encoder, key encoder, queue, InfoNCE. Reads in the order of the paper's algorithm 1.

Without a queue, queries are compared with the other keys of the batch instead, and a predictor may follow the query
encoder: that is v3. Several processes share a batch: of B samples each handles b, and the queue is the same on all of
them, or divided.

Legend: B batch, b this process's share of it, D embedding, K queue, P processes.
Source: He et al. 2020 (arXiv:1911.05722); MLP projector and temperature of Chen et al. 2020 (arXiv:2003.04297);
predictor and negatives from the batch of Chen et al. 2021 (arXiv:2104.02057).
"""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from medmoco.config import DecoderSettings, MethodSettings
from medmoco.data.loading.sampler import Share
from medmoco.models.backbones import Backbone
from medmoco.models.decoder import create_decoder
from medmoco.models.projectors import predictor, projector


class Encoder(nn.Module):
    """Backbone and projector."""

    def __init__(self, backbone: Backbone, method: MethodSettings) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector(method, backbone.feature_dim)

    def forward(self, views: Tensor) -> Tensor:
        """Return embeddings before normalisation, (B, 1, H, W) -> (B, D).

        From the projector on, arithmetic is never below float32: early cosines differ by less than bf16 can tell.
        """
        features = self.backbone(views)
        with torch.autocast(views.device.type, enabled=False):
            embedding: Tensor = self.projector(features.to(views.dtype))
        return embedding


class Branches(nn.Module):
    """What the loss trains: the query encoder, and what follows it alone. One forward pass for all views of a step."""

    def __init__(self, query_encoder: nn.Module, predictor: nn.Module | None, decoder: nn.Module | None) -> None:
        super().__init__()
        self.query_encoder = query_encoder
        self.predictor = predictor
        self.decoder = decoder

    def forward(self, views: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return queries, for each view (b, C, H, W) -> (b, D) unit L2 norm, and what the decoder makes of each.

        The latter (b, C, H, W) from the embedding before it is normalised; none without a decoder.
        """
        embeddings = [self.query_encoder(view) for view in views]
        queries = [functional.normalize(self._predict(embedding), dim=1) for embedding in embeddings]
        return queries, [] if self.decoder is None else [self.decoder(embedding) for embedding in embeddings]

    def _predict(self, embedding: Tensor) -> Tensor:
        if self.predictor is None:
            return embedding
        with torch.autocast(embedding.device.type, enabled=False):
            prediction: Tensor = self.predictor(embedding)
        return prediction


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
        predictor: Takes the query encoder's embedding to the key's; None where there is none.
        decoder: Takes it back to the view; None where there is none.
        queue: (K, D) unit L2 norm, negative keys, the oldest at `pointer`; (K / P, D) where it is divided.
        queue_numbers: Of the image or patient that each key in the queue is of, -1 of none, (K,) or (K / P,) int64;
            only where some keys are no negatives of some queries.
        pointer: Where in the whole queue the next keys go, scalar int64.
    """

    queue: Tensor
    queue_numbers: Tensor
    pointer: Tensor

    def __init__(
        self,
        query_encoder: nn.Module,
        queue: Tensor,
        *,
        key_momentum: float,
        temperature: float,
        predictor: nn.Module | None = None,
        decoder: nn.Module | None = None,
        numbered: bool = False,
        processes: Processes = ALONE,
        sharded: bool = False,
    ) -> None:
        """Take over the encoder and the whole queue, (K, D), of which a divided one keeps its part."""
        super().__init__()
        self.query_encoder = query_encoder
        self.key_encoder = copy.deepcopy(query_encoder).requires_grad_(False)
        self.predictor = predictor
        self.decoder = decoder
        self.key_momentum = key_momentum
        self.temperature = temperature
        self.processes = processes
        self._share = Share(processes.rank, processes.size)
        self.sharded = sharded and processes.size > 1
        self.queue_size = len(queue)
        self.register_buffer("queue", self.own_part(queue).clone())
        if numbered and self.queue_size:
            numbers = torch.full((len(queue),), -1, dtype=torch.int64, device=queue.device)
            self.register_buffer("queue_numbers", self.own_part(numbers))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def branches(self) -> Branches:
        """Return what the loss trains."""
        return Branches(self.query_encoder, self.predictor, self.decoder)

    @property
    def divided(self) -> tuple[str, ...]:
        """Names of the tensors of which each process has a part of its own."""
        return tuple(name for name in ("queue", "queue_numbers") if self.sharded and hasattr(self, name))

    def whole(self, part: Tensor) -> Tensor:
        """Return what of all processes belongs to a part of the queue or of its numbers, (K, ...)."""
        return self.processes.gather(part) if self.sharded else part

    def own_part(self, queue: Tensor) -> Tensor:
        """Return what of the whole queue, (K, ...), this process keeps."""
        return queue[self._share.of(len(queue))] if self.sharded else queue

    @torch.no_grad()
    def update_key_encoder(self, momentum: float | None = None) -> None:
        """Move the key encoder's parameters towards the query encoder's. Source: He et al. 2020, eq. 2.

        Args:
            momentum: Share of them that is kept; `key_momentum` if not given.
        """
        momentum = self.key_momentum if momentum is None else momentum
        keys: list[Tensor] = list(self.key_encoder.parameters())
        queries: list[Tensor] = list(self.query_encoder.parameters())
        torch._foreach_mul_(keys, momentum)
        torch._foreach_add_(keys, queries, alpha=1 - momentum)

    @torch.no_grad()
    def embed_keys(self, key_views: Tensor, shuffle: Tensor | None = None, parts: int = 1) -> Tensor:
        """Embed the keys of the whole batch.

        Only embeddings travel between processes: the views of a shuffled batch were made where they are needed.

        Args:
            key_views: (b, 1, H, W), in the order in which the key encoder is to see them.
            shuffle: (B,) int64, that order over all processes: positions in the order of the queries; without it, that
                of the queries.
            parts: Forward passes to embed them in.

        Returns:
            (B, D) unit L2 norm, in the order of the queries.
        """
        k = torch.cat([self.key_encoder(part) for part in key_views.chunk(parts)])  # (b, D)
        k = self.processes.gather(functional.normalize(k, dim=1))  # (B, D)
        return k if shuffle is None else k[torch.argsort(shuffle)]  # back to the order of the queries

    def blocked(self, numbers: Tensor) -> Tensor:
        """Tell which keys in the queue have the numbers of queries, (b,) -> (b, K) bool.

        Where the queue is divided, of the queries of all processes and the own part of it: (B, K / P).
        """
        numbers = self.processes.gather(numbers) if self.sharded else numbers
        return numbers[:, None] == self.queue_numbers

    def compare(
        self, q: Tensor, k: Tensor, *, others: Tensor | None = None, blocked: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compare queries with their own keys and with negatives; see `similarities`.

        Args:
            q: (b, D).
            k: (b, D), their keys.
            others: (N, D), negative keys; the queue if not given.
            blocked: Which of them are no negatives of which query, (b, N) or as `blocked` gives it; none if not given.

        Returns:
            (b,) and (b, N); where the queue is divided (b, 1), the log-sum-exp of what would be (b, K).
        """
        with torch.autocast(q.device.type, enabled=False):
            if others is not None or not self.sharded:
                return similarities(q, k, self.queue if others is None else others, self.temperature, blocked)
            q = q / self.temperature
            logsumexp: Tensor = _ShardedLogSumExp.apply(q, self.queue, blocked, self.processes)
            return (q * k).sum(1), logsumexp[:, None]

    @torch.no_grad()
    def hardest_negative(
        self, q: Tensor, *, others: Tensor | None = None, blocked: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Look at the negatives of queries; arguments as of `compare`.

        Returns:
            Similarity over temperature of each query and the nearest, (b,), and how many there are, (b,) int64.
        """
        q = q.to(self.queue.dtype) / self.temperature
        if others is not None or not self.sharded:
            logits = _without(q @ (self.queue if others is None else others).T, blocked)
            return logits.amax(1), _count_open(logits, blocked)
        logits = _without(self.processes.gather(q) @ self.queue.T, blocked)
        nearest = self.processes.gather(logits.amax(1)).view(self.processes.size, -1).amax(0)  # (B,)
        count = self.processes.gather(_count_open(logits, blocked)).view(self.processes.size, -1).sum(0)
        own = self._share.of(len(nearest))
        return nearest[own], count[own]

    @torch.no_grad()
    def enqueue(self, keys: Tensor, numbers: Tensor | None = None) -> None:
        """Replace the oldest negatives by `keys` (B, D), wrapping at the end at any batch size.

        Called after the backward pass, which still needs the old queue; so no copy of it is ever made.

        Args:
            keys: (B, D), unit L2 norm.
            numbers: (B,) int64, of the images or patients they are of.
        """
        size = self.queue_size
        if not size:
            return
        last = slice(-min(len(keys), size), None)
        keys = keys[last]
        places = (self.pointer + torch.arange(len(keys), device=keys.device)) % size
        self.pointer.copy_((self.pointer + len(keys)) % size)
        here: Tensor | slice = slice(None)
        if self.sharded:
            own = self._share.of(size)
            here = (places >= own.start) & (places < own.stop)
            places = places[here] - own.start
        self.queue[places] = keys[here]
        if numbers is not None:
            self.queue_numbers[places] = numbers[last][here]


def create_moco(
    backbone: Backbone,
    method: MethodSettings,
    *,
    seed: int,
    decoder: DecoderSettings | None = None,
    size: int = 224,
    processes: Processes = ALONE,
) -> MoCo:
    """Build the method around a backbone; all that is new depends on the seed alone.

    Args:
        backbone: Of the query encoder.
        method: Of the run.
        seed: Of the weights.
        decoder: Whether there is a decoder, and how large.
        size: Side in pixels of the views that it makes.
        processes: That train together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(backbone, method)
        queue = functional.normalize(torch.randn(method.queue_size, method.embedding_dim), dim=1)
        ahead = predictor(method, backbone.feature_dim)
        back = create_decoder(method.embedding_dim, size, backbone.channels, decoder) if decoder else None
    return MoCo(
        encoder, queue, key_momentum=method.key_momentum, temperature=method.temperature, predictor=ahead, decoder=back,
        numbered=method.negatives != "all", processes=processes, sharded=method.queue_sharded,
    )  # fmt: skip


def similarities(
    q: Tensor, k: Tensor, others: Tensor, temperature: float, blocked: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compare queries with their keys and with negatives.

    Args:
        q: Queries, (B, D), unit L2 norm.
        k: Their keys, (B, D), unit L2 norm, detached.
        others: Negative keys, (K, D), unit L2 norm.
        temperature: Divides the cosines.
        blocked: (B, K) bool, which of them are no negatives of which query; none if not given.

    Returns:
        (B,) and (B, K), where blocked the least number there is.
    """
    q = q / temperature  # B * D divisions instead of B * K
    return (q * k).sum(1), _without(q @ others.T, blocked)


def _without(logits: Tensor, blocked: Tensor | None) -> Tensor:
    """Return logits that count for nothing where they are blocked; finite, so that no gradient becomes nan."""
    return logits if blocked is None else logits.masked_fill(blocked, torch.finfo(logits.dtype).min)


def _count_open(logits: Tensor, blocked: Tensor | None) -> Tensor:
    """Return how many logits of each row are not blocked, (B,) int64."""
    every = torch.full((len(logits),), logits.shape[1], dtype=torch.int64, device=logits.device)
    return every if blocked is None else every - blocked.sum(1)


class _ShardedLogSumExp(torch.autograd.Function):
    """Log-sum-exp of each own query's similarities to a queue of which every process holds a part.

    Queries travel, (b, D) from each process, instead of the queue; each process sums over its part, and the sums are
    added. The gradient of a query is the sum of what every process's part contributes.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, shard: Tensor, blocked: Tensor | None, processes: Processes) -> Tensor:
        """Take (b, D) queries, divided by the temperature, (K / P, D) keys and (B, K / P) which are blocked to (b,)."""
        logits = _without(processes.gather(q) @ shard.T, blocked)  # (B, K / P)
        total = processes.gather(logits.logsumexp(1)).view(processes.size, -1).logsumexp(0)  # (B,)
        ctx.save_for_backward(logits, total, shard)
        ctx.processes = processes
        return total.view(processes.size, -1)[processes.rank].clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Take (b,) to (b, D)."""
        logits, total, shard = ctx.saved_tensors
        share = torch.exp(logits - total[:, None]) * ctx.processes.gather(gradient)[:, None]  # (B, K / P)
        return ctx.processes.reduce(share @ shard), None, None, None


def info_nce(positive: Tensor, negative: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of picking the own key among 1 + K; chance is ln(1 + K).

    The positive column is joined inside the log-sum-exp, which spares copies of the (B, 1 + K) logits.

    Args:
        positive: (B,) logits.
        negative: (B, K) logits, or their log-sum-exp as (B, 1).

    Source: He et al. 2020, eq. 1.
    """
    return (torch.logaddexp(positive, negative.logsumexp(1)) - positive).mean()
