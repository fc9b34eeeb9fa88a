from __future__ import annotations

from pathlib import Path

import pytest

from medmoco import config
from tests.helpers.written import MINIMAL, refusal, write


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("data.labels={A: {uncertain: maybe}}", "'data.labels.A.uncertain'"),
        ("data.labels={A: {unsure: one}}", "unknown key 'data.labels.A.unsure'"),
        ("data.labels={A: {map: {}}}", "{} is not a mapping from the text of cells"),
        ("data.labels={A: {map: {yes: true}}}", "'yes': True is not 1, 0, -1"),
        ("data.labels={A: {map: {Yes: 1, ' yes': 0}}}", "a text appears twice"),
        ("data.labels={A: {map: {x: 1}, contains: x}}", "not both"),
        ("data.labels={A: {separator: ','}}", "separator has no effect without contains"),
        ("data.labels={A: {column: 5}}", "5 is not the name of a column"),
        ("data.columns={PatientId: x}", "'PatientId' is not a reserved column; did you mean PatientID?"),
        ("data.columns={Weight: x}", "known: Path, PatientID"),
        ("data.join=labels.csv", "'data.join' is a group of settings: file, on, columns"),
        ("data.join={file: x, on: []}", "'data.join.on'"),
    ],
)
def test_load__refuses(tmp_path: Path, override: str, expected: str) -> None:
    assert expected in refusal(tmp_path, MINIMAL, override)


def test_load__labels_as_list_or_mapping_and_replaced_as_a_whole(tmp_path: Path) -> None:
    file = write(tmp_path, "out: a\ndata: {manifest: m, root: r, labels: [A, B]}\n")
    assert config.load(file).data.labels == {"A": config.LabelPolicy(), "B": config.LabelPolicy()}
    changed = config.load(file, ["data.labels={C: {uncertain: one}}"]).data.labels
    assert changed == {"C": config.LabelPolicy(uncertain="one")}


def test_load__one_label_needs_no_list(tmp_path: Path) -> None:
    assert config.load(write(tmp_path, MINIMAL), ["data.labels=DME"]).data.labels == {"DME": config.LabelPolicy()}


def test_load__a_table_under_other_names(tmp_path: Path) -> None:
    overrides = [
        "data.labels={A: {map: {yes: 1, No: 0, 2: -1, 3.0: null, '': 0}}}", "data.columns={Path: Image Index}",
        "data.columns.PatientID=Patient ID", "data.join={file: $$x.csv, on: StudyID}", "data.where=Modality == 'MR'",
    ]  # fmt: skip
    data = config.load(write(tmp_path, MINIMAL), overrides).data
    assert data.labels["A"].map == {"yes": 1, "No": 0, "2": -1, "3.0": None, "": 0}
    assert data.columns == {"Path": "Image Index", "PatientID": "Patient ID"}
    assert data.join == config.JoinSettings(file=Path("$x.csv"), on=("StudyID",))
    api = config.load({"out": "o", "data": {"manifest": "m", "root": "r", "labels": {"A": {"map": {0: 1, True: 0}}}}})
    assert api.data.labels["A"].map == {"0": 1, "true": 0}
    whole = config.load(write(tmp_path, MINIMAL), overrides)
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml(config.as_tree(whole)))
    assert config.load(again) == config.load(whole, ["seed=0"]) == whole


def test_load__labels_read_as_usual_are_written_as_before(tmp_path: Path) -> None:
    settings = config.load(write(tmp_path, MINIMAL), ["data.labels={A: {}, B: {column: C}}"])
    usual = {"uncertain": "ignore", "missing": "ignore"}
    assert config.as_tree(settings)["data"]["labels"] == {"A": usual, "B": {**usual, "column": "C"}}
    assert settings.data.labels["B"].policy == usual
