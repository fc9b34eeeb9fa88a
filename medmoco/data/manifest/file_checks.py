"""Whether the files of a split are there, are files, and lie where they should; if not, whether they only seem gone."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmoco.config import DataSettings
from medmoco.data.manifest.manifest import Split
from medmoco.errors import ManifestError
from medmoco.utils.files import IMAGE_SUFFIXES

FOUND = "the file is there"
"""How what is known of a missing file begins."""

_SHOWN = 3  # rows that a message names
_MOST_NAMES = 200_000  # looked at in a folder, which takes some tenths of a second
_MOST_FOLDERS = 20  # looked into for each missing file


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
            first = ", ".join(str(row) for row in rows[:_SHOWN]) + (", ..." if len(rows) > _SHOWN else "")
            hints = _near_misses(split, faults) if fault is FileFault.MISSING else ""
            raise ManifestError(
                f"{split.csv}: {len(rows)} of {len(split)} {split.name} files {fault.value[0]} (rows {first});\n"
                f"{(hints + fault.value[1]).replace('Path', column)}"
            )


def _near_misses(split: Split, faults: NDArray[Any]) -> str:
    """Return a line for each of the first missing files that has another name."""
    first = np.flatnonzero(faults == FileFault.MISSING)[:_SHOWN]
    rows: dict[str, list[str]] = {}
    for at in first:
        rows.setdefault(near_miss(split.files[at]), []).append(str(split.rows[at]))
    return "".join(
        f"row{'s' if len(found) > 1 else ''} {', '.join(found)}: {hint};\n" for hint, found in rows.items() if hint
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


# Files under another name


class _Listing(NamedTuple):
    """Names in a folder: by what is left of them in small letters, by that without the suffix, and the folders."""

    names: dict[str, str]
    stems: dict[str, str]
    folders: list[str]


def near_miss(file: str) -> str:
    """Say where a file is that is not where it should be; nothing where none like it is found.

    The answer says how the names differ and holds none.

    Args:
        file: Root and Path joined.
    """
    differences: dict[str, None] = {}
    if "\\" in file:
        file, differences = file.replace("\\", "/"), {"with / in place of each backslash": None}
    folder = file
    missing: list[str] = []
    while not os.path.isdir(folder) and folder not in ("", "/"):
        folder, name = os.path.split(folder)
        missing.insert(0, name)
    try:
        place = _without_or_within_folder(folder, missing)
        differences |= dict.fromkeys([place] if place else _differences(folder, missing))
    except (LookupError, OSError):
        return ""
    return f"{FOUND} {' and '.join(differences)}" if differences else ""


def _without_or_within_folder(folder: str, missing: list[str]) -> str:
    """Say whether the last of the missing names are in the folder itself, or all of them in one below it."""
    for skipped in range(1, len(missing)):
        if os.path.isfile(os.path.join(folder, *missing[skipped:])):
            return f"without the first {f'{skipped} folders' if skipped > 1 else 'folder'} of its Path"
    below = _listing(folder or ".", os.stat(folder or ".").st_mtime_ns).folders
    if any(os.path.isfile(os.path.join(folder, name, *missing)) for name in below):
        return "in a folder that its Path leaves out"
    return ""


def _differences(folder: str, missing: list[str]) -> list[str]:
    """Say how the missing names, each in the folder before it, differ from those of a file that is there.

    Raises:
        LookupError: there is none.
        OSError: a folder cannot be read.
    """
    found = []
    for name in missing:
        there = _listing(folder or ".", os.stat(folder or ".").st_mtime_ns)
        plain = _plain(name)
        if plain in there.names:
            other = there.names[plain]
        elif name is missing[-1]:
            stem = os.path.splitext(plain)[0]
            other = there.stems.get(plain) or there.stems.get(stem) or there.names[stem]
            found.append("with another suffix (file extension)")
        else:
            raise LookupError
        ours, theirs = (unicodedata.normalize("NFC", text.strip()) for text in (name, other))
        if name.strip() != name or other.strip() != other:
            found.append("with other spaces at the ends of its name")
        if ours != theirs and ours.casefold() == theirs.casefold():
            found.append("in another case (capital and small letters)")
        if ours != name.strip() or theirs != other.strip():
            found.append("with letters in another Unicode form (NFC or NFD)")
        folder = os.path.join(folder, other)
    if not os.path.isfile(folder):
        raise LookupError
    return found


@lru_cache(maxsize=2)
def _listing(folder: str, _changed: int) -> _Listing:
    """List a folder, again when it has changed."""
    found = _Listing({}, {}, [])
    with os.scandir(folder) as entries:
        for entry in islice(entries, _MOST_NAMES):
            plain = _plain(entry.name)
            found.names[plain] = entry.name
            stem, suffix = os.path.splitext(plain)
            if suffix in IMAGE_SUFFIXES:
                found.stems[stem] = entry.name
            if len(found.folders) < _MOST_FOLDERS and entry.is_dir():
                found.folders.append(entry.name)
    return found


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip()).casefold()
