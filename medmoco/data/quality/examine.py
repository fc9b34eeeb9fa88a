"""Read every file or series once, in worker processes, and return what `medmoco check` needs, without the images."""

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
from medmoco.data.quality.volumes import VolumeFormat, VolumeSummary, summarise_volume, volume_fault_kind
from medmoco.data.volume_io.headers import library
from medmoco.utils.guarded import Failure, map_guarded
from medmoco.utils.jobs.blocks import Block, Result, States, Unfinished, blocks_of, states_of, work_through
from medmoco.utils.jobs.cluster import Cluster, Needs, StopAsked, absolute

BLOCK = 1024  # files that are examined again at most, per worker, after an interruption
VOLUMES_PER_BLOCK = 16  # the same for volumes, which take seconds each

FILE_FAULTS = ("file missing", "file empty", "file cut off", "file damaged", "file too large", "file unreadable")

_KINDS = {
    "data.max_": "file too large",
    "has no end": "file cut off",
    "ends inside": "file cut off",
    "damaged": "file damaged",  # also if it crashed the decoder
}
"""Words in the reader's message -> kind of fault; the first match counts."""

_ARRAYS = (  # of `Examined`
    "digests", "patterns", "sizes", "constant", "format_of", "margins", "spacings", "canvases", "slice_axes",
)  # fmt: skip

# Settings that determine only which files are read, and by how many processes.
_NOT_OF_READING = {"manifest", "root", "labels", "columns", "join", "where", "workers"}


class Images(NamedTuple):
    """N distinct images or volumes."""

    files: NDArray[np.object_]  # (N,) paths of files, or of folders with a DICOM series
    frames: NDArray[np.int64]  # (N,), counted from 1
    series: NDArray[np.object_]  # (N,) SeriesInstanceUIDs of volumes; blank if none is needed


@dataclass(frozen=True)
class Examined:
    """The results of reading N files or series; zero for unreadable ones, except in `faults`."""

    digests: NDArray[np.uint8]  # (N, 32) uint8, SHA-256 of the pixels, or of the values of voxels
    patterns: Patterns  # (N, 1024) uint8, see `fingerprints.pattern`; of volumes see `VolumeSummary`
    # (N, 2) int32, height and width in pixels; (N, 3) for volumes, X, Y and Z in voxels
    sizes: NDArray[np.int32]
    constant: NDArray[np.bool_]  # (N,) bool, all pixels have the same value
    format_of: NDArray[np.int16]  # (N,) int16, positions in `formats`; -1 for unreadable files
    formats: list[FileFormat | VolumeFormat] = field(default_factory=list)  # the formats that occur
    notices: dict[str, list[int]] = field(default_factory=dict)  # notice of the reader -> positions of the files
    # Position of an unreadable file, and kind of fault -> message of the reader; a volume may have several
    faults: dict[tuple[int, str], str] = field(default_factory=dict)
    margins: Margins = field(default_factory=lambda: no_margins(0))  # (N, 88) uint8 of images, see `margins.margins`
    # Of volumes only; of images, empty
    spacings: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 3)))  # (N, 3) in mm
    canvases: NDArray[np.int32] = field(default_factory=lambda: np.zeros((0, 3), np.int32))  # (N, 3) sizes of canvases
    slice_axes: NDArray[np.int8] = field(default_factory=lambda: np.zeros(0, np.int8))  # (N,) 0, 1 or 2

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(N,) bool, whether the file could be read."""
        return self.format_of >= 0


def no_margins(count: int) -> Margins:
    """Return blank margins."""
    return np.zeros((count, N_BORDER + N_MARKS), np.uint8)


class _Summary(NamedTuple):
    """The result of reading one image, sent back by a worker."""

    digest: bytes
    pattern: Patterns
    size: tuple[int, int]
    format: FileFormat
    notices: tuple[str, ...]
    margins: Margins


_Found = dict[int, _Summary | VolumeSummary | Failure]  # position in a block -> result


def reading_of(images: Images, data: DataSettings) -> list[Any]:
    """Return what the results of reading images depend on, except their content; see `unfinished`."""
    identities = json.dumps([absolute(images.files), images.frames.tolist(), images.series.tolist()])
    settings = {key: value for key, value in as_tree(data).items() if key not in _NOT_OF_READING}
    return [hashlib.sha256(identities.encode()).hexdigest(), _block_size(data), settings]


def _block_size(data: DataSettings) -> int:
    return VOLUMES_PER_BLOCK if data.dimensions == 3 else BLOCK


def examine(
    images: Images,
    data: DataSettings,
    kept: Unfinished,
    *,
    cluster: Cluster | None = None,
    readable: Mapping[str, str] | None = None,
    log: Callable[[str], None] = lambda _: None,
) -> Examined:
    """Read N images or volumes, each within the limits for hostile files.

    Args:
        images: What to read.
        data: Data settings.
        kept: Finished blocks of an interrupted call, for `reading_of` these arguments.
        cluster: Reads the files; None means this machine, with data.workers processes.
        readable: What the workers of a cluster must be able to read; see `Needs`.
        log: Receives progress messages.

    Raises:
        SettingsError: the cluster cannot access the files, or a library that reads volumes is not installed.
        DataError: the disk refuses, or workers of the cluster died.
        Stopped: a signal has requested it.
    """
    count = len(images.files)
    examined = _empty(count, data.dimensions)
    if data.dimensions == 3 and count:
        library("nibabel")  # now, since the workers would report every file as unreadable

    def make(todo: Sequence[Block], stop_asked: StopAsked) -> Iterator[int]:
        parts = (_part(images, block) for block in todo)
        if cluster is None:
            return _examine_parts(kept, data, parts, stop_asked, workers=max(1, data.workers))
        one = partial(_examine_parts, kept, data, workers=1)
        return cluster.run(one, parts, stop_asked, Needs(kept.folder, readable or {}))

    blocks = blocks_of(count, _block_size(data), absolute(images.files))
    work_through(blocks, kept, make, partial(_add, examined), "reading", log, noun=data.noun)
    return examined


class _Job(NamedTuple):
    """An image or volume to read; see `Images`."""

    file: str
    frame: int
    series: str


@dataclass(frozen=True)
class _Part:
    """The n jobs of a block, as sent to a worker."""

    number: int
    jobs: Sequence[_Job]


def _part(images: Images, block: Block) -> _Part:
    frames, series = images.frames[block.range].tolist(), images.series[block.range].tolist()
    return _Part(block.number, list(map(_Job, block.files, frames, series)))


def _summarise(job: _Job, data: DataSettings) -> _Summary | VolumeSummary:
    """Read an image or volume, in a worker process.

    Raises:
        ImageError: it cannot be read.
    """
    if data.dimensions == 3:
        return summarise_volume(job.file, job.series, data)
    image = read_as_set(job.file, job.frame, data)
    height, width = image.pixels.shape[:2]
    return _Summary(
        pixel_digest(image.pixels), pattern(image.pixels), (height, width), file_format(job.file), image.notices,
        margins(image),
    )  # fmt: skip


def _examine_parts(
    kept: Unfinished, data: DataSettings, parts: Iterable[_Part], stop_asked: StopAsked, *, workers: int
) -> Iterator[int]:
    """Examine blocks until asked to stop, and write their results; yield 1 for each image."""
    begun: dict[int, tuple[_Part, States, _Found]] = {}
    places: dict[int, tuple[int, int]] = {}  # block and position of pending jobs
    numbers = count()

    def jobs() -> Iterator[_Job]:
        for part in parts:
            begun[part.number] = part, states_of([job.file for job in part.jobs]), {}
            for position, job in enumerate(part.jobs):
                places[next(numbers)] = part.number, position
                yield job

    results = map_guarded(
        partial(_summarise, data=data),
        jobs(),
        workers=workers,
        seconds=data.decode_seconds,
        megabytes=data.decode_megabytes,
    )
    for at, result in results:
        if stop_asked():
            return
        number, position = places.pop(at)
        part, states, found = begun[number]
        found[position] = result
        if len(found) == len(part.jobs):
            kept.write(number, _as_result(part, found, data.dimensions), states)
            del begun[number]
        yield 1


def _as_result(part: _Part, found: _Found, dimensions: int) -> Result:
    """Return what was found in the files of a block as arrays and facts, in the order of the files."""
    examined = _empty(len(found), dimensions)
    for position, result in sorted(found.items()):
        if isinstance(result, Failure):
            kind = _fault_kind(part.jobs[position].file, result.reason, dimensions)
            examined.faults[position, kind] = result.reason
        elif isinstance(result, VolumeSummary):
            _store_volume(examined, position, result)
        else:
            _store_image(examined, position, result)
    arrays = {name: getattr(examined, name) for name in _ARRAYS}
    return Result(arrays, [examined.formats, examined.notices, list(examined.faults.items())])


def _add(examined: Examined, block: Block, result: Result) -> None:
    """Add the result of a block at its place."""
    for name in _ARRAYS:
        getattr(examined, name)[block.range] = result.arrays[name]
    formats, notices, faults = result.facts
    type_ = VolumeFormat if examined.sizes.shape[1] == 3 else FileFormat
    names: list[FileFormat | VolumeFormat] = [type_(*file_format) for file_format in formats]
    examined.formats.extend(name for name in names if name not in examined.formats)
    codes = np.array([*(examined.formats.index(name) for name in names), -1], np.int16)  # -1 stays -1
    examined.format_of[block.range] = codes[result.arrays["format_of"]]
    for notice, positions in notices.items():
        examined.notices.setdefault(notice, []).extend(block.start + position for position in positions)
    examined.faults.update(((block.start + position, kind), reason) for (position, kind), reason in faults)


def _empty(count: int, dimensions: int) -> Examined:
    images, volumes = (count, 0) if dimensions == 2 else (0, count)
    return Examined(
        np.zeros((count, 32), np.uint8),
        np.zeros((count, CELLS**2), np.uint8),
        np.zeros((count, dimensions), np.int32),
        np.zeros(count, bool),
        np.full(count, -1, np.int16),
        margins=no_margins(images),
        spacings=np.zeros((volumes, 3)),
        canvases=np.zeros((volumes, 3), np.int32),
        slice_axes=np.zeros(volumes, np.int8),
    )


def _store_image(examined: Examined, at: int, summary: _Summary) -> None:
    examined.margins[at] = summary.margins
    _store(examined, at, summary)


def _store_volume(examined: Examined, at: int, summary: VolumeSummary) -> None:
    if summary.faults:
        examined.faults.update(((at, kind), text) for kind, text in summary.faults)
        return
    examined.spacings[at] = summary.spacing
    examined.canvases[at] = summary.canvas
    examined.slice_axes[at] = summary.slice_axis
    _store(examined, at, summary)


def _store(examined: Examined, at: int, summary: _Summary | VolumeSummary) -> None:
    examined.digests[at] = np.frombuffer(summary.digest, np.uint8)
    examined.patterns[at] = summary.pattern
    examined.sizes[at] = summary.size
    if summary.format not in examined.formats:
        examined.formats.append(summary.format)
    examined.format_of[at] = examined.formats.index(summary.format)
    for notice in summary.notices:
        if notice == CONSTANT:
            examined.constant[at] = True
        else:
            examined.notices.setdefault(notice, []).append(at)


def _fault_kind(file: str, reason: str, dimensions: int) -> str:
    if not os.path.exists(file):
        return "file missing"
    if os.path.isfile(file) and not os.path.getsize(file):
        return "file empty"
    if _is_cut_off_jpeg(file):
        return "file cut off"
    if dimensions == 3 and (kind := volume_fault_kind(reason)):
        return kind
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
