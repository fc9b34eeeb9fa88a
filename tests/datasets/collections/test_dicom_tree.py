from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.helpers.dataset_files import go, put
from tests.helpers.dicom_files import RAMP12, save_dicom


def test_prepare__headers_frames_and_what_is_no_image(tmp_path: Path) -> None:
    source = put(tmp_path / "source", {"notes.txt": "x", "a/.hidden": ""})
    for patient in range(20):
        for image in range(2):
            file = source / f"a/p{patient}/{image}"  # no suffix
            file.parent.mkdir(parents=True, exist_ok=True)
            save_dicom(file, RAMP12, StudyInstanceUID=f"1.{patient}", PatientAge="058Y", PatientSex="M")
            tags = {"PatientID": f"00{patient}"} if patient else {"PatientID": None}
            save_dicom(file, RAMP12, StudyInstanceUID=f"1.{patient}", PatientAge="058Y", PatientSex="M", **tags)
    save_dicom(source / "cine.dcm", np.stack([RAMP12] * 3), NumberOfFrames=3, PatientID="c")
    files = go("dicom_tree", source, workers=2)
    table = files["all"].reset_index()
    assert len(table) == 43
    assert table[table["Path"] == "cine.dcm"]["Frame"].tolist() == ["1", "2", "3"]
    row = table[table["Path"] == "a/p7/1"].iloc[0]
    assert row[["Frame", "PatientID", "StudyID", "Sex", "Age", "Rows"]].tolist() == ["1", "007", "1.7", "M", "58", "64"]
    assert table[table["PatientID"] == ""]["Split"].nunique() == 1  # one study
    assert files["left_out"].to_numpy().tolist() == [["notes.txt", "the content is not DICOM"]]
    assert "4711" not in files["page"]
    assert "2 rows have no PatientID" in files["page"]
