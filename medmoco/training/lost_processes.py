"""Errors that name the process of a run that has ended or hangs."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from medmoco.errors import DistributedError
from medmoco.training.distributed import Group

_NOTICED_WITHIN = 3.0  # seconds after the first process notices that another is lost


def report_step(group: Group, step: int) -> None:
    """Store the step of this process, which the others report if it hangs."""
    if group.size > 1:
        group.store.set(f"at/{group.rank}", str(step))


@contextmanager
def explaining_lost(group: Group) -> Iterator[None]:
    """Turn the libraries' errors about lost processes into errors that name them.

    Raises:
        DistributedError: another process has ended or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        if group.size == 1 or not _is_about_others(error):
            raise
        raise DistributedError(_explain(group, str(error))) from None


def _is_about_others(error: RuntimeError) -> bool:
    signs = r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe|Timed out|TCPStore"
    return isinstance(error, dist.DistError) or re.search(signs, str(error)) is not None


def _explain(group: Group, text: str) -> str:
    lost = _silent(group)
    who = f"process {', '.join(lost)}" if lost else "another process"
    resume = "The last checkpoint is intact: resume with --resume."
    if re.search(r"[Tt]imed? ?out", text):
        return (
            f"{who} has not answered for {group.seconds:g} s: its machine hangs, its data does not arrive, or the "
            "network is down.\n"
            f"Check it (py-spy dump --pid) and its machine; train.hang_seconds sets how long to wait. {resume}"
        )
    return (
        f"{who} has ended or cannot be reached; its own output says why.\n"
        f"A process that ends without a message was killed, most often for lack of memory. {resume}"
    )


def _silent(group: Group) -> list[str]:
    """Return the processes that, unlike the others, do not report that one is lost, with their last steps."""
    try:
        group.store.set(f"alive/{group.rank}", "")
        time.sleep(min(_NOTICED_WITHIN, group.seconds))
        lost = [rank for rank in range(group.size) if not group.store.check([f"alive/{rank}"])]
        return [f"{rank} (in step {int(group.store.get(f'at/{rank}'))})" for rank in lost]
    except (RuntimeError, ValueError):
        return []  # the lost process held the store
