"""Batch norm over groups of the batch, which on one device equals separate batch norms on several devices.

With statistics over the whole batch, a query can recognise its key by the statistics they share. Groups, with the keys
shuffled between them, prevent this shortcut (He et al. 2020, section 3.3; for one device facebookresearch/moco
issue 47).

The running statistics are updated once a step is complete, towards the mean over all of its groups. So they depend
neither on how many processes or parts share the batch, nor on skipped steps.

Detectors and classifiers have no such shortcut: if a process has few images, they need statistics over all processes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def split_batch_norm(module: nn.Module, splits: int) -> None:
    """Let every batch norm inside `module` compute its statistics over `splits` equal groups of its training batch.

    Names, parameters and evaluation mode are unchanged; subclasses (timm fuses activations) keep their own forward. In
    training, call `settle_statistics` after every step.
    """
    layers: list[Any] = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    for layer in layers:
        if layer.track_running_stats:
            layer.__class__ = _split_class(type(layer))  # type: ignore[arg-type]
            layer.splits = splits
            layer.step_momentum = layer.momentum
            layer.momentum = 1.0  # the running statistics become a group's own
            layer.groups = []


@cache
def _split_class(base: type[_BatchNorm]) -> type[_BatchNorm]:
    """Return the subclass of a batch norm that runs the base's forward group by group in training."""

    def forward(self: Any, x: Tensor) -> Tensor:  # (B, C, ...) -> (B, C, ...)
        if not self.training:
            return base.forward(self, x)
        kept = self.running_mean, self.running_var
        out = []
        for group in x.chunk(self.splits):
            self.running_mean, self.running_var = torch.zeros_like(kept[0]), torch.zeros_like(kept[1])
            out.append(base.forward(self, group))
            self.groups.append(torch.stack([self.running_mean, self.running_var]))
        self.running_mean, self.running_var = kept
        return torch.cat(out) if len(out) > 1 else out[0]

    return type(f"Split{base.__name__}", (base,), {"forward": forward})


def sync_batch_norm(module: nn.Module, gather: Callable[[Tensor], Tensor]) -> None:
    """Let every batch norm inside `module` compute its statistics over the batches of all processes.

    Like `torch.nn.SyncBatchNorm`, which needs a GPU, but for any device and subclass; otherwise as `split_batch_norm`.

    Args:
        module: Module to change in place.
        gather: Maps (1, n) to (processes, n), the same rows on all processes; gradients pass through.
    """
    split_batch_norm(module, 1)
    for layer in _split_layers(module):
        layer.__class__ = _synced_class(type(layer))  # type: ignore[arg-type]
        layer.gather = gather


@cache
def _synced_class(base: type[_BatchNorm]) -> type[_BatchNorm]:
    """Return the subclass of a batch norm that normalises by the batches of all processes in training."""

    def forward(self: Any, x: Tensor) -> Tensor:  # (B, C, ...) -> (B, C, ...)
        if not self.training:
            return base.forward(self, x)
        mean, variance, count = _joint_statistics(x, self.gather)
        self.groups.append(torch.stack([mean, variance * count / (count - 1)]).detach())
        self.num_batches_tracked.add_(1)
        shape = (1, -1, *[1] * (x.ndim - 2))
        whitened = (_wide(x) - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)
        return _affine(self, base, whitened.to(x.dtype))

    return type(f"Synced{base.__name__}", (base,), {"forward": forward})


def _joint_statistics(x: Tensor, gather: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and variance (C,) over all processes and the number of values, in float32 or more.

    Processes may hold batches of different sizes. Source: Chan, Golub and LeVeque 1983, on combining variances.
    """
    own_variance, own_mean = torch.var_mean(_wide(x), [0, *range(2, x.ndim)], correction=0)
    own_count = own_mean.new_full((1,), x.numel() / x.shape[1])
    every = gather(torch.cat([own_mean, own_variance, own_count])[None])  # (processes, 2 C + 1)
    means, variances, counts = every.split([x.shape[1], x.shape[1], 1], 1)
    shares = counts / counts.sum()
    mean = (shares * means).sum(0)
    return mean, (shares * (variances + (means - mean).square())).sum(0), counts.sum()


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _affine(layer: Any, base: type[_BatchNorm], whitened: Tensor) -> Tensor:
    """Apply the rest of a layer to a normalised batch: scale, shift, and the operations that timm has fused."""
    kept = layer.running_mean, layer.running_var
    layer.running_mean, layer.running_var = torch.zeros_like(kept[0]), torch.full_like(kept[1], 1 - layer.eps)
    layer.training = False
    try:
        return base.forward(layer, whitened)
    finally:
        layer.training = True
        layer.running_mean, layer.running_var = kept


@torch.no_grad()
def settle_statistics(module: nn.Module, mean: Callable[[Tensor], Tensor] = lambda own: own) -> None:
    """Update all running statistics with those of the groups since the last call.

    Args:
        module: Module whose batch norms `split_batch_norm` has changed.
        mean: Returns the mean of a vector over all processes, which must call this together.
    """
    layers = [layer for layer in _split_layers(module) if layer.groups]
    if not layers:
        return
    seen = [torch.stack(layer.groups).mean(0) for layer in layers]  # each (2, C): mean, variance
    flat = mean(torch.cat([statistics.flatten() for statistics in seen]))
    for layer, statistics in zip(layers, flat.split([each.numel() for each in seen]), strict=True):
        towards_mean, towards_variance = statistics.to(layer.running_mean.dtype).chunk(2)
        layer.num_batches_tracked.sub_(len(layer.groups) - 1)  # groups of one step are one batch
        # PyTorch's None is the plain mean over all batches.
        momentum = 1 / int(layer.num_batches_tracked) if layer.step_momentum is None else layer.step_momentum
        layer.running_mean.lerp_(towards_mean, momentum)
        layer.running_var.lerp_(towards_variance, momentum)
    forget_statistics(module)


def forget_statistics(module: nn.Module) -> None:
    """Keep the running statistics from before the step."""
    for layer in _split_layers(module):
        layer.groups.clear()


def _split_layers(module: nn.Module) -> list[Any]:
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and hasattr(layer, "groups")]
