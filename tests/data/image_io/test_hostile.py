"""Damaged and hostile files: every one ends in pixels or in our error, and none in a crash or a hang.

What training makes of each, the prepare.py of an export makes of it too.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from medmoco.data.image_io.images import read_image
from medmoco.data.image_io.intensity import GrayImage
from medmoco.data.image_io.limits import Limits
from medmoco.errors import ImageError
from medmoco.utils.guarded import Failure, map_guarded
from tests.data.image_io.test_images import png_chunk
from tests.helpers.dicom_files import RAMP12, refusal, save_dicom
from tests.helpers.mutations import dicom_seeds, mutated, plain_seeds, real_seeds
from tests.helpers.shipped import shipped

LIMITS = Limits(max_pixels=4_000_000)
ONLY_TRAINING = ("data.max_",)
"""Words of refusals that protect training, and that prepare.py does without."""


def outcomes(seeds: dict[str, bytes], cases: range, folder: Path) -> Iterator[tuple[str, int, str]]:
    """Read the mutations of every seed in two worker processes; yield seed, case, and "pixels" or the refusal."""

    def work(item: tuple[str, int]) -> str:
        name, case = item
        path = folder / str(os.getpid())
        path.write_bytes(mutated(seeds, name, case))
        frame, at_least = 1 + (case % 11 == 0), 16 if case % 2 else None
        try:
            image = read_image(path, limits=LIMITS, frame=frame, at_least=at_least)
        except ImageError as error:
            if not any(words in str(error) for words in ONLY_TRAINING):
                with pytest.raises(ValueError, match=f"^{re.escape(str(error))}$"):
                    shipped().gray(path, "voi", frame)
            return str(error)
        if not at_least:
            np.testing.assert_array_equal(shipped().gray(path, "voi", frame)[0], image.pixels)
        assert image.pixels.ndim == 2
        assert image.pixels.dtype == (np.uint8 if image.bits <= 8 else np.uint16)
        assert image.pixels.size <= LIMITS.max_pixels
        assert image.pixels.max() < 2**image.bits
        return "pixels"

    items = list(product(seeds, cases))
    for position, result in map_guarded(work, items, workers=2, seconds=20, megabytes=700):
        assert not isinstance(result, Failure), (items[position], result.reason)
        assert len(result.splitlines()) <= 3
        assert str(folder) not in result
        yield *items[position], result


def check_mixture(found: list[tuple[str, int, str]], seeds: dict[str, bytes]) -> None:
    """A fuzzer whose mutations are all refused at the door, or all harmless, tests nothing."""
    kinds = Counter(result for _, _, result in found)
    assert 0.1 < kinds["pixels"] / len(found) < 0.6
    assert len(kinds) > 10
    assert {name for name, _, _ in found} == set(seeds)


def test_read_image__mutated_files_end_in_pixels_or_our_error(tmp_path: Path) -> None:
    seeds = {**plain_seeds(), **dicom_seeds(tmp_path)}
    check_mixture(list(outcomes(seeds, range(15), tmp_path)), seeds)


@pytest.mark.slow
def test_read_image__thousands_of_mutated_files(tmp_path: Path) -> None:
    seeds = {**plain_seeds(), **dicom_seeds(tmp_path)}
    check_mixture(list(outcomes(seeds, range(15, 315), tmp_path)), seeds)


@pytest.mark.slow
def test_read_image__mutated_real_files(tmp_path: Path, shared: Path) -> None:
    seeds = real_seeds(shared)
    check_mixture(list(outcomes(seeds, range(150), tmp_path)), seeds)


# What the mutations found


@pytest.mark.parametrize("kind", ["filter", "deflate", "checksum"])
def test_png__damaged_rows_do_not_crash(tmp_path: Path, kind: str) -> None:
    """torchvision's decoder ends the process on any error inside the rows."""
    rows = bytearray(b"\0" + bytes(range(64))) * 64
    if kind == "filter":
        rows[65 * 30] = 9
    packed = bytearray(zlib.compress(rows))
    if kind == "deflate":
        packed[len(packed) // 2] ^= 0xFF
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0))
    data = png_chunk(b"IDAT", bytes(packed))
    if kind == "checksum":
        data = data[:-1] + bytes([data[-1] ^ 1])
    (tmp_path / "a").write_bytes(b"\x89PNG\r\n\x1a\n" + header + data + png_chunk(b"IEND", b""))
    assert "cannot be decoded" in refusal(tmp_path / "a")


def test_png__any_changed_byte_is_noticed(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 65536, (20, 20), dtype=np.uint16)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for at in range(8, len(whole), 7):
        (tmp_path / "a.png").write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        refusal(tmp_path / "a.png")


def test_dicom__run_lengths_that_overflow_are_refused(tmp_path: Path) -> None:
    """pylibjpeg-rle panics, which is no Exception."""
    dataset = pydicom.dcmread(save_dicom(tmp_path / "a", RAMP12))
    dataset.compress(RLELossless)
    segment = b"\x7f" + bytes(128) + b"\x81\x00" * 100
    frame = struct.pack("<16L", 2, 64, 64 + len(segment), *[0] * 13) + segment * 2
    dataset.PixelData = encapsulate([frame])
    dataset.save_as(tmp_path / "a")
    assert "RLE Lossless pixels cannot be decoded" in refusal(tmp_path / "a")


def test_dicom__gap_between_jpeg_segments_does_not_crash(tmp_path: Path) -> None:
    """GDCM ends the process on some of them."""
    seeds = dicom_seeds(tmp_path)
    for name in ("dicom-lossless", "dicom-baseline"):
        start = seeds[name].rindex(b"\xff\xc4")
        (tmp_path / "a").write_bytes(seeds[name])
        read_image(tmp_path / "a")
        (tmp_path / "a").write_bytes(seeds[name][:start] + bytes(30) + seeds[name][start + 30 :])
        assert "has no valid header" in refusal(tmp_path / "a")


def test_dicom__absurd_length_reserves_no_memory(tmp_path: Path) -> None:
    data = bytearray(save_dicom(tmp_path / "a", RAMP12, ICCProfile=b"12345678").read_bytes())
    struct.pack_into("<L", data, data.index(b"\x28\x00\x00\x20OB") + 8, 2**32 - 4)
    (tmp_path / "a").write_bytes(data)
    items = [tmp_path / "a"]
    ((_, result),) = map_guarded(read_image, items, workers=1, seconds=30, megabytes=500)
    assert isinstance(result, Failure)
    assert "contains no pixel data" in result.reason  # and not: more than 500 MB


# Bombs: small files that ask for much


def test_png__text_bomb(tmp_path: Path) -> None:
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(8_000_000)))
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:33] + text * 500 + data[33:])  # 4 GB of text in 4 MB
    ((_, result),) = map_guarded(read_image, [tmp_path / "a.png"], workers=1, seconds=30, megabytes=300)
    assert isinstance(result, GrayImage)  # the text is not inflated, which takes libpng ten seconds
    assert result.pixels.shape == (8, 8)


def test_jpeg__scan_bomb(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    for repeats, refused in ((900, False), (2000, True)):
        (tmp_path / "a.jpg").write_bytes(data[:-2] + data[last:-2] * repeats + b"\xff\xd9")
        for at_least in (None, 16):
            if refused:
                assert "scans" in refusal(tmp_path / "a.jpg", at_least=at_least)
            else:
                read_image(tmp_path / "a.jpg", at_least=at_least)


@pytest.mark.parametrize("big", [False, True])
def test_tiff__tags_that_repeat_the_file(tmp_path: Path, big: bool) -> None:
    filler = bytes(1_000_000)
    entries = 2000
    if big:
        start = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16 + len(filler))
        tags = b"".join(struct.pack("<HHQQ", 300 + tag, 1, len(filler), 16) for tag in range(entries))
        directory = struct.pack("<Q", entries) + tags + bytes(8)
    else:
        start = struct.pack("<2sHL", b"II", 42, 8 + len(filler))
        tags = b"".join(struct.pack("<HHLL", 300 + tag, 1, len(filler), 8) for tag in range(entries))
        directory = struct.pack("<H", entries) + tags + bytes(4)
    (tmp_path / "a.tif").write_bytes(start + filler + directory)
    assert "claim more bytes" in refusal(tmp_path / "a.tif")  # 2 GB


def test_tiff__directories_in_a_circle_and_too_many(tmp_path: Path) -> None:
    page = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page] * 4)
    assert "5 frames exceed data.max_frames = 4" in refusal(tmp_path / "a.tif", limits=Limits(max_frames=4))
    read_image(tmp_path / "a.tif", limits=Limits(max_frames=5), frame=5)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    first = struct.unpack_from("<L", data, 4)[0]
    after = first + 2 + 12 * struct.unpack_from("<H", data, first)[0]
    struct.pack_into("<L", data, after, first)
    (tmp_path / "a.tif").write_bytes(data)
    assert "directory that cannot be read" in refusal(tmp_path / "a.tif")


def test_tiff__directory_at_an_impossible_place(tmp_path: Path) -> None:
    for offset in (1000, 2**63 - 1, 2**63, 2**64 - 1):
        (tmp_path / "a.tif").write_bytes(struct.pack("<2sHHHQ", b"II", 43, 8, 0, offset))
        assert "directory that cannot be read" in refusal(tmp_path / "a.tif")


def test_tiff__giant_tile(tmp_path: Path) -> None:
    packed = zlib.compress(bytes(1000))
    tags = {256: 8, 257: 8, 258: 8, 259: 8, 262: 1, 277: 1, 322: 40_000, 323: 40_000, 324: 8, 325: len(packed)}
    directory = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    start = struct.pack("<2sHL", b"II", 42, 8 + len(packed))
    (tmp_path / "a.tif").write_bytes(start + packed + struct.pack("<H", len(tags)) + directory + bytes(4))
    assert "40000 x 40000 pixels exceed" in refusal(tmp_path / "a.tif")


def test_dicom__stream_larger_than_its_header(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64)).save(buffer, "JPEG2000", no_jp2=True)
    for width, height, words in ((60_000, 60_000, "60000 x 60000"), (64, 63, "64 x 63"), (64, 64, "")):
        stream = bytearray(buffer.getvalue())
        struct.pack_into(">2L", stream, stream.index(b"\xff\x51") + 6, width, height)
        dataset = pydicom.dcmread(save_dicom(tmp_path / "a", np.zeros((64, 64), np.uint8), 8))
        dataset.PixelData = encapsulate([bytes(stream)])
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000
        dataset.save_as(tmp_path / "a")
        if words:
            assert words in refusal(tmp_path / "a")
        else:
            read_image(tmp_path / "a")


def test_dicom__offset_table_does_not_lead_past_the_checks(tmp_path: Path) -> None:
    """The frame that is checked is the one that is decoded, also where an extended offset table names it."""
    frames = [cv2.imencode(".jpg", np.full((side, side), 90 + side, np.uint8))[1].tobytes() for side in (64, 128)]
    frames = [frame + b"\0" * (len(frame) % 2) for frame in frames]
    dataset = pydicom.dcmread(save_dicom(tmp_path / "a", np.zeros((64, 64), np.uint8), 8))
    dataset.PixelData = encapsulate(frames, has_bot=False)
    dataset.ExtendedOffsetTable = struct.pack("<Q", 8 + len(frames[0]))
    dataset.ExtendedOffsetTableLengths = struct.pack("<Q", len(frames[1]))
    dataset.NumberOfFrames = 1
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    dataset.save_as(tmp_path / "a")
    assert "128 x 128" in refusal(tmp_path / "a")
