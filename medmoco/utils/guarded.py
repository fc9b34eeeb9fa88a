"""Work on untrusted files in worker processes: a crash, a hang or a hunger for memory costs one item.

Our own, because no permissively licensed library does it: one crash breaks the whole pool of concurrent.futures and of
loky, billiard has no memory limit and takes in all items at once, and pebble is LGPL.

How it holds together: the parent hands each worker the item in hand and one more, and waits for whichever pipe has
something to say. A worker that dies leaves its results readable in its pipe; then the pipe ends, the first item without
a result is to blame, and the other goes to another worker. The kernel watches the clock (SIGALRM) and the memory
(RLIMIT_DATA), also inside native code and also when the parent is gone; an idle worker ends with its pipe.
"""

from __future__ import annotations

import faulthandler
import os
import resource
import select
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import NoReturn, TypeVar

import cv2
import torch

from medmoco.errors import MedmocoError

Item = TypeVar("Item")
Result = TypeVar("Result")

_IN_HAND = 2  # items per worker: the next one is there when a result leaves
_FORKING = threading.RLock()  # no pipe's end may be copied into a worker that another thread starts meanwhile


@dataclass(frozen=True)
class Failure:
    """Why an item has no result.

    Attributes:
        reason: Sentences with the remedy, without path or id.
    """

    reason: str


@dataclass(frozen=True)
class _Task:
    position: int
    pickled: bytes


@dataclass(eq=False)
class _Worker:
    pid: int
    tasks: Connection
    results: Connection
    given: deque[_Task] = field(default_factory=deque)  # without a result yet, in the order in which they were sent

    def accepts(self, task: _Task, depth: int) -> bool:
        """Tell whether sending cannot block: a pipe takes a page at once, and an idle worker reads whatever comes."""
        return not self.given or (len(self.given) < depth and len(task.pickled) < select.PIPE_BUF)

    def end(self) -> int:
        """Kill and forget the process; return its exit code, or a negative signal number."""
        self.tasks.close()
        self.results.close()
        os.kill(self.pid, signal.SIGKILL)  # a dead one keeps the status it died with
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class _Tasks:
    """The items that no worker has: one from the source, and what dead workers left undone."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.source = enumerate(items)
        self.waiting: deque[_Task] = deque()

    def are_waiting(self) -> bool:
        """Tell whether there is one."""
        if not self.waiting:
            self.waiting.extend(_Task(at, bytes(ForkingPickler.dumps(item))) for at, item in islice(self.source, 1))
        return bool(self.waiting)

    def feed(self, worker: _Worker, depth: int) -> None:
        """Give a worker so many that it has `depth` in hand."""
        while self.are_waiting() and worker.accepts(self.waiting[0], depth):
            try:
                worker.tasks.send_bytes(self.waiting[0].pickled)
            except BrokenPipeError:
                return  # it died between two items; the end of its results will tell
            worker.given.append(self.waiting.popleft())


def map_guarded(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, seconds: float, megabytes: int
) -> Iterator[tuple[int, Result | Failure]]:
    """Apply `function` to every item in worker processes; yield (position, result or Failure) as they get done.

    Workers are forks, so that `function` may be a closure and is not pickled; items and results are. They end
    when the generator is closed, or when the parent dies.

    Args:
        function: Returns a result, or raises MedmocoError where an item has none.
        items: May be endless; two per worker are taken ahead.
        workers: Processes, at least one.
        seconds: For one item.
        megabytes: That one item may add to the memory of its worker. Enforced by Linux only.

    Raises:
        RuntimeError: `function` raised something else, which is a bug; holds the traceback.
    """
    tasks = _Tasks(items)
    team: list[_Worker] = []
    try:
        while True:
            while len(team) < workers and all(worker.given for worker in team) and tasks.are_waiting():
                team.append(_start(function, [worker.tasks for worker in team], seconds, megabytes))
                tasks.feed(team[-1], 1)
            for worker in team:
                tasks.feed(worker, _IN_HAND)
            if not any(worker.given for worker in team) and not tasks.are_waiting():
                return
            ready = wait([worker.results for worker in team])
            for worker in [worker for worker in team if worker.results in ready]:
                task = worker.given.popleft() if worker.given else None
                try:
                    outcome, value = worker.results.recv()
                except (EOFError, OSError):
                    team.remove(worker)
                    tasks.waiting.extendleft(reversed(worker.given))
                    outcome, value = "failure", _cause(worker.end(), seconds)
                else:
                    tasks.feed(worker, _IN_HAND)
                if outcome == "bug":
                    raise RuntimeError(f"in a data worker:\n{value}")
                if task:
                    yield task.position, Failure(value) if outcome == "failure" else value
    finally:
        for worker in team:
            worker.end()


def _cause(exit_code: int, seconds: float) -> str:
    if exit_code == -signal.SIGALRM:
        return f"reading it took longer than {seconds:g} s; leave the row out or raise data.decode_seconds"
    if exit_code == -signal.SIGKILL:
        return "the process that read it was killed, as a rule for want of memory; run again with fewer data.workers"
    how = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    return f"reading it crashed the decoder ({how}): the file is damaged or made to do harm; leave the row out"


# In the worker


def _start(
    function: Callable[[Item], Result], other_tasks: list[Connection], seconds: float, megabytes: int
) -> _Worker:
    """Fork a worker; not by multiprocessing.Process, which daemons such as Dask's workers may not start."""
    with _FORKING:
        task_reader, task_writer = Pipe(duplex=False)
        result_reader, result_writer = Pipe(duplex=False)
        pid = os.fork()
        if not pid:
            for connection in (task_writer, result_reader, *other_tasks):
                connection.close()  # or the tasks of the others would not end when the parent dies
            _run(function, task_reader, result_writer, seconds, megabytes)
        task_reader.close()
        result_writer.close()
    return _Worker(pid, task_writer, result_reader)


def _run(
    function: Callable[[Item], Result], tasks: Connection, results: Connection, seconds: float, megabytes: int
) -> NoReturn:
    """Serve until the tasks end; a bug is the last thing sent."""
    try:
        settle_worker()
        faulthandler.disable()  # the parent reports a crash
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the image
        while True:
            results.send_bytes(_outcome(function, tasks.recv(), seconds, megabytes))
    except (EOFError, BrokenPipeError):
        pass  # the parent is done, or dead
    except BaseException:
        results.send(("bug", traceback.format_exc()))
    finally:
        os._exit(0)


def settle_worker() -> None:
    """Use one thread, as there is a process per core already, and leave Ctrl-C and SIGTERM to the parent.

    A terminal's Ctrl-C and a cluster's SIGTERM reach the whole process group.
    """
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _outcome(function: Callable[[Item], Result], item: Item, seconds: float, megabytes: int) -> bytes:
    try:
        with _limits(seconds, megabytes):
            return bytes(ForkingPickler.dumps(("result", function(item))))
    except Exception as error:
        if _wants_memory(error):
            reason = f"reading it takes more than {megabytes} MB; leave the row out or raise data.decode_megabytes"
            return bytes(ForkingPickler.dumps(("failure", reason)))
        if isinstance(error, MedmocoError):
            return bytes(ForkingPickler.dumps(("failure", str(error))))
        raise


@contextmanager
def _limits(seconds: float, megabytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])  # private, writable memory
        wanted = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(
            resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _wants_memory(error: BaseException | None) -> bool:
    """Look for a refused allocation, also behind the error that a reader made of it."""
    while error:
        if isinstance(error, MemoryError) or (isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem):
            return True
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
            return True
        error = error.__context__
    return False
