from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from medmoco.config import RESERVED_COLUMNS
from medmoco.data.manifest.columns import meaning
from medmoco.data.manifest.tables.naming import as_setting, renamed, renamed_if_there
from medmoco.errors import ManifestError

FILE = Path("t.csv")
TABLE = pd.DataFrame({"Image Index": ["a", " b "], "Dir": ["1", "2"], "A": ["x", "y"], "StudyID": ["", " "]}, dtype=str)


def test_reserved_columns__have_a_meaning() -> None:
    assert [meaning(name) for name in RESERVED_COLUMNS] == [(name, 0) for name in RESERVED_COLUMNS]


def test_renamed__columns_keep_their_place() -> None:
    table = renamed(FILE, TABLE, {"Path": "Image Index", "Sex": "Dir", "A": "A"})
    assert [*table.columns] == ["Path", "Sex", "A", "StudyID"]
    assert table["Path"].tolist() == ["a", " b "]
    assert renamed(FILE, TABLE, {}) is TABLE


def test_renamed__composes_paths() -> None:
    table = renamed(FILE, TABLE, {"Path": "{Dir}/{Image Index}.png"})
    assert table["Path"].tolist() == ["1/a.png", "2/b.png"]
    assert "Image Index" in table
    odd = TABLE.rename(columns={"A": "{A}"})
    assert renamed(FILE, odd, {"Path": "{A}"})["Path"].tolist() == ["x", "y"]  # a column of that very name


def test_renamed__replaces_a_blank_column_and_swaps() -> None:
    assert renamed(FILE, TABLE, {"StudyID": "A"})["StudyID"].tolist() == ["x", "y"]
    swapped = renamed(FILE, TABLE, {"Dir": "A", "A": "Dir"})
    assert swapped[["A", "Dir"]].to_numpy().tolist() == [["1", "x"], ["2", "y"]]


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"Path": "image index"},
            "no column 'image index', which data.columns.Path names; did you mean 'Image Index'?",
        ),
        ({"Path": "{Dir}/{Imag Index}"}, "no column 'Imag Index', which data.columns.Path names"),
        ({"A": "Dir"}, "there is a column 'A' already, so data.columns.A cannot name another"),
        ({"A": "{Dir}.png"}, "there is a column 'A' already"),
        ({"Path": "A", "Sex": "A"}, "data.columns names the column 'A' twice"),
    ],
)
def test_renamed__refused(columns: dict[str, str], words: str) -> None:
    with pytest.raises(ManifestError, match=re.escape(words)):
        renamed(FILE, TABLE, columns)


def test_renamed_if_there__takes_either_name() -> None:
    columns = {"Path": "{Dir}/{Image Index}", "A": "B", "Sex": "Gender", "Frame": "Dir"}
    assert [*renamed_if_there(FILE, TABLE, columns).columns] == ["Image Index", "Frame", "A", "StudyID", "Path"]


def test_as_setting__names_all_that_seem_meant() -> None:
    names = ["Image Index", "Patient ID", "View Position", "Finding"]
    setting = 'Path: "Image Index", PatientID: "Patient ID", ViewPosition: "View Position"'
    assert as_setting("Path", names) == f"'data.columns={{{setting}}}'"
    assert as_setting("PatientID", ["Path", "pid", "sex"], ["sex"]) == "'data.columns={PatientID: \"pid\"}'"
