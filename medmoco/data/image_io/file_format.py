"""Detect the type of a file from its first bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from medmoco.data.image_io.intensity import Unreadable

Kind = Literal["DICOM", "TIFF", "PNG", "JPEG", "NPY"]

_OTHER_KINDS = {
    b"SIMPLE  =": "a FITS file; convert it to .npy first, as docs/channels.md shows",
    b"\0\0\0\x0cjP": "a JPEG 2000 file",
    b"\xff\x4f\xff\x51": "a JPEG 2000 codestream",
    b"BM": "a BMP file",
    b"GIF8": "a GIF file",
    b"RIFF": "a WebP file",
    b"%PDF": "a PDF file",
    b"\x5c\x01\0\0": "a NIfTI file",
    b"\x1f\x8b": "compressed with gzip; unpack it",
    b"PK\3\4": "a ZIP archive; unpack it",
    b"version https://git-lfs": "a Git LFS pointer instead of the file; fetch the file with git lfs pull",
    b"<": "a web page or XML instead of the file; download the file again",
}
"""First bytes of unsupported files -> their type, with a remedy if it is not to convert them."""


def kind_of_file(path: Path) -> Kind:
    """Return the type of a file; see `kind_of`."""
    with path.open("rb") as stream:
        return kind_of(stream.read(132))


def kind_of(start: bytes) -> Kind:
    """Return the file type according to the first 132 bytes.

    Raises:
        Unreadable: the type is not supported; names it if it is known, and the remedy.
    """
    if not start:
        raise Unreadable("the file is empty; obtain it again from its source")
    if start[128:] == b"DICM":  # before TIFF, because a DICOM preamble may contain a TIFF header
        return "DICOM"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if start.startswith(b"\x93NUMPY"):
        return "NPY"
    for magic, what in _OTHER_KINDS.items():
        if start.startswith(magic):
            raise Unreadable(what if ";" in what else f"{what}; convert it to PNG, TIFF or DICOM first")
    raise Unreadable(
        "its content is not PNG, JPEG, TIFF or DICOM; convert it to one of them\n"
        "(a DICOM file must have its 128-byte preamble)"
    )
