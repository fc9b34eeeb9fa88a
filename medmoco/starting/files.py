"""Read the headers of all files and the pixels of a sample; a file that cannot be used costs only its own row."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from medmoco.config import DataSettings
from medmoco.data.image_io.file_format import kind_of
from medmoco.data.image_io.images import Canvas, file_format, read_canvas
from medmoco.data.image_io.intensity import CONSTANT, DAMAGED, Unreadable, quiet
from medmoco.datasets.headers import COLUMNS, read_headers
from medmoco.utils.files import IMAGE_SUFFIXES, sha256_of
from medmoco.utils.guarded import Failure, map_guarded
from medmoco.utils.progress import track

NO_IMAGE = "not an image"
"""Fault of files that nothing marks as images, such as tables and texts; they are counted, not listed."""

_OTHER_IMAGES = (
    ".bmp", ".gif", ".webp", ".jp2", ".j2k", ".npy", ".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".fits", ".svs",
)  # fmt: skip
"""Suffixes of images that medmoco does not read; they are left out, not ignored."""

_VOLUME = "a NIfTI volume; init is for images: list volumes in a CSV with a column Path, and set data.dimensions to 3"
_HEADER_SECONDS, _HEADER_MEGABYTES = 20.0, 1024
_ENDS = 2**16  # bytes at either end of a file that are compared before its whole content
_COLOURED = 4.0  # mean difference of the channels, of 255, above which an image has colour
_KEPT = 16  # canvases kept to time the making of views


class _Header(NamedTuple):
    kind: str = ""
    width: int = 0
    height: int = 0
    bits: int = 0
    photometric: str = ""
    size: int = 0  # bytes
    fault: str = ""


def read_file_headers(root: Path, paths: Sequence[str], workers: int) -> pd.DataFrame:
    """Read the headers of files below a folder.

    Returns:
        (N) rows in the order of `paths`: Kind (PNG, JPEG, TIFF or DICOM), Width, Height, Bits, Photometric, Size (of
        the file, in bytes), Fault (blank if the file seems usable), and the DICOM columns of `headers.COLUMNS`.
    """
    headers: list[_Header] = [_Header(fault=DAMAGED)] * len(paths)
    limits = {"workers": workers, "seconds": _HEADER_SECONDS, "megabytes": _HEADER_MEGABYTES}
    found = map_guarded(partial(_header, root), paths, **limits)  # type: ignore[arg-type]
    for at, result in track(found, len(paths), "files"):
        headers[at] = _Header(fault=result.reason) if isinstance(result, Failure) else result
    table = pd.DataFrame(headers)
    table.columns = pd.Index(["Kind", "Width", "Height", "Bits", "Photometric", "Size", "Fault"])
    dicom = np.flatnonzero(table["Kind"] == "DICOM").tolist()
    read = read_headers(root, [paths[at] for at in dicom], workers if len(dicom) > 100 else 1).set_axis(dicom)
    table.loc[dicom, "Fault"] = read["Fault"]
    for column, source in {"Width": "Columns", "Height": "Rows", "Bits": "BitsStored"}.items():
        table.loc[dicom, column] = pd.to_numeric(read[source], errors="coerce").fillna(0).astype(int)
    tags = read[[name for name in COLUMNS if name != "Photometric"]].reindex(table.index, fill_value="")
    table.loc[dicom, "Photometric"] = read["Photometric"]
    return table.join(tags.assign(Frames=tags["Frames"].replace("", "1")))


def _header(root: Path, path: str) -> _Header:
    file = root / path
    try:
        with file.open("rb") as stream:
            kind = kind_of(stream.read(132))
        size = file.stat().st_size
        if kind == "DICOM":
            return _Header(kind, size=size)
        if kind == "NPY":
            return _Header(fault="a NumPy array; docs/channels.md describes how to train on images of several bands")
        with quiet():
            form = file_format(file)
            with Image.open(file, formats=[kind]) as image:
                return _Header(kind, *image.size, form.bits, form.photometric, size)
    except Unreadable as error:
        expected = path.lower().endswith((*IMAGE_SUFFIXES, *_OTHER_IMAGES))
        reason = _VOLUME if path.lower().endswith((".nii", ".nii.gz")) else str(error).splitlines()[0]
        return _Header(fault=reason if expected else NO_IMAGE)
    except OSError as error:
        return _Header(fault=f"the file cannot be opened: {error.strerror}" if error.strerror else DAMAGED)
    except Exception as error:  # of the libraries that read headers
        return _Header(fault=f"its header cannot be read ({type(error).__name__}); {DAMAGED}")


# Pixels


@dataclass(frozen=True)
class Sample:
    """The images that were decoded.

    Attributes:
        count: Number of images, including those with a fault.
        faults: Position of an image that cannot be used -> reason.
        coloured: Number of images with colour.
        notices: Notice of the reader -> number of images.
        seconds: Median time to decode an image to a canvas, on one core.
        canvases: A few canvases.
    """

    count: int
    faults: dict[int, str]
    coloured: int
    notices: dict[str, int]
    seconds: float
    canvases: list[Canvas]

    @property
    def readable(self) -> int:
        """Number of images without a fault."""
        return self.count - len(self.faults)


class _Decoded(NamedTuple):
    canvas: Canvas | None
    coloured: bool
    notices: tuple[str, ...]
    seconds: float


def decode_sample(
    files: Sequence[str], frames: Sequence[int], data: DataSettings, *, most: int, least: int, seconds: float
) -> Sample:
    """Decode images in the given order, at least `least`, and up to `most` or for the given time.

    Args:
        files: (N,) files.
        frames: (N,) frames, counted from 1.
        data: Settings with the canvas size, for gray images, and data.workers.
        most: Largest number of images.
        least: Number of images to decode even if that takes longer.
        seconds: Time for more than `least`.
    """
    start = time.monotonic()

    def positions() -> Iterator[int]:
        for at in range(min(len(files), most)):
            if at >= least and time.monotonic() - start > seconds:
                return
            yield at

    results: dict[int, _Decoded | Failure] = {}
    workers = max(1, data.workers)
    limits = {"workers": workers, "seconds": data.decode_seconds, "megabytes": data.decode_megabytes}
    decode = partial(_decode, files, frames, data)
    found = map_guarded(decode, positions(), **limits)  # type: ignore[arg-type]
    for at, result in track(found, min(len(files), most), "pixels"):
        results[at] = result
    decoded = [result for _, result in sorted(results.items()) if isinstance(result, _Decoded)]
    notices: dict[str, int] = {}
    for one in decoded:
        for notice in one.notices:
            notices[notice] = notices.get(notice, 0) + 1
    return Sample(
        count=len(results),
        faults={at: result.reason for at, result in results.items() if isinstance(result, Failure)},
        coloured=sum(one.coloured for one in decoded),
        notices=notices,
        seconds=float(np.median([one.seconds for one in decoded])) if decoded else 0.0,
        canvases=[one.canvas for one in decoded if one.canvas],
    )


def _decode(files: Sequence[str], frames: Sequence[int], data: DataSettings, at: int) -> _Decoded:
    start = time.perf_counter()
    canvas, notices = read_canvas(files[at], frames[at], data)
    seconds = time.perf_counter() - start
    coloured = False
    if not file_format(files[at]).photometric.startswith("MONOCHROME"):
        coloured = _has_colour(read_canvas(files[at], frames[at], data.model_copy(update={"channels": "rgb"}))[0])
    kept = canvas if at < _KEPT and CONSTANT not in notices else None
    return _Decoded(kept, coloured, notices, seconds)


def _has_colour(canvas: Canvas) -> bool:
    pixels = canvas.pixels[: canvas.height, : canvas.width].astype(np.int16)
    return float((pixels.max(2) - pixels.min(2)).mean()) > _COLOURED


# Duplicates


def duplicate_groups(root: Path, paths: Sequence[str], sizes: Sequence[int]) -> list[list[int]]:
    """Return the positions of files with the same content, in groups of two or more.

    Files of the same size are compared by both ends, and only if these agree by their whole content.
    """
    groups = _alike(range(len(paths)), lambda at: sizes[at])
    groups = [part for group in groups for part in _alike(group, lambda at: _ends(root / paths[at]))]
    return [part for group in groups for part in _alike(group, lambda at: _content(root / paths[at]))]


def _alike(positions: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    """Return the groups of two or more positions with the same key, except None."""
    groups: dict[Hashable, list[int]] = {}
    for at in positions:
        groups.setdefault(key(at), []).append(at)
    return [group for value, group in groups.items() if value is not None and len(group) > 1]


def _ends(file: Path) -> bytes | None:
    try:
        with file.open("rb") as stream:
            start = stream.read(_ENDS)
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _ENDS))
            return hashlib.sha256(start + stream.read()).digest()
    except OSError:
        return None


def _content(file: Path) -> str | None:
    try:
        return sha256_of(file)
    except OSError:
        return None
