"""Batch norm over groups of the batch: on one device, what many devices' separate batch norms do.

With statistics over the whole batch, a query can recognise its key by what the batch shares. Groups, with the keys
shuffled between them, take that short cut away (He et al. 2020, section 3.3; for one device facebookresearch/moco
issue 47).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def split_batch_norm(module: nn.Module, splits: int) -> None:
    """Make every batch norm inside `module` take its statistics over `splits` equal groups of the batch.

    Names, parameters and evaluation mode stay as they are; any subclass (timm fuses activations) keeps its own forward.
    The running statistics move by momentum / splits for each group, so as far per step as before.

    Args:
        module: Changed in place.
        splits: Number of groups; must divide every training batch. 1 changes nothing.
    """
    if splits == 1:
        return
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            layer.__class__ = _split_class(type(layer))  # type: ignore[arg-type]
            layer.splits = splits  # type: ignore[assignment]
            layer.momentum = layer.momentum / splits if layer.momentum is not None else None


@cache
def _split_class(base: type[_BatchNorm]) -> type[_BatchNorm]:
    """Return the subclass of a batch norm that runs the base's forward group by group in training."""

    def forward(self: Any, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W)
        if not self.training:
            return base.forward(self, x)
        return torch.cat([base.forward(self, group) for group in x.chunk(self.splits)])

    return type(f"Split{base.__name__}", (base,), {"forward": forward})
