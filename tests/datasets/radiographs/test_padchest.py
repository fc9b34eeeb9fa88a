from __future__ import annotations

import gzip
from pathlib import Path

from medmoco.datasets.radiographs.padchest import TABLE
from tests.helpers.dataset_files import go, labels, put


def padchest_table() -> str:
    columns = (
        ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,MethodLabel,Labels,"
        "labelCUIS\n"
    )
    cells = {
        0: "\"['normal']\"", 1: "\"['pneumonia', ' pneumonia', 'COPD signs']\"", 2: "\"[' pneumonia', '']\"", 3: "nan",
        4: "\"['exclude', 'nodule']\"", 5: '"[]"', 6: "\"['x'\"",
    }  # fmt: skip
    rows = [
        f"{number},{number}_a.png,{number % 3},20140915,s{number},00{number // 2},{'' if number == 8 else '1930.0'},"
        f"{'nan' if number == 9 else 'F'},{'EXCLUDE' if number == 7 else 'PA'},Physician,{cells.get(number, cells[0])},"
        f"\"['C1'\n 'C2']\"\n"
        for number in range(40)
    ]
    return columns + "".join(rows)


def test_prepare__labels_of_multi_line_rows(tmp_path: Path) -> None:
    files = go("padchest", put(tmp_path / "source", {f"{TABLE}.gz": gzip.compress(padchest_table().encode())}))
    table = files["all"]
    assert len(table) == 38
    assert sorted(files["left_out"]["Path"]) == ["1/4_a.png", "1/7_a.png"]
    names = ["COPD signs", "nodule", "normal", "pneumonia"]
    assert list(table.columns)[-5:-1] == names
    assert labels(table, "1/1_a.png", names) == ["1", "0", "0", "1"]
    assert labels(table, "2/2_a.png", names) == ["0", "0", "0", "1"]
    for unknown in ("0/3_a.png", "2/5_a.png", "0/6_a.png"):
        assert labels(table, unknown, names) == ["", "", "", ""]
    assert table.loc["0/0_a.png", ["PatientID", "StudyID", "ViewPosition", "Sex", "Age"]].tolist() == [
        "000",
        "s0",
        "PA",
        "F",
        "84",
    ]
    assert table.loc["2/8_a.png", "Age"] == ""
    assert table.loc["0/9_a.png", "Sex"] == ""
