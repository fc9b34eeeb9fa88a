"""Momentum contrast in the order of the paper's algorithm 1: query encoder, key encoder, queue, InfoNCE.

Without a queue, the other keys of the batch are the negatives; with a predictor after the query encoder, that is v3.

Legend: B batch, b this process's share of it, F features, D embedding, K queue, N negatives. Views are (B, C, H, W), or
(B, C, X, Y, Z) of volumes.
Source: He et al. 2020 (arXiv:1911.05722); MLP projector and temperature of Chen et al. 2020 (arXiv:2003.04297);
predictor and negatives from the batch of Chen et al. 2021 (arXiv:2104.02057).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from medmoco.config import DecoderSettings, MethodSettings
from medmoco.errors import SettingsError
from medmoco.models import projectors
from medmoco.models.backbones import Backbone
from medmoco.models.decoder import create_decoder


class Encoder(nn.Module):
    """Backbone and projector."""

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector

    def forward(self, views: Tensor) -> Tensor:
        """Return embeddings before normalisation, (B, C, H, W) -> (B, D).

        From the projector on, arithmetic is in float32 or more: early cosines differ by less than bf16 resolves.
        """
        features = self.backbone(views)
        with torch.autocast(views.device.type, enabled=False):
            embedding: Tensor = self.projector(features.to(views.dtype))
        return embedding


class Branches(nn.Module):
    """All that the loss trains, query encoder, predictor and decoder, in one forward pass for all views of a step."""

    def __init__(self, query_encoder: nn.Module, predictor: nn.Module | None, decoder: nn.Module | None) -> None:
        super().__init__()
        self.query_encoder = query_encoder
        self.predictor = predictor
        self.decoder = decoder

    def forward(self, views: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the queries of each view, (b, C, H, W) -> (b, D) unit L2 norm, and its reconstruction.

        Reconstructions are (b, C, H, W), from the embedding before normalisation; none without a decoder.
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


class Negatives(NamedTuple):
    """The negative keys of queries."""

    keys: Tensor  # (N, D), unit L2 norm
    excluded: Tensor | None = None  # (b, N) bool, the keys that do not count for a query; None if all count


class MoCo(nn.Module):
    """Momentum contrast around any backbone, as a module whose forward pass returns the loss.

    It contains a copy of the backbone with a projector (the key encoder, a moving average without gradient) and a queue
    of earlier keys. The defaults are those of MoCo v2. On several processes, use `medmoco
    pretrain`, which gathers keys and shuffles them between the processes.

    With batch norm, a query can recognise its key by the batch statistics that both share. On one device, let batch
    norm work on groups of the batch and embed the keys in another order (He et al. 2020, section 3.3):
    `split_batch_norm(method, 8)` once, `shuffle=torch.randperm(B)` in each call, and `settle_statistics(method)` after
    each optimiser step; all are in `medmoco.models.batch_norm`. Backbones without batch norm need none of this.

    Examples:
        >>> import medmoco, torch
        >>> backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16))
        >>> method = medmoco.MoCo(backbone, queue_size=32, feature_dim=16, seed=0)
        >>> optimizer = torch.optim.SGD((p for p in method.parameters() if p.requires_grad), lr=0.1)
        >>> images = torch.rand(4, 1, 8, 8)
        >>> loss = method(images, images.flip(3))
        >>> loss.backward()
        >>> optimizer.step()
        >>> method.pointer
        tensor(4)

    Attributes:
        query_encoder: Backbone and projector, trained by the loss; `query_encoder.backbone` is what you keep.
        key_encoder: Moving average of the query encoder's parameters; batch-norm statistics are its own.
        predictor: Maps the query encoder's embedding to the key's; None if there is none.
        decoder: Reconstructs the view from the embedding; None if there is none.
        queue: (K, D) unit L2 norm, negative keys, the oldest at `pointer`.
        queue_numbers: (K,) int64, the image or patient of each key in the queue, -1 for none; only if some keys do
            not count for some queries.
        pointer: Position in the queue of the next key, scalar int64.
        gather: Joins (b, ...) of all processes to (B, ...), without gradient; the identity on one.
    """

    queue: Tensor
    queue_numbers: Tensor
    pointer: Tensor
    predictor: nn.Module | None
    decoder: nn.Module | None

    def __init__(
        self,
        backbone: nn.Module,
        queue_size: int = 65536,
        *,
        feature_dim: int | None = None,
        embedding_dim: int = 128,
        projector: Literal["linear", "mlp", "mlp_bn", "mlp_2", "mlp_3"] | nn.Module = "mlp",
        key_momentum: float = 0.999,
        temperature: float = 0.2,
        seed: int | None = None,
    ) -> None:
        """Build the projector, the key encoder and a queue of random directions.

        Args:
            backbone: Takes images to features, (B, C, H, W) -> (B, F).
            queue_size: Negative keys held; with 0, the other keys of the batch are the negatives.
            feature_dim: F; without it, the backbone's `feature_dim` or, as timm calls it, `num_features`.
            embedding_dim: D.
            projector: A kind (see `method.projector` in the settings), or a module (B, F) -> (B, D).
            key_momentum: Share of the key encoder that each step keeps.
            temperature: Divides the similarities.
            seed: Makes the projector and the queue reproducible; without it, torch's generator decides.

        Raises:
            SettingsError: the number of features is not known.
        """
        super().__init__()
        with nullcontext() if seed is None else torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.manual_seed(seed)
            if isinstance(projector, str):
                method = MethodSettings(projector=projector, embedding_dim=embedding_dim)
                projector = projectors.projector(method, feature_dim or _feature_dim(backbone))
            queue = functional.normalize(torch.randn(queue_size, embedding_dim), dim=1)
        self.query_encoder = Encoder(backbone, projector)
        self.key_encoder = copy.deepcopy(self.query_encoder).requires_grad_(False)
        self.predictor = None
        self.decoder = None
        self.key_momentum = key_momentum
        self.temperature = temperature
        self.gather: Callable[[Tensor], Tensor] = _alone
        self.register_buffer("queue", queue)
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    def forward(self, query_views: Tensor, key_views: Tensor, shuffle: Tensor | None = None) -> Tensor:
        """Return the loss of one step and, in training mode, update the key encoder and the queue.

        Args:
            query_views: (B, C, H, W).
            key_views: (B, C, H, W), other views of the same images in the same order.
            shuffle: (B,) int64, a permutation: the order in which the key encoder sees its views.

        Returns:
            Scalar, nats; chance is ln(1 + K).
        """
        if self.training:
            self.update_key_encoder()
        k = self.embed_keys(key_views if shuffle is None else key_views[shuffle], shuffle)  # (B, D)
        (q,), _ = self.branches()([query_views])  # (B, D)
        if self.queue_size:
            negatives = Negatives(self.queue.clone())  # the backward pass needs the present one
        else:
            negatives = batch_negatives(k, torch.arange(len(k), device=k.device))
        loss = info_nce(*self.compare(q, k, negatives))
        if self.training:
            self.enqueue(k)
        return loss

    @property
    def queue_size(self) -> int:
        """K."""
        return len(self.queue)

    def branches(self) -> Branches:
        """Return all modules that the loss trains."""
        return Branches(self.query_encoder, self.predictor, self.decoder)

    @torch.no_grad()
    def update_key_encoder(self, momentum: float | None = None) -> None:
        """Move the key encoder's parameters towards the query encoder's. Source: He et al. 2020, eq. 2."""
        momentum = self.key_momentum if momentum is None else momentum
        keys: list[Tensor] = list(self.key_encoder.parameters())
        queries: list[Tensor] = list(self.query_encoder.parameters())
        torch._foreach_mul_(keys, momentum)
        torch._foreach_add_(keys, queries, alpha=1 - momentum)

    @torch.no_grad()
    def embed_keys(self, key_views: Tensor, shuffle: Tensor | None = None, parts: int = 1) -> Tensor:
        """Embed the keys of the whole batch.

        Only embeddings are exchanged between processes: each process makes the views that it embeds.

        Args:
            key_views: (b, C, H, W), in the order in which the key encoder sees them.
            shuffle: (B,) int64, that order over all processes, as positions in the order of the queries; None if it
                is the same.
            parts: Number of forward passes.

        Returns:
            (B, D) unit L2 norm, in the order of the queries.
        """
        k = torch.cat([self.key_encoder(part) for part in key_views.chunk(parts)])  # (b, D)
        k = self.gather(functional.normalize(k, dim=1))  # (B, D)
        return k if shuffle is None else k[torch.argsort(shuffle)]  # back to the order of the queries

    def queue_negatives(self, numbers: Tensor | None = None) -> Negatives:
        """Return the queue, excluding for each query the keys with its number (b,), that of its image or patient."""
        return Negatives(self.queue, None if numbers is None else numbers[:, None] == self.queue_numbers)

    def compare(self, q: Tensor, k: Tensor, negatives: Negatives | None = None) -> tuple[Tensor, Tensor]:
        """Return the logits of queries (b, D) with their keys (b, D) and with the negatives, by default the queue."""
        keys, excluded = negatives or self.queue_negatives()
        with torch.autocast(q.device.type, enabled=False):
            return similarities(q, k, keys, self.temperature, excluded)

    @torch.no_grad()
    def enqueue(self, keys: Tensor, numbers: Tensor | None = None) -> None:
        """Replace the oldest negatives by `keys` of any number, wrapping around at the end.

        If the loss was computed with the queue itself, call this after the backward pass.

        Args:
            keys: (B, D), unit L2 norm.
            numbers: (B,) int64, the image or patient of each.
        """
        size = self.queue_size
        if not size:
            return
        newest = slice(-min(len(keys), size), None)
        keys = keys[newest]
        positions = (self.pointer + torch.arange(len(keys), device=keys.device)) % size
        self.pointer.copy_((self.pointer + len(keys)) % size)
        self.queue[positions] = keys
        if numbers is not None:
            self.queue_numbers[positions] = numbers[newest]


def _alone(own: Tensor) -> Tensor:
    return own


def _feature_dim(backbone: nn.Module) -> int:
    found = getattr(backbone, "feature_dim", None) or getattr(backbone, "num_features", None)
    if not isinstance(found, int):
        raise SettingsError(
            "MoCo: the backbone has neither feature_dim nor num_features; pass feature_dim, the width of its features"
        )
    return found


def create_moco(
    backbone: Backbone, method: MethodSettings, *, seed: int, decoder: DecoderSettings | None = None, size: int = 224
) -> MoCo:
    """Build the method of a run around a backbone; all new weights depend only on the seed.

    A decoder, if it has a weight, reconstructs views of `size` pixels or voxels.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MoCo(
            backbone,
            method.queue_size,
            embedding_dim=method.embedding_dim,
            projector=projectors.projector(method, backbone.feature_dim),
            key_momentum=method.key_momentum,
            temperature=method.temperature,
        )
        model.predictor = projectors.predictor(method, backbone.feature_dim)
        if decoder:
            model.decoder = create_decoder(method.embedding_dim, size, backbone.channels, decoder, backbone.dimensions)
    if method.negatives != "all" and method.queue_size:
        model.register_buffer("queue_numbers", torch.full((method.queue_size,), -1, dtype=torch.int64))
    return model


def batch_negatives(
    keys: Tensor, own: Tensor, numbers: Tensor | None = None, key_numbers: Tensor | None = None
) -> Negatives:
    """Return the other keys of the batch.

    Args:
        keys: (B, D), of the whole batch.
        own: (b,) int64, the position of each query's positive key.
        numbers: (b,) int64, the image or patient of each query; None if every other key counts.
        key_numbers: (B,) int64, the same of each key.
    """
    excluded = own[:, None] == torch.arange(len(keys), device=keys.device)
    if numbers is not None:
        excluded |= numbers[:, None] == key_numbers
    return Negatives(keys, excluded)


def similarities(
    q: Tensor, k: Tensor, negatives: Tensor, temperature: float, excluded: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compare queries with their keys and with negatives.

    Args:
        q: Queries, (B, D), unit L2 norm.
        k: Their keys, (B, D), unit L2 norm, detached.
        negatives: (N, D), unit L2 norm.
        temperature: Divides the cosines.
        excluded: (B, N) bool, the negatives that do not count for a query; None if all count.

    Returns:
        (B,) and (B, N) logits; the lowest finite number if excluded, so that no gradient becomes nan.
    """
    q = q / temperature  # B * D divisions instead of B * N
    logits = q @ negatives.T
    if excluded is not None:
        logits = logits.masked_fill(excluded, torch.finfo(logits.dtype).min)
    return (q * k).sum(1), logits


def info_nce(positive: Tensor, negative: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of classifying the positive key among 1 + N; chance is ln(1 + N).

    Takes (B,) and (B, N) logits, and joins them inside the log-sum-exp, which saves copies of (B, 1 + N) logits.

    Source: He et al. 2020, eq. 1.
    """
    return (torch.logaddexp(positive, negative.logsumexp(1)) - positive).mean()
