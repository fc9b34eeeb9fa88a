"""How the processes of a run agree on decisions, errors, results and weights. Nothing is exchanged on one process.

Texts and decisions go over gloo, between the hosts: a process notices within a step that another has ended or is to
stop, while its GPU is still computing.

`patiently` means that a process may take longer than `train.hang_seconds`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from medmoco import errors
from medmoco.errors import DistributedError, MedmocoError
from medmoco.training.distributed import Group

Result = TypeVar("Result")


def any_of(group: Group, *flags: bool) -> tuple[bool, ...]:
    """Return for each flag whether it is set on any process."""
    if group.size == 1:
        return flags
    everyones = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(everyones, dist.ReduceOp.MAX, group=group.control)
    return tuple(bool(flag) for flag in everyones)


def exchange(group: Group, text: str, *, patiently: bool = False) -> list[str]:
    """Return the texts of all processes, in the order of their ranks."""
    if group.size == 1:
        return [text]
    channel = group.patient if patiently else group.control
    own = torch.frombuffer(bytearray(text.encode() or b" "), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size)]
    dist.all_gather(lengths, torch.tensor([len(own)]), group=channel)
    padded = torch.zeros(max(int(length) for length in lengths), dtype=torch.uint8)
    padded[: len(own)] = own
    everyones = [torch.zeros_like(padded) for _ in range(group.size)]
    dist.all_gather(everyones, padded, group=channel)
    return [
        bytes(characters[: int(length)].tolist()).decode().strip(" ")
        for characters, length in zip(everyones, lengths, strict=True)
    ]


def raise_together(group: Group, error: MedmocoError | None, *, patiently: bool = False) -> None:
    """Raise on every process the error of the first process that has one.

    Raises:
        MedmocoError: of the same class and with the same message.
    """
    if group.size == 1:
        if error:
            raise error
        return
    own = json.dumps([type(error).__name__, str(error)]) if error else ""
    for text in exchange(group, own, patiently=patiently):
        if text:
            kind, message = json.loads(text)
            raise getattr(errors, kind)(message)


@contextmanager
def together(group: Group, *, patiently: bool = True) -> Iterator[None]:
    """Raise an error of one process on all of them, once each has reached the end of the block or failed."""
    failure = None
    try:
        yield
    except MedmocoError as error:
        failure = error
    raise_together(group, failure, patiently=patiently)


def on_first(group: Group, action: Callable[[], Result], *, patiently: bool = False) -> Result | None:
    """Return the result of an action on the first process, for which the others wait; None on the others.

    Raises:
        MedmocoError: `action` failed; raised on all.
    """
    with together(group, patiently=patiently):
        return action() if group.is_first else None


def from_first(group: Group, action: Callable[[], Result], *, patiently: bool = False) -> Result:
    """Return on all processes the result of an action on the first, which must be plain JSON.

    Raises:
        MedmocoError: see `on_first`.
    """
    text = json.dumps(on_first(group, action, patiently=patiently))
    result: Result = json.loads(exchange(group, text)[0])
    return result


def count_sharing(group: Group, place: str) -> int:
    """Return how many processes, including this one, name the same place, such as a machine's shared memory."""
    return exchange(group, place).count(place)


def check_same(group: Group, what: str, tensors: list[Tensor]) -> None:
    """Check that tensors hold the same bits on every process.

    Raises:
        DistributedError: they do not; names the processes.
    """
    if group.size == 1:
        return
    sums = exchange(group, str(_checksum(tensors)))
    odd = [rank for rank, found in enumerate(sums) if found != sums[0]]
    if odd:
        raise DistributedError(
            f"{what} of process {', '.join(map(str, odd))} differ from those of process 0.\n"
            "The machines compute different results (mixed GPUs, faulty memory, different library versions?).\n"
            "Nothing was saved; resume from the last checkpoint with --resume, without that machine."
        )


def _checksum(tensors: list[Tensor]) -> int:
    """Add up the bits of tensors; exact in any order, and cheap on a GPU."""
    total = 0
    for position, tensor in enumerate(tensors):
        bits = tensor.detach().contiguous().view(-1).view(torch.uint8).to(torch.int64)
        weights = torch.arange(len(bits), device=bits.device) % 251 + 1  # exchanged values do not cancel out
        total += (position + 1) * int((bits * weights).sum())
    return total
