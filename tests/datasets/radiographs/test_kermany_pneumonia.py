from __future__ import annotations

from pathlib import Path

from tests.helpers.dataset_files import go, put


def test_prepare__patients_from_names(tmp_path: Path) -> None:
    names = [f"train/PNEUMONIA/person{number}_bacteria_{number * 3}.jpeg" for number in range(1, 30)]
    names += [f"train/NORMAL/IM-{number:04d}-0001.jpeg" for number in range(1, 20)]
    names += ["test/NORMAL/NORMAL2-IM-0007-0001.jpeg", "test/PNEUMONIA/person1_virus_6.jpeg", "test/NORMAL/odd.jpeg"]
    names += ["val/PNEUMONIA/BACTERIA-1008087-0001.jpeg", "val/PNEUMONIA/VIRUS-1008087-0002.jpeg", "extra.png"]
    source = put(tmp_path / "source", {f"chest_xray/{name}": "" for name in names})
    put(source, {"chest_xray/chest_xray/train/NORMAL/IM-0001-0001.jpeg": "", "chest_xray/__MACOSX/._x.jpeg": ""})
    files = go("kermany_pneumonia", source)
    table = files["all"]
    assert len(table) == len(names) - 1
    patients = {name: table.loc[f"chest_xray/{name}", "PatientID"] for name in names[-6:-1]}
    assert list(patients.values()) == ["IM-0007", "person1", "", "1008087", "1008087"]
    row = table.loc["chest_xray/test/PNEUMONIA/person1_virus_6.jpeg"]
    assert row[["OfficialSplit", "Pneumonia", "Bacterial", "Viral"]].tolist() == ["test", "1", "0", "1"]
    assert row["Split"] == table.loc["chest_xray/train/PNEUMONIA/person1_bacteria_3.jpeg", "Split"]
    assert "2 patients are in more than one part" in files["page"]
    assert sorted(files["left_out"]["Reason"], reverse=True) == [
        "second copy of a file in the same split and class",
        "not in {train,val,test}/{NORMAL,PNEUMONIA}",
    ]
