"""Run the parts of a job on the workers of a Dask cluster, one part at a time on any free thread.

The workers read and write files themselves, so these must be accessible to all of them. Members of a Dask cluster trust
each other, since they exchange pickled objects. Use a scheduler of your own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from medmoco import __version__
from medmoco.errors import DataError, SettingsError, first_line

if TYPE_CHECKING:
    from distributed import Client

_IN_HAND = 2  # parts submitted per thread, so that the next one is ready when one is done


class Part(Protocol):
    """A part of a job, which can be sent to a worker."""

    @property
    def number(self) -> int:
        """Number for messages."""


P = TypeVar("P", bound=Part)

StopAsked = Callable[[], bool]
Make = Callable[[Iterable[P], StopAsked], Iterator[int]]
"""Makes parts until asked to stop; yields numbers of images that are done, which add up to those of all parts."""


@dataclass(frozen=True)
class Needs:
    """What every worker must be able to access, under the same paths as here."""

    folder: Path  # where it writes
    # What it reads: words for messages -> an absolute path to try, or "" if there is none
    readable: Mapping[str, str] = field(default_factory=dict)


def absolute(files: Iterable[str]) -> list[str]:
    """Return paths that mean the same files in the working folder of a worker."""
    return [str(Path(file).absolute()) for file in files]


def first_existing(files: Iterable[str]) -> str:
    """Return the absolute path of the first file that exists; "" if there is none."""
    found = next(filter(os.path.isfile, files), "")
    return str(Path(found).absolute()) if found else ""


class Cluster(NamedTuple):
    """A connection to the scheduler of a cluster."""

    client: Client

    def run(self, make: Make[P], parts: Iterable[P], stop_asked: StopAsked, needs: Needs) -> Iterator[int]:
        """Make parts on the workers; yield the number of images of each part once it is done.

        Args:
            make: Makes parts; it and the parts are pickled.
            parts: Parts, of which two per thread are read ahead.
            stop_asked: Checked every second; parts that a worker has begun are still finished.
            needs: What the workers must be able to access.

        Raises:
            SettingsError: there are no workers, or one has another version or cannot access what it needs.
            DataError: a part has killed several workers.
        """
        from distributed import wait

        parts = iter(parts)
        first = next(parts, None)
        if first is None:
            return
        needs = Needs(needs.folder.absolute(), needs.readable)
        _check_workers(self.client, needs)
        todo = chain([first], parts)
        pending: dict[Any, int] = {}  # number of the part by future
        try:
            while not stop_asked():
                free = _IN_HAND * sum(self.client.nthreads().values()) - len(pending)
                for part in islice(todo, max(0, free)):
                    pending[self.client.submit(_make_part, make, part, needs, __version__, pure=False)] = part.number
                if not pending and free > 0:
                    return
                with suppress(TimeoutError):
                    wait(list(pending), timeout=1, return_when="FIRST_COMPLETED")
                for future in [future for future in pending if future.done()]:
                    yield _result(future, pending.pop(future))
        finally:
            self.client.cancel(list(pending))


@contextmanager
def on_cluster(address: str | None) -> Iterator[Cluster | None]:
    """Connect to a scheduler, such as tcp://host:8786; without an address, yield None, which stands for this machine.

    Raises:
        SettingsError: the extra is not installed, or no scheduler answers.
    """
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError:
        raise SettingsError("--dask needs Dask's distributed: pip install distributed") from None
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise SettingsError(f"--dask {address}: no scheduler answers at this address ({first_line(error)})") from None
    with client:
        yield Cluster(client)


def _result(future: Any, number: int) -> int:
    from distributed import KilledWorker

    try:
        return int(future.result())
    except KilledWorker:
        raise DataError(
            f"part {number}: every Dask worker that tried to make it died; check the logs of the workers,\n"
            "give them more memory, then run the same command again. Finished parts are kept."
        ) from None


def _check_workers(client: Client, needs: Needs) -> None:
    """Check the workers before the start; workers that join later check themselves."""
    try:
        answers = client.run(_what_is_missing, needs, __version__)
    except Exception as error:  # anything that the workers' interpreters may raise
        raise SettingsError(f"--dask: the workers cannot run medmoco {__version__}: {first_line(error)}") from None
    if not answers:
        raise SettingsError("--dask: the scheduler has no workers; start some")
    for missing in filter(None, answers.values()):
        raise SettingsError(missing)


# On the workers


def _what_is_missing(needs: Needs, version: str) -> str:
    """Return what prevents this worker from making parts; blank if nothing does."""
    where = f"--dask: the worker on {socket.gethostname()}"
    if version != __version__:
        return f"{where} has medmoco {__version__}, not {version}; install the same version"
    if not os.access(needs.folder, os.W_OK):
        return f"{where} cannot write to {needs.folder};\nthis folder must be accessible to all workers"
    for what, path in needs.readable.items():
        if path and not os.access(path, os.R_OK):
            return f"{where} cannot read {what},\nwhich must be accessible to all workers under the same paths"
    return ""


def _make_part(make: Make[P], part: P, needs: Needs, version: str) -> int:
    """Make a part, and return the number of its images."""
    if missing := _what_is_missing(needs, version):
        raise SettingsError(missing)
    return sum(make([part], _never))


def _never() -> bool:
    return False
