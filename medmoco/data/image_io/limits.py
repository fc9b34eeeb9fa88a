"""Checks before an image is decoded: that the file exists, and its number of bytes, pixels and frames."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medmoco.config import DataSettings
from medmoco.data.image_io.intensity import Admit, Unreadable, admit_all, quiet
from medmoco.data.manifest.file_checks import similar_file_hint
from medmoco.errors import ImageError


@dataclass(frozen=True)
class Limits:
    """Limits above which a file is refused; see the settings of the same names."""

    max_bytes: int = 2_000_000_000
    max_pixels: int = 100_000_000
    max_frames: int = 10_000
    max_voxels: int = 600_000_000

    @property
    def inflated_bytes(self) -> int:
        """Largest size to which a deflated file may inflate: 16-bit pixels and a long header."""
        return 2 * self.max_pixels + 2**24


DEFAULT_LIMITS = Limits()


def limits_of(data: DataSettings) -> Limits:
    """Return the limits in the settings."""
    return Limits(data.max_bytes, data.max_pixels, data.max_frames, data.max_voxels)


@contextmanager
def as_image_errors() -> Iterator[None]:
    """Silence the libraries that read files, and turn what goes wrong inside the block into `ImageError`.

    Raises:
        ImageError: the file cannot be read.
    """
    try:
        with quiet():
            yield
    except Unreadable as error:
        raise ImageError(str(error)) from None
    except OSError as error:
        raise ImageError(f"the file cannot be opened: {error.strerror}") from None


def check_file(path: Path, limits: Limits) -> None:
    """Refuse files that are too large or cannot be opened as regular files, such as pipes, which would block.

    Raises:
        ImageError: the file is refused.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        hints = ["the file does not exist", similar_file_hint(str(path)), "check the Path column and data.root"]
        raise ImageError("; ".join(filter(None, hints))) from None
    except OSError as error:
        raise ImageError(f"the file cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("the Path is a folder, a pipe or a device; correct the Path column")
    if status.st_size > limits.max_bytes:
        raise ImageError(
            f"its {status.st_size} bytes exceed data.max_bytes = {limits.max_bytes};\n"
            "raise the limit if the file is really that large"
        )


def check_size(width: int, height: int, limits: Limits) -> None:
    """Refuse an image whose header states an invalid or too large size."""
    try:
        admit_all(width, height, 1)
    except Unreadable as error:
        raise ImageError(str(error)) from None
    if width * height > limits.max_pixels:
        raise ImageError(
            f"its {width} x {height} pixels exceed data.max_pixels = {limits.max_pixels};\n"
            "raise the limit if the image is really that large"
        )


def within(limits: Limits) -> Admit:
    """Return a function that refuses an image if its header exceeds the limits."""

    def admit(width: int, height: int, frames: int) -> None:
        check_size(width, height, limits)
        if frames > limits.max_frames:
            raise ImageError(
                f"its {frames} frames exceed data.max_frames = {limits.max_frames};\n"
                "raise the limit if the file really has that many"
            )

    return admit
