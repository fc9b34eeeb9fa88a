"""DICOM files grouped into volumes, each kind of file and fault among them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from medmoco.datasets.prepare import prepare
from medmoco.datasets.series import GEOMETRY, volume_rows
from medmoco.datasets.source import Source
from tests.helpers.dicom_files import RAMP12, save_dicom
from tests.helpers.volume_files import CT, SAGITTAL, random_pixels, save_enhanced, save_series


@pytest.fixture
def source(tmp_path: Path) -> Source:
    folder = tmp_path / "source"
    folder.mkdir()
    usual = {"PatientID": "p", "StudyInstanceUID": "9", "PatientSex": "F", "SeriesDescription": "T1\0ax"}
    save_series(folder / "sound", random_pixels(), **usual, SeriesInstanceUID="1", PatientAge="030Y")
    save_series(folder / "sagittal", random_pixels(6), cosines=SAGITTAL, SeriesInstanceUID="2", Modality="MR")
    names = [f"other{number}" for number in range(5)]
    save_series(folder / "two", random_pixels(), SeriesInstanceUID="3", Modality="PT")
    save_series(folder / "two", random_pixels(), SeriesInstanceUID="4", names=names)
    save_series(folder / "spread", random_pixels(), SeriesInstanceUID="5")
    save_series(folder / "spread2", random_pixels(), SeriesInstanceUID="5")
    save_series(folder / "missing", random_pixels(9), SeriesInstanceUID="6")[4].unlink()
    save_series(folder / "patients", random_pixels(), SeriesInstanceUID="7", PatientID=lambda k: f"p{k % 2}")
    [file.unlink() for file in save_series(folder / "single", random_pixels(), SeriesInstanceUID="8")[1:]]
    save_enhanced(folder / "enhanced.dcm", random_pixels(), [(0, 0, 3.0 * k) for k in range(5)], SeriesInstanceUID="10")
    save_dicom(folder / "film.dcm", RAMP12, Modality="DX", SeriesInstanceUID="11")
    save_dicom(folder / "capture.dcm", RAMP12, Modality="CT", SOPClassUID=CT, SeriesInstanceUID="12")
    (folder / "notes.txt").write_text("x")
    return Source(folder, tmp_path / "out", workers=2, volumes=True)


def test_volume_rows__a_row_for_each_volume_with_its_geometry(source: Source) -> None:
    table = volume_rows(source).set_index("Path")
    sound = table[table["Fault"] == ""]
    assert sound.index.tolist() == ["enhanced.dcm", "sagittal", "sound", "two", "two"]
    assert sound["SeriesInstanceUID"].tolist() == ["10", "2", "1", "3", "4"]
    assert sound["Modality"].tolist() == ["MR", "MR", "CT", "PT", "CT"]
    assert sound.loc["sound", GEOMETRY].tolist() == ["5", "0.7", "0.8", "2.5"]
    assert sound.loc["sagittal", GEOMETRY].tolist() == ["6", "2.5", "0.7", "0.8"]  # in the order of RAS
    assert sound.loc["enhanced.dcm", GEOMETRY].tolist() == ["5", "0.7", "0.8", "3"]
    columns = ["PatientID", "StudyID", "Sex", "Age", "SeriesDescription", "SliceThickness"]
    assert sound.loc["sound", columns].tolist() == ["p", "9", "F", "30", "T1 ax", "9.0"]


def test_volume_rows__what_cannot_be_used_says_why(source: Source) -> None:
    table = volume_rows(source).set_index("Path")
    faults = table.loc[table["Fault"] != "", "Fault"].to_dict()
    assert {path: fault.split(";")[0].split(":")[0] for path, fault in faults.items()} == {
        ".": "its header lacks a valid ImagePositionPatient, so that its place in the patient is unknown",
        "film.dcm": "not part of a volume",
        "missing": "missing slices",
        "notes.txt": "the content is not DICOM",
        "patients": "its slices have several PatientIDs",
        "single": "single slice",
        "spread": "its slices are in 2 folders",
        "spread2": "its slices are in 2 folders",
    }
    assert faults["film.dcm"].endswith("its modality is DX, not CT, MR or PT")
    assert "\n" not in "".join(faults.values())


def test_volume_rows__do_not_depend_on_the_number_of_processes(source: Source) -> None:
    one = Source(source.folder, source.out, workers=1, volumes=True)
    pd.testing.assert_frame_equal(volume_rows(one), volume_rows(source))


def test_volume_rows__slices_in_the_source_folder_itself(tmp_path: Path) -> None:
    save_series(tmp_path / "source", random_pixels(), SeriesInstanceUID="1", PatientID="p")
    table = volume_rows(Source(tmp_path / "source", tmp_path / "out"))
    assert table[["Path", "Fault"]].to_numpy().tolist() == [[".", ""]]


def test_prepare__counts_reasons_without_their_numbers(source: Source) -> None:
    prepared = prepare("dicom_tree", source.folder, source.out, volumes=True, workers=1)
    assert prepared.left_out == 8
    page = (source.out / "README.md").read_text()
    assert "| missing slices | 1 |" in page
    assert "| its slices are in 2 folders | 2 |" in page
    assert "several modalities (CT, MR, PT): choose one with `data.where: 'Modality == \"CT\"'`" in page
    left_out = pd.read_csv(source.out / "left_out.csv", dtype=str, keep_default_na=False)
    assert left_out.columns.tolist() == ["Path", "SeriesInstanceUID", "Reason"]
    assert left_out.set_index("Path").loc["missing", "Reason"].startswith("missing slices: 1 slices are missing")
