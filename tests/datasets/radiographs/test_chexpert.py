from __future__ import annotations

from pathlib import Path

from medmoco.datasets.radiographs.chexpert import LABELS
from tests.helpers.dataset_files import go, labels, put

CHEXPERT_HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(LABELS) + "\n"


def chexpert_row(
    part: str, patient: int, view: str = "frontal", projection: str = "AP", cells: str = ",1.0,-1.0"
) -> str:
    blanks = "," * (13 - cells.count(","))
    place = f"CheXpert-v1.0-small/{part}/patient{patient:05d}/study2/view1_{view}.jpg"
    return f"{place},Female,{patient},{view.title()},{projection},{cells}{blanks}\n"


def chexpert_files() -> dict[str, str]:
    train = [chexpert_row("train", patient) + chexpert_row("train", patient, "lateral", "") for patient in range(1, 41)]
    train.append(chexpert_row("train", 41, "frontal", "LL", "0.0,,").replace("Female", "Unknown"))
    valid = [chexpert_row("valid", patient, cells=",".join(["0.0"] * 14)) for patient in range(50, 53)]
    return {"train.csv": CHEXPERT_HEADER + "".join(train), "valid.csv": CHEXPERT_HEADER + "".join(valid)}


def test_prepare__uncertain_and_blank_apart(tmp_path: Path) -> None:
    files = go("chexpert", put(tmp_path / "source", chexpert_files()))
    table = files["all"]
    assert len(table) == 84
    assert set(files["test"]["PatientID"]) == {"patient00050", "patient00051", "patient00052"}
    assert set(files["test"]["OfficialSplit"]) == {"valid"}
    assert files["val"]["PatientID"].nunique() == 4
    path = "train/patient00007/study2/view1_lateral.jpg"
    assert table.loc[path, ["StudyID", "ViewPosition", "Sex", "Age", "Frontal/Lateral"]].tolist() == [
        "patient00007/study2",
        "LATERAL",
        "F",
        "7",
        "Lateral",
    ]
    assert labels(table, path, LABELS[:4]) == ["", "1", "-1", ""]
    odd = table.loc["train/patient00041/study2/view1_frontal.jpg"]
    assert odd[["ViewPosition", "Sex", "No Finding"]].tolist() == ["LL", "", "0"]


def test_prepare__source_may_be_the_folder_above(tmp_path: Path) -> None:
    place = "CheXpert-v1.0-small"
    source = put(tmp_path / "source", {f"{place}/{name}": text for name, text in chexpert_files().items()})
    put(source, {f"{place}/train/patient{patient:05d}/study2/view1_frontal.jpg": "" for patient in range(1, 42)})
    files = go("chexpert", source)
    assert all((source / path).is_file() for path in files["all"].index)
    assert len(files["all"]) == 41
    assert len(files["left_out"]) == 43
