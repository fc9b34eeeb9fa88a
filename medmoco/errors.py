"""Everything medmoco refuses, and the exit code each refusal ends with.

    MedmocoError              1   base of all; never raised itself
    ├── SettingsError         2   a key, value or command-line argument that cannot be used
    ├── DataError             3   a manifest row or an image that cannot be used
    │   ├── ManifestError         the CSV itself: columns, cells, duplicates, paths
    │   └── ImageError            one file: missing, truncated, undecodable, too large
    ├── CheckpointError       4   a run folder or checkpoint that cannot be read or written
    ├── DivergedError         5   the loss is not finite
    ├── DistributedError      6   a process of the run that is gone, hangs or cannot be met
    ├── UnexpectedError       1   what medmoco did not foresee: a bug of its own or of a library
    └── Stopped              75   interrupted, saved, and resumable

A message says what happened, where (file, row or key), and what to do, in at most five lines. It carries row numbers
and settings keys; a patient id or an image path is never part of it.
"""

from __future__ import annotations

import re
import traceback


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


class UnexpectedError(MedmocoError):
    pass


class Stopped(MedmocoError):
    exit_code = 75


def first_line(error: BaseException) -> str:
    """Return what a library's exception says in one line; its type where it says nothing."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


# What others' exceptions say is shown where it is of shapes and memory, as that of torch; not where it may be of cells.
_HARMLESS = (RuntimeError, MemoryError, TypeError, AttributeError, AssertionError, ImportError)
_NAMES = re.compile(r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|\S*[/\\]\S*")  # what is quoted or looks like a path


def without_names(error: BaseException) -> str:
    """Return the type of an exception, and what it says without anything that may name a patient or a file."""
    kind = type(error).__name__
    if isinstance(error, OSError):
        return f"{kind}: {error.strerror}" if error.strerror else kind
    lines = str(error).strip().splitlines() if isinstance(error, _HARMLESS) else []
    if not lines:
        return kind
    # An exception of a data worker begins with "Caught", and ends with what it was.
    said = _NAMES.sub("...", lines[-1 if lines[0].startswith("Caught ") else 0])
    return said if said.startswith(f"{kind}: ") else f"{kind}: {said}"


# What precedes the package or the standard library in a frame's path, which may name a user or a project.
_INSTALLATION = re.compile(
    r'(?<=  File ")(?:[^"\n]*[/\\](?=(?:medmoco|site-packages|dist-packages|python3\.\d+)[/\\])|[^"\n]*[/\\])'
)


def traceback_of(error: BaseException) -> str:
    """Return a traceback, which ends as `without_names` says, and whose files are named from their package on."""
    frames = [_INSTALLATION.sub("", frame, count=1) for frame in traceback.format_tb(error.__traceback__)]
    return "".join(["Traceback (most recent call last):\n", *frames, without_names(error)])
