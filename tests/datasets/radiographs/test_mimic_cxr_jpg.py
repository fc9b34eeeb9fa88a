from __future__ import annotations

import gzip
from pathlib import Path

from medmoco.datasets.radiographs.mimic_cxr_jpg import LABELS
from tests.helpers.dataset_files import go, labels, put, refusal


def mimic_files(extra: str = "") -> dict[str, bytes]:
    people = [("10000032", "50414267", "02aa804e", "train", "PA"), ("10000033", "50414268", "174413ec", "validate", "")]
    people += [
        ("10000034", "50414269", "2a2277a9", "test", "LATERAL"),
        ("10000032", "50414270", "e084de3b", "train", "AP"),
    ]
    split = "dicom_id,study_id,subject_id,split\n" + "".join(f"{d},{s},{p},{part}\n" for p, s, d, part, _ in people)
    meta = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows\n"
    meta += "".join(f'{d},{p},{s},"CHEST (PA, LAT)",{view},3056\n' for p, s, d, _, view in people)
    found = "subject_id,study_id," + ",".join(sorted(LABELS)) + "\n"
    found += "".join(f"{p},{s},1.0,,-1.0,0.0{',' * 10}\n" for p, s, *_ in people[:3]) + extra
    texts = {"split": split, "metadata": meta, "chexpert": found}
    return {f"mimic-cxr-2.0.0-{name}.csv.gz": gzip.compress(text.encode()) for name, text in texts.items()}


def test_prepare__official_split_and_studies_without_labels(tmp_path: Path) -> None:
    files = go("mimic_cxr_jpg", put(tmp_path / "source", mimic_files()))
    assert [len(files[name]) for name in ("train", "val", "test")] == [2, 1, 1]
    table = files["all"]
    path = "files/p10/p10000033/s50414268/174413ec.jpg"
    assert table.loc[path, ["Split", "PatientID", "StudyID", "ViewPosition"]].tolist() == [
        "val",
        "10000033",
        "50414268",
        "",
    ]
    assert labels(table, path, sorted(LABELS)[:4]) == ["1", "", "-1", "0"]
    assert set(labels(table, "files/p10/p10000032/s50414270/e084de3b.jpg", LABELS)) == {""}
    twice = put(tmp_path / "twice", mimic_files(f"10000032,50414267{',' * 14}\n"))
    assert "1 rows repeat a study_id" in refusal("mimic_cxr_jpg", twice)
