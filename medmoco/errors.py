"""Everything medmoco refuses, and the exit code each refusal ends with.

    MedmocoError              1   base of all; never raised itself
    ├── SettingsError         2   a key, value or command-line argument that cannot be used
    ├── DataError             3   a manifest row or an image that cannot be used
    │   ├── ManifestError         the CSV itself: columns, cells, duplicates, paths
    │   └── ImageError            one file: missing, truncated, undecodable, too large
    ├── CheckpointError       4   a run folder or checkpoint that cannot be read or written
    ├── DivergedError         5   the loss is not finite
    ├── DistributedError      6   a process of the run that is gone, hangs or cannot be met
    └── Stopped              75   interrupted, saved, and resumable

A message says what happened, where (file, row or key), and what to do, in at most five lines. It carries row numbers
and settings keys; a patient id or an image path is never part of it.
"""

from __future__ import annotations


class MedmocoError(Exception):
    """Base of every error a user can cause; the command line prints it without a traceback."""

    exit_code = 1


class SettingsError(MedmocoError):
    exit_code = 2


class DataError(MedmocoError):
    exit_code = 3


class ManifestError(DataError):
    pass


class ImageError(DataError):
    pass


class CheckpointError(MedmocoError):
    exit_code = 4


class DivergedError(MedmocoError):
    exit_code = 5


class DistributedError(MedmocoError):
    exit_code = 6


class Stopped(MedmocoError):
    exit_code = 75


def first_line(error: BaseException) -> str:
    """Return what a library's exception says in one line; its type where it says nothing."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
