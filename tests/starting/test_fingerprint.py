"""The fingerprint of a collection."""

from __future__ import annotations

from pathlib import Path

from medmoco.starting.collection import Collection, collect
from medmoco.starting.fingerprint import describe, warnings_about
from medmoco.starting.machine import Machine
from medmoco.starting.sources import read_source
from tests.helpers.collections import write_image, write_images
from tests.helpers.dicom_files import RAMP12, save_dicom

MACHINE = Machine(2, 16 * 10**9, (), 10**9, has_amx=False)


def _collect(source: Path, patient: str | None = None) -> Collection:
    return collect(read_source(source, None, None), MACHINE, patient, 0, lambda _: None)


def test_describe__labels_by_split(tmp_path: Path) -> None:
    names = [f"{'AAAB'[n % 4]}/p{n}_1.png" for n in range(80)]
    lines = describe(_collect(write_images(tmp_path, names), patient=r"p(\d+)_")).splitlines()
    assert lines[:5] == [
        "            train      val     test",
        "images         56        8       16",
        "patients       56        8       16",
        "A             75%      75%      75%",
        "B             25%      25%      25%",
    ]


def test_describe__files_and_left_out(tmp_path: Path) -> None:
    save_dicom(tmp_path / "IM1", RAMP12, PatientID="secret-4711", Modality="CR")
    save_dicom(tmp_path / "IM2", RAMP12, PatientID="secret-4711", Modality="CR")
    (tmp_path / "IM2").write_bytes((tmp_path / "IM1").read_bytes())
    (tmp_path / "IM3").write_bytes((tmp_path / "IM1").read_bytes()[:3000])
    write_image(tmp_path / "film.png", 0, height=100, width=40)
    (tmp_path / "notes.txt").touch()
    text = describe(_collect(tmp_path))
    assert "format      2 x DICOM, 1 x PNG; 2 x 12 bit, 1 x 8 bit; MONOCHROME2" in text
    assert "width 40 to 64 (median 64), height 64 to 100 (median 64) pixels" in text
    assert "modality    2 x CR, 1 x not stated" in text
    assert "duplicates  1 file repeats the content of another one" in text
    assert "left out    1, listed in left_out.csv\n            1 x the DICOM file ends inside" in text
    assert "ignored     1 file that is not an image" in text
    assert "4711" not in text
    assert "IM" not in text


def test_describe__duplicates_in_two_splits(tmp_path: Path) -> None:
    names = [f"{split}/A/{n}.png" for split in ("train", "val", "test") for n in range(3)]
    write_images(tmp_path, [*names, "train/B/9.png"])
    (tmp_path / "test/A/0.png").write_bytes((tmp_path / "train/A/0.png").read_bytes())
    assert "1 file repeats the content of another one, 1 of them in another split" in describe(_collect(tmp_path))


def test_describe__fits_a_screen(tmp_path: Path) -> None:
    names = [f"finding {n % 15} with a name that is much longer than names of findings are/{n}.png" for n in range(60)]
    lines = describe(_collect(write_images(tmp_path, names))).splitlines()
    assert len(lines) < 24
    assert max(map(len, lines)) < 120
    assert "and 7 more labels" in lines


def test_warnings_about__images_of_extreme_shape_and_constant_ones(tmp_path: Path) -> None:
    for number in range(3):
        write_image(tmp_path / f"{number}.png", number, height=40, width=100)
    write_image(tmp_path / "3.png", 0, height=40, width=100).write_bytes((tmp_path / "0.png").read_bytes())
    found = _collect(tmp_path)
    assert "2.5 times as wide as high. Its canvas of" in warnings_about(found, found.shape.canvas)[0]


def test_warnings_about__doubtful_patient_ids(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{n}.png" for n in range(4)])
    (tmp_path / "all.csv").write_text("Path,PatientID\n0.png,nan\n1.png,nan\n2.png,3\n3.png,4\n")
    found = _collect(tmp_path / "all.csv")
    assert warnings_about(found, 128)[0].startswith("2 rows have a PatientID that means a missing value")
