"""What all data sets share, from a prepared table to the files and the text of README.md."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medmoco.datasets.preparation import BOXES, About, Prepared, add_header_columns, join, write
from medmoco.datasets.source import Source
from medmoco.errors import ManifestError
from tests.helpers.dicom_files import RAMP12, save_dicom

ABOUT = About("Made-up", "https://example.org", "no licence", images=200)


def make_table(rows: int = 200) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "A": generator.choice(["1.0", "0", "-1", ""], size=rows),
            "Note": "x",
            "Path": [f"images/{number:03d}.png" for number in range(rows)],
            "Age": generator.choice(["058Y", "7", "414", "", "nan"], size=rows),
            "Sex": generator.choice(["Male", "F", "Unknown"], size=rows),
            "PatientID": [f"{number:04d}" for number in generator.integers(80, size=rows)],
        },
        index=range(2, rows + 2),
    )


def go(tmp_path: Path, seed: int = 0, **changes: Any) -> dict[str, pd.DataFrame]:
    """Write the made-up data set and read it back; its source folder is tmp_path/source."""
    (tmp_path / "source").mkdir(exist_ok=True)
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    prepared = Prepared(**({"table": make_table(), "labels": ["A"]} | changes))
    print(write(ABOUT, prepared, Source(tmp_path / "source", out), seed=seed).text)
    files = {path.stem: pd.read_csv(path, dtype=str, keep_default_na=False) for path in out.glob("*.csv")}
    return files | {"page": (out / "README.md").read_text()}  # type: ignore[dict-item]


def test_write__columns_and_cells_in_the_projects_spelling(tmp_path: Path) -> None:
    files = go(tmp_path)
    together = pd.concat([files[name] for name in ("train", "val", "test")]).sort_values("Path", ignore_index=True)
    assert list(together) == ["Path", "PatientID", "Sex", "Age", "Note", "A"]
    given = make_table()
    assert together["A"].tolist() == given["A"].replace("1.0", "1").tolist()
    assert together["Sex"].tolist() == given["Sex"].map({"Male": "M", "F": "F", "Unknown": ""}).tolist()
    assert together["Age"].tolist() == given["Age"].replace({"058Y": "58", "414": "", "nan": ""}).tolist()
    assert f"{(given['Age'] == '414').sum()} ages are blank:" in files["page"]
    assert "200 images, as its makers published" in files["page"]
    assert "The source folder contained no images" in files["page"]
    assert "Nothing." in files["page"]
    assert "left_out" not in files


def test_write__by_patient_and_by_seed(tmp_path: Path) -> None:
    first, again, other = go(tmp_path), go(tmp_path), go(tmp_path, seed=1)
    pd.testing.assert_frame_equal(first["val"], again["val"])
    assert set(first["val"]["Path"]) != set(other["val"]["Path"])
    patients = [set(first[name]["PatientID"]) for name in ("train", "val", "test")]
    assert sum(map(len, patients)) == len(set.union(*patients))


def test_write__official_rows_stay(tmp_path: Path) -> None:
    table = make_table()
    official = table["PatientID"].map(lambda text: "test" if int(text) < 20 else "")
    files = go(tmp_path, table=table, official=official, shares={"val": 0.5})
    assert set(files["test"]["Path"]) == set(table["Path"][official == "test"])
    assert len(set(files["val"]["PatientID"])) == pytest.approx(len(set(table["PatientID"][official == ""])) / 2, abs=1)


def test_write__a_patient_in_two_official_splits_is_refused(tmp_path: Path) -> None:
    official = pd.Series(["train", "test"] * 100)
    with pytest.raises(ManifestError, match="rows both inside and outside the official split"):
        go(tmp_path, official=official)


def test_write__an_official_split_of_another_name_is_refused(tmp_path: Path) -> None:
    official = pd.Series(["test", "vla", np.nan] + [""] * 197)
    with pytest.raises(ManifestError, match="the official split of 2 rows is unknown"):
        go(tmp_path, official=official)


def test_write__missing_images_are_left_out_and_change_no_split(tmp_path: Path) -> None:
    whole = go(tmp_path)
    for number in range(0, 200, 3):
        file = tmp_path / "source" / f"part_{number % 4}" / "images" / f"{number:03d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    part = go(tmp_path)
    assert set(part["left_out"]["Reason"]) == {"image file not found in the source folder"}
    assert len(part["left_out"]) == 133
    assert "| image file not found in the source folder | 133 |" in part["page"]
    assert "67 of 200 image files were found" in part["page"]
    for name in ("train", "val", "test"):
        names = set(part[name]["Path"].str[-7:-4])
        assert names == {path[-7:-4] for path in whole[name]["Path"] if int(path[-7:-4]) % 3 == 0}
        assert all((tmp_path / "source" / path).is_file() for path in part[name]["Path"])


def test_write__the_wrong_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/holiday.jpg").touch()
    with pytest.raises(ManifestError, match="none of the 200 listed images is among the 1 image"):
        go(tmp_path)


def test_write__faults_and_second_rows_are_listed_with_reasons(tmp_path: Path) -> None:
    table = make_table()
    table.iloc[5] = table.iloc[4]
    faults = pd.Series(["", "", "a CT"] + [""] * 197, table.index)
    files = go(tmp_path, table=table, faults=faults)
    assert files["left_out"].to_dict("list") == {
        "Path": ["images/002.png", "images/004.png"],
        "Reason": ["a CT", "same image as in an earlier row"],
    }
    assert "images/" not in files["page"]
    with pytest.raises(ManifestError, match="no usable row"):
        go(tmp_path, faults=pd.Series("bad", table.index))


def test_write__boxes_follow_their_images(tmp_path: Path) -> None:
    boxes = pd.DataFrame([["images/000.png", "A", 1, 2, 3.5, 4], ["images/001.png", "A", 1, 2, 3, 4]])
    boxes.columns = ["Path", "Label", "x_min", "y_min", "x_max", "y_max"]
    (tmp_path / "source/deep").mkdir(parents=True)
    (tmp_path / "source/deep/000.png").touch()
    files = go(tmp_path, boxes=boxes)
    assert files["boxes"].to_dict("records") == [
        {"Path": "deep/000.png", "Label": "A", "x_min": "1", "y_min": "2", "x_max": "3.5", "y_max": "4"}
    ]
    assert "were not examined" in files["page"]


def test_write__images_examined_without_a_box_are_named(tmp_path: Path) -> None:
    boxes = pd.DataFrame([["images/000.png", "A", 1, 2, 3.5, 4]], columns=BOXES)
    files = go(tmp_path, boxes=boxes, examined=True)
    assert len(files["boxes"]) == 200
    assert files["boxes"].iloc[1].tolist() == ["images/001.png", "", "", "", "", ""]
    assert "Every image was examined" in files["page"]


def test_write__labels_of_any_kind(tmp_path: Path) -> None:
    table = make_table().assign(A=np.arange(200) % 2, B=np.arange(200) % 4 == 0, C=pd.array([1, None] * 100, "Int8"))
    files = go(tmp_path, table=table, labels=["A", "B", "C"])
    rows = files["train"]
    number = rows["Path"].str[-7:-4].astype(int)
    assert rows["A"].tolist() == (number % 2).astype(str).tolist()
    assert rows["B"].tolist() == (number % 4 == 0).astype(int).astype(str).tolist()
    assert rows["C"].tolist() == (number % 2).map({0: "1", 1: ""}).tolist()


def test_write__a_label_cell_that_is_none(tmp_path: Path) -> None:
    table = make_table()
    table.loc[[2, 3, 4], "A"] = ["2", "yes", "2"]
    with pytest.raises(ManifestError, match="label 'A' has 3 cells other than"):
        go(tmp_path, table=table)


def test_write__without_patients(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = go(tmp_path, table=make_table().drop(columns="PatientID"))["page"]
    assert "each image counts as a patient, so a person may be in two splits" in page
    assert "each image counts as a patient, so a person may be in two splits" in capsys.readouterr().out
    blank = make_table()
    blank.loc[2:11, "PatientID"] = ""
    assert "10 rows have no PatientID" in go(tmp_path, table=blank)["page"]


def test_join__adds_columns_and_refuses_a_key_twice() -> None:
    left, right = pd.DataFrame({"k": ["b", "a", "c"]}), pd.DataFrame({"k": ["a", "b"], "v": ["1", "2"]})
    assert join(left, right, "k")["v"].tolist() == ["2", "1", ""]
    with pytest.raises(ManifestError, match="1 rows repeat a k"):
        join(left, pd.concat([right, right.iloc[:1]]), "k")


def test_add_header_columns__where_images_are(tmp_path: Path) -> None:
    table = pd.DataFrame({"Path": ["x/a.dcm", "x/b.dcm"]}, index=[7, 5])
    source = Source(tmp_path / "none", tmp_path)
    source.folder.mkdir()
    assert list(add_header_columns(table, source)) == ["Path"]
    (tmp_path / "some").mkdir()
    save_dicom(tmp_path / "some/b.dcm", RAMP12, PatientAge="058Y", PatientSex="M", ViewPosition="AP")
    found = add_header_columns(table, Source(tmp_path / "some", tmp_path))
    assert found.loc[5, ["ViewPosition", "Sex", "Age"]].tolist() == ["AP", "M", "58"]
    assert found.loc[7, ["ViewPosition", "Sex", "Age"]].tolist() == ["", "", ""]
