"""A group of processes that train together, and how it exchanges tensors. A single process exchanges nothing.

Tensors of a step go over NCCL on GPUs and gloo on CPUs; for texts and decisions between the hosts see `agreement`.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medmoco.data.loading.sampler import Share
from medmoco.models.batch_norm import split_batch_norm, sync_batch_norm


@dataclass
class Group:
    """The processes of a run, as one of them sees it."""

    rank: int = 0  # number of this process, from 0
    size: int = 1  # how many there are
    seconds: float = 0.0  # until a process that does not answer counts as hung
    sent: Counter[str] = field(default_factory=Counter)  # bytes that this process has sent, by purpose
    control: Any = None  # channel between the hosts, for texts and decisions
    patient: Any = None  # the same, for answers that take longer
    store: Any = None  # keys and values that all processes share

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and logs."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """The part of every batch that this process takes."""
        return Share(self.rank, self.size)

    def gather(self, own: Tensor, purpose: str = "embeddings") -> Tensor:
        """Join (b, ...) of every process, in the order of their ranks, to (B, ...); without gradient."""
        if self.size == 1:
            return own
        self.sent[purpose] += _bytes(own) * (self.size - 1)
        return _joined(own.detach(), self.size)

    def gather_trained(self, own: Tensor, purpose: str) -> Tensor:
        """Join (b, ...) of every process, in the order of their ranks, to (B, ...), with gradient."""
        if self.size == 1:
            return own
        self.sent[purpose] += 2 * _bytes(own) * (self.size - 1)
        every: Tensor = _GatherTrained.apply(own, self.rank, self.size)
        return every

    def mean(self, values: Tensor, purpose: str = "statistics") -> Tensor:
        """Return the mean of a tensor over all processes, in place."""
        if self.size == 1:
            return values
        dist.all_reduce(values)
        self.sent[purpose] += 2 * _bytes(values) * (self.size - 1) // self.size
        return values.div_(self.size)

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Return a module whose backward pass averages gradients over all processes."""
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(
            module, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )  # fmt: skip


ALONE = Group()


def _joined(own: Tensor, size: int) -> Tensor:
    every = own.new_empty(size * len(own), *own.shape[1:])
    dist.all_gather(list(every.chunk(size)), own.contiguous())
    return every


class _GatherTrained(torch.autograd.Function):
    """Joins tensors of all processes; the gradient of a part is the sum over all processes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rank: int, size: int) -> Tensor:
        ctx.rank, ctx.size = rank, size
        return _joined(own, size)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(ctx.size)[ctx.rank], None, None


def gradients_stay_here(wrapped: nn.Module, stay: bool) -> AbstractContextManager[None]:
    """Do not average the gradients of a module from `Group.wrap` if they `stay`; the last part of a step does."""
    return wrapped.no_sync() if stay and isinstance(wrapped, nn.parallel.DistributedDataParallel) else nullcontext()


def join_batch_norm(module: nn.Module, group: Group) -> None:
    """Let every batch norm inside `module` compute its statistics over all processes; see `settle_statistics`."""
    if group.size == 1:
        split_batch_norm(module, 1)
    else:
        sync_batch_norm(module, lambda own: group.gather_trained(own, "statistics"))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
