"""Headers of all files and pixels of a sample."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from medmoco.config import DataSettings
from medmoco.starting.files import NO_IMAGE, decode_sample, duplicate_groups, read_file_headers
from tests.helpers.collections import write_image
from tests.helpers.dicom_files import RAMP12, save_dicom

DATA = DataSettings(manifest=Path(), root=".", canvas_size=32, workers=2)


def test_read_file_headers__of_every_format(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 0, height=50, width=70)
    write_image(tmp_path / "b.jpg", 1, colour=True)
    assert cv2.imwrite(str(tmp_path / "c.tif"), np.zeros((10, 20), np.uint16))
    save_dicom(tmp_path / "IM0001", RAMP12, PatientID="7", Modality="CR")
    headers = read_file_headers(tmp_path, ["a.png", "b.jpg", "c.tif", "IM0001"], 2)
    assert headers["Kind"].tolist() == ["PNG", "JPEG", "TIFF", "DICOM"]
    assert headers[["Width", "Height"]].to_numpy().tolist() == [[70, 50], [40, 48], [20, 10], [64, 64]]
    assert headers["Bits"].tolist() == [8, 8, 16, 12]
    assert headers["Photometric"].tolist() == ["MONOCHROME2", "RGB", "MONOCHROME2", "MONOCHROME2"]
    assert headers["PatientID"].tolist() == ["", "", "", "7"]
    assert set(headers["Fault"]) == {""}
    assert (headers["Size"] > 50).all()


def test_read_file_headers__gives_each_fault(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "old.bmp").write_bytes(b"BM" + bytes(200))
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "cut.png").write_bytes(write_image(tmp_path / "a.png", 0).read_bytes()[:20])
    np.save(tmp_path / "bands.npy", np.zeros((2, 3)))
    (tmp_path / "head.nii.gz").write_bytes(b"\x1f\x8b" + bytes(200))
    names = ["empty.png", "old.bmp", "notes.txt", "cut.png", "bands.npy", "missing.png", "head.nii.gz"]
    faults = read_file_headers(tmp_path, names, 2)["Fault"].tolist()
    expected = ["file is empty", "BMP", NO_IMAGE, "damaged", "NumPy array", "No such file", "NIfTI volume"]
    assert all(words in fault for words, fault in zip(expected, faults, strict=True)), faults


def test_decode_sample__a_damaged_file_costs_only_itself(tmp_path: Path) -> None:
    files = [str(write_image(tmp_path / f"{n}.png", n, colour=n == 3)) for n in range(5)]
    Path(files[1]).write_bytes(Path(files[1]).read_bytes()[:200])
    found = decode_sample(files, [1] * 5, DATA, most=4, least=2, seconds=60)
    assert (found.count, list(found.faults), found.readable, found.coloured) == (4, [1], 3, 1)
    assert 0 < found.seconds < 1
    assert {canvas.pixels.shape for canvas in found.canvases} == {(32, 32)}


def test_decode_sample__without_time_stops_at_the_least(tmp_path: Path) -> None:
    files = [str(write_image(tmp_path / f"{n}.png", n)) for n in range(8)]
    assert decode_sample(files, [1] * 8, DATA, most=8, least=3, seconds=0).count == 3


def test_decode_sample__gray_stored_as_rgb_has_no_colour(tmp_path: Path) -> None:
    gray = np.repeat(np.arange(48 * 40, dtype=np.uint16).reshape(48, 40, 1) // 8, 3, 2).astype(np.uint8)
    gray[..., 0] += 2  # as JPEG compression may change a channel
    assert cv2.imwrite(str(tmp_path / "a.png"), gray)
    assert decode_sample([str(tmp_path / "a.png")], [1], DATA, most=1, least=1, seconds=0).coloured == 0


def test_duplicate_groups__compares_the_content(tmp_path: Path) -> None:
    contents = [b"a" * 200_000, b"a" * 200_000, b"a" * 100_000 + b"b" + b"a" * 99_999, b"c"]
    for number, content in enumerate(contents):
        (tmp_path / str(number)).write_bytes(content)
    assert duplicate_groups(tmp_path, list("0123"), list(map(len, contents))) == [[0, 1]]
