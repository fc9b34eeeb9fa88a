"""Make shards from image files in guarded workers; packs are made, resumed and distributed shard by shard.

A shard is written to a temporary file, fsynced and renamed. Then its record is written, a JSON file with the result for
every image, so a record implies a complete shard. Neither depends on time or machine.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmoco.config import DataSettings
from medmoco.data.image_io.images import read_canvas
from medmoco.data.image_io.intensity import dtype_of
from medmoco.data.pack.pack import canvas_shape, shard_name
from medmoco.errors import DataError
from medmoco.utils.files import replacing, sha256_of
from medmoco.utils.guarded import Failure, map_guarded

RECORDS = "unfinished"  # folder of records, deleted when the pack is complete


class ImageResult(NamedTuple):
    """The result for one image: its size in the canvas, its file and notices; or the reason why there is no canvas."""

    height: int = 0
    width: int = 0
    bytes: int = 0
    sha256: str = ""
    notices: tuple[str, ...] = ()
    failure: str = ""


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
    frames: list[int]  # n frames, counted from 1
    # Results by position for images whose canvases an earlier run has already written to the file
    known: dict[int, ImageResult] = field(default_factory=dict)


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

    def jobs() -> Iterator[tuple[str, int]]:
        for shard in shards:
            draft = drafts[shard.number] = _start(folder, shard, data)
            for position in sorted(draft.missing):
                origins[next(numbers)] = shard.number, position
                yield shard.files[position], shard.frames[position]

    def pack_image(job: tuple[str, int]) -> tuple[NDArray[Any], ImageResult]:
        file, frame = job
        canvas, notices = read_canvas(file, frame, data)
        pixels = np.ascontiguousarray(canvas.pixels[: canvas.height, : canvas.width])
        return pixels, ImageResult(canvas.height, canvas.width, os.stat(file).st_size, sha256_of(file), notices)

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
            pixels, draft.images[position] = result
            draft.canvases[position, : pixels.shape[0], : pixels.shape[1]] = pixels
        draft.missing.discard(position)
        if not draft.missing:
            _finish(folder, shard, drafts.pop(shard))
        yield 1


@dataclass
class _Draft:
    canvases: NDArray[Any]  # (n, S, S) or (n, S, S, C), zero outside the image
    images: list[ImageResult]
    missing: set[int]


def _start(folder: Path, shard: Shard, data: DataSettings) -> _Draft:
    length = len(shard.files)
    if shard.known:
        canvases = np.load(folder / shard_name(shard.number), allow_pickle=False)
    else:
        canvases = np.zeros((length, *canvas_shape(data)), dtype_of(data.bit_depth))
    images = [shard.known.get(position, ImageResult()) for position in range(length)]
    return _Draft(canvases, images, set(range(length)) - shard.known.keys())


def _finish(folder: Path, number: int, draft: _Draft) -> None:
    digest = write_atomically(folder / shard_name(number), lambda stream: np.save(stream, draft.canvases))
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
    return Record(
        content["sha256"], [ImageResult._make((*image[:4], tuple(image[4]), image[5])) for image in content["images"]]
    )


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
