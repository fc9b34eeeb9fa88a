"""Process untrusted files in worker processes: a crash, a hang or excessive memory use costs a single item.

Custom code, because no permissively licensed library does this: one crash breaks the whole pool of concurrent.futures
and of loky, billiard has no memory limit and reads all items at once, and pebble is LGPL.

The parent sends each worker its current item and one more, and waits for results from any pipe. The results of a
worker that dies remain readable in its pipe; when the pipe ends, the first item without a result is to blame, and the
other one goes to another worker. The kernel enforces the limits of time (SIGALRM) and memory (RLIMIT_DATA), even inside
native code and without the parent; an idle worker ends with its pipe.
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

from medmoco.errors import MedmocoError

Item = TypeVar("Item")
Result = TypeVar("Result")

_IN_HAND = 2  # items per worker, so that the next one is ready when a result is sent
_FORKING = threading.RLock()  # pipe ends must not be copied into workers that another thread starts meanwhile


@dataclass(frozen=True)
class Failure:
    """Why an item has no result."""

    reason: str  # with the remedy, without paths or IDs


@dataclass(frozen=True)
class _Task:
    position: int
    pickled: bytes


@dataclass(eq=False)
class _Worker:
    pid: int
    tasks: Connection
    results: Connection
    given: deque[_Task] = field(default_factory=deque)  # without a result yet, in the order sent

    def accepts(self, task: _Task, depth: int) -> bool:
        """Return whether sending cannot block: a pipe takes a page at once, and an idle worker reads any size."""
        return not self.given or (len(self.given) < depth and len(task.pickled) < select.PIPE_BUF)

    def end(self) -> int:
        """Kill the process and release its resources; return its exit code, or a negative signal number."""
        self.tasks.close()
        self.results.close()
        os.kill(self.pid, signal.SIGKILL)  # does not change the exit status of a dead process
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class _Tasks:
    """The items that no worker has: the next one from the source, and those left over by dead workers."""

    def __init__(self, items: Iterable[Item]) -> None:
        self.source = enumerate(items)
        self.waiting: deque[_Task] = deque()

    def are_waiting(self) -> bool:
        """Return whether there is an item."""
        if not self.waiting:
            self.waiting.extend(_Task(at, bytes(ForkingPickler.dumps(item))) for at, item in islice(self.source, 1))
        return bool(self.waiting)

    def feed(self, worker: _Worker, depth: int) -> None:
        """Send items to a worker until it has `depth` of them."""
        while self.are_waiting() and worker.accepts(self.waiting[0], depth):
            try:
                worker.tasks.send_bytes(self.waiting[0].pickled)
            except BrokenPipeError:
                return  # it died between two items, which the end of its results will show
            worker.given.append(self.waiting.popleft())


def map_guarded(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, seconds: float, megabytes: int
) -> Iterator[tuple[int, Result | Failure]]:
    """Apply `function` to every item in worker processes; yield (position, result or Failure) as they complete.

    Workers are forks, so `function` may be a closure and is not pickled; items and results are. Workers end when the
    generator is closed or the parent dies.

    Args:
        function: Returns a result, or raises MedmocoError if an item has none.
        items: Items, possibly endless; two per worker are read ahead.
        workers: Number of processes, at least one.
        seconds: Time limit for one item.
        megabytes: Memory that one item may add to its worker. Enforced on Linux only.

    Raises:
        RuntimeError: `function` raised another exception, which is a bug; includes the traceback.
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
        return "the process that read it was killed, usually for lack of memory; run again with fewer data.workers"
    how = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
    return f"reading it crashed the decoder ({how}): the file is damaged or malicious; leave the row out"


# OpenCV's threads do not survive a fork, and a child that uses or ends them would wait for them forever. So they end
# before every fork, also of a user's own DataLoader, and the parent has as many as before afterwards.

_opencv_threads: list[int] = []


def _end_opencv_threads() -> None:
    _opencv_threads.append(cv2.getNumThreads())
    cv2.setNumThreads(1)


os.register_at_fork(before=_end_opencv_threads, after_in_parent=lambda: cv2.setNumThreads(_opencv_threads.pop()))


# In the worker


def _start(
    function: Callable[[Item], Result], other_tasks: list[Connection], seconds: float, megabytes: int
) -> _Worker:
    """Fork a worker; not with multiprocessing.Process, which daemons such as Dask's workers may not start."""
    with _FORKING:
        task_reader, task_writer = Pipe(duplex=False)
        result_reader, result_writer = Pipe(duplex=False)
        pid = os.fork()
        if not pid:
            for connection in (task_writer, result_reader, *other_tasks):
                connection.close()  # otherwise the other workers' tasks would not end when the parent dies
            _run(function, task_reader, result_writer, seconds, megabytes)
        task_reader.close()
        result_writer.close()
    return _Worker(pid, task_writer, result_reader)


def _run(
    function: Callable[[Item], Result], tasks: Connection, results: Connection, seconds: float, megabytes: int
) -> NoReturn:
    """Process tasks until they end; an unexpected exception is the last message sent."""
    try:
        settle_worker()
        faulthandler.disable()  # the parent reports a crash
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would contain the image
        while True:
            results.send_bytes(_outcome(function, tasks.recv(), seconds, megabytes))
    except (EOFError, BrokenPipeError):
        pass  # the parent has finished or died
    except BaseException:
        results.send(("bug", traceback.format_exc()))
    finally:
        os._exit(0)


def settle_worker() -> None:
    """Use one thread, since there is already a process per core, and leave Ctrl-C and SIGTERM to the parent.

    Ctrl-C in a terminal and SIGTERM on a cluster reach the whole process group.
    """
    cv2.setNumThreads(1)
    if torch := sys.modules.get("torch"):  # loaded only by those that need it: importing it takes seconds
        torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _outcome(function: Callable[[Item], Result], item: Item, seconds: float, megabytes: int) -> bytes:
    try:
        with _limits(seconds, megabytes):
            return bytes(ForkingPickler.dumps(("result", function(item))))
    except Exception as error:
        if _is_out_of_memory(error):
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
        limit = pages * resource.getpagesize() + megabytes * 2**20
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an allocation failed, even if a reader has turned that into another error."""
    while error:
        if isinstance(error, MemoryError) or (isinstance(error, cv2.error) and error.code == cv2.Error.StsNoMem):
            return True
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error):
            return True
        error = error.__context__
    return False
