from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmoco.config import DataSettings
from medmoco.data.manifest.manifest import Split, load_manifest, present_splits
from medmoco.errors import ManifestError

PLAIN = "Path,PatientID,StudyID\na,1,s1\nb,2,s2\nc,3,\nd,4,s9\n"
LABELS = 'Study,A,Note\n s2 ,yes,"x, y"\n\ns1,no,\ns7,yes,z\n,no,z\n'
ON = {"on": "StudyID", "columns": {"StudyID": "Study"}}
YES = {"A": {"map": {"yes": 1, "no": 0}}}


def load(folder: Path, table: str = PLAIN, second: str = LABELS, labels: Any = YES, **join: Any) -> Split:
    (folder / "train.csv").write_text(table)
    (folder / "labels.csv").write_text(second)
    tree = {"manifest": folder, "root": "r", "labels": labels, "join": {"file": folder / "labels.csv", **(join or ON)}}
    return load_manifest(DataSettings.model_validate(tree), ["train"])["train"]


def refusal(folder: Path, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ManifestError) as caught:
        load(folder, *args, **kwargs)
    assert len(str(caught.value).splitlines()) <= 5
    return str(caught.value)


def test_join__adds_the_columns_of_the_partner(tmp_path: Path) -> None:
    split = load(tmp_path)
    np.testing.assert_array_equal(split.labels[:, 0], [0, 1, np.nan, np.nan])
    assert split.table["Note"].tolist() == ["", "x, y", "", ""]
    assert split.table["StudyID"].tolist() == ["s1", "s2", "", "s9"]
    assert split.notices == (
        "2 of 4 rows of train.csv have no partner in labels.csv; its columns are blank for them",
        "2 of 4 rows of labels.csv have no partner in train.csv and are not used",
    )


def test_join__the_second_table_identifies_the_data_too(tmp_path: Path) -> None:
    first = load(tmp_path)
    assert load(tmp_path).sha256 == first.sha256
    assert load(tmp_path, second=LABELS.replace("no", "yes")).sha256 != first.sha256
    plain = DataSettings.model_validate({"manifest": tmp_path, "root": "r"})
    assert load_manifest(plain, ["train"])["train"].sha256 not in (first.sha256, "")


def test_join__on_several_columns_and_paths_of_windows(tmp_path: Path) -> None:
    second = "Path,Set,A\nx\\a,1,1\nx\\a,2,0\n"
    split = load(tmp_path, "Path,Set\nx/a,2\nx/b,1\n", second, ["A"], on=["Path", "Set"])
    np.testing.assert_array_equal(split.labels[:, 0], [0, np.nan])


def test_join__the_split_may_come_from_the_second_table(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("Path\na\nb\nc\n")
    (tmp_path / "splits.csv").write_text("Path,Split\nc,val\nb,train\na,train\n")
    tree = {"manifest": tmp_path / "all.csv", "root": "r", "join": {"file": tmp_path / "splits.csv", "on": "Path"}}
    data = DataSettings.model_validate(tree)
    assert present_splits(data) == ("train", "val")
    splits = load_manifest(data, ("train", "val"))
    assert [splits[name].rows.tolist() for name in splits] == [[2, 3], [4]]


def test_join__a_column_in_both_tables(tmp_path: Path) -> None:
    table = "Path,Age,A\na,5,1\nb,6,0\n"
    same = load(tmp_path, table, "Path,Age\na,5\nb,6\n", ["A"], on="Path")
    assert len(same.notices) == 1  # about patients
    other = load(tmp_path, table, "Path,Age\na,5\nb,7\n", ["A"], on="Path")
    assert other.table["Age"].tolist() == ["5", "6"]
    assert (
        other.table_notices[0]
        == "train.csv and labels.csv have different cells of 'Age' in 1 rows; those of train.csv are used"
    )
    message = refusal(tmp_path, table, "Path,A\na,1\nb,1\n", ["A"], on="Path")
    assert "train.csv: row 3: the label column 'A' is also in labels.csv, with another cell" in message
    chosen = {"A": {"column": "New"}}
    split = load(tmp_path, table, "Path,A\na,1\nb,1\n", chosen, on="Path", columns={"New": "A"})
    assert split.labels[:, 0].tolist() == [1, 1]


def test_join__a_label_cell_is_refused_with_its_own_file_and_row(tmp_path: Path) -> None:
    message = refusal(tmp_path, second=LABELS.replace("yes", "perhaps", 1))
    assert "labels.csv: row 2: 'perhaps' is not in data.labels.A.map" in message


@pytest.mark.parametrize(
    ("second", "join", "words"),
    [
        (LABELS + "s2,no,\n", ON, "labels.csv: rows 2 and 7 have the same StudyID;\n"),
        (LABELS + "s2,no,\ns1,no,\n", ON, "rows 2 and 7 have the same StudyID (2 such rows)"),
        (LABELS, {"on": "Study"}, "train.csv: no column 'Study'"),
        (LABELS, {"on": "StudyID"}, "labels.csv: no column 'StudyID'"),
        (LABELS, {"on": "StudyID", "columns": {"StudyID": "Studi"}}, "which data.join.columns.StudyID names"),
        ("Study,A\n01,yes\n", ON, "no row has the StudyID of a row of train.csv"),
        ("Study,A\n", ON, "no row has the StudyID of a row of train.csv"),
    ],
)
def test_join__refused(tmp_path: Path, second: str, join: dict[str, Any], words: str) -> None:
    message = refusal(tmp_path, second=second, **join)
    assert re.search(re.escape(words), message)
    assert "s2" not in message.replace("labels.csv", "")
