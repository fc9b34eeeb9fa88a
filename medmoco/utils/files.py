"""Whole files: recognised by suffix, hashed, and written so that they are there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom")


def sha256_of(file: str | Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def replacing(file: Path, *, durable: bool = False, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to a file, which takes the file's name once the block has written it.

    A reader never sees half a file, and if writing fails, what was there before stays.

    Args:
        file: To write, or to replace.
        durable: Wait until the disk holds the content and the name, so that a crash of the machine loses neither.
        shared: Several processes may write the same file at the same time.
    """
    temporary = file.with_name(f"{file.name}{f'.{secrets.token_hex(4)}' if shared else ''}.tmp")
    try:
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Fsync a folder, without which a crash may forget the names of files that were just written or renamed in it."""
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
