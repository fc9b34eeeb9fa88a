"""Check that DICOM images of each transfer syntax can be decoded."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import UID

from medmoco.data.image_io.formats.dicom import DECODERS, read_dicom
from medmoco.data.image_io.intensity import Unreadable

_NATIVE = {
    "uncompressed": uid.ExplicitVRLittleEndian,
    "implicit": uid.ImplicitVRLittleEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
}
_ENCODED = {
    "RLE": uid.RLELossless,
    "JPEG baseline": uid.JPEGBaseline8Bit,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG-LS near-lossless": uid.JPEGLSNearLossless,
    "JPEG 2000 lossless": uid.JPEG2000Lossless,
    "JPEG 2000": uid.JPEG2000,
}
"""Syntaxes in which a test image can be written."""

_OTHERS = {
    "JPEG extended (8 bits)": uid.JPEGExtended12Bit,
    "JPEG lossless": uid.JPEGLossless,
    "JPEG lossless SV1": uid.JPEGLosslessSV1,
    "HTJ2K lossless": uid.HTJ2KLossless,
    "HTJ2K lossless RPCL": uid.HTJ2KLosslessRPCL,
    "HTJ2K": uid.HTJ2K,
}
"""Syntaxes for which no encoder is installed."""

_PACKAGES = {
    "gdcm": "python-gdcm",
    "pillow": "pillow",
    "pyjpegls": "pyjpegls",
    "pylibjpeg": "pylibjpeg pylibjpeg-openjpeg pylibjpeg-rle",
}
_TOLERANCE = 0.05  # of white, for lossy syntaxes


class Decoders(NamedTuple):
    """The transfer syntaxes by result."""

    decoded: list[str]  # of which a test image was decoded
    present: list[str]  # with a decoder that was not tried
    missing: dict[str, str]  # without a working decoder, and the packages that provide it


def check_decoders() -> Decoders:
    """Decode a small image in each transfer syntax for which an encoder is installed; look up the other decoders."""
    with tempfile.TemporaryDirectory() as folder:
        tried = {name: _decodes(Path(folder) / "image.dcm", syntax) for name, syntax in (_NATIVE | _ENCODED).items()}
    found = {name: DECODERS[syntax] in get_decoder(syntax).available_plugins for name, syntax in _OTHERS.items()}
    broken: dict[str, list[str]] = {}
    for name in (name for name, works in (tried | found).items() if not works):
        broken.setdefault(_package(name), []).append(name)
    return Decoders(
        [name for name, works in tried.items() if works],
        [name for name, works in found.items() if works],
        {", ".join(names): package for package, names in broken.items()},
    )


def _package(name: str) -> str:
    syntax = (_NATIVE | _ENCODED | _OTHERS)[name]
    return _PACKAGES[DECODERS[syntax]] if syntax in DECODERS else "pydicom"


def _decodes(file: Path, syntax: UID) -> bool:
    """Return whether an image that is written in a transfer syntax is read as it was."""
    pixels = (np.arange(32 * 32, dtype=np.uint8).reshape(32, 32) // 4).astype(np.uint8)
    try:
        _write(file, pixels, syntax)
        read = read_dicom(file, 1, "full", rgb=False).pixels
    except (Unreadable, RuntimeError, ImportError, NotImplementedError):
        return False
    white = np.iinfo(read.dtype).max
    return bool(np.abs(read / white - pixels / 255).max() < _TOLERANCE)


def _write(file: Path, pixels: np.ndarray[tuple[int, int], np.dtype[np.uint8]], syntax: UID) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian if syntax in _ENCODED.values() else syntax
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")  # secondary capture
    meta.MediaStorageSOPInstanceUID = UID("1.2.3.4")
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    if syntax == uid.JPEGBaseline8Bit:  # pydicom has no encoder for it, but Pillow has
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=95)
        dataset.PixelData = encapsulate([stream.getvalue()])
        dataset["PixelData"].is_undefined_length = True
        dataset["PixelData"].VR = "OB"
        meta.TransferSyntaxUID = syntax
    elif syntax in _ENCODED.values():
        lossy: dict[str, dict[str, Any]] = {uid.JPEG2000: {"j2k_cr": [5]}, uid.JPEGLSNearLossless: {"jls_error": 1}}
        dataset.compress(syntax, generate_instance_uid=False, **lossy.get(syntax, {}))
    dataset.save_as(file, enforce_file_format=True)
