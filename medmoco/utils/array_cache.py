"""A folder of arrays that took long to compute; it is bounded in size, and can be deleted at any time."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmoco.utils.files import replacing

Arrays = Mapping[str, NDArray[Any]]

LIMIT = 2 * 2**30  # bytes of all files of a folder


def read_arrays(file: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz file, never unpickled; for a damaged file, NumPy and zipfile raise many kinds."""
    # NumPy leaves a damaged file open that it opens itself. Reading an array verifies its checksum.
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
        return {name: content[name] for name in content.files}


class ArrayCache(NamedTuple):
    """Stores arrays in `KEY.npz`; several processes may use the same folder.

    A file that cannot be read or written is never an error: its arrays are computed again.

    Attributes:
        folder: Created when the first arrays are stored.
        log: Receives a line about a damaged file, or one that cannot be written.
        limit: Size of all files, bytes. The least recently used files are deleted.
    """

    folder: Path
    log: Callable[[str], None] = lambda _: None
    limit: int = LIMIT

    def get(self, key: str) -> dict[str, NDArray[Any]] | None:
        """Return the arrays that were stored with this key, if any; they are never unpickled."""
        file = self.folder / f"{key}.npz"
        try:
            arrays = read_arrays(file)
        except FileNotFoundError:
            return None
        except Exception:  # NumPy and zipfile raise at least eight kinds for damaged files
            self.log(f"{self.folder.name}/{file.name} is damaged or of another program: its content is computed again")
            return None
        with suppress(OSError):  # a folder that others own
            file.touch()
        return arrays

    def put(self, key: str, arrays: Arrays) -> None:
        """Store arrays, in place of those with the same key."""
        size = sum(array.nbytes for array in arrays.values())
        try:
            self.folder.mkdir(exist_ok=True)
            room = min(self.limit, shutil.disk_usage(self.folder).free // 2)
            if size > room:
                self.log(f"{self.folder.name}: {size >> 20} MiB are not kept, since there is room for {room >> 20} MiB")
                return
            with replacing(self.folder / f"{key}.npz", shared=True) as temporary, temporary.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
            self._prune()
        except OSError as error:
            self.log(f"{self.folder.name} cannot be written, so that nothing is kept: {error.strerror or error}")

    def _prune(self) -> None:
        """Delete the least recently used files beyond the limit, among them remains of interrupted writers."""
        states = []
        for file in self.folder.iterdir():
            if file.suffix in (".npz", ".tmp"):
                with suppress(FileNotFoundError):  # another process has just deleted or renamed it
                    states.append((file, file.stat()))
        total = 0
        for file, state in sorted(states, key=lambda entry: entry[1].st_mtime_ns, reverse=True):
            total += state.st_size
            if total > self.limit:
                with suppress(OSError):
                    file.unlink()
