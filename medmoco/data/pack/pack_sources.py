"""Sizes and hashes of the files from which canvases are made: an image, a volume, or the folder of a DICOM series."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from medmoco.data.image_io.intensity import Unreadable, quiet
from medmoco.data.volume_io.frames import is_dicom, series_of
from medmoco.utils.files import sha256_of


def size_of(path: str | Path, series: str = "") -> int | None:
    """Return the size of a file, or of the files in a folder, in bytes; None if it cannot be told quickly.

    That is so if the file does not exist, or for one of several series in a folder, whose files must be opened.
    """
    try:
        if not os.path.isdir(path):
            return os.stat(path).st_size
        return None if series else _bytes([*_files(path)])
    except OSError:
        return None


def size_and_hash(path: str | Path, series: str = "") -> tuple[int, str]:
    """Return the size in bytes and the SHA-256 of a file, or of a series: of the names and hashes of its sorted files.

    Raises:
        OSError: a file cannot be read.
    """
    if not os.path.isdir(path):
        return os.stat(path).st_size, sha256_of(path)
    files = [file for file in _files(path) if not series or _series(file) == series]
    listing = "".join(f"{file.name} {sha256_of(file)}\n" for file in files)
    return _bytes(files), hashlib.sha256(listing.encode("utf-8", "surrogateescape")).hexdigest()


def _files(folder: str | Path) -> list[Path]:
    return sorted(file for file in Path(folder).iterdir() if file.is_file())


def _bytes(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _series(file: Path) -> str:
    """Return the SeriesInstanceUID of a DICOM file; blank if it is none, or damaged, which the reader refuses."""
    with suppress(Unreadable), quiet():
        return series_of(file) if is_dicom(file) else ""
    return ""
