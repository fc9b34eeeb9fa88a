"""Work through many files in blocks, whose results are kept on disk, so that the same command resumes a job.

The folder of unfinished work exists until the job is complete. It contains one .npz file for each finished block, with
the size and the time of change of each file that was read. Its name contains a hash of everything else that the result
depends on, so that a block of another manifest or other settings is never mistaken for one of this job, even if a
cluster worker that could not be stopped writes it later.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmoco import __version__
from medmoco.errors import DataError, SettingsError, Stopped
from medmoco.utils.array_cache import read_arrays
from medmoco.utils.files import lock_or_refuse, replacing
from medmoco.utils.jobs.cluster import StopAsked
from medmoco.utils.progress import track
from medmoco.utils.stopping import stop_requests

Log = Callable[[str], None]

_FACTS, _STATES = "facts", "states"  # arrays of a block that are not its caller's


class Block(NamedTuple):
    """A range of n images."""

    number: int
    start: int
    size: int  # n
    files: Sequence[str] = ()  # their paths, to notice changes; empty if something else says that they are unchanged

    @property
    def range(self) -> slice:
        """Positions of its images."""
        return slice(self.start, self.start + self.size)


class Result(NamedTuple):
    """The result for a block: arrays, and facts that JSON can express."""

    arrays: Mapping[str, NDArray[Any]]
    facts: Any = None


# (n, 2) size in bytes and time of change in nanoseconds of n files; for a folder, such as that of a DICOM series, the
# sum and the latest of its files; -1 if missing
States = NDArray[np.int64]


def blocks_of(count: int, size: int, files: Sequence[str] = ()) -> list[Block]:
    """Return the blocks of `count` images, `size` in each; only the last may be smaller."""
    starts = range(0, count, size)
    return [Block(at // size, at, min(size, count - at), files[at : at + size]) for at in starts]


def states_of(files: Sequence[str]) -> States:
    """Return what shows cheaply whether files have changed; take it before they are read."""
    states = np.full((len(files), 2), -1, np.int64)
    for row, file in zip(states, files, strict=True):
        with suppress(OSError):
            found = os.stat(file)
            row[:] = _folder_state(file, found) if stat.S_ISDIR(found.st_mode) else (found.st_size, found.st_mtime_ns)
    return states


def _folder_state(folder: str, found: os.stat_result) -> tuple[int, int]:
    """Return the size of the files in a folder and the latest time of change: its own if a file came or went."""
    with os.scandir(folder) as entries:
        inside = [entry.stat() for entry in entries if entry.is_file()]
    return sum(file.st_size for file in inside), max([found.st_mtime_ns, *(file.st_mtime_ns for file in inside)])


@dataclass(frozen=True)
class Unfinished:
    """The folder with the finished blocks of an unfinished job."""

    folder: Path
    key: str  # hash of everything that results depend on, except the content of files

    def write(self, number: int, result: Result, states: States) -> None:
        """Store the result of a block, completely or not at all; `states` are those of its files before reading.

        Raises:
            DataError: the file cannot be written.
        """
        facts = np.frombuffer(json.dumps(result.facts).encode(), np.uint8)
        try:
            with replacing(self._file(number), durable=True, shared=True) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **result.arrays, **{_FACTS: facts, _STATES: states})  # type: ignore[arg-type]
        except OSError as error:
            raise DataError(
                f"block {number} cannot be written to {self.folder}: {error.strerror}\n"
                "Finished blocks are kept. Fix the cause, then run the same command again."
            ) from None

    def read(self, block: Block, *, check: bool = True) -> Result | None:
        """Return the result of a block; None if there is none, or (unless `check` is false) its files have changed."""
        try:
            arrays = read_arrays(self._file(block.number))
            facts, states = json.loads(arrays.pop(_FACTS).tobytes()), arrays.pop(_STATES)
        except Exception:  # NumPy and zipfile raise at least eight kinds for damaged files
            return None
        if check and not np.array_equal(states, states_of(block.files)):
            return None
        return Result(arrays, facts)

    def _file(self, number: int) -> Path:
        return self.folder / f"{self.key}-{number:05d}.npz"


@contextmanager
def unfinished(folder: Path, depends_on: Any) -> Iterator[Unfinished]:
    """Create or reopen the folder of an unfinished job, and remove it at the end unless there is an exception.

    Args:
        folder: The folder.
        depends_on: What results depend on, except the content of files, as JSON can express it. Blocks with other
            values are deleted.

    Raises:
        SettingsError: the folder cannot be written, or another process is using it.
    """
    key = hashlib.sha256(json.dumps([__version__, depends_on], sort_keys=True).encode()).hexdigest()[:16]
    folder = folder.absolute()  # workers of a cluster may have another working folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise SettingsError(f"{folder} cannot be written: {error.strerror}") from None
    with lock:
        lock_or_refuse(lock, f"another process is using {folder}; wait until it has finished")
        for file in [*folder.glob("*.npz"), *folder.glob("*.tmp")]:
            if file.suffix == ".tmp" or not file.name.startswith(key):
                file.unlink(missing_ok=True)
        try:
            yield Unfinished(folder, key)
        except BaseException:
            if not any(folder.glob("*.npz")):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def work_through(
    blocks: Sequence[Block],
    kept: Unfinished,
    make: Callable[[Sequence[Block], StopAsked], Iterator[int]],
    take: Callable[[Block, Result], None],
    what: str,
    log: Log,
    *,
    noun: str = "images",
) -> None:
    """Make the blocks that are not finished, and take the results of all.

    Args:
        blocks: All blocks of the job.
        kept: Results of finished blocks.
        make: Makes blocks until asked to stop and writes their results; yields numbers of images that are done.
        take: Receives each block with its result, in order.
        what: The word for this in the progress, such as "reading".
        log: Receives a line if blocks are already finished.
        noun: What is worked on, in messages.

    Raises:
        Stopped: a signal has requested it; finished blocks are kept.
        DataError: a result could not be read back.
    """
    todo = [block for block in blocks if kept.read(block) is None]
    images = sum(block.size for block in todo)
    finished = sum(block.size for block in blocks) - images
    if finished:
        log(f"{finished} of {finished + images} {noun} are already finished; their files have not changed since")
    with stop_requests() as stop_asked:
        done = sum(track(make(todo, stop_asked), images, what, size=int))
    if done < images:
        raise Stopped(
            f"stopped {what} after {finished + done} of {finished + images} {noun}; finished blocks are kept.\n"
            "Run the same command to continue."
        )
    for block in blocks:
        result = kept.read(block, check=False)
        if result is None:
            raise DataError(f"block {block.number} in {kept.folder} is missing or damaged; run the same command again")
        take(block, result)
