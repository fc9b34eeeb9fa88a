"""Image files -> shard file, in guarded workers; the unit that a pack is made, resumed and shared out by.

A shard is written beside its name, fsynced and renamed; its record, a JSON file of what was found of every image,
follows. A record therefore means a whole shard. Nothing in either depends on time or machine.
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

RECORDS = "unfinished"  # the folder of records, which goes away when the pack is complete


class Found(NamedTuple):
    """What was found of one image: the size of it in its canvas, its file, remarks; or why there is no canvas."""

    height: int = 0
    width: int = 0
    bytes: int = 0
    sha256: str = ""
    notices: tuple[str, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class Record:
    """What is known of a finished shard: its SHA-256, and what was found of its n images."""

    sha256: str
    images: list[Found]

    @property
    def failed(self) -> list[int]:
        """Positions without a canvas."""
        return [position for position, image in enumerate(self.images) if image.failure]


@dataclass(frozen=True)
class Shard:
    """The work of making one shard.

    Attributes:
        number: Names the file.
        files: n paths.
        frames: n frames, from 1.
        known: What an earlier run found, by position, of images whose canvases are in the file already.
    """

    number: int
    files: list[str]
    frames: list[int]
    known: dict[int, Found] = field(default_factory=dict)


def write_shards(
    folder: Path, shards: Iterable[Shard], data: DataSettings, stop_asked: Callable[[], bool], *, workers: int
) -> Iterator[int]:
    """Make shards, as many at a time as workers happen to be busy with; yield a shard's number after each image.

    Args:
        folder: Of the pack.
        shards: Each with an image to decode.
        data: How to decode.
        stop_asked: Ends the work early when it returns True.
        workers: Processes.

    Raises:
        DataError: a shard cannot be written.
    """
    drafts: dict[int, _Draft] = {}
    origins: dict[int, tuple[int, int]] = {}  # of the jobs under way: shard and position
    numbers = count()

    def jobs() -> Iterator[tuple[str, int]]:
        for shard in shards:
            draft = drafts[shard.number] = _start(folder, shard, data)
            for position in sorted(draft.missing):
                origins[next(numbers)] = shard.number, position
                yield shard.files[position], shard.frames[position]

    def pack_image(job: tuple[str, int]) -> tuple[NDArray[Any], Found]:
        file, frame = job
        canvas, notices = read_canvas(file, frame, data)
        pixels = np.ascontiguousarray(canvas.pixels[: canvas.height, : canvas.width])
        return pixels, Found(canvas.height, canvas.width, os.stat(file).st_size, sha256_of(file), notices)

    done = map_guarded(
        pack_image, jobs(), workers=workers, seconds=data.decode_seconds, megabytes=data.decode_megabytes
    )
    for number, result in done:
        if stop_asked():
            return
        shard, position = origins.pop(number)
        draft = drafts[shard]
        if isinstance(result, Failure):
            draft.images[position] = Found(failure=" ".join(result.reason.split()))
        else:
            pixels, draft.images[position] = result
            draft.canvases[position, : pixels.shape[0], : pixels.shape[1]] = pixels
        draft.missing.discard(position)
        if not draft.missing:
            _finish(folder, shard, drafts.pop(shard))
        yield shard


@dataclass
class _Draft:
    canvases: NDArray[Any]  # (n, S, S) or (n, S, S, C), zero where there is no image
    images: list[Found]
    missing: set[int]


def _start(folder: Path, shard: Shard, data: DataSettings) -> _Draft:
    length = len(shard.files)
    if shard.known:
        canvases = np.load(folder / shard_name(shard.number), allow_pickle=False)
    else:
        canvases = np.zeros((length, *canvas_shape(data)), dtype_of(data.bit_depth))
    images = [shard.known.get(position, Found()) for position in range(length)]
    return _Draft(canvases, images, set(range(length)) - shard.known.keys())


def _finish(folder: Path, number: int, draft: _Draft) -> None:
    digest = write_atomically(folder / shard_name(number), lambda stream: np.save(stream, draft.canvases))
    write_record(folder, number, Record(digest, draft.images))


def write_record(folder: Path, number: int, record: Record) -> None:
    """Note that a shard is done."""
    text = json.dumps({"sha256": record.sha256, "images": record.images})
    write_atomically(_record_file(folder, number), lambda stream: stream.write(text.encode()))


def read_record(folder: Path, number: int) -> Record | None:
    """Read what is known of a shard; None where it is not done."""
    try:
        content = json.loads(_record_file(folder, number).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Record(
        content["sha256"], [Found._make((*image[:4], tuple(image[4]), image[5])) for image in content["images"]]
    )


def _record_file(folder: Path, number: int) -> Path:
    return folder / RECORDS / f"{shard_name(number)}.json"


def write_atomically(file: Path, write: Callable[[BinaryIO], object]) -> str:
    """Write a file so that it is there whole or not at all, whatever happens; return its SHA-256.

    Raises:
        DataError: the disk refuses.
    """
    try:
        with replacing(file, durable=True, shared=True) as temporary:
            with temporary.open("wb") as stream:
                write(stream)
            digest = sha256_of(temporary)
    except OSError as error:
        raise DataError(
            f"{file.name} of the pack cannot be written: {error.strerror}\n"
            "Finished shards are intact. Mend that, then run the same command again."
        ) from None
    return digest
