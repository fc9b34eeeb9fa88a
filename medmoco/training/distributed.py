"""Several processes as one: who they are, how they exchange tensors, how they agree. A no-op on one process.

Two channels. Tensors of a step go over NCCL on GPUs and gloo on CPUs. Words and decisions always go over gloo, on the
host: so a process notices within a step that another is gone or wants to stop, while its GPU goes on computing.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medmoco import errors
from medmoco.config import TrainSettings
from medmoco.data.loading.sampler import Share
from medmoco.errors import DistributedError, MedmocoError, SettingsError
from medmoco.models.batch_norm import split_batch_norm, sync_batch_norm
from medmoco.training.launch import Placement

Result = TypeVar("Result")

_PATIENCE = timedelta(hours=2)  # for what may take long on one process alone: packing, reading, scoring in between

_LAST_WORDS = 3.0  # seconds in which processes notice that another is lost, after the first of them has


# How we talk


@dataclass
class Group:
    """The processes of a run, as one of them sees it.

    Attributes:
        rank: Number of this process, from 0.
        size: How many there are.
        seconds: Until a process that does not answer counts as hung.
        sent: Bytes that this process has sent, by what for.
    """

    rank: int = 0
    size: int = 1
    seconds: float = 0.0
    sent: Counter[str] = field(default_factory=Counter)
    _control: Any = None
    _patient: Any = None
    _store: Any = None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
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
        """Join (b, ...) of every process, in the order of their ranks, to (B, ...); gradients find their way back."""
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
        """Return what averages gradients over all processes while they are computed; the module itself on one."""
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(
            module, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )  # fmt: skip

    # How we agree

    def any_of(self, *flags: bool) -> tuple[bool, ...]:
        """Tell for each flag whether it is set on any process."""
        if self.size == 1:
            return flags
        word = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(word, dist.ReduceOp.MAX, group=self._control)
        return tuple(bool(flag) for flag in word)

    def at_step(self, step: int) -> None:
        """Leave word of how far this process is, for the others to read when it hangs."""
        if self.size > 1:
            self._store.set(f"at/{self.rank}", str(step))

    def tell(self, text: str, *, patiently: bool = False) -> list[str]:
        """Return the texts of all processes, in the order of their ranks."""
        if self.size == 1:
            return [text]
        group = self._patient if patiently else self._control
        own = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(lengths, torch.tensor([len(own)]), group=group)
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(own)] = own
        every = [torch.zeros_like(padded) for _ in range(self.size)]
        dist.all_gather(every, padded, group=group)
        return [
            bytes(words[: int(length)].tolist()).decode().strip(" ")
            for words, length in zip(every, lengths, strict=True)
        ]

    def raise_together(self, error: MedmocoError | None, *, patiently: bool = False) -> None:
        """Raise on every process what the first of them that failed has met.

        Raises:
            MedmocoError: its own kind and message.
        """
        if self.size == 1:
            if error:
                raise error
            return
        word = json.dumps([type(error).__name__, str(error)]) if error else ""
        for told in self.tell(word, patiently=patiently):
            if told:
                kind, message = json.loads(told)
                raise getattr(errors, kind)(message)

    @contextmanager
    def one_fate(self, *, patiently: bool = True) -> Iterator[None]:
        """What goes wrong inside on one process goes wrong on all, each having tried to reach the end."""
        failure = None
        try:
            yield
        except MedmocoError as error:
            failure = error
        self.raise_together(failure, patiently=patiently)

    def first(self, action: Callable[[], Result], *, patiently: bool = False) -> Result | None:
        """Do something on the first process alone, while the others wait.

        Args:
            action: What to do.
            patiently: It may take longer than a process has to answer.

        Returns:
            What `action` returns on the first process, None on the others.

        Raises:
            MedmocoError: `action` failed; raised on all.
        """
        with self.one_fate(patiently=patiently):
            return action() if self.is_first else None

    def beside(self, place: str) -> int:
        """Return how many processes, with this one, are in a place such as a machine's shared memory."""
        return self.tell(place).count(place)

    def from_first(self, action: Callable[[], Result], *, patiently: bool = False) -> Result:
        """Do something on the first process alone, and return on all what it returns, which JSON can hold.

        Raises:
            MedmocoError: see `first`.
        """
        text = json.dumps(self.first(action, patiently=patiently))
        found: Result = json.loads(self.tell(text)[0])
        return found

    def check_same(self, what: str, tensors: list[Tensor]) -> None:
        """Make sure that tensors hold the same bits on every process.

        Raises:
            DistributedError: they do not; names the processes.
        """
        if self.size == 1:
            return
        sums = self.tell(str(_checksum(tensors)))
        odd = [rank for rank, found in enumerate(sums) if found != sums[0]]
        if odd:
            raise DistributedError(
                f"{what} of process {', '.join(map(str, odd))} differ from those of process 0.\n"
                "The machines do not compute alike (mixed GPUs, faulty memory, different library versions?).\n"
                "Nothing was saved; go on from the last checkpoint with --resume, without that machine."
            )

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn what the libraries say about lost processes into words.

        Raises:
            DistributedError: another process is gone or does not answer.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not _is_about_others(error):
                raise
            raise DistributedError(self._explain(str(error))) from None

    def _explain(self, text: str) -> str:
        lost = self._silent()
        who = f"process {', '.join(lost)}" if lost else "another process"
        resume = "The last checkpoint is intact: go on with --resume."
        if re.search(r"[Tt]imed? ?out", text):
            return (
                f"{who} has not answered for {self.seconds:g} s: its machine hangs, its data does not come, or the "
                "network is down.\n"
                f"Look at it (py-spy dump --pid) and its machine; train.hang_seconds is how long to wait. {resume}"
            )
        return (
            f"{who} has ended or cannot be reached; what it printed says why.\n"
            f"A process without last words was killed, most often for lack of memory. {resume}"
        )

    def _silent(self) -> list[str]:
        """Return the processes that do not notice, as all others do, that something is wrong; with their last steps."""
        try:
            self._store.set(f"alive/{self.rank}", "")
            time.sleep(min(_LAST_WORDS, self.seconds))
            lost = [rank for rank in range(self.size) if not self._store.check([f"alive/{rank}"])]
            return [f"{rank} (in step {int(self._store.get(f'at/{rank}'))})" for rank in lost]
        except (RuntimeError, ValueError):
            return []  # the store was with the lost one


ALONE = Group()


def _joined(own: Tensor, size: int) -> Tensor:
    every = own.new_empty(size * len(own), *own.shape[1:])
    dist.all_gather(list(every.chunk(size)), own.contiguous())
    return every


class _GatherTrained(torch.autograd.Function):
    """Joins tensors of all processes; the gradient of a part is the sum of what all processes want of it."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rank: int, size: int) -> Tensor:
        ctx.rank, ctx.size = rank, size
        return _joined(own, size)

    @staticmethod
    def backward(ctx: Any, *wanted: Tensor) -> tuple[Tensor, None, None]:
        total = wanted[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(ctx.size)[ctx.rank], None, None


def gradients_stay_here(wrapped: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """Keep gradients of what `Group.wrap` gave on this process, if wanted: of all parts but the last of a step.

    Averaging their sum is enough.
    """
    return wrapped.no_sync() if wanted and isinstance(wrapped, nn.parallel.DistributedDataParallel) else nullcontext()


def join_batch_norm(module: nn.Module, group: Group) -> None:
    """Make every batch norm inside `module` take its statistics over what all processes are given, in place.

    The running ones move with the step, not with its parts; see `settle_statistics`.
    """
    if group.size == 1:
        split_batch_norm(module, 1)
    else:
        sync_batch_norm(module, lambda own: group.gather_trained(own, "statistics"))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _checksum(tensors: list[Tensor]) -> int:
    """Add up the bits of tensors; exact in any order, and cheap on a GPU."""
    total = 0
    for position, tensor in enumerate(tensors):
        bits = tensor.detach().contiguous().view(-1).view(torch.uint8).to(torch.int64)
        weights = torch.arange(len(bits), device=bits.device) % 251 + 1  # exchanged values do not cancel out
        total += (position + 1) * int((bits * weights).sum())
    return total


def _is_about_others(error: RuntimeError) -> bool:
    words = r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe|Timed out|TCPStore"
    return isinstance(error, dist.DistError) or re.search(words, str(error)) is not None


# How we meet


@contextmanager
def joined(train: TrainSettings, placement: Placement | None) -> Iterator[Group]:
    """Meet the other processes of the run, and part at the end.

    Args:
        train: Says which device, and how long to wait for others.
        placement: What the launcher said; without it the process is alone.

    Raises:
        DistributedError: they do not come together.
        SettingsError: there are more processes on this machine than GPUs.
    """
    if placement is None or placement.size == 1:
        yield ALONE
        return
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = placement.address, str(placement.port)
    on_gpu = train.device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        gpus = torch.cuda.device_count()
        if placement.local_rank >= gpus > 1:  # a single one may be this process's own
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
        with group.explained():
            yield group
    except DistributedError:
        raise  # parting would wait for the lost
    except BaseException:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _meeting_failed(text: str, placement: Placement, train: TrainSettings) -> str:
    if "EADDRINUSE" in text or "address already in use" in text:
        return (
            f"port {placement.port} is in use on this machine, so that the processes cannot meet there.\n"
            "Set MASTER_PORT to a free one (with torchrun: --rdzv-endpoint=HOST:PORT), or end what uses it."
        )
    return (
        f"the {placement.size} processes did not meet at {placement.address}:{placement.port}, waiting up to "
        f"{train.hang_seconds:g} s.\nStart all of them; that machine must be reachable from the others. Where it has "
        "several networks,\nset GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the right one (docs/cluster.md)."
    )
