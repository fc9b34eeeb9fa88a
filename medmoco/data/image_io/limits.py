"""What is refused before anything is decoded: no file, too many bytes, pixels or frames."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from medmoco.config import DataSettings
from medmoco.data.image_io.intensity import Admit, Unreadable, admit_all
from medmoco.data.manifest.file_checks import near_miss
from medmoco.errors import ImageError


@dataclass(frozen=True)
class Limits:
    """Above which a file is refused; the settings of these names say why."""

    max_bytes: int = 2_000_000_000
    max_pixels: int = 100_000_000
    max_frames: int = 10_000

    @property
    def inflated_bytes(self) -> int:
        """To which a deflated file may inflate: 16-bit pixels and a long header."""
        return 2 * self.max_pixels + 2**24


DEFAULT_LIMITS = Limits()


def limits_of(data: DataSettings) -> Limits:
    """Return the limits that the settings ask for."""
    return Limits(data.max_bytes, data.max_pixels, data.max_frames)


def check_file(path: Path, limits: Limits) -> None:
    """Refuse what cannot be opened as a file, or is too large; a pipe would wait for ever.

    Raises:
        ImageError: see above.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        hints = ["the file does not exist", near_miss(str(path)), "check the Path column and data.root"]
        raise ImageError("; ".join(filter(None, hints))) from None
    except OSError as error:
        raise ImageError(f"the file cannot be opened: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("the Path cannot be opened: it is a folder, a pipe or a device; correct the Path column")
    if status.st_size > limits.max_bytes:
        raise ImageError(
            f"{status.st_size} bytes are more than data.max_bytes = {limits.max_bytes};\n"
            "raise it if the file is meant to be that large"
        )


def check_size(width: int, height: int, limits: Limits) -> None:
    """Refuse an image by the size in its header."""
    try:
        admit_all(width, height, 1)
    except Unreadable as error:
        raise ImageError(str(error)) from None
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{width} x {height} pixels are more than data.max_pixels = {limits.max_pixels};\n"
            "raise it if the image is meant to be that large"
        )


def within(limits: Limits) -> Admit:
    """Return what refuses an image that is larger than the limits, or has very many frames, by its header."""

    def admit(width: int, height: int, frames: int) -> None:
        check_size(width, height, limits)
        if frames > limits.max_frames:
            raise ImageError(
                f"{frames} frames are more than data.max_frames = {limits.max_frames};\n"
                "raise it if the file is meant to have that many"
            )

    return admit
