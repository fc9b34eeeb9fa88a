"""Make the shards of a pack on a Dask cluster, one shard at a time on any free worker.

The workers read the images and write into the pack's folder themselves, so both must be accessible to all of them.
Members of a Dask cluster trust each other, since they exchange pickled objects. Use a scheduler of your own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmoco import __version__
from medmoco.config import DataSettings
from medmoco.data.pack.pack_shards import Shard, write_shards
from medmoco.data.pack.pack_writing import Writer
from medmoco.errors import DataError, SettingsError, first_line

if TYPE_CHECKING:
    from distributed import Client

_IN_HAND = 2  # shards submitted per thread, so that the next one is ready when one is done


@contextmanager
def on_cluster(address: str) -> Iterator[Writer]:
    """Connect to a scheduler, such as tcp://host:8786, and yield a function that makes shards on its workers.

    Raises:
        SettingsError: the extra is not installed, or no scheduler answers.
    """
    try:
        from distributed import Client
    except ImportError:
        raise SettingsError("--dask needs Dask's distributed: pip install distributed") from None
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise SettingsError(f"--dask {address}: no scheduler answers at this address ({first_line(error)})") from None
    with client:
        yield partial(_write, client)


def _write(
    client: Client, folder: Path, shards: Iterable[Shard], data: DataSettings, stop_asked: Callable[[], bool]
) -> Iterator[int]:
    """Make shards; yield a shard's number for each image once the shard is done."""
    from distributed import wait

    folder = folder.resolve()
    queue = (replace(shard, files=[os.path.abspath(file) for file in shard.files]) for shard in shards)
    first = next(queue, None)
    if first is None:
        return
    image = next(filter(os.path.isfile, first.files), "")
    _check_workers(client, folder, image)
    todo = chain([first], queue)
    pending: dict[Any, Shard] = {}  # by future
    try:
        while not stop_asked():
            free = _IN_HAND * sum(client.nthreads().values()) - len(pending)
            for shard in islice(todo, max(0, free)):
                future = client.submit(_make_shard, str(folder), shard, data, image, __version__, pure=False)
                pending[future] = shard
            if not pending and free > 0:
                return
            with suppress(TimeoutError):
                wait(list(pending), timeout=1, return_when="FIRST_COMPLETED")
            for future in [future for future in pending if future.done()]:
                shard = pending.pop(future)
                _take_result(future, shard)
                yield from repeat(shard.number, len(shard.files) - len(shard.known))
    finally:
        client.cancel(list(pending))


def _take_result(future: Any, shard: Shard) -> None:
    from distributed import KilledWorker

    try:
        future.result()
    except KilledWorker:
        raise DataError(
            f"shard {shard.number}: every Dask worker that tried to make it died; check the logs of the workers,\n"
            "give them more memory, then run the same command again. Finished shards are kept."
        ) from None


def _check_workers(client: Client, folder: Path, image: str) -> None:
    """Check the workers before the start; workers that join later check themselves."""
    try:
        answers = client.run(_what_is_missing, str(folder), image, __version__)
    except Exception as error:  # anything that the workers' interpreters may raise
        raise SettingsError(f"--dask: the workers cannot run medmoco {__version__}: {first_line(error)}") from None
    if not answers:
        raise SettingsError("--dask: the scheduler has no workers; start some")
    for missing in filter(None, answers.values()):
        raise SettingsError(missing)


# On the workers


def _what_is_missing(folder: str, image: str, version: str) -> str:
    """Return what prevents this worker from making shards; blank if nothing does."""
    where = f"--dask: the worker on {socket.gethostname()}"
    if version != __version__:
        return f"{where} has medmoco {__version__}, not {version}; install the same version"
    if not os.access(folder, os.W_OK):
        return f"{where} cannot write to {folder};\nthe pack must be accessible to all workers"
    if image and not os.access(image, os.R_OK):
        return f"{where} cannot read below data.root;\nthe images must be accessible to all workers"
    return ""


def _make_shard(folder: str, shard: Shard, data: DataSettings, image: str, version: str) -> None:
    if missing := _what_is_missing(folder, image, version):
        raise SettingsError(missing)
    for _ in write_shards(Path(folder), [shard], data, lambda: False, workers=1):
        pass
