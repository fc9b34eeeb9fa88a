"""Copy a pack from a URL to this machine, once, and check its hashes.

Every file system of fsspec is supported. Only files named in pack.json are read, so the store need not be listed.
Several processes of one machine share the copy: the first one fetches it under a lock, and the others wait.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec

from medmoco.config import DataSettings
from medmoco.config.paths import is_url
from medmoco.data.pack.pack import INFO, parse_info
from medmoco.errors import DataError, SettingsError, first_line
from medmoco.utils.files import sha256_of
from medmoco.utils.progress import track

_STREAMS = 8  # files fetched at a time


def local_folder(data: DataSettings) -> Path:
    """Return the folder of data.pack, after copying it if data.pack is a URL.

    Raises:
        SettingsError: data.pack_cache is not set, or its disk is too small.
        DataError: the URL cannot be read, or a file does not have the SHA-256 stated in pack.json.
    """
    assert data.pack is not None
    if not is_url(data.pack):
        return Path(data.pack)
    if data.pack_cache is None:
        raise SettingsError("data.pack is a URL: set data.pack_cache to a local folder to which the pack can be copied")
    return _copy(data.pack, data.pack_cache)


@lru_cache(maxsize=4)  # so that a later failure of the network does no harm
def _copy(url: str, cache: Path) -> Path:
    folder = cache / hashlib.sha256(url.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released with the file, also when the process is killed
            _fetch(_Source(url), folder)
    except OSError as error:
        raise SettingsError(f"data.pack_cache: {cache} cannot be used: {error.strerror}") from None
    return folder


class _Source:
    """The pack at a URL."""

    def __init__(self, url: str) -> None:
        try:
            self._system, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise SettingsError(f"data.pack: this type of URL is not supported: {first_line(error)}") from None

    def read(self, name: str) -> bytes:
        """Return the content of a small file."""
        try:
            content: bytes = self._system.cat_file(f"{self._root.rstrip('/')}/{name}")
        except Exception as error:  # every type of store raises its own exceptions
            raise self._unreadable(name, error) from None
        return content

    def fetch(self, name: str, file: Path) -> None:
        """Copy a file."""
        try:
            self._system.get_file(f"{self._root.rstrip('/')}/{name}", str(file))
        except Exception as error:
            raise self._unreadable(name, error) from None

    def _unreadable(self, name: str, error: Exception) -> DataError:
        kind = type(error).__name__
        return DataError(
            f"{name} of the pack at data.pack cannot be fetched: {kind}: {first_line(error)}\n"
            "check the URL, the access rights and the network; a complete copy can be used as data.pack=FOLDER"
        )


def _fetch(source: _Source, folder: Path) -> None:
    """Bring a copy up to date; files that are already correct are kept."""
    raw = source.read(INFO)
    files = parse_info(raw)["files"]
    checked = _when_checked(folder / INFO, raw)
    missing = [name for name in files if not _is_trusted(folder / name, files[name]["bytes"], checked)]
    if missing:
        _check_space(sum(files[name]["bytes"] for name in missing), folder)
        with ThreadPoolExecutor(_STREAMS) as pool:
            done = pool.map(lambda name: _fetch_one(source, name, files[name], folder), missing)
            for _ in track(done, len(missing), "copying the pack's files"):
                pass
    if missing or not checked:
        (folder / INFO).write_bytes(raw)


def _when_checked(info: Path, raw: bytes) -> float:
    """Return the time at which the copy was complete with correct hashes; 0 if it never was."""
    return info.stat().st_mtime if info.is_file() and info.read_bytes() == raw else 0.0


def _is_trusted(file: Path, size: int, checked: float) -> bool:
    """Return whether a file need not be hashed: its size is correct, and it was not modified since the last check."""
    return file.is_file() and file.stat().st_size == size and file.stat().st_mtime <= checked


def _check_space(needed: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SettingsError(
            f"the pack's copy needs {needed / 1e9:.2f} GB more, but data.pack_cache has {free / 1e9:.2f} GB free;\n"
            "free some, or set data.pack_cache to a folder on another disk"
        )


def _fetch_one(source: _Source, name: str, entry: dict[str, Any], folder: Path) -> None:
    file, temporary = folder / name, folder / f"{name}.tmp"
    if _is_correct(file, entry):
        return
    for _ in range(2):
        source.fetch(name, temporary)
        if _is_correct(temporary, entry):
            temporary.replace(file)
            return
    raise DataError(
        f"{name} of the pack at data.pack does not have the SHA-256 stated in {INFO}, fetched twice;\n"
        "the pack is damaged or only partly uploaded; upload it again"
    )


def _is_correct(file: Path, entry: dict[str, Any]) -> bool:
    return file.is_file() and file.stat().st_size == entry["bytes"] and sha256_of(file) == entry["sha256"]
