"""Data workers: their start, their shared memory, and errors when they die or hang.

DataLoader has four gaps. When a worker dies, it raises from a signal handler, which may be in the middle of an
optimiser step; it waits forever for a worker that hangs; and a batch that does not fit into shared memory, or cannot be
sent because the path of the temporary folder is too long for a socket, is lost in a thread of the worker. Here, the end
of a worker is handled where the next batch is awaited, and nowhere else.
"""

from __future__ import annotations

import faulthandler
import math
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from medmoco.config import RunSettings
from medmoco.errors import DataError, SettingsError
from medmoco.utils.guarded import settle_worker

AHEAD = 4  # batches that each worker prefetches
_IN_HAND = 2  # batches that training holds: the current one, and the previous one until it has been replaced

# PyTorch passes the batches of workers through this folder on Linux.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - not a temporary file

_SHARE_OF_HANG = 0.75  # of train.hang_seconds, so that the cause is reported before other processes give this one up

_GOODBYE_SECONDS = 60.0

_LONGEST_SOCKET = 107  # bytes of a path that a Unix socket can have; Source: unix(7)
_SOCKET = "/pymp-xxxxxxxx/listener-xxxxxxxx"  # below the temporary folder; Source: multiprocessing.connection

_MORE_SHARED_MEMORY = "Give the container more shared memory (docker --shm-size=2g, or --ipc=host)"


# Starting, in the worker


def start_worker(_: int) -> None:
    """Set up a worker process."""
    settle_worker()  # the training process decides when to stop, and needs its workers until it has saved
    # The training process explains a crash, once; and a core dump would contain the image.
    for number in (signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV):
        signal.signal(number, signal.SIG_DFL)
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.excepthook = _print_unexpected


def _print_unexpected(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print a traceback, unless it is of the thread that sends tensors to a training process that has ended."""
    if not isinstance(error, OSError | EOFError):
        sys.__excepthook__(kind, error, trace)


def share(tensors: Sequence[Tensor]) -> None:
    """Move a worker's tensors to shared memory; do nothing in the training process.

    Raises:
        DataError: shared memory is full, or too many files are open.
    """
    if get_worker_info() is None:
        return
    try:
        for tensor in tensors:
            tensor.share_memory_()
    except RuntimeError as error:
        if "Too many open files" in str(error):
            raise DataError(_TOO_MANY_FILES) from None
        raise DataError(_full()) from None


def _full() -> str:
    return (
        f"shared memory ({SHARED_MEMORY}) is full: a batch does not fit.\n"
        f"{_MORE_SHARED_MEMORY},\nlower data.workers, or set data.workers=0, which needs none."
    )


_TOO_MANY_FILES = (
    "too many open files: each batch in transit needs some. Raise the limit (ulimit -n), or lower data.workers."
)


# Waiting, in the training process


def check_sockets() -> None:
    """Refuse a temporary folder in which data workers could not open a socket, as they would lose every batch.

    Raises:
        SettingsError: its path is too long.
    """
    length = len(os.fsencode(tempfile.gettempdir() + _SOCKET))
    if length > _LONGEST_SOCKET:
        raise SettingsError(
            f"the path of the temporary folder is {length - _LONGEST_SOCKET} bytes too long for the sockets of data"
            " workers.\nSet the environment variable TMPDIR to a shorter one, such as /tmp, or set data.workers=0.",
            fix={"data.workers": 0},
        )


def items_of(loader: DataLoader[Any], settings: RunSettings) -> Generator[Any, None, None]:
    """Yield the items of a loader and always end its workers; close the generator if it may not be exhausted.

    Raises:
        SettingsError: the path of the temporary folder is too long for the sockets of workers.
        DataError: a worker was killed or hangs, or memory ran out.
    """
    if loader.num_workers:
        check_sockets()
    others = active_children()
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        items = iter(loader)
    except OSError as error:
        _kill([process for process in active_children() if process not in others])
        raise DataError(
            f"a data worker cannot be started: {error.strerror}. Lower data.workers (now {settings.data.workers}), or"
            " allow\nmore processes (ulimit -u) and more memory."
        ) from None
    workers = [process for process in active_children() if process not in others]
    in_charge = bool(workers) and threading.current_thread() is threading.main_thread()
    if in_charge:
        # DataLoader's own handler raises wherever this process happens to be; a loader before this one may have set it.
        of_dataloader = getattr(handler, "__module__", "").startswith("torch.utils.data")
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if of_dataloader else handler)
    seconds = _SHARE_OF_HANG * settings.train.hang_seconds if workers else 0.0
    try:
        while True:
            failure: Exception | None = None
            try:
                with _giving_up_after(seconds):
                    item = next(items)
            except StopIteration:
                return
            except Exception as error:
                failure = _explain(error, workers, settings)
            # Raised only here, because an exception that is being handled keeps the loader alive.
            if failure:
                _kill(workers)
                raise failure
            yield item
    finally:
        with suppress(_GivenUp), _giving_up_after(_GOODBYE_SECONDS):
            del items  # DataLoader asks its workers to end, and waits a little, or forever if one died with a lock
        _kill(workers)  # SIGTERM, which it sends after that, they ignore
        if in_charge:
            signal.signal(signal.SIGCHLD, handler)


class _GivenUp(Exception):
    pass


@contextmanager
def _giving_up_after(seconds: float) -> Iterator[None]:
    """Raise _GivenUp inside the block after a time limit, wherever it waits; 0 means no limit.

    A signal is used because DataLoader's own timeout detects neither a worker that has died nor one that hangs while it
    sends a batch.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(_: int, __: FrameType | None) -> None:
        raise _GivenUp

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _explain(error: Exception, workers: list[BaseProcess], settings: RunSettings) -> Exception:
    """Return an error that explains a failure of the loader, or the failure itself if it is a bug."""
    workers_now = f"data.workers (now {settings.data.workers})"
    if isinstance(error, _GivenUp):
        seconds = _SHARE_OF_HANG * settings.train.hang_seconds
        return DataError(
            f"the data workers have delivered no batch for {seconds:g} s: the storage or a decoder hangs.\n"
            "Check whether the images can be read (file server, dmesg); 'medmoco check' and 'medmoco pack' skip files\n"
            "that hang their decoder. If the storage is that slow, raise train.hang_seconds."
        )
    if isinstance(error, MemoryError):
        return DataError(f"a data worker ran out of memory. Lower {workers_now}, or give the job more memory.")
    if "Too many open files" in str(error) or "ancdata" in str(error):
        return DataError(_TOO_MANY_FILES)
    code = _first_exit_code(workers)
    if code == -signal.SIGKILL:
        return DataError(
            "a data worker was killed (SIGKILL), usually by the system because memory ran out.\n"
            f"Lower {workers_now} or train.global_batch_size, or give the job more memory (SLURM --mem,\n"
            "docker --memory)."
        )
    if code == -signal.SIGBUS:
        return DataError(
            f"a data worker was killed by SIGBUS: shared memory ({SHARED_MEMORY}) is full, or a disk failed.\n"
            f"{_MORE_SHARED_MEMORY},\nlower {workers_now}, or set data.workers=0, which needs none."
        )
    if code is not None and code < 0:
        return DataError(
            f"a data worker was killed by {signal.Signals(-code).name}: usually an image has crashed its decoder.\n"
            "'medmoco check' finds the row; 'medmoco pack' survives such files, and data.pack trains from the pack."
        )
    if code is not None:
        return DataError(f"a data worker exited with code {code}; run with data.workers=0 to see the reason.")
    return error


def _first_exit_code(workers: list[BaseProcess]) -> int | None:
    """Return the exit code of the first worker that failed; None if all are alive or ended normally."""
    # A worker whose connection broke is about to end: its files are closed before it can be waited for.
    ending = wait([worker.sentinel for worker in workers], timeout=1)
    for worker in workers:
        if worker.sentinel in ending:
            worker.join(timeout=5)
    return next((worker.exitcode for worker in workers if worker.exitcode), None)


def _kill(workers: list[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()


# Space in shared memory


def shared_memory_place() -> str:
    """Return a name for this process's shared memory, equal for all processes that share it; blank if none."""
    if not SHARED_MEMORY.is_dir():
        return ""
    return f"{socket.gethostname()} {os.stat(SHARED_MEMORY).st_dev}"


def check_shared_memory(settings: RunSettings, share_of_batch: int, processes: int, views: int = 2) -> None:
    """Raise SettingsError if the batches of the data workers do not fit into shared memory.

    Args:
        settings: Settings of the run.
        share_of_batch: Images of a batch per process.
        processes: Number of processes that use the same shared memory.
        views: Views per image.
    """
    workers = settings.data.workers
    if not workers or not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    needed = shared_bytes(settings, share_of_batch, processes, workers, views)
    if needed <= free:
        return
    fitting = (n for n in range(workers, 0, -1) if shared_bytes(settings, share_of_batch, processes, n, views) <= free)
    fewer = next(fitting, 0)
    raise SettingsError(
        f"data.workers {workers}: their prefetched batches take up to {_megabytes(needed)} of shared memory, but"
        f" {SHARED_MEMORY} has {_megabytes(free)} free\n"
        f"({f'{processes} processes x ' * (processes > 1)}{AHEAD * workers + _IN_HAND} batches of {share_of_batch}"
        f" {'pairs of ' * (views > 1)}views).\n"
        f"{_MORE_SHARED_MEMORY}, or set data.workers={fewer}{', which needs none' * (not fewer)}.",
        fix={"data.workers": fewer},
    )


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 1e9 else f"{count / 1e6:.3g} MB"


def shared_bytes(settings: RunSettings, share_of_batch: int, processes: int, workers: int, views: int = 2) -> int:
    """Return the largest size of all batches in transit, in bytes: of training, and of kNN on the first process."""
    batches, pixel = AHEAD * workers + _IN_HAND, settings.data.channel_count * settings.data.bit_depth // 8
    size = settings.views.size
    training = processes * batches * share_of_batch * views * math.prod([size] * settings.data.dimensions) * pixel
    if not (settings.data.labels and settings.train.knn_every):
        return training
    sides = [settings.evaluate.size or size] * settings.data.dimensions
    return training + batches * settings.evaluate.batch_size * math.prod(sides) * pixel
