"""DICOM headers to columns: what is read, what is refused, and that no file costs more than its row."""

import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medmoco.datasets import headers
from medmoco.datasets.headers import COLUMNS, read_headers, years
from tests.helpers.dicom_files import RAMP12, save_dicom


def read(file: Path) -> "pd.Series[str]":
    return read_headers(file.parent, [file.name], 1).iloc[0]


def test_read_headers__tags_to_columns(tmp_path: Path) -> None:
    tags = {
        "PatientSex": "F", "PatientAge": "058Y", "ViewPosition": "PA", "StudyInstanceUID": "1.2.3", "Modality": "DX",
        "SeriesInstanceUID": "1.2.3.1", "BodyPartExamined": "CHEST", "Manufacturer": " Maker\n", "Laterality": "L",
        "PatientName": "Secret^Name",
    }  # fmt: skip
    found = read(save_dicom(tmp_path / "a.dcm", RAMP12, **tags))
    assert found.to_dict() == {
        "PatientID": "secret-4711", "StudyID": "1.2.3", "SeriesID": "1.2.3.1", "ViewPosition": "PA", "Sex": "F",
        "Modality": "DX", "BodyPart": "CHEST", "Manufacturer": "Maker", "Rows": "64", "Columns": "64",
        "BitsStored": "12", "Photometric": "MONOCHROME2", "Laterality": "L", "Age": "58", "Frames": "1",
        "Syntax": "Explicit VR Little Endian", "Fault": "",
    }  # fmt: skip
    assert list(found.index) == [*COLUMNS, "Fault"]


def test_read_headers__age_from_dates(tmp_path: Path) -> None:
    dates = {"PatientBirthDate": "20001231", "StudyDate": "20201230"}
    assert read(save_dicom(tmp_path / "a.dcm", RAMP12, **dates))["Age"] == "19"
    dates["StudyDate"] = "20201231"
    assert read(save_dicom(tmp_path / "a.dcm", RAMP12, **dates))["Age"] == "20"
    assert read(save_dicom(tmp_path / "a.dcm", RAMP12, PatientAge="006M", **dates))["Age"] == "0"
    dates["PatientBirthDate"] = "18001231"
    assert read(save_dicom(tmp_path / "a.dcm", RAMP12, **dates))["Age"] == ""


def test_read_headers__pixels_are_not_needed(tmp_path: Path) -> None:
    file = save_dicom(tmp_path / "a.dcm", RAMP12)
    file.write_bytes(file.read_bytes()[:-8000])
    assert read(file)["Fault"] == ""


@pytest.mark.parametrize("workers", [1, 2])
def test_read_headers__one_row_per_file_in_order(tmp_path: Path, workers: int) -> None:
    names = [f"{number}.dcm" for number in range(7)]
    for number, name in enumerate(names):
        save_dicom(tmp_path / name, RAMP12, StudyInstanceUID=f"1.{number}")
    (tmp_path / "3.dcm").write_text("not DICOM")
    found = read_headers(tmp_path, names, workers)
    assert found["StudyID"].tolist() == ["1.0", "1.1", "1.2", "", "1.4", "1.5", "1.6"]
    assert found["Fault"].tolist() == ["", "", "", "the content is not DICOM", "", "", ""]


def test_read_headers__faults(tmp_path: Path) -> None:
    assert "No such file" in read(tmp_path / "absent.dcm")["Fault"]
    segmentation = save_dicom(tmp_path / "a.dcm", RAMP12, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    assert read(segmentation)["Fault"] == "a segmentation, not an image"
    assert "frames" in read(save_dicom(tmp_path / "b.dcm", RAMP12, NumberOfFrames=2**31 - 1))["Fault"]
    report = save_dicom(tmp_path / "c.dcm", RAMP12)
    dataset = pydicom.dcmread(report)
    del dataset.Rows, dataset.PixelData
    dataset.save_as(report)
    assert "no image inside" in read(report)["Fault"]


def test_read_headers__damaged_bytes_cost_one_row_and_say_no_id(tmp_path: Path) -> None:
    whole = save_dicom(tmp_path / "a.dcm", RAMP12, PatientAge="058Y").read_bytes()
    generator = np.random.default_rng(0)
    header = whole.index(b"secret-4711") + 200
    names = []
    for number in range(300):
        content = bytearray(whole[: int(generator.integers(100, header))] if number % 3 == 0 else whole)
        for position in generator.integers(132, min(header, len(content)) if len(content) > 132 else 133, size=4):
            if position < len(content):
                content[position] = generator.integers(256)
        names.append(f"{number}.dcm")
        (tmp_path / names[-1]).write_bytes(content)
    found = read_headers(tmp_path, names, 1)
    assert len(found) == 300
    faults = found["Fault"][found["Fault"] != ""]
    assert 50 < len(faults) < 300
    assert not faults.str.contains("4711").any()
    assert set(faults.str.count("\n")) == {0}


def test_read_headers__odd_values_are_taken_as_they_are_and_not_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = save_dicom(tmp_path / "a.dcm", RAMP12, PatientSex="F", PatientAge="058Y")
    odd = file.read_bytes().replace(b"058Y", b"4711").replace(b"secret-4711", b"secret\\4711")
    (tmp_path / "b.dcm").write_bytes(odd)
    for workers in (1, 2):
        found = read_headers(tmp_path, ["b.dcm", "a.dcm"], workers)
        assert found["Fault"].tolist() == ["", ""]
        assert found["Age"].tolist() == ["", "58"]
        assert found["PatientID"].tolist() == ["secret", "secret-4711"]
    assert "4711" not in "".join(capfd.readouterr())


def test_read_headers__deflated_files_are_inflated_no_further_than_a_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.zeros((4000, 4000), np.uint16)  # 32 MB of zeros in 32 KB
    file = save_dicom(tmp_path / "a.dcm", pixels, syntax=DeflatedExplicitVRLittleEndian, PatientAge="007Y")
    assert file.stat().st_size < 50_000
    largest, original = [], zlib.decompressobj

    class Watched:
        def __init__(self, bits: int) -> None:
            self.inflater = original(bits)

        def decompress(self, data: bytes, limit: int) -> bytes:
            plain = self.inflater.decompress(data, limit)
            largest.append(len(plain))
            return plain

    monkeypatch.setattr(headers.zlib, "decompressobj", Watched)
    found = read(file)
    assert (found["Rows"], found["Age"], found["Fault"]) == ("4000", "7", "")
    assert found["Syntax"] == "Deflated Explicit VR Little Endian"
    assert largest == [2**24]


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("058Y", "58"), ("057", "57"), ("57", "57"), ("011M", "0"), ("012M", "1"), ("023M", "1"), ("104W", "1"),
        ("105W", "2"), ("364D", "0"), ("366D", "1"), ("45yrs", "45"), ("2 months", "0"), ("7.9", "7"), ("000Y", "0"),
        ("120", "120"), ("121", ""), ("414", ""), ("", ""), ("nan", ""), ("-3", ""), ("Y", ""), ("5 8", ""),
    ],
)  # fmt: skip
def test_years__odd_units(text: str, age: str) -> None:
    assert years(text) == age


def test_read_headers__real_files(shared: Path) -> None:
    index = pd.read_csv(shared / "data/dicom/index.csv", dtype=str, keep_default_na=False)
    found = read_headers(shared / "data/dicom", index["file"].tolist(), 2)
    images = (found["Fault"] == "").to_numpy()
    assert set(index["file"][~images]) == {"liver_1frame.dcm", "rtdose.dcm"}
    for column, theirs in {"Rows": "rows", "Columns": "cols", "Modality": "modality", "ViewPosition": "view"}.items():
        assert (found[column].to_numpy() == index[theirs])[images].all(), column
