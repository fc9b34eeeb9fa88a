"""Read every file once, in worker processes, and return what `medmoco check` needs, without the images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmoco.config import DataSettings, as_tree
from medmoco.data.image_io.fingerprints import CELLS, Patterns, pattern, pixel_digest
from medmoco.data.image_io.images import FileFormat, file_format, read_as_set
from medmoco.data.image_io.intensity import CONSTANT
from medmoco.data.quality.margins import N_BORDER, N_MARKS, Margins, margins
from medmoco.utils.guarded import Failure, map_guarded
from medmoco.utils.jobs.blocks import Block, Result, States, Unfinished, blocks_of, states_of, work_through
from medmoco.utils.jobs.cluster import Cluster, Needs, StopAsked, absolute

BLOCK = 1024  # files that are examined again at most, per worker, after an interruption

FILE_FAULTS = ("file missing", "file empty", "file cut off", "file damaged", "file too large", "file unreadable")

_KINDS = {
    "data.max_": "file too large",
    "has no end": "file cut off",
    "ends inside": "file cut off",
    "damaged": "file damaged",  # also if it crashed the decoder
}
"""Words in the reader's message -> kind of fault; the first match counts."""

_ARRAYS = ("digests", "patterns", "sizes", "constant", "format_of", "margins")  # of `Examined`

# Settings that determine only which files are read, and by how many processes.
_NOT_OF_READING = {"manifest", "root", "labels", "columns", "join", "where", "workers"}


@dataclass(frozen=True)
class Examined:
    """The results of reading N files; zero for unreadable files, except in `faults`."""

    digests: NDArray[np.uint8]  # (N, 32) uint8, SHA-256 of the pixels
    patterns: Patterns  # (N, 1024) uint8, see `fingerprints.pattern`
    sizes: NDArray[np.int32]  # (N, 2) int32, height and width in pixels
    constant: NDArray[np.bool_]  # (N,) bool, all pixels have the same value
    format_of: NDArray[np.int16]  # (N,) int16, positions in `formats`; -1 for unreadable files
    formats: list[FileFormat] = field(default_factory=list)  # the formats that occur
    notices: dict[str, list[int]] = field(default_factory=dict)  # notice of the reader -> positions of the files
    # Position of an unreadable file -> kind of fault, and message of the reader
    faults: dict[int, tuple[str, str]] = field(default_factory=dict)
    margins: Margins = field(default_factory=lambda: _no_margins(0))  # (N, 88) uint8, see `margins.margins`

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(N,) bool, whether the file could be read."""
        return self.format_of >= 0


def _no_margins(count: int) -> Margins:
    return np.zeros((count, N_BORDER + N_MARKS), np.uint8)


class _Summary(NamedTuple):
    """The result of reading one image, sent back by a worker."""

    digest: bytes
    pattern: Patterns
    size: tuple[int, int]
    format: FileFormat
    notices: tuple[str, ...]
    margins: Margins


def reading_of(files: NDArray[np.object_], frames: NDArray[np.int64], data: DataSettings) -> list[Any]:
    """Return what the results of reading files depend on, except their content; see `unfinished`."""
    images = json.dumps([absolute(files), frames.tolist()])
    settings = {key: value for key, value in as_tree(data).items() if key not in _NOT_OF_READING}
    return [hashlib.sha256(images.encode()).hexdigest(), BLOCK, settings]


def examine(
    files: NDArray[np.object_],
    frames: NDArray[np.int64],
    data: DataSettings,
    kept: Unfinished,
    *,
    cluster: Cluster | None = None,
    readable: Mapping[str, str] | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Examined:
    """Read N images, each within the limits for hostile files.

    Args:
        files: (N,) paths.
        frames: (N,), counted from 1.
        data: Data settings.
        kept: Finished blocks of an interrupted call, for `reading_of` these arguments.
        cluster: Reads the files; None means this machine, with data.workers processes.
        readable: What the workers of a cluster must be able to read; see `Needs`.
        log: Receives progress messages.

    Raises:
        SettingsError: the cluster cannot access the files.
        DataError: the disk refuses, or workers of the cluster died.
        Stopped: a signal has requested it.
    """
    examined = _empty(len(files))

    def make(todo: Sequence[Block], stop_asked: StopAsked) -> Iterator[int]:
        parts = (_Part(block.number, block.files, frames[block.range].tolist()) for block in todo)
        if cluster is None:
            return _examine_parts(kept, data, parts, stop_asked, workers=max(1, data.workers))
        one = partial(_examine_parts, kept, data, workers=1)
        return cluster.run(one, parts, stop_asked, Needs(kept.folder, readable or {}))

    work_through(blocks_of(len(files), BLOCK, absolute(files)), kept, make, partial(_add, examined), "reading", log)
    return examined


@dataclass(frozen=True)
class _Part:
    """The files of a block, as sent to a worker."""

    number: int
    files: Sequence[str]  # n paths
    frames: Sequence[int]  # n frames, counted from 1


def _examine_parts(
    kept: Unfinished, data: DataSettings, parts: Iterable[_Part], stop_asked: StopAsked, *, workers: int
) -> Iterator[int]:
    """Examine blocks until asked to stop, and write their results; yield 1 for each image."""
    begun: dict[int, tuple[_Part, States, dict[int, _Summary | Failure]]] = {}
    places: dict[int, tuple[int, int]] = {}  # block and position of pending jobs
    numbers = count()

    def jobs() -> Iterator[tuple[str, int]]:
        for part in parts:
            begun[part.number] = part, states_of(part.files), {}
            for position, job in enumerate(zip(part.files, part.frames, strict=True)):
                places[next(numbers)] = part.number, position
                yield job

    def summarise(job: tuple[str, int]) -> _Summary:
        file, frame = job
        image = read_as_set(file, frame, data)
        height, width = image.pixels.shape[:2]
        return _Summary(
            pixel_digest(image.pixels), pattern(image.pixels), (height, width), file_format(file), image.notices,
            margins(image),
        )  # fmt: skip

    results = map_guarded(
        summarise, jobs(), workers=workers, seconds=data.decode_seconds, megabytes=data.decode_megabytes
    )
    for job, result in results:
        if stop_asked():
            return
        number, position = places.pop(job)
        part, states, found = begun[number]
        found[position] = result
        if len(found) == len(part.files):
            kept.write(number, _as_result(part, found), states)
            del begun[number]
        yield 1


def _as_result(part: _Part, found: Mapping[int, _Summary | Failure]) -> Result:
    """Return what was found in the files of a block as arrays and facts, in the order of the files."""
    examined = _empty(len(found))
    for position, result in sorted(found.items()):
        if isinstance(result, Failure):
            examined.faults[position] = _fault_kind(part.files[position], result.reason), result.reason
        else:
            _store(examined, position, result)
    arrays = {name: getattr(examined, name) for name in _ARRAYS}
    return Result(arrays, [examined.formats, examined.notices, list(examined.faults.items())])


def _add(examined: Examined, block: Block, result: Result) -> None:
    """Add the result of a block at its place."""
    for name in _ARRAYS:
        getattr(examined, name)[block.range] = result.arrays[name]
    formats, notices, faults = result.facts
    names = [FileFormat(*file_format) for file_format in formats]
    examined.formats.extend(name for name in names if name not in examined.formats)
    codes = np.array([*(examined.formats.index(name) for name in names), -1], np.int16)  # -1 stays -1
    examined.format_of[block.range] = codes[result.arrays["format_of"]]
    for notice, positions in notices.items():
        examined.notices.setdefault(notice, []).extend(block.start + position for position in positions)
    examined.faults.update((block.start + position, (kind, reason)) for position, (kind, reason) in faults)


def _empty(count: int) -> Examined:
    return Examined(
        np.zeros((count, 32), np.uint8),
        np.zeros((count, CELLS**2), np.uint8),
        np.zeros((count, 2), np.int32),
        np.zeros(count, bool),
        np.full(count, -1, np.int16),
        margins=_no_margins(count),
    )


def _store(examined: Examined, at: int, summary: _Summary) -> None:
    examined.digests[at] = np.frombuffer(summary.digest, np.uint8)
    examined.patterns[at] = summary.pattern
    examined.sizes[at] = summary.size
    examined.margins[at] = summary.margins
    if summary.format not in examined.formats:
        examined.formats.append(summary.format)
    examined.format_of[at] = examined.formats.index(summary.format)
    for notice in summary.notices:
        if notice == CONSTANT:
            examined.constant[at] = True
        else:
            examined.notices.setdefault(notice, []).append(at)


def _fault_kind(file: str, reason: str) -> str:
    if not os.path.exists(file):
        return "file missing"
    if os.path.isfile(file) and not os.path.getsize(file):
        return "file empty"
    if _is_cut_off_jpeg(file):
        return "file cut off"
    return next((kind for words, kind in _KINDS.items() if words in reason), "file unreadable")


def _is_cut_off_jpeg(file: str) -> bool:
    """Return whether a JPEG file lacks its end marker (which padding may follow).

    If a file is cut within its header, the reader's message alone does not say so.
    """
    try:
        with open(file, "rb") as stream:
            is_jpeg = stream.read(3) == b"\xff\xd8\xff"
            stream.seek(max(0, os.path.getsize(file) - 4096))
            return is_jpeg and b"\xff\xd9" not in stream.read()
    except OSError:
        return False
