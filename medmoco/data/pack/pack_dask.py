"""Shards on a Dask cluster: the same work as on one machine, a shard at a time on whichever worker is free.

The workers read the images and write into the pack's folder themselves, so both must lie where all of them see them.
Members of a Dask cluster trust one another: what they exchange is pickled. Use a scheduler of your own.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medmoco import __version__
from medmoco.config import DataSettings
from medmoco.data.pack.pack_shards import Shard, write_shards
from medmoco.data.pack.pack_writing import Writer
from medmoco.errors import DataError, SettingsError, first_line

if TYPE_CHECKING:
    from distributed import Client

_IN_HAND = 2  # shards given out per thread: the next one is there when one is done


@contextmanager
def on_cluster(address: str) -> Iterator[Writer]:
    """Connect to a scheduler and give what makes shards there.

    Args:
        address: Such as tcp://host:8786.

    Raises:
        SettingsError: the extra is not installed, nothing answers, or workers lack what they need.
    """
    try:
        from distributed import Client
    except ImportError:
        raise SettingsError("--dask needs an extra; install it with: pip install 'medmoco[dask]'") from None
    try:
        client = Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise SettingsError(f"--dask {address}: no scheduler answers there ({first_line(error)})") from None
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
    under_way: dict[Any, Shard] = {}  # by future
    try:
        while not stop_asked():
            free = _IN_HAND * sum(client.nthreads().values()) - len(under_way)
            for shard in islice(todo, max(0, free)):
                future = client.submit(_make_shard, str(folder), shard, data, image, __version__, pure=False)
                under_way[future] = shard
            if not under_way and free > 0:
                return
            with suppress(TimeoutError):
                wait(list(under_way), timeout=1, return_when="FIRST_COMPLETED")
            for future in [future for future in under_way if future.done()]:
                shard = under_way.pop(future)
                _take_result(future, shard)
                yield from (shard.number for _ in range(len(shard.files) - len(shard.known)))
    finally:
        client.cancel(list(under_way))


def _take_result(future: Any, shard: Shard) -> None:
    from distributed import KilledWorker

    try:
        future.result()
    except KilledWorker:
        raise DataError(
            f"shard {shard.number}: every Dask worker that tried to make it died; look into the logs of the workers,\n"
            "give them more memory, then run the same command again. Finished shards are kept."
        ) from None


def _check_workers(client: Client, folder: Path, image: str) -> None:
    """Refuse before the start what would stop the first shard; workers that join later check themselves."""
    try:
        answers = client.run(_what_is_missing, str(folder), image, __version__)
    except Exception as error:  # whatever the workers' interpreters have to say
        raise SettingsError(f"--dask: the workers cannot run medmoco {__version__}: {first_line(error)}") from None
    if not answers:
        raise SettingsError("--dask: the scheduler has no workers; start some")
    for missing in filter(None, answers.values()):
        raise SettingsError(missing)


# On the workers


def _what_is_missing(folder: str, image: str, version: str) -> str:
    """Say what keeps this worker from doing its part, or nothing."""
    where = f"--dask: the worker on {socket.gethostname()}"
    if version != __version__:
        return f"{where} has medmoco {__version__}, not {version}; install the same"
    if not os.access(folder, os.W_OK):
        return f"{where} cannot write to {folder};\nthe pack must lie where all workers see it"
    if image and not os.access(image, os.R_OK):
        return f"{where} cannot read below data.root;\nthe images must lie where all workers see them"
    return ""


def _make_shard(folder: str, shard: Shard, data: DataSettings, image: str, version: str) -> None:
    if missing := _what_is_missing(folder, image, version):
        raise SettingsError(missing)
    for _ in write_shards(Path(folder), [shard], data, lambda: False, workers=1):
        pass
