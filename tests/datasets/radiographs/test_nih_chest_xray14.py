from __future__ import annotations

from pathlib import Path

import pytest

from medmoco.datasets.radiographs.nih_chest_xray14 import LABELS
from tests.helpers.dataset_files import go, labels, nih_files, put, refusal


@pytest.mark.parametrize("older", [False, True])
def test_prepare__official_test_list_and_val_by_patient(tmp_path: Path, older: bool) -> None:
    files = go("nih_chest_xray14", put(tmp_path / "source", nih_files(older)))
    assert set(files["test"]["PatientID"]) == {f"{patient:08d}" for patient in range(1, 7)}
    assert files["val"]["PatientID"].nunique() in (2, 3)
    table = files["all"]
    assert len(table) == 60
    row = table.loc["images/00000003_001.png"]
    assert row[["PatientID", "StudyID", "ViewPosition", "Sex"]].tolist() == ["00000003", "00000003-005", "PA", "F"]
    assert labels(table, "images/00000003_001.png", ["Pneumonia", "Effusion", "Hernia", "No Finding"]) == list("1100")
    assert labels(table, "images/00000004_000.png", ["Pneumonia", "No Finding"]) == ["0", "1"]
    ages = [table.loc[f"images/{patient:08d}_000.png", "Age"] for patient in (4, 1, 2, 3)]
    assert ages == (["58", "0", "0", ""] if older else ["58", "0", "0", "95"])
    assert list(table.columns)[-16:-1] == LABELS
    box = files["boxes"].iloc[0].tolist()
    assert box == ["images/00000003_001.png", "Infiltration", "225.085", "547.019", "311.585", "626.269"]
    assert "60 images; its makers published 112,120" in files["page"]


def test_prepare__twelve_folders(tmp_path: Path) -> None:
    source = put(tmp_path / "source", nih_files(older=False))
    names = [f"{patient:08d}_{image:03d}.png" for patient in range(1, 31) for image in (0, 1)]
    put(source, {f"images_{number % 12 + 1:03d}/images/{name}": "" for number, name in enumerate(names)})
    files = go("nih_chest_xray14", source)
    assert all((source / path).is_file() for path in files["all"].index)
    assert files["boxes"]["Path"].tolist() == ["images_006/images/00000003_001.png"]


def test_prepare__refusals(tmp_path: Path) -> None:
    files = nih_files(older=False)
    without = {name: text for name, text in files.items() if name != "test_list.txt"}
    assert "no test_list.txt in this folder" in refusal("nih_chest_xray14", put(tmp_path / "a", without))
    wrong = put(tmp_path / "b", {**files, "test_list.txt": "x.png\n"})
    assert "none of its files is in Data_Entry_2017" in refusal("nih_chest_xray14", wrong)
    name = "Data_Entry_2017_v2020.csv"
    odd = put(tmp_path / "c", {**files, name: files[name].replace("Pneumonia|", "Pneumonis|")})
    assert "'Pneumonis' is not one of the 15" in refusal("nih_chest_xray14", odd)
