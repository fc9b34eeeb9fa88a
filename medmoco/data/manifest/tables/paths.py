"""Path cells of other systems: backslashes, and absolute paths below `data.root`."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import pandas as pd

from medmoco.data.manifest.csv_file import CsvFile


def with_slashes(file: CsvFile) -> CsvFile:
    """Return a table whose Paths have / where they had the backslashes of Windows."""
    if "Path" not in file.table:
        return file
    return _changed(file, slashed)


def below_root(file: CsvFile, root: str, splits: Sequence[str] | str) -> CsvFile:
    """Return a table in which absolute Paths below the root are relative to it; see `relative`."""
    return _changed(file, partial(relative, root=root, splits=splits))


def slashed(paths: list[str]) -> list[str]:
    """Return paths with / where they had the backslashes of Windows."""
    if "\\" not in "\n".join(paths):  # one search of the whole column is much faster than one for each row
        return paths
    return [path.replace("\\", "/") for path in paths]


def relative(paths: list[str], root: str, splits: Sequence[str] | str) -> list[str]:
    """Return paths, those that are absolute and below the root relative to it.

    Args:
        paths: N paths with /.
        root: `data.root`.
        splits: Split of each path, or of all, for a root with {split}.
    """
    if "\n/" not in "\n".join(["", *paths]):
        return paths
    own = [splits] * len(paths) if isinstance(splits, str) else splits
    roots = {split: _spellings(root.replace("{split}", split)) for split in dict.fromkeys(own)}
    return [_relative(path, roots[split]) for path, split in zip(paths, own, strict=True)]


def _changed(file: CsvFile, change: Callable[[list[str]], list[str]]) -> CsvFile:
    paths = file.table["Path"].tolist()
    cells = change(paths)
    if cells is paths:
        return file
    return replace(file, table=file.table.assign(Path=pd.Series(cells, file.table.index, dtype=str)))


def _spellings(root: str) -> tuple[str, ...]:
    """Return the ways to write a root as the start of an absolute path."""
    return tuple(
        dict.fromkeys(os.path.join(path, "") for path in (root, os.path.abspath(root), os.path.realpath(root)))
    )


def _relative(path: str, roots: tuple[str, ...]) -> str:
    if path.startswith("/"):
        for root in roots:
            if path.startswith(root) and len(path) > len(root):
                return path[len(root) :].lstrip("/")
    return path


def path_fault(path: str) -> str:
    """Return what is wrong with a Path; blank if nothing is."""
    path = path.strip().replace("\\", "/")
    if not path:
        return "Path is blank; fill it or remove the row"
    if path.startswith("/"):
        return (
            "Path is absolute and not below data.root; set data.root to a folder that contains all images:\n"
            "absolute Paths below it are read, and others must be relative to it"
        )
    if path[:1].isalpha() and path[1:2] == ":":
        return (
            f"Path is absolute, on the Windows drive {path[:2]}, which does not exist here;\n"
            "remove the drive and the folders that data.root stands for, so that Paths are relative to it"
        )
    if posixpath.normpath(path).split("/")[0] == "..":
        return "Path leaves data.root by '..'; move data.root up instead"
    return ""
