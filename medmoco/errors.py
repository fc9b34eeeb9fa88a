"""The exceptions of medmoco, and the exit code of each.

    MedmocoError              1   base of all; never raised itself
    ├── SettingsError         2   a key, value or command-line argument that cannot be used
    ├── DataError             3   a manifest row or an image that cannot be used
    │   ├── ManifestError         the CSV itself: columns, cells, duplicates, paths
    │   └── ImageError            one file: missing, truncated, undecodable, too large
    ├── CheckpointError       4   a run folder or checkpoint that cannot be read or written
    ├── DivergedError         5   the loss is not finite
    ├── DistributedError      6   a process of the run that died, hangs or cannot be reached
    ├── UnexpectedError       1   a bug of medmoco or of a library
    └── Stopped              75   interrupted, saved, and resumable

A message says what happened, where (file, row or key), and what to do, in at most five lines. It contains row numbers
and settings keys, but never a patient ID or an image path.
"""

from __future__ import annotations

import pathlib
import re
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class MedmocoError(Exception):
    """Base of every error a user can cause; the command line prints it without a traceback.

    Examples:
        >>> import medmoco
        >>> try:
        ...     medmoco.load_config("no.yaml")
        ... except medmoco.MedmocoError as error:
        ...     print(error)
        settings file no.yaml does not exist
    """

    exit_code = 1


class SettingsError(MedmocoError):
    exit_code = 2

    def __init__(self, message: str = "", fix: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.fix = fix or {}  # settings that would help, such as {"data.workers": 1}


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
    """Return the first line of an exception's message, or its type if it has no message."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


# Messages of these exceptions are about shapes and memory, as those of torch; others may quote cells of a manifest.
_HARMLESS = (RuntimeError, MemoryError, TypeError, AttributeError, AssertionError, ImportError)
_NAMES = re.compile(r"(?<!\w)'[^']*'(?!\w)|\"[^\"]*\"|\S*[/\\]\S*")  # text that is quoted or looks like a path


def without_names(error: BaseException) -> str:
    """Return the type and message of an exception, without anything that may name a patient or a file."""
    kind = type(error).__name__
    if isinstance(error, OSError):
        return f"{kind}: {error.strerror}" if error.strerror else kind
    lines = str(error).strip().splitlines() if isinstance(error, _HARMLESS) else []
    if not lines:
        return kind
    # The message of a data worker's exception begins with "Caught" and ends with the original message.
    message = _NAMES.sub("...", lines[-1 if lines[0].startswith("Caught ") else 0])
    return message if message.startswith(f"{kind}: ") else f"{kind}: {message}"


# The part of a frame's path before this package, another one or the standard library, which may name a user or a
# project. Of a file elsewhere, only the name stays: a user's own folder may be called medmoco, too.
_INSTALLATION = re.compile(
    rf'(?<=  File ")(?:{re.escape(str(pathlib.Path(__file__).parents[1]))}[/\\](?=medmoco[/\\])'
    r'|[^"\n]*[/\\](?=(?:site-packages|dist-packages|python3\.\d+)[/\\])|[^"\n]*[/\\])'
)


def traceback_of(error: BaseException) -> str:
    """Return a traceback with its paths shortened to start at the package, and its message from `without_names`."""
    frames = [_INSTALLATION.sub("", frame, count=1) for frame in traceback.format_tb(error.__traceback__)]
    return "".join(["Traceback (most recent call last):\n", *frames, without_names(error)])
