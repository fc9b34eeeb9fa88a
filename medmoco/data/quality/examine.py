"""Every file read once, in worker processes: what `check` needs to know of each, as arrays that hold no image."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmoco.config import DataSettings
from medmoco.data.image_io.fingerprints import CELLS, Patterns, pattern, pixel_digest
from medmoco.data.image_io.images import FileFormat, file_format, read_as_set
from medmoco.data.image_io.intensity import CONSTANT
from medmoco.utils.guarded import Failure, map_guarded

FILE_FAULTS = ("file missing", "file empty", "file cut off", "file damaged", "file too large", "file unreadable")

_KINDS = {
    "data.max_": "file too large",
    "has no end": "file cut off",
    "ends inside": "file cut off",
    "damaged": "file damaged",  # also where it crashed the decoder
}
"""Words of the reader -> kind of fault, the first that fits."""


@dataclass(frozen=True)
class Examined:
    """What N files hold. Of those that cannot be read, all is zero but `faults`.

    Attributes:
        digests: (N, 32) SHA-256 of the pixels.
        patterns: (N, 1024), see `fingerprints.pattern`.
        sizes: (N, 2) int32, height and width in pixels.
        constant: (N,), all pixels have the same value.
        formats: Those that occur.
        format_of: (N,) int16, positions in `formats`; -1 where the file cannot be read.
        notices: What the reader remarked on -> positions of the files.
        faults: Position of a file that cannot be read -> what is wrong, and what the reader says.
    """

    digests: NDArray[np.uint8]
    patterns: Patterns
    sizes: NDArray[np.int32]
    constant: NDArray[np.bool_]
    format_of: NDArray[np.int16]
    formats: list[FileFormat] = field(default_factory=list)
    notices: dict[str, list[int]] = field(default_factory=dict)
    faults: dict[int, tuple[str, str]] = field(default_factory=dict)

    @property
    def readable(self) -> NDArray[np.bool_]:
        """(N,), which could be read."""
        return self.format_of >= 0


class _Look(NamedTuple):
    """What a worker sends back of one image."""

    digest: bytes
    pattern: Patterns
    size: tuple[int, int]
    format: FileFormat
    notices: tuple[str, ...]


Track = Callable[[Iterator[Any], int], Iterable[Any]]
"""Passes the results on and shows how many there were; see `progress.track`."""


def examine(files: NDArray[np.object_], frames: NDArray[np.int64], data: DataSettings, track: Track) -> Examined:
    """Read N images, each under the limits for hostile files.

    Args:
        files: (N,) their paths.
        frames: (N,) from 1.
        data: How to read them, with how many workers.
        track: Shows the progress.
    """

    def look(at: int) -> _Look:
        image = read_as_set(files[at], int(frames[at]), data)
        height, width = image.pixels.shape[:2]
        return _Look(
            pixel_digest(image.pixels), pattern(image.pixels), (height, width), file_format(files[at]), image.notices
        )

    count = len(files)
    found = Examined(
        np.zeros((count, 32), np.uint8),
        np.zeros((count, CELLS**2), np.uint8),
        np.zeros((count, 2), np.int32),
        np.zeros(count, bool),
        np.full(count, -1, np.int16),
    )
    looks = map_guarded(
        look,
        range(count),
        workers=max(1, data.workers),
        seconds=data.decode_seconds,
        megabytes=data.decode_megabytes,
    )
    for at, result in track(looks, count):
        if isinstance(result, Failure):
            found.faults[at] = _fault_kind(files[at], result.reason), result.reason
        else:
            _note(found, at, result)
    return found


def _note(found: Examined, at: int, look: _Look) -> None:
    found.digests[at] = np.frombuffer(look.digest, np.uint8)
    found.patterns[at] = look.pattern
    found.sizes[at] = look.size
    if look.format not in found.formats:
        found.formats.append(look.format)
    found.format_of[at] = found.formats.index(look.format)
    for notice in look.notices:
        if notice == CONSTANT:
            found.constant[at] = True
        else:
            found.notices.setdefault(notice, []).append(at)


def _fault_kind(file: str, reason: str) -> str:
    if not os.path.exists(file):
        return "file missing"
    if os.path.isfile(file) and not os.path.getsize(file):
        return "file empty"
    if _is_cut_off_jpeg(file):
        return "file cut off"
    return next((kind for words, kind in _KINDS.items() if words in reason), "file unreadable")


def _is_cut_off_jpeg(file: str) -> bool:
    """Look for the end marker, after which some writers pad; of a file cut in its header the reader says less."""
    try:
        with open(file, "rb") as stream:
            is_jpeg = stream.read(3) == b"\xff\xd8\xff"
            stream.seek(max(0, os.path.getsize(file) - 4096))
            return is_jpeg and b"\xff\xd9" not in stream.read()
    except OSError:
        return False
