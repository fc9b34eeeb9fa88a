"""Whether the files of a split are there, are files, and lie where they should."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import lru_cache

import numpy as np

from medmoco.config import DataSettings
from medmoco.data.manifest import Split
from medmoco.errors import ManifestError


class FileFault(Enum):
    """Why a file is not to be read: what is said of several, and the remedy."""

    MISSING = "do not exist", "check data.root and the Path column"
    UNREACHABLE = "cannot be reached", "check the permissions, and symbolic links for circles"
    NO_FILE = "are folders, pipes or devices", "correct the Path column"
    OUTSIDE = (
        "lie outside data.root, where a symbolic link leads",
        "move data.root up, copy the files, or set data.allow_symlinks: true if the links are yours",
    )


def check_files(
    split: Split, data: DataSettings, refused: Iterable[FileFault] = FileFault, column: str = "Path"
) -> None:
    """Look for every file on disk, without opening it.

    Args:
        split: Rows whose files are looked for.
        data: Names the root, and says whether symbolic links may leave it.
        refused: What is looked for.
        column: Of the manifest that names the files.

    Raises:
        ManifestError: some are missing, no files or outside the root; gives the count and the first three rows.
    """
    root = data.root.replace("{split}", split.name)
    faults = np.array(list(file_faults(split.files, root, allow_symlinks=data.allow_symlinks)), dtype=object)
    for fault in refused:
        rows = split.rows[faults == fault]
        if len(rows):
            first = ", ".join(str(row) for row in rows[:3]) + (", ..." if len(rows) > 3 else "")
            raise ManifestError(
                f"{split.csv}: {len(rows)} of {len(split)} {split.name} files {fault.value[0]} (rows {first});\n"
                f"{fault.value[1].replace('Path', column)}"
            )


def file_faults(files: Iterable[str], root: str, *, allow_symlinks: bool) -> Iterator[FileFault | None]:
    """Look at every file without opening it; yield what is wrong with it, or None.

    One `lstat` per file and one per folder, as a manifest lists a folder's files together; only what is a symbolic link
    is resolved, which takes ten times as long. The root may itself be a link, or lie below one.

    Args:
        files: Root and Path joined, the Paths without "..".
        root: Folder that they must lie in.
        allow_symlinks: Links may lead out of the root.
    """
    top = os.path.realpath(root)

    @lru_cache(maxsize=2**16)
    def resolve(folder: str) -> str:
        if len(folder) <= len(root):
            return top
        parent, name = os.path.split(folder)
        if name in (".", "..") or os.path.islink(folder):
            return os.path.realpath(folder)
        return os.path.join(resolve(parent), name)

    for file in files:
        yield _fault(file, None if allow_symlinks else os.path.join(top, ""), resolve)


def _fault(file: str, within: str | None, resolve: Callable[[str], str]) -> FileFault | None:
    try:
        mode = os.lstat(file).st_mode
        is_link = stat.S_ISLNK(mode)
        if not stat.S_ISREG(os.stat(file).st_mode if is_link else mode):
            return FileFault.NO_FILE
        if within:
            folder = os.path.dirname(os.path.realpath(file)) if is_link else resolve(os.path.dirname(file))
            if not os.path.join(folder, "").startswith(within):
                return FileFault.OUTSIDE
    except (FileNotFoundError, NotADirectoryError):
        return FileFault.MISSING
    except OSError:
        return FileFault.UNREACHABLE
    return None
