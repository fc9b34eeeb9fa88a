"""A group of processes that train together: how it forms and exchanges tensors. A single process exchanges nothing.

Tensors of a step go over NCCL on GPUs and gloo on CPUs; for texts and decisions between the hosts see `agreement`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medmoco.config import TrainSettings
from medmoco.data.loading.sampler import Share
from medmoco.errors import DistributedError, SettingsError
from medmoco.models.batch_norm import split_batch_norm, sync_batch_norm
from medmoco.training.launch import Placement
from medmoco.training.lost_processes import explaining_lost

_PATIENCE = timedelta(hours=2)  # the others wait for the first process to pack, read or score


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


@contextmanager
def joined(train: TrainSettings, placement: Placement | None) -> Iterator[Group]:
    """Join the other processes of the run and leave them at the end; a process without a placement is alone.

    Raises:
        DistributedError: not all processes join in time.
        SettingsError: there are more processes on this machine than GPUs.
    """
    if placement is None or placement.size == 1:
        yield ALONE
        return
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = placement.address, str(placement.port)
    on_gpu = train.device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        gpus = torch.cuda.device_count()
        if placement.local_rank >= gpus > 1:  # each process may see only its own GPU
            raise SettingsError(
                f"process {placement.local_rank} of this machine has no GPU: torch sees {gpus}; start one for each"
            )
        torch.cuda.set_device(placement.local_rank % gpus)
    timeout = timedelta(seconds=train.hang_seconds)
    try:
        rendezvous = dist.rendezvous("env://", placement.rank, placement.size, timeout=timeout)  # type: ignore[attr-defined]
        store, _, _ = next(rendezvous)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", store=store, timeout=timeout,
            rank=placement.rank, world_size=placement.size,
        )  # fmt: skip
        control = dist.new_group(backend="gloo", timeout=timeout)
        patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise DistributedError(_meeting_failed(str(error), placement, train)) from None
    group = Group(placement.rank, placement.size, train.hang_seconds, Counter(), control, patient, store)
    try:
        with explaining_lost(group):
            yield group
    except DistributedError:
        raise  # leaving the group would wait for the lost processes
    except BaseException:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _meeting_failed(text: str, placement: Placement, train: TrainSettings) -> str:
    if "EADDRINUSE" in text or "address already in use" in text:
        return (
            f"port {placement.port} is in use on this machine, so the processes cannot meet there.\n"
            "Set MASTER_PORT to a free one (with torchrun: --rdzv-endpoint=HOST:PORT), or end the program that uses it."
        )
    return (
        f"the {placement.size} processes did not meet at {placement.address}:{placement.port}, waiting up to "
        f"{train.hang_seconds:g} s.\nStart all of them; that machine must be reachable from the others. Where it has "
        "several networks,\nset GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the right one (docs/cluster.md)."
    )
