"""Functions that run in several real processes at once, which meet as those of a training run do."""

from __future__ import annotations

import multiprocessing
import socket
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from medmoco.config import TrainSettings
from medmoco.errors import Stopped
from medmoco.training.agreement import exchange
from medmoco.training.distributed import Group
from medmoco.training.launch import Placement, joined

# Forked from a server that has imported PyTorch already, which spares each of many processes the seconds that takes.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["medmoco.training.pretrain", "medmoco.evaluation.features.monitor"])


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def run_together(
    size: int, function: Callable[..., Any], *arguments: Any, hang_seconds: float = 60.0, seconds: float = 120.0
) -> list[Any]:
    """Call `function(group, *arguments)` in `size` processes; return what each returned, or the error it raised."""
    port, pipes, processes = free_port(), [], []
    for rank in range(size):
        receive, send = _server.Pipe(duplex=False)
        placement = Placement(rank, size, rank, "localhost", port)
        process = _server.Process(target=_work, args=(send, placement, hang_seconds, function, arguments))
        process.start()
        send.close()
        pipes.append(receive)
        processes.append(process)
    results = [_result(pipe, seconds) for pipe in pipes]
    for process in processes:
        process.join(seconds)
        process.kill()
    return results


def through_a_stop(
    group: Group, module: Any, task: str, interrupted: Any, stop_at: int, run: Callable[[bool], Any]
) -> Any:
    """Call `run(False)`, which a signal to all but the first process stops, then `run(True)`; return what that does.

    Args:
        group: The processes.
        module: Where the wiring finds its task, in this process alone.
        task: The name it has there.
        interrupted: Takes the task's place, and sends the signal at its `stop_at`.
        stop_at: Step.
        run: Told whether to resume.
    """
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(interrupted, "stop_at", stop_at)
        if not group.is_first:
            patched.setattr(module, task, interrupted)
        with pytest.raises(Stopped, match=f"after step {stop_at + 1} "):
            run(False)
    return run(True)


def _result(pipe: Any, seconds: float) -> Any:
    if not pipe.poll(seconds):
        return TimeoutError(f"no result within {seconds} s")
    try:
        return pipe.recv()
    except EOFError:
        return EOFError("the process ended without a result")


def _work(pipe: Any, placement: Placement, hang: float, function: Callable[..., Any], arguments: tuple[Any]) -> None:
    try:
        with joined(TrainSettings(device="cpu", hang_seconds=hang), placement) as group:
            pipe.send(function(group, *arguments))
    except Exception as error:
        traceback.print_exc()
        pipe.send(error)


def same_everywhere(group: Group, value: Any) -> bool:
    """Tell whether every process has the same value."""
    return len(set(exchange(group, repr(value)))) == 1
