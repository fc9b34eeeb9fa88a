"""Names of files, their hashes and sizes, atomic writing, locks, and free space."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from medmoco.errors import SettingsError

PathLike = str | os.PathLike[str]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".dcm", ".dicom")
VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".npy")

SETTINGS_FILE = "medmoco.yaml"
"""Settings file in the working folder, read if --config is not given; `medmoco init` writes one."""


def sha256_of(file: str | Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with Path(file).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def replacing(file: Path, *, durable: bool = False, shared: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to a file, which is renamed to the file once the block has written it.

    Readers never see an incomplete file, and if writing fails, the previous content is kept.

    Args:
        file: File to write or replace.
        durable: Wait until content and name are on disk, so that a crash of the machine loses neither.
        shared: Whether several processes may write the file at the same time.
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
        _sync(file.parent)  # otherwise a crash may lose the new name


def lock_or_refuse(file: IO[Any], refusal: str) -> None:
    """Lock an open file against other processes until it is closed.

    Raises:
        SettingsError: another process has locked it.
    """
    try:
        # Not flock, which data workers would inherit; they may outlive this process by one image.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        raise SettingsError(refusal) from None
    except OSError:
        pass  # a file system without locks


def free_space(path: Path) -> int:
    """Return the free bytes of the disk that a file or folder is on, or would be on if it were made."""
    existing = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    return shutil.disk_usage(existing).free


def size_words(count: float) -> str:
    """Return a number of bytes to about two digits, such as "850 MB", "1.5 GB" or "24 GB"."""
    if count < 1e9:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e9:,.0f} GB" if count >= 10e9 else f"{count / 1e9:.1f} GB"


def config_option(config_file: Path) -> list[str]:
    """Return the option for another command in the same working folder to read the same file; empty if it does so."""
    return [] if str(config_file) == SETTINGS_FILE else ["--config", str(config_file)]


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
