"""What a file is, by its first bytes."""

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
    b"version https://git-lfs": "a Git LFS pointer in the place of the file; fetch the file with git lfs pull",
    b"<": "a web page or XML in the place of the file; fetch the file again",
}
"""How files start that are not read -> what they are, with a remedy if converting is not the right one."""


def kind_of_file(path: Path) -> Kind:
    """Tell the type of a file; see `kind_of`."""
    with path.open("rb") as stream:
        return kind_of(stream.read(132))


def kind_of(start: bytes) -> Kind:
    """Tell the file type from the first 132 bytes.

    Raises:
        Unreadable: of no type that is read; names the type if it is known, and the remedy.
    """
    if not start:
        raise Unreadable("the file is empty; fetch it again from where it came from")
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
    for magic, what in _OTHER_KINDS.items():
        if start.startswith(magic):
            raise Unreadable(what if ";" in what else f"{what}; convert it to PNG, TIFF or DICOM first")
    raise Unreadable(
        "neither PNG, JPEG, TIFF nor DICOM by its content; convert it to one of them\n"
        "(a DICOM file must have its 128-byte preamble)"
    )
