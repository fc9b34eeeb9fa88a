"""What a file is, from its first bytes and its header: its kind, and how it stores pixels."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import pydicom
from PIL import Image

from medmoco.data.bands import npy_header
from medmoco.errors import ImageError

# TIFF tags
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_TIFF_COLORS = {0: "MONOCHROME1", 1: "MONOCHROME2", 2: "RGB", 3: "PALETTE COLOR"}
_PNG_COLORS = {0: "MONOCHROME2", 2: "RGB", 3: "PALETTE COLOR", 4: "MONOCHROME2", 6: "RGB"}
Kind = Literal["DICOM", "TIFF", "PNG", "JPEG", "NPY"]


class FileFormat(NamedTuple):
    """How a file stores its pixels.

    Attributes:
        kind: PNG, JPEG, TIFF, DICOM or NPY.
        bits: Stored per pixel and channel.
        photometric: What the pixel values mean, in DICOM's words; of NPY their type. Source: DICOM PS3.3 C.7.6.3.1.2.
    """

    kind: str
    bits: int
    photometric: str


def kind_of(start: bytes) -> Kind:
    """Tell the file type from the first 132 bytes."""
    if not start:
        raise ImageError("the file is empty; fetch it again from where it came from")
    if start[128:] == b"DICM":  # before TIFF, because a DICOM preamble may hold a TIFF header
        return "DICOM"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if start.startswith(b"\x93NUMPY"):
        return "NPY"
    if start.startswith(b"SIMPLE  ="):
        raise ImageError("a FITS file; convert it to .npy first, as docs/channels.md shows")
    raise ImageError(
        "neither PNG, JPEG, TIFF nor DICOM by its content; convert it to one of them\n"
        "(a DICOM file must have its 128-byte preamble)"
    )


def file_format(file: str | Path) -> FileFormat:
    """Look up what the header says of a file that `read_image` can read."""
    path = Path(file)
    with path.open("rb") as stream:
        start = stream.read(132)
    with quiet():
        kind = kind_of(start)
        if kind == "DICOM":
            header = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=["BitsStored", "PhotometricInterpretation"]
            )
            return FileFormat("DICOM", int(header.BitsStored), str(header.PhotometricInterpretation))
        if kind == "PNG":
            return FileFormat("PNG", start[24], _PNG_COLORS[start[25]])
        if kind == "NPY":
            dtype = npy_header(path)[1]
            return FileFormat("NPY", 8 * dtype.itemsize, dtype.name)
        with Image.open(path, formats=["JPEG", "TIFF"]) as image:
            if image.format == "JPEG":
                return FileFormat("JPEG", 8, "MONOCHROME2" if image.mode == "L" else "RGB")
            tags = image.tag_v2  # type: ignore[attr-defined]
            return FileFormat(
                "TIFF", max(tags.get(_BITS_PER_SAMPLE, (1,))), _TIFF_COLORS.get(tags[_PHOTOMETRIC], "RGB")
            )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' warnings off the console: they quote header values, which may identify a patient."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
