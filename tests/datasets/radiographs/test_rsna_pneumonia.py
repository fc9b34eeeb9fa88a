from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from medmoco.datasets.radiographs.rsna_pneumonia import MAPPING
from tests.helpers.dataset_files import go, labels, put, refusal
from tests.helpers.dicom_files import RAMP12, save_dicom


def rsna_files() -> dict[str, str | bytes]:
    ids = [f"{number:04d}-aa" for number in range(40)]
    rows, classes = ["patientId,x,y,width,height,Target"], ["patientId,class"]
    for number, name in enumerate(ids):
        boxes = [f"{name},264.0,152.0,213.0,379.5,1", f"{name},562.0,152.0,256.0,453.0,1"]
        rows += boxes if number % 4 == 0 else [f"{name},,,,,0"]
        kind = "Lung Opacity" if number % 4 == 0 else "Normal" if number % 2 else "No Lung Opacity / Not Normal"
        classes += [f"{name},{kind}"] * (2 if number % 4 == 0 else 1)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("stage_2_train_labels.csv", "\n".join(rows) + "\n")
    mapping = [{"subset_img_id": name, "img_id": f"{number // 2:08d}_001.png"} for number, name in enumerate(ids)]
    return {
        "stage_2_train_labels.csv.zip": archive.getvalue(),
        "stage_2_detailed_class_info.csv": "\n".join(classes) + "\n",
        MAPPING: json.dumps(mapping),
    }


def test_prepare__classes_boxes_and_patients_by_the_mapping(tmp_path: Path) -> None:
    files = go("rsna_pneumonia", put(tmp_path / "source", rsna_files()), workers=1)
    table = files["all"]
    assert len(table) == 40
    assert (table["Pneumonia"] == "1").sum() == 10
    assert table["PatientID"].nunique() == 20
    assert labels(table, "stage_2_train_images/0004-aa.dcm", ["Pneumonia", "Normal", "Class"]) == [
        "1",
        "0",
        "Lung Opacity",
    ]
    assert labels(table, "stage_2_train_images/0001-aa.dcm", ["Pneumonia", "Normal"]) == ["0", "1"]
    assert labels(table, "stage_2_train_images/0002-aa.dcm", ["Pneumonia", "Normal"]) == ["0", "0"]
    assert len(files["boxes"]) == 20 + 30  # boxes, and images without any
    assert files["boxes"].iloc[0].tolist() == [
        "stage_2_train_images/0000-aa.dcm",
        "Pneumonia",
        "264",
        "152",
        "477",
        "531.5",
    ]


def test_prepare__headers_of_a_table_or_of_the_images(tmp_path: Path) -> None:
    source = put(tmp_path / "source", {name: text for name, text in rsna_files().items() if "mapping" not in name})
    (source / "stage_2_train_images").mkdir()
    for number in range(40):
        file = source / f"stage_2_train_images/{number:04d}-aa.dcm"
        save_dicom(file, RAMP12, PatientSex="F", PatientAge=f"{number:03d}Y", ViewPosition="AP")
    files = go("rsna_pneumonia", source, workers=1)
    row = files["all"].loc["stage_2_train_images/0021-aa.dcm"]
    assert row[["PatientID", "ViewPosition", "Sex", "Age"]].tolist() == ["0021-aa", "AP", "F", "21"]
    assert "a person may be in two splits" in files["page"]
    headers = ["PatientID,ViewPosition,PatientSex,PatientAge", *(f"{number:04d}-aa,PA,M,50" for number in range(40))]
    put(source, {"kaggle_stage_2_train_images_dicom_headers.csv": "\n".join(headers) + "\n"})
    assert set(go("rsna_pneumonia", source, workers=1)["all"]["ViewPosition"]) == {"PA"}


def test_prepare__a_mapping_that_is_none(tmp_path: Path) -> None:
    source = put(tmp_path / "source", {**rsna_files(), MAPPING: '[{"id": 1}]'})
    assert "not the list of subset_img_id" in refusal("rsna_pneumonia", source)
