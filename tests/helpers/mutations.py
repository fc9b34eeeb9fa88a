"""Files as they come, and the same damaged on purpose: a case is a seed's name and a number, and never changes."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import gdcm
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from tests.helpers.dicom_files import save_dicom, table

Mutation = Callable[[bytearray, np.random.Generator], None]

SMALL = 150_000
"""Bytes of the largest real file that is mutated: small ones hit headers more often."""

_INTERESTING = (
    0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 64, 127, 128, 255, 256, 2**15 - 1, 2**15, 2**16 - 2, 2**16 - 1,
    2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1,
)  # fmt: skip


def _film(depth: int, channels: int = 1) -> NDArray[np.uint16]:
    rng = np.random.default_rng(depth)
    smooth = cv2.resize(rng.random((6, 6, channels)), (70, 60), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    return (smooth * (2**depth - 1)).astype(np.uint16).reshape(60, 70, channels).squeeze()


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def plain_seeds() -> dict[str, bytes]:
    """Make PNG, JPEG and TIFF files."""
    shallow, deep = Image.fromarray(_film(8).astype(np.uint8)), Image.fromarray(_film(16))
    colour = Image.fromarray(_film(8, 3).astype(np.uint8))
    exif = Image.Exif()
    exif[274], exif[270] = 6, "made"
    pages = [shallow, shallow.rotate(90, expand=True)]
    return {
        "png8": _saved(shallow, "PNG", exif=exif),
        "png16": _saved(deep, "PNG"),
        "png-palette": _saved(colour.quantize(16), "PNG"),
        "png-alpha": _saved(colour.convert("RGBA"), "PNG"),
        "jpeg": _saved(shallow, "JPEG", exif=exif),
        "jpeg-progressive": _saved(shallow, "JPEG", progressive=True),
        "jpeg-colour": _saved(colour, "JPEG", subsampling=2, exif=exif, restart_marker_blocks=4),
        "tiff8": _saved(shallow, "TIFF", tiffinfo={274: 6}),
        "tiff16": _saved(deep, "TIFF", big_tiff=True),
        "tiff-lzw": _saved(deep, "TIFF", compression="tiff_lzw"),
        "tiff-deflate": _saved(shallow, "TIFF", compression="tiff_adobe_deflate"),
        "tiff-jpeg": _saved(colour, "TIFF", compression="jpeg"),
        "tiff-fax": _saved(shallow.convert("1"), "TIFF", compression="group4"),
        "tiff-pages": _saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]),
    }


def dicom_seeds(folder: Path) -> dict[str, bytes]:
    """Make DICOM files in nine transfer syntaxes, and with tables, colours, frames and functional groups."""
    path = folder / "seed.dcm"
    deep, shallow, colour = _film(12), _film(8).astype(np.uint8), _film(8, 3).astype(np.uint8)
    seeds = {}

    def keep(name: str, dataset: Dataset | None = None) -> None:
        if dataset is not None:
            dataset.save_as(path)
        seeds[f"dicom-{name}"] = path.read_bytes()

    plain = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
    for name, syntax in zip(("explicit", "implicit", "big", "deflated"), plain, strict=True):
        save_dicom(path, deep, syntax=syntax, WindowCenter=2048, WindowWidth=4096, RescaleSlope=2, RescaleIntercept=-9)
        keep(name)
    for name, syntax in {"rle": RLELossless, "j2k": JPEG2000Lossless, "jls": JPEGLSLossless}.items():
        dataset = pydicom.dcmread(save_dicom(path, deep))
        dataset.compress(syntax)
        keep(name, dataset)
    for name, syntax, kind in (("baseline", JPEGBaseline8Bit, "JPEG"), ("lossy-j2k", JPEG2000, "JPEG2000")):
        dataset = pydicom.dcmread(save_dicom(path, shallow, 8))
        options = {"no_jp2": True, "irreversible": True} if kind == "JPEG2000" else {}
        dataset.PixelData = encapsulate([_saved(Image.fromarray(shallow), kind, **options)])
        dataset.file_meta.TransferSyntaxUID = syntax
        keep(name, dataset)
    save_dicom(path, deep)
    _to_lossless_jpeg(path)
    keep("lossless")
    signed = (deep.astype(np.int32) - 2048).astype(np.int16)
    save_dicom(path, signed, ModalityLUTSequence=table(4, -2, 16, [1, 2, 4, 3]), PixelPaddingValue=-2048)
    keep("table")
    save_dicom(
        path, deep, VOILUTSequence=table(4096, 0, 12, list(range(4096))), PhotometricInterpretation="MONOCHROME1"
    )
    keep("voi")
    save_dicom(path, colour, 8, SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation="RGB")
    keep("rgb")
    window = Dataset()
    window.WindowCenter, window.WindowWidth = 100, 300
    group = Dataset()
    group.FrameVOILUTSequence = [window]
    frames = np.stack([deep, deep[::-1]])
    save_dicom(path, frames, NumberOfFrames=2, PerFrameFunctionalGroupsSequence=[group, group])
    keep("frames")
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    keep("frames-rle", dataset)
    return seeds


def _to_lossless_jpeg(path: Path) -> None:
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(path))
    assert writer.Write()


def real_seeds(shared: Path) -> dict[str, bytes]:
    """Return the small real DICOM files."""
    files = sorted((shared / "data/dicom").glob("*.dcm"))
    return {f"real-{file.stem}": file.read_bytes() for file in files if file.stat().st_size <= SMALL}


def mutated(seeds: dict[str, bytes], name: str, case: int) -> bytes:
    """Damage a seed in one to three ways; PNG checksums and deflated data are put right again, or none would pass."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), case])
    data = seeds[name]
    if name == "dicom-deflated":
        start = 144 + struct.unpack_from("<L", data, 140)[0]
        inside = bytearray(zlib.decompress(data[start:], -zlib.MAX_WBITS))
        _mutate(inside, rng)
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return data[:start] + deflater.compress(bytes(inside)) + deflater.flush()
    damaged = bytearray(data)
    if rng.random() < 0.1:
        other = seeds[sorted(seeds)[rng.integers(len(seeds))]]
        start, length = int(rng.integers(len(other))), int(rng.integers(1, 4096))
        at = int(rng.integers(len(damaged)))
        damaged[at : at + length * int(rng.integers(2))] = other[start : start + length]
    _mutate(damaged, rng)
    if name.startswith("png") and rng.random() < 0.8:
        return _with_right_checksums(bytes(damaged), rng)
    return bytes(damaged)


def _mutate(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 4)):
        if data:
            _MUTATIONS[rng.integers(len(_MUTATIONS))](data, rng)


def _place(data: bytearray, rng: np.random.Generator) -> int:
    """Pick a byte, as often in the first two kilobytes as elsewhere."""
    return int(rng.integers(min(len(data), 2048) if rng.random() < 0.5 else len(data)))


def _truncate(data: bytearray, rng: np.random.Generator) -> None:
    del data[_place(data, rng) :]


def _flip_bits(data: bytearray, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 9)):
        data[_place(data, rng)] ^= 1 << int(rng.integers(8))


def _overwrite(data: bytearray, rng: np.random.Generator) -> None:
    at, length = _place(data, rng), int(rng.integers(1, 65))
    data[at : at + length] = bytes([int(rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF]))]) * len(data[at : at + length])


def _edit_number(data: bytearray, rng: np.random.Generator) -> None:
    """Write a number as a length field might hold it: two, four or eight bytes, in either order."""
    at, width = _place(data, rng), int(rng.choice([1, 2, 2, 4, 4, 8]))
    number = int(rng.choice(_INTERESTING)) if rng.random() < 0.7 else int(rng.integers(2**32))
    new = (number % 2 ** (8 * width)).to_bytes(width, "little" if rng.random() < 0.5 else "big")
    data[at : at + width] = new[: len(data) - at]


def _edit_element(data: bytearray, rng: np.random.Generator) -> None:
    """Change the value or length of a DICOM image element (group 0028), or a marker's of a JPEG or J2K stream."""
    group = [b"\x28\x00", b"\x00\x28", b"\xe0\x7f", b"\xfe\xff", b"\xff"][rng.integers(5)]
    places = [at for at in range(len(data) - 16) if data.startswith(group, at)] if len(data) < 2**18 else []
    if places:
        at = int(rng.choice(places)) + int(rng.integers(1, 13))
        number = int(rng.choice(_INTERESTING)) % 65536
        data[at : at + 2] = number.to_bytes(2, "little" if rng.random() < 0.5 else "big")


def _delete(data: bytearray, rng: np.random.Generator) -> None:
    at = _place(data, rng)
    del data[at : at + int(rng.integers(1, 257))]


def _repeat(data: bytearray, rng: np.random.Generator) -> None:
    start, at = _place(data, rng), _place(data, rng)
    data[at:at] = data[start : start + int(rng.integers(1, 1025))]


def _move(data: bytearray, rng: np.random.Generator) -> None:
    start, at = _place(data, rng), _place(data, rng)
    piece = data[start : start + int(rng.integers(1, 1025))]
    data[at : at + len(piece)] = piece


_MUTATIONS: tuple[Mutation, ...] = (
    _truncate, _flip_bits, _flip_bits, _overwrite, _edit_number, _edit_number, _edit_element, _edit_element,
    _delete, _repeat, _move,
)  # fmt: skip


def _with_right_checksums(data: bytes, rng: np.random.Generator) -> bytes:
    """Rebuild a PNG chunk by chunk, sometimes with its pixels mutated inside the compressed stream."""
    out, position = bytearray(data[:8]), 8
    while position + 12 <= len(data):
        length = min(struct.unpack_from(">L", data, position)[0], len(data) - position - 12)
        kind, body = data[position + 4 : position + 8], data[position + 8 : position + 8 + length]
        if kind == b"IDAT" and rng.random() < 0.3:
            try:
                rows = bytearray(zlib.decompress(body))
                _mutate(rows, rng)
                body = zlib.compress(bytes(rows))
            except zlib.error:
                pass
        out += struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))
        position += 12 + length
    return bytes(out)
