from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from medmoco.config import DataSettings
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.data.manifest.tables.label_cells import classes_in
from medmoco.errors import ManifestError


def load(folder: Path, cells: list[str], labels: Any, more: str = "", names: tuple[str, ...] = ("train",)) -> Split:
    rows = "".join(f'{number}.png,"{cell}"\n' for number, cell in enumerate(cells))
    (folder / "train.csv").write_text(f"Path,A\n{rows}{more}")
    data = DataSettings.model_validate({"manifest": folder, "root": "r", "labels": labels})
    return load_manifest(data, names)["train"]


def values(folder: Path, cells: list[str], labels: Any) -> list[float | None]:
    column = load(folder, cells, labels).labels[:, 0].tolist()
    return [None if np.isnan(value) else value for value in column]


def refusal(folder: Path, cells: list[str], labels: Any) -> str:
    with pytest.raises(ManifestError) as caught:
        load(folder, cells, labels)
    message = str(caught.value)
    assert len(message.splitlines()) <= 5
    return message


@pytest.mark.parametrize(
    ("mapping", "cells", "expected"),
    [
        ({"yes": 1, "no": 0}, ["yes", " NO ", "", "Yes"], [1, 0, None, 1]),
        ({"Positive": 1, "": 0, "n/a": None, "?": -1}, ["positive", "", "N/A", "?"], [1, 0, None, None]),
        ({0: 0, 1: 0, 2: 1, 3: 1}, ["0", "1.0", "2", "03", ""], [0, 0, 1, 1, None]),
        ({True: 1, False: 0}, ["TRUE", "false"], [1, 0]),
        ({0.5: 1, 100: 0}, [".5", "1e2"], [1, 0]),
        ({"stra\u00dfe": 1, "x|y": 0}, ["STRASSE", "x|Y"], [1, 0]),
    ],
)
def test_label_values__by_a_map(tmp_path: Path, mapping: Any, cells: list[str], expected: list[float | None]) -> None:
    assert values(tmp_path, cells, {"A": {"map": mapping}}) == expected


def test_label_values__a_policy_applies_after_the_map(tmp_path: Path) -> None:
    labels = {"A": {"map": {"yes": 1, "no": 0, "maybe": -1}, "uncertain": "one", "missing": "zero"}}
    split = load(tmp_path, ["yes", "no", "maybe", ""], labels)
    np.testing.assert_array_equal(split.raw_labels[:, 0], [1, 0, -1, np.nan])
    assert split.labels[:, 0].tolist() == [1, 0, 1, 0]


def test_label_values__two_labels_from_one_column(tmp_path: Path) -> None:
    grades = {"any": {"column": "A", "map": {0: 0, 1: 1, 2: 1}}, "severe": {"column": "A", "map": {0: 0, 1: 0, 2: 1}}}
    split = load(tmp_path, ["0", "1", "2"], grades)
    assert split.label_names == ("any", "severe")
    assert split.labels.T.tolist() == [[0, 1, 1], [0, 0, 1]]
    assert split.table["A"].tolist() == ["0", "1", "2"]


def test_label_values__only_the_texts_of_a_map_count(tmp_path: Path) -> None:
    message = refusal(tmp_path, ["yes", "1", "no", "0"], {"A": {"map": {"yes": 1, "no": 0}}})
    assert "row 3 (and 1 more rows): '1' is not in data.labels.A.map" in message
    assert message.endswith("map: {0: 0, 1: 1, no: 0, yes: 1}")


# What a message suggests


@pytest.mark.parametrize(
    ("cells", "text", "expected"),
    [
        (["yes", "no", "maybe", ""], "yes", {"maybe": -1, "no": 0, "yes": 1}),
        (["1", "Positive", "Negativ"], "Positive", {1: 1, "Negativ": "...", "Positive": 1}),
        (["0", "1", "2", "3.0"], "2", {0: 0, 1: "...", 2: "...", 3.0: "..."}),
        (["ill: yes", "it's #2", "a\\b"], "ill: yes", {"ill: yes": "...", "it's #2": "...", "a\\b": "..."}),
        (["NA", "1"], "NA", {1: 1, "NA": None}),
    ],
)
def test_label_values__a_message_has_a_map_to_paste(
    tmp_path: Path, cells: list[str], text: str, expected: dict[Any, Any]
) -> None:
    message = refusal(tmp_path, cells, ["A"])
    assert f"the label 'A' must be 1, 0, -1 (uncertain) or blank (missing), not {text!r}" in message
    suggested = yaml.load(message.splitlines()[-1], yaml.BaseLoader)["map"]
    given = {str(key): "null" if value is None else str(value) for key, value in expected.items()}
    assert suggested == given
    if "..." not in suggested.values():
        numbers = {key: None if value == "null" else int(value) for key, value in suggested.items()}
        load(tmp_path, cells, {"A": {"map": numbers}})


@pytest.mark.parametrize(
    "cells",
    [
        [f"secret {number}" for number in range(20)],
        [f"secret {number}" for number in range(7)],
        ["secret " + "x" * 40, "1"],
    ],
)
def test_label_values__prose_and_ids_are_not_shown(tmp_path: Path, cells: list[str]) -> None:
    message = refusal(tmp_path, cells, ["A"])
    assert "secret" not in message
    assert f"its column has {len(cells)} different texts, not shown" in message


@pytest.mark.parametrize("column", ["PatientID", "Report No"])
def test_label_values__a_column_of_ids_is_not_shown(tmp_path: Path, column: str) -> None:
    rows = "".join(f"{number}.png,secret{number % 3},secret{number % 3}\n" for number in range(9))
    (tmp_path / "train.csv").write_text(f"Path,Report No,PatientID\n{rows}")
    data = DataSettings.model_validate({"manifest": tmp_path, "root": "r", "labels": [column]})
    with pytest.raises(ManifestError, match="not shown") as caught:
        load_manifest(data, ["train"])
    assert "secret" not in str(caught.value)


# Lists of classes


@pytest.mark.parametrize(
    ("text", "separator", "expected"),
    [
        ("Effusion| Mass ", "|", ["Effusion", "Mass"]),
        ("No Finding", "|", ["No Finding"]),
        ("a;b", ";", ["a", "b"]),
        ("['a b', ' c', '']", "|", ["a b", "c"]),
        ('["a, b", "it\'s"]', "|", ["a, b", "it's"]),
        ("[a, b]", "|", ["a", "b"]),
        ("[]", "|", []),
        ("", "|", []),
    ],
)
def test_classes_in__cells_of_published_tables(text: str, separator: str, expected: list[str]) -> None:
    assert classes_in(text, separator) == expected


def test_label_values__the_presence_of_a_class(tmp_path: Path) -> None:
    label = {"E": {"column": "A", "contains": "effusion"}}
    cells = ["Effusion|Mass", "Mass", " effusion ", "", "No Finding", "Pleural Effusion"]
    assert values(tmp_path, cells, label) == [1, 0, 1, None, 0, 0]
    assert values(tmp_path, ["['mass', 'effusion']", "['mass']", "[]", ""], label) == [1, 0, 0, None]
    other = {"E": {"column": "A", "contains": "effusion", "separator": "; ", "missing": "zero"}}
    assert values(tmp_path, ["mass; effusion", ""], other) == [1, 0]


def test_check_classes__an_unknown_class(tmp_path: Path) -> None:
    message = refusal(tmp_path, ["Effusion|Mass", "Mass", ""], {"E": {"column": "A", "contains": "Efusion"}})
    assert "data.labels.E: no cell of 'A' contains the class 'Efusion'; did you mean 'Effusion'?" in message
    assert message.endswith("the classes are: Mass, Effusion")


def test_check_classes__a_rare_class_may_be_in_another_split(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("Path,A\nx.png,Hernia\n")
    assert values(tmp_path, ["Mass", ""], {"H": {"column": "A", "contains": "Hernia"}}) == [0, None]
    (tmp_path / "test.csv").write_text("Path\nx.png\n")
    assert "no cell of 'A' contains" in refusal(tmp_path, ["Mass"], {"H": {"column": "A", "contains": "Hernia"}})


@pytest.mark.parametrize("separator", [";", ",", "/"])
def test_check_classes__lists_with_another_separator(tmp_path: Path, separator: str) -> None:
    label = {"E": {"column": "A", "contains": "effusion"}}
    message = refusal(tmp_path, ["effusion", f"mass{separator} effusion"], label)
    assert f"row 3: the classes of 'A' seem to be separated by '{separator}' here, not by '|'" in message


def test_check_classes__the_class_may_contain_another_separator(tmp_path: Path) -> None:
    label = {"F": {"column": "A", "contains": "Fracture"}}
    cells = ["Fracture|Mass", "Fracture, rib", "Mass|Fracture, rib", "Mass"]
    assert values(tmp_path, cells, label) == [1, 0, 0, 0]
    (tmp_path / "test.csv").write_text("Path,A\nx.png,Fracture|Mass\n")  # the separator may be in another split
    assert values(tmp_path, ["Fracture, rib", "Mass"], label) == [0, 0]


def test_label_values__a_column_of_lists_is_no_label(tmp_path: Path) -> None:
    message = refusal(tmp_path, ["Mass|Effusion", "Mass|Hernia", "Mass"], ["A"])
    assert '\'data.labels={Mass: {column: "A", contains: "Mass"}}\'' in message
    assert message.endswith("the classes are: Mass, Effusion, Hernia")


def test_check_classes__ids_are_not_shown(tmp_path: Path) -> None:
    rows = "".join(f"{n}.png,MRN{n % 5},MRN{n % 5},P{n:03}|AP,P{n:03}|MRN{n % 5}\n" for n in range(20))
    (tmp_path / "train.csv").write_text(f"Path,PatientID,Report,View,Key\n{rows}")

    def said(labels: Any) -> str:
        data = DataSettings.model_validate({"manifest": tmp_path, "root": "r", "labels": labels})
        with pytest.raises(ManifestError) as caught:
            load_manifest(data, ["train"])
        return str(caught.value)

    hidden = "its classes are not shown, as they may be ids"
    for column, wanted in [("PatientID", "Fracture"), ("Path", "1.pn"), ("Report", "MRN"), ("Key", "P00")]:
        message = said({"F": {"column": column, "contains": wanted}})
        assert message.endswith(f"no cell of {column!r} contains the class {wanted!r}\n{hidden}")
    message = said({"F": {"column": "View", "contains": "PA"}})
    assert message.endswith("contains the class 'PA'\nthe classes are: AP")
    message = said(["View"])
    assert '\'data.labels={AP: {column: "View", contains: "AP"}}\'\nthe classes are: AP' in message
    message = said(["Key"])
    assert message.endswith(hidden)
    assert 'data.labels={NAME: {column: "Key", contains: "NAME"}}' in message
    for column in ("View", "Key"):
        assert not re.search(r"MRN\d|P\d{3}|\d\.png", said([column]))


# Missing columns


@pytest.mark.parametrize(
    ("header", "row", "labels", "words"),
    [
        ("Path,effusion", "a,1", ["Effusion"], "did you mean 'effusion'?"),
        ("Path,X,Y", "a,1,0", "X, Y", "for several labels write a list: data.labels=[X, Y]"),
        ("Path,F", "a,Mass|Hernia", ["hernia"], '\'data.labels={hernia: {column: "F", contains: "Hernia"}}\''),
        ("Path,F", "a,\"['Mass', 'Hernia']\"", ["Hernia"], '{column: "F", contains: "Hernia"}}\''),
        ("Path,F", "a,Mass;Hernia", ["Mass"], 'contains: "Mass", separator: ";"}'),
        ("Path,Sex,X,Y,Z", "a,F,1,yes,lung", ["Foo"], "the columns that look like labels are: 'X', 'Y'"),
        ("Path,Z", "a,lung", ["Foo"], "the columns are: 'Path', 'Z'"),
        ("Path,Z", "a,lung", {"B": {"column": "z"}}, "which data.labels.B.column names; did you mean 'Z'?"),
    ],
)
def test_label_values__no_column(tmp_path: Path, header: str, row: str, labels: Any, words: str) -> None:
    (tmp_path / "train.csv").write_text(f"{header}\n{row}\n")
    data = DataSettings.model_validate({"manifest": tmp_path, "root": "r", "labels": labels})
    with pytest.raises(ManifestError) as caught:
        load_manifest(data, ["train"])
    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
