"""Make shards from image files or volumes in guarded workers; packs are made, resumed and distributed shard by shard.

A shard is written to a temporary file, fsynced and renamed. Then its record is written, a JSON file with the result for
every image, so a record implies a complete shard. Neither depends on time or machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmoco.config import DataSettings
from medmoco.data.image_io.images import read_canvas
from medmoco.data.image_io.intensity import dtype_of
from medmoco.data.pack.pack import canvas_shape
from medmoco.data.pack.pack_sources import size_and_hash
from medmoco.data.pack.pack_volumes import blosc2, compressed
from medmoco.data.pack.shard_files import shard_name
from medmoco.data.volume_io.canvases import read_volume_canvas
from medmoco.errors import DataError
from medmoco.utils.files import replacing, sha256_of
from medmoco.utils.guarded import Failure, map_guarded

RECORDS = "unfinished"  # folder of records, deleted when the pack is complete


class VolumeResult(NamedTuple):
    """The canvas of a volume."""

    stored: int = 0  # bytes in the shard
    shape: tuple[int, ...] = (0, 0, 0)
    spacing: tuple[float, ...] = (0.0, 0.0, 0.0)  # of its voxels, in mm
    slice_axis: int = 0


class ImageResult(NamedTuple):
    """The result for one image: its size in the canvas, its file and notices; or the reason why there is no canvas."""

    height: int = 0
    width: int = 0
    bytes: int = 0
    sha256: str = ""
    notices: tuple[str, ...] = ()
    failure: str = ""
    volume: VolumeResult = VolumeResult()  # instead of height and width


@dataclass(frozen=True)
class Record:
    """The record of a finished shard: its SHA-256, and the results for its n images."""

    sha256: str
    images: list[ImageResult]

    @property
    def failed(self) -> list[int]:
        """Positions without a canvas."""
        return [position for position, image in enumerate(self.images) if image.failure]


@dataclass(frozen=True)
class Shard:
    """The work of making one shard."""

    number: int  # number in the file name
    files: list[str]  # n paths
    frames: list[int]  # n frames, counted from 1; 1 for volumes
    # Results by position for images whose canvases an earlier run has already written to the file
    known: dict[int, ImageResult] = field(default_factory=dict)
    series: list[str] = field(default_factory=list)  # n SeriesInstanceUIDs of volumes; blank if none is needed


def write_shards(
    folder: Path, data: DataSettings, shards: Iterable[Shard], stop_asked: Callable[[], bool], *, workers: int
) -> Iterator[int]:
    """Make shards, each with at least one image to decode, until asked to stop; yield 1 for each image.

    Raises:
        DataError: a shard cannot be written.
    """
    drafts: dict[int, _Draft] = {}
    origins: dict[int, tuple[int, int]] = {}  # shard and position of pending jobs
    numbers = count()

    def jobs() -> Iterator[_Job]:
        for shard in shards:
            draft = drafts[shard.number] = _start(folder, shard, data)
            for position in sorted(draft.missing):
                origins[next(numbers)] = shard.number, position
                series = shard.series[position] if shard.series else ""
                yield _Job(shard.files[position], shard.frames[position], series)

    pack_image = partial(_pack_image if data.dimensions == 2 else _pack_volume, data)
    if data.dimensions == 3:
        blosc2()
    done = map_guarded(
        pack_image, jobs(), workers=workers, seconds=data.decode_seconds, megabytes=data.decode_megabytes
    )
    for number, result in done:
        if stop_asked():
            return
        shard, position = origins.pop(number)
        draft = drafts[shard]
        if isinstance(result, Failure):
            draft.images[position] = ImageResult(failure=" ".join(result.reason.split()))
        else:
            canvas, draft.images[position] = result
            draft.add(position, canvas)
        draft.missing.discard(position)
        if not draft.missing:
            _finish(folder, shard, drafts.pop(shard))
        yield 1


class _Job(NamedTuple):
    file: str
    frame: int
    series: str


def _pack_image(data: DataSettings, job: _Job) -> tuple[NDArray[Any], ImageResult]:
    canvas, notices = read_canvas(job.file, job.frame, data)
    pixels = np.ascontiguousarray(canvas.pixels[: canvas.height, : canvas.width])
    return pixels, ImageResult(canvas.height, canvas.width, *size_and_hash(job.file), notices)


def _pack_volume(data: DataSettings, job: _Job) -> tuple[NDArray[Any], ImageResult]:
    canvas, notices = read_volume_canvas(job.file, job.series, data)
    stored = compressed(canvas.pixels)
    volume = VolumeResult(len(stored), canvas.shape, canvas.spacing, canvas.slice_axis)
    return stored, ImageResult(0, 0, *size_and_hash(job.file, job.series), notices, volume=volume)


@dataclass
class _Draft:
    # (n, S, S) or (n, S, S, C), zero outside the image; for volumes a list of n stored canvases
    canvases: NDArray[Any] | list[NDArray[Any]]
    images: list[ImageResult]
    missing: set[int]

    def add(self, position: int, canvas: NDArray[Any]) -> None:
        """Add the result for an image: (H, W) or (H, W, C), or the stored canvas of a volume."""
        if isinstance(self.canvases, list):
            self.canvases[position] = canvas
        else:
            self.canvases[position, : canvas.shape[0], : canvas.shape[1]] = canvas

    def content(self) -> NDArray[Any]:
        """Return the content of the shard."""
        return np.concatenate(self.canvases) if isinstance(self.canvases, list) else self.canvases


def _start(folder: Path, shard: Shard, data: DataSettings) -> _Draft:
    length = len(shard.files)
    images = [shard.known.get(position, ImageResult()) for position in range(length)]
    missing = set(range(length)) - shard.known.keys()
    written = np.load(folder / shard_name(shard.number), allow_pickle=False) if shard.known else None
    if data.dimensions == 3:
        ends = np.cumsum([image.volume.stored for image in images])
        return _Draft(np.split(np.zeros(0, np.uint8) if written is None else written, ends[:-1]), images, missing)
    empty = np.zeros((length, *canvas_shape(data)), dtype_of(data.bit_depth))
    return _Draft(empty if written is None else written, images, missing)


def _finish(folder: Path, number: int, draft: _Draft) -> None:
    digest = write_atomically(folder / shard_name(number), lambda stream: np.save(stream, draft.content()))
    write_record(folder, number, Record(digest, draft.images))


def write_record(folder: Path, number: int, record: Record) -> None:
    """Record that a shard is complete."""
    text = json.dumps({"sha256": record.sha256, "images": record.images})
    write_atomically(_record_file(folder, number), lambda stream: stream.write(text.encode()))


def read_record(folder: Path, number: int) -> Record | None:
    """Return the record of a shard; None if it is not complete."""
    try:
        content = json.loads(_record_file(folder, number).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Record(content["sha256"], [_result(*image) for image in content["images"]])


def _result(*image: Any) -> ImageResult:
    height, width, size, sha256, notices, failure, *others = image
    stored, shape, spacing, slice_axis = others[0] if others else VolumeResult()  # none in records of older versions
    volume = VolumeResult(stored, tuple(shape), tuple(spacing), slice_axis)
    return ImageResult(height, width, size, sha256, tuple(notices), failure, volume)


def _record_file(folder: Path, number: int) -> Path:
    return folder / RECORDS / f"{shard_name(number)}.json"


def write_atomically(file: Path, write: Callable[[BinaryIO], object]) -> str:
    """Write a file completely or not at all, even after a crash; return its SHA-256.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        with replacing(file, durable=True, shared=True) as temporary:
            with temporary.open("wb") as stream:
                write(stream)
            digest = sha256_of(temporary)
    except OSError as error:
        raise DataError(
            f"{file.name} of the pack cannot be written: {error.strerror}\n"
            "Finished shards are intact. Fix the cause, then run the same command again."
        ) from None
    return digest
