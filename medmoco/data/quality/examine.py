"""Read every file once, in worker processes, and return what `medmoco check` needs, without the images."""

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
from medmoco.data.quality.margins import N_BORDER, N_MARKS, Margins, margins
from medmoco.utils.guarded import Failure, map_guarded

FILE_FAULTS = ("file missing", "file empty", "file cut off", "file damaged", "file too large", "file unreadable")

_KINDS = {
    "data.max_": "file too large",
    "has no end": "file cut off",
    "ends inside": "file cut off",
    "damaged": "file damaged",  # also if it crashed the decoder
}
"""Words in the reader's message -> kind of fault; the first match counts."""


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


Track = Callable[[Iterator[Any], int], Iterable[Any]]
"""Yields the results and shows the progress; see `progress.track`."""


def examine(files: NDArray[np.object_], frames: NDArray[np.int64], data: DataSettings, track: Track) -> Examined:
    """Read N images, from paths (N,) and frames (N,) counted from 1, each within the limits for hostile files."""

    def summarise(at: int) -> _Summary:
        image = read_as_set(files[at], int(frames[at]), data)
        height, width = image.pixels.shape[:2]
        return _Summary(
            pixel_digest(image.pixels), pattern(image.pixels), (height, width), file_format(files[at]), image.notices,
            margins(image),
        )  # fmt: skip

    count = len(files)
    examined = Examined(
        np.zeros((count, 32), np.uint8),
        np.zeros((count, CELLS**2), np.uint8),
        np.zeros((count, 2), np.int32),
        np.zeros(count, bool),
        np.full(count, -1, np.int16),
        margins=_no_margins(count),
    )
    workers, seconds, megabytes = max(1, data.workers), data.decode_seconds, data.decode_megabytes
    results = map_guarded(summarise, range(count), workers=workers, seconds=seconds, megabytes=megabytes)
    for at, result in track(results, count):
        if isinstance(result, Failure):
            examined.faults[at] = _fault_kind(files[at], result.reason), result.reason
        else:
            _store(examined, at, result)
    return examined


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
