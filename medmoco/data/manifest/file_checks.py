"""Check that the files of a split exist, are regular files and lie below the root; suggest where missing files are."""

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

FOUND = "the file exists"
"""Start of every hint about a missing file."""

_SHOWN = 3  # rows named in a message
_MOST_NAMES = 200_000  # read from a folder, which takes a few tenths of a second
_MOST_FOLDERS = 20  # searched for each missing file


class FileFault(Enum):
    """Reasons not to read a file: the predicate of a message about several files, and the remedy."""

    MISSING = "do not exist", "check data.root and the Path column"
    UNREACHABLE = "cannot be reached", "check the permissions, and symbolic links for loops"
    NO_FILE = "are folders, pipes or devices", "correct the Path column"
    OUTSIDE = (
        "lie outside data.root, where a symbolic link leads",
        "move data.root up, copy the files, or set data.allow_symlinks: true if the links are yours",
    )


def check_files(
    split: Split, data: DataSettings, refused: Iterable[FileFault] = FileFault, column: str = "Path"
) -> None:
    """Check every file of a split on disk, without opening it.

    Args:
        split: Rows whose files are checked.
        data: Data settings with the root, and whether symbolic links may leave it.
        refused: Faults to refuse.
        column: Manifest column with the paths, for messages.

    Raises:
        ManifestError: files have one of these faults; gives the count and the first three rows.
    """
    root = data.root.replace("{split}", split.name)
    found = file_faults(split.files, root, allow_symlinks=data.allow_symlinks, folders=data.dimensions == 3)
    faults = np.array(list(found), dtype=object)
    for fault in refused:
        rows = split.rows[faults == fault]
        if len(rows):
            first = ", ".join(str(row) for row in rows[:_SHOWN]) + (", ..." if len(rows) > _SHOWN else "")
            hints = _hints(split, faults) if fault is FileFault.MISSING else ""
            remedy = (hints + fault.value[1]).replace("Path", column)
            if fault is FileFault.MISSING and not hints and not os.path.isdir(root):
                remedy = f"data.root: there is no folder {data.root}"
            raise ManifestError(
                f"{split.csv}: {len(rows)} of {len(split)} {split.name} files {fault.value[0]} (rows {first});\n"
                f"{remedy}"
            )


def _hints(split: Split, faults: NDArray[Any]) -> str:
    """Return a line for each of the first missing files that exists under a similar name."""
    first = np.flatnonzero(faults == FileFault.MISSING)[:_SHOWN]
    rows: dict[str, list[str]] = {}
    for at in first:
        rows.setdefault(similar_file_hint(split.files[at]), []).append(str(split.rows[at]))
    return "".join(
        f"row{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}: {hint};\n"
        for hint, numbers in rows.items()
        if hint
    )


def file_faults(
    files: Iterable[str], root: str, *, allow_symlinks: bool, folders: bool = False
) -> Iterator[FileFault | None]:
    """Check every file without opening it; yield its fault, or None.

    One `lstat` per file and one per folder suffice, as a manifest lists a folder's files together; only symbolic links
    are resolved, which takes ten times as long. The root may itself be a link, or lie below one.

    Args:
        files: Root and Path joined; the Paths contain no "..".
        root: Folder that must contain the files.
        allow_symlinks: Whether links may lead out of the root.
        folders: Whether folders are accepted, such as that of a DICOM series; links in them are resolved as well.
    """
    top = os.path.realpath(root)
    within = os.path.join(top, "")

    @lru_cache(maxsize=2**16)
    def resolve(folder: str) -> str:
        if len(folder) <= len(root):
            return top
        parent, name = os.path.split(folder)
        if name in (".", "..") or os.path.islink(folder):
            return os.path.realpath(folder)
        return os.path.join(resolve(parent), name)

    @lru_cache(maxsize=2**16)
    def links_out(folder: str) -> bool:  # several series may lie in one folder
        with os.scandir(folder) as entries:
            links = [entry.path for entry in entries if entry.is_symlink()]
        return any(not os.path.realpath(link).startswith(within) for link in links)

    for file in files:
        yield _fault(file, None if allow_symlinks else within, resolve, links_out if folders else None)


def _fault(
    file: str, within: str | None, resolve: Callable[[str], str], links_out: Callable[[str], bool] | None
) -> FileFault | None:
    try:
        mode = os.lstat(file).st_mode
        is_link = stat.S_ISLNK(mode)
        of_content = os.stat(file).st_mode if is_link else mode
        is_folder = stat.S_ISDIR(of_content)
        if not (stat.S_ISREG(of_content) or (links_out and is_folder)):
            return FileFault.NO_FILE
        if within:
            folder = os.path.dirname(os.path.realpath(file)) if is_link else resolve(os.path.dirname(file))
            if not os.path.join(folder, "").startswith(within) or (links_out and is_folder and links_out(file)):
                return FileFault.OUTSIDE
    except (FileNotFoundError, NotADirectoryError):
        return FileFault.MISSING
    except OSError:
        return FileFault.UNREACHABLE
    return None


# Files under another name


class _Listing(NamedTuple):
    """The content of a folder: names by their normalised form, with and without suffix, and the subfolders."""

    names: dict[str, str]
    stems: dict[str, str]
    folders: list[str]


def similar_file_hint(file: str) -> str:
    """Return how an existing similar file differs from a missing one, without quoting names; blank if there is none."""
    differences: dict[str, None] = {}
    if "\\" in file:
        file, differences = file.replace("\\", "/"), {"with / instead of each backslash": None}
    folder = file
    missing: list[str] = []
    while not os.path.isdir(folder) and folder not in ("", "/"):
        folder, name = os.path.split(folder)
        missing.insert(0, name)
    try:
        relocation = _relocation(folder, missing)
        differences |= dict.fromkeys([relocation] if relocation else _differences(folder, missing))
    except (LookupError, OSError):
        return ""
    return f"{FOUND} {' and '.join(differences)}" if differences else ""


def _relocation(folder: str, missing: list[str]) -> str:
    """Return whether the file exists without its first missing folders, or within one more folder; blank if not."""
    for skipped in range(1, len(missing)):
        if os.path.isfile(os.path.join(folder, *missing[skipped:])):
            return f"without the first {f'{skipped} folders' if skipped > 1 else 'folder'} of its Path"
    below = _listing(folder or ".", os.stat(folder or ".").st_mtime_ns).folders
    if any(os.path.isfile(os.path.join(folder, name, *missing)) for name in below):
        return "in a folder that its Path omits"
    return ""


def _differences(folder: str, missing: list[str]) -> list[str]:
    """Return how the missing names, each inside the one before, differ from those of an existing file.

    Raises:
        LookupError: there is no such file.
        OSError: a folder cannot be read.
    """
    differences = []
    for name in missing:
        listing = _listing(folder or ".", os.stat(folder or ".").st_mtime_ns)
        plain = _plain(name)
        if plain in listing.names:
            other = listing.names[plain]
        elif name is missing[-1]:
            stem = os.path.splitext(plain)[0]
            other = listing.stems.get(plain) or listing.stems.get(stem) or listing.names[stem]
            differences.append("with another suffix (file extension)")
        else:
            raise LookupError
        ours, theirs = (unicodedata.normalize("NFC", text.strip()) for text in (name, other))
        if name.strip() != name or other.strip() != other:
            differences.append("with different spaces around its name")
        if ours != theirs and ours.casefold() == theirs.casefold():
            differences.append("with different upper and lower case")
        if ours != name.strip() or theirs != other.strip():
            differences.append("in another Unicode normal form (NFC or NFD)")
        folder = os.path.join(folder, other)
    if not os.path.isfile(folder):
        raise LookupError
    return differences


@lru_cache(maxsize=2)
def _listing(folder: str, _changed: int) -> _Listing:
    """Return the content of a folder, cached until it changes."""
    listing = _Listing({}, {}, [])
    with os.scandir(folder) as entries:
        for entry in islice(entries, _MOST_NAMES):
            plain = _plain(entry.name)
            listing.names[plain] = entry.name
            stem, suffix = os.path.splitext(plain)
            if suffix in IMAGE_SUFFIXES:
                listing.stems[stem] = entry.name
            if len(listing.folders) < _MOST_FOLDERS and entry.is_dir():
                listing.folders.append(entry.name)
    return listing


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name.strip()).casefold()
