"""PNG and JPEG files, written chunk by chunk and marker by marker: what their headers say, and what becomes of it."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from medmoco.data.image_io.formats.dicom import check_codestream
from medmoco.data.image_io.formats.png_jpeg import check_jpeg, jpeg_header, orientation_of
from medmoco.data.image_io.intensity import GrayImage, Unreadable
from medmoco.data.image_io.limits import DEFAULT_LIMITS
from medmoco.detection.sizes import image_size
from tests.helpers.both import read_both

FRAME_HEADER = struct.pack(">HBHHB", 11, 8, 5, 7, 1) + b"\1\x11\0"


def saved(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(35, dtype=np.uint8).reshape(5, 7)).save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


@pytest.mark.parametrize("progressive", [False, True])
def test_check_jpeg__end(progressive: bool) -> None:
    data = saved("JPEG", progressive=progressive)
    thumbnail = data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(data)) + data + data[2:]
    filled = data[:2] + b"\xff" + data[2:]
    for whole in (data, data + bytes(9), data + b"\xff\xda more", data + data[:-2], thumbnail, filled):
        check_jpeg(whole, jpeg_header(whole))
    for cut in (data[:-1], data[:-2], data[:-5], thumbnail[:-2], data[:3], data[:20]):
        with pytest.raises(Unreadable, match=r"no end|header cannot be read"):
            check_jpeg(cut, jpeg_header(cut))


@pytest.mark.parametrize(
    "stream",
    [
        saved("JPEG"),
        saved("JPEG", progressive=True),
        saved("JPEG2000", no_jp2=True),
        saved("JPEG2000"),  # inside boxes
        b"\xff\xd8\xff\xf7"
        + struct.pack(">HBHHB", 11, 8, 5, 7, 1)
        + b"\1\x11\0"
        + b"\xff\xda\0\x02..\xff\xd9",  # JPEG-LS
        b"\xff\xd8\xff\xff\xff\xc3" + FRAME_HEADER + b"\xff\xda\xff\xd9",  # fill
    ],
)
def test_check_codestream__size(stream: bytes) -> None:
    check_codestream(stream, 7, 5, 1)
    check_codestream(stream + bytes(13), 7, 5, 1)
    for size in ((7, 6, 1), (8, 5, 1), (5, 7, 1), (7, 5, 3)):
        with pytest.raises(Unreadable, match=f"states {size[0]} x {size[1]} pixels of {size[2]} sample"):
            check_codestream(stream, *size)
    with pytest.raises(Unreadable, match="ends inside"):
        check_codestream(stream[:-2], 7, 5, 1)


@pytest.mark.parametrize(
    "start", [b"", b"\xff\xd8", b"\xff\xd8\xff\xda", b"\xff\xd8\xff\xe0\0\1\0\0", b"\xff\x4f\xff\x51\0"]
)
def test_check_codestream__says_nothing(start: bytes) -> None:
    with pytest.raises(Unreadable, match="has no valid header"):
        check_codestream(start + b"\xff\xd9", 7, 5, 1)


# Orientation: as Pillow turns the same file, whichever way it is written down


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">L", len(body)) + name + body + struct.pack(">L", zlib.crc32(name + body))


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return exif.tobytes()


def xmp_of(orientation: int) -> bytes:
    return f"<x:xmpmeta><rdf:Description tiff:Orientation='{orientation}'/></x:xmpmeta>".replace("'", '"').encode()


def raw_profile(orientation: int) -> bytes:
    digits = exif_of(orientation).hex()
    lines = "\n".join(digits[start : start + 72] for start in range(0, len(digits), 72))
    return f"\nexif\n{len(digits) // 2:8}\n{lines}\n".encode()


WAYS = {
    "eXIf": lambda turn: png_chunk(b"eXIf", exif_of(turn).removeprefix(b"Exif\0\0")),
    "tEXt": lambda turn: png_chunk(b"tEXt", b"Raw profile type exif\0" + raw_profile(turn)),
    "zTXt": lambda turn: png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw_profile(turn))),
    "iTXt": lambda turn: png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp_of(turn)),
}


@pytest.mark.parametrize("after", [False, True], ids=["before the pixels", "behind them"])
@pytest.mark.parametrize("way", sorted(WAYS))
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_image__orientation_of_png(tmp_path: Path, orientation: int, way: str, after: bool) -> None:
    data, chunk = saved("PNG"), WAYS[way](orientation)
    at = len(data) - 12 if after else 33
    (tmp_path / "a.png").write_bytes(data[:at] + chunk + data[at:])
    check_upright(tmp_path / "a.png")


@pytest.mark.parametrize("way", ["exif", "xmp", "both"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_read_image__orientation_of_jpeg(tmp_path: Path, orientation: int, way: str) -> None:
    data, segment = saved("JPEG", quality=95), b""
    if way in ("exif", "both"):
        segment += app1(exif_of(orientation))
    if way in ("xmp", "both"):
        segment += app1(b"http://ns.adobe.com/xap/1.0/\0" + xmp_of(orientation if way == "xmp" else 9 - orientation))
    (tmp_path / "a.jpg").write_bytes(data[:2] + segment + data[2:])
    check_upright(tmp_path / "a.jpg")


def app1(body: bytes) -> bytes:
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


def check_upright(file: Path) -> None:
    found = read_both(file)
    assert isinstance(found, GrayImage)
    with Image.open(file) as picture:
        expected = np.asarray(ImageOps.exif_transpose(picture))
    np.testing.assert_array_equal(found.pixels, expected)
    assert image_size(file, 1, DEFAULT_LIMITS)[:2] == expected.shape


@settings(max_examples=150, deadline=None)
@given(exif=st.binary(max_size=80), xmp=st.binary(max_size=60))
def test_orientation_of__any_bytes(exif: bytes, xmp: bytes) -> None:
    for start in (b"", b"Exif\0\0II*\0\x08\0\0\0", b"Exif\0\0MM\0*\0\0\0\x08"):
        assert 1 <= orientation_of(start + exif, b"tiff:Orientation=" + xmp) <= 8


# Transparent levels of PNG files without an alpha channel


@settings(max_examples=120, deadline=None)
@given(bits=st.sampled_from([1, 2, 4, 8, 16]), rgb=st.booleans(), level=st.integers(0, 65535), seed=st.integers(0, 9))
def test_read_image__transparent_level(
    tmp_path_factory: pytest.TempPathFactory, bits: int, rgb: bool, level: int, seed: int
) -> None:
    bits = max(bits, 8) if rgb else bits
    rows = np.random.default_rng(seed).integers(0, 2**bits, (8, 16, 3 if rgb else 1))
    rows[rows == 3] = 0
    samples = rows[..., :1].repeat(rows.shape[2], 2)
    packed = samples.astype(">u2" if bits == 16 else np.uint8)
    lines = packed.reshape(8, -1)
    if bits < 8:
        unpacked = (lines[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        lines = np.packbits(unpacked.reshape(8, -1).astype(np.uint8), axis=1)
    level %= 2**bits
    header = png_chunk(b"IHDR", struct.pack(">LLBBBBB", 16, 8, bits, 2 if rgb else 0, 0, 0, 0))
    key = png_chunk(b"tRNS", struct.pack(f">{rows.shape[2]}H", *[level] * rows.shape[2]))
    pixels = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines)))
    file = tmp_path_factory.getbasetemp() / "a.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + header + key + pixels + png_chunk(b"IEND", b""))
    found = read_both(file)
    if (samples[..., 0] == level).any():
        assert "transparent" in str(found)
    else:
        assert isinstance(found, GrayImage)
        assert found.pixels.shape == (8, 16)


# JPEG files that are whole and are not read


def test_read_image__names_codings_that_are_not_read(tmp_path: Path) -> None:
    data = saved("JPEG")
    at = data.index(b"\xff\xc0")
    for changed, words in (
        (b"\xff\xc3" + data[at + 2 : at + 4] + b"\x08", "lossless JPEG"),
        (b"\xff\xc1" + data[at + 2 : at + 4] + b"\x0c", "JPEG of 12 bits"),
        (b"\xff\xf7" + data[at + 2 : at + 4] + b"\x08", "JPEG-LS"),
        (b"\xff\xc9" + data[at + 2 : at + 4] + b"\x08", "coding process C9"),
    ):
        (tmp_path / "a.jpg").write_bytes(data[:at] + changed + data[at + 5 :])
        found = str(read_both(tmp_path / "a.jpg"))
        assert words in found
        assert "damaged" not in found
    Image.fromarray(np.zeros((5, 7, 4), np.uint8), "CMYK").save(tmp_path / "a.jpg")
    assert "CMYK" in str(read_both(tmp_path / "a.jpg"))
