"""Layers between features and embedding, and between embedding and prediction.

Legend: B batch, F features, D embedding.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from medmoco.config import MethodSettings

_LAYERS_OF_V3 = {"mlp_2": 2, "mlp_3": 3}


def projector(method: MethodSettings, feature_dim: int) -> nn.Module:
    """Build the layers between features and embedding, (B, F) -> (B, D).

    `linear` is v1's and `mlp` v2's. `mlp_bn` normalises its hidden layer as v3 does: features after a ReLU share one
    large component, and short trainings otherwise spend their time on it. `mlp_2` and `mlp_3` are v3's for ResNets and
    transformers, whose embedding is normalised too.
    """
    hidden = method.hidden_dim or feature_dim
    if method.projector == "linear":
        return nn.Linear(feature_dim, method.embedding_dim)
    if method.projector in _LAYERS_OF_V3:
        between = [hidden] * (_LAYERS_OF_V3[method.projector] - 1)
        return _normalised([feature_dim, *between, method.embedding_dim], normalised_end=True)
    norm = [nn.BatchNorm1d(hidden)] if method.projector == "mlp_bn" else []
    first = nn.Linear(feature_dim, hidden, bias=not norm)
    return nn.Sequential(first, *norm, nn.ReLU(), nn.Linear(hidden, method.embedding_dim))


def predictor(method: MethodSettings, feature_dim: int) -> nn.Module | None:
    """Build the layers that predict the other view's embedding, (B, D) -> (B, D); None if there are none.

    Source: builder.py of facebookresearch/moco-v3: two layers; the last is normalised for transformers only.
    """
    if not method.predictor:
        return None
    widths = [method.embedding_dim, method.hidden_dim or feature_dim, method.embedding_dim]
    return _normalised(widths, normalised_end=method.projector == "mlp_3")


def _normalised(widths: list[int], *, normalised_end: bool) -> nn.Sequential:
    """Build linear layers with batch norms; the last one is optional, and without scale and shift."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths), start=1):
        layers.append(nn.Linear(before, after, bias=False))
        if number < len(widths) - 1:
            layers += [nn.BatchNorm1d(after), nn.ReLU()]
        elif normalised_end:
            layers.append(nn.BatchNorm1d(after, affine=False))
    return nn.Sequential(*layers)
