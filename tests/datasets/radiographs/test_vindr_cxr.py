from __future__ import annotations

from pathlib import Path

from tests.helpers.dataset_files import go, labels, put


def test_prepare__majority_of_three_readers(tmp_path: Path) -> None:
    rows = ["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"]
    for number in range(30):
        rows += [f"n{number:02d},No finding,14,R{reader},,,," for reader in (1, 2, 3)]
    rows += ["two,Cardiomegaly,3,R8,1,2,3.5,4", "two,Cardiomegaly,3,R9,1,2,3,5", "two,ILD,5,R10,7,8,9,10"]
    rows += [
        "one,ILD,5,R8,1,1,2,2",
        "one,ILD,5,R8,3,3,4,4",
        "one,Cardiomegaly,3,R9,1,2,3,4",
        "one,No finding,14,R10,,,,",
        "half,ILD,5,R8,1,1,2,2",
        "half,No finding,14,R10,,,,",
    ]
    text = "\n".join(rows) + "\n"
    files = go("vindr_cxr", put(tmp_path / "source", {"train.csv": text}), workers=1)
    table = files["all"]
    assert len(table) == 33
    names = ["Cardiomegaly", "ILD", "No finding"]
    assert labels(table, "train/two.dicom", names) == ["1", "0", "0"]
    assert labels(table, "train/two.dicom", [f"{name} readers" for name in names]) == ["2", "1", "0"]
    assert labels(table, "train/one.dicom", names) == ["0", "0", "0"]
    assert labels(table, "train/one.dicom", [f"{name} readers" for name in names]) == ["1", "1", "1"]
    assert labels(table, "train/half.dicom", names) == ["0", "0", "0"]
    assert labels(table, "train/n00.dicom", names) == ["0", "0", "1"]
    assert "PatientID" not in table
    assert len(files["boxes"]) == 7 + 30  # boxes, and images without any
    assert files["boxes"].iloc[0].tolist() == ["train/two.dicom", "Cardiomegaly", "1", "2", "3.5", "4", "R8"]


def test_prepare__physionets_tables_keep_the_official_test(tmp_path: Path) -> None:
    marks = ["image_id,rad_id,Cardiomegaly,Other diseases,No finding"]
    for number in range(20):
        marks += [
            f"i{number:02d},R{reader},{int(reader <= number % 4)},0,{int(reader > number % 4)}" for reader in (1, 2, 3)
        ]
    drawn = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\ni01,R1,Cardiomegaly,1,2,3,4\ni00,R1,No finding,,,,\n"
    source = put(tmp_path / "source", {
        "annotations/image_labels_train.csv": "\n".join(marks) + "\n",
        "annotations/image_labels_test.csv": "image_id,Cardiomegaly,Other disease,No finding\nt1,1,1,0\nt2,0,0,1\n",
        "annotations/annotations_train.csv": drawn,
        "annotations/annotations_test.csv": "image_id,class_name,x_min,y_min,x_max,y_max\nt1,Cardiomegaly,5,6,7,8\n",
    })  # fmt: skip
    files = go("vindr_cxr", source, workers=1)
    assert sorted(files["test"]["Path"]) == ["test/t1.dicom", "test/t2.dicom"]
    names = ["Cardiomegaly", "Other diseases", "No finding", "Cardiomegaly readers"]
    assert labels(files["all"], "test/t1.dicom", names) == ["1", "1", "0", ""]
    assert labels(files["all"], "train/i02.dicom", names) == ["1", "0", "0", "2"]
    assert labels(files["all"], "train/i01.dicom", names) == ["0", "0", "1", "1"]
    assert sorted(files["boxes"]["Reader"])[-2:] == ["R1", "consensus"]
    assert (files["boxes"]["Label"] == "").sum() == 22 - 2
