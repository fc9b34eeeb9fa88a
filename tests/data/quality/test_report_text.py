"""The screen, every character of it where that is what matters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medmoco.config import DataSettings
from medmoco.data.image_io.images import FileFormat
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.data.quality.examine import Examined
from medmoco.data.quality.findings import Finding, Provenance, Rows, Shortcut, gather_rows
from medmoco.data.quality.report_text import format_report

LABELS = ("A", "B")


@pytest.fixture
def splits(tmp_path: Path) -> list[Split]:
    header = "Path,PatientID,A,B\n"
    (tmp_path / "train.csv").write_text(f"{header}1,p,1,\n2,p,0,\n3,q,-1,1\n")
    (tmp_path / "test.csv").write_text(f"{header}4,r,1,0\n5,s,,0\n")
    data = DataSettings.model_validate({"manifest": tmp_path, "root": "x", "labels": list(LABELS)})
    return list(load_manifest(data, ("train", "test")).values())


def files_of(rows: Rows) -> Examined:
    sizes = np.array([[30, 1200], [40, 30], [50, 30], [0, 0], [30, 30]])
    return Examined(
        np.zeros((5, 32), np.uint8), np.zeros((5, 1024), np.uint8), sizes, np.zeros(5, bool),
        np.array([0, 0, 1, -1, 0], np.int16), [FileFormat("PNG", 8, "RGB"), FileFormat("DICOM", 12, "MONOCHROME1")],
    )  # fmt: skip


def finding(severity: str, kind: str, rows: list[int], remark: str = "") -> Finding:
    return Finding(severity, kind, np.array(rows, np.int64), [""] * len(rows), remark)  # type: ignore[arg-type]


def test_screen__every_character(splits: list[Split]) -> None:
    rows, _ = gather_rows(splits, [])
    found = [
        finding("warning", "odd", [0, 1, 2, 3, 4], "a remark"),
        finding("fault", "very bad indeed", [4]),
        finding("fault", "never seen", []),
        finding("warning", "nor this", []),
    ]
    assert format_report(splits, rows, files_of(rows), found, [Shortcut("A", "width", 0.56, 0.5, 0.61, None)]) == (
        "5 rows: train 3 of 2 patients, test 2 of 2 patients\n"
        "files: 3 PNG, 1 DICOM; height 30 to 50 (median 35), width 30 to 1,200 (median 30) pixels\n"
        "\n"
        "severity       rows  what             row numbers\n"
        "fault             1  very bad indeed  test 3\n"
        "warning           5  odd              train 2, 3, 4; test 2, ...\n"
        "                     a remark\n"
        "checked and not found: never seen, nor this\n"
        "\n"
        "label  train          test   (positive / negative / uncertain / blank)\n"
        "A      1 / 1 / 1 / 0  1 / 0 / 0 / 1\n"
        "B      1 / 0 / 0 / 2  0 / 2 / 0 / 0\n"
        "warning   no negatives in train: B\n"
        "warning   no positives in test: B\n"
        "warning   no negatives in test: A\n"
        "size or format predicts no label: at best A by width, AUROC 0.56\n"
    )


def test_screen__a_label_told_by_shape_is_said_in_words(splits: list[Split]) -> None:
    rows, _ = gather_rows(splits, [])
    shortcuts = [
        Shortcut("A", "width / height", 0.88, 0.85, 0.9, 0.893),
        Shortcut("B", "height", 0.62, 0.58, 0.7, None),
    ]
    text = " ".join(format_report(splits, rows, files_of(rows), [], shortcuts).split())
    assert (
        "width / height alone predicts A with AUROC 0.88 (0.85 to 0.90; 0.89 on test) without the image content" in text
    )
    assert "size or format predicts no other label: at best B by height, AUROC 0.62" in text


def test_screen__without_labels_patients_or_readable_files(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("Path\n1\n")
    splits = list(load_manifest(DataSettings(manifest=tmp_path, root="x"), ("train",)).values())
    rows, _ = gather_rows(splits, splits)
    nothing = np.zeros(1, bool)
    files = Examined(
        np.zeros((1, 32), np.uint8), np.zeros((1, 1024), np.uint8), np.zeros((1, 2), np.int32), nothing,
        np.full(1, -1, np.int16),
    )  # fmt: skip
    assert format_report(splits, rows, files, [], []) == (
        "1 rows: train 1\n"
        "train data for comparison: 1 rows\n"
        "no PatientID in train, train: every row counts as its own patient, leakage by patient is not seen\n"
        "\n"
    )


def test_screen__is_one_screen_whatever_the_labels(tmp_path: Path) -> None:
    names = [f"A finding of some length {number}" for number in range(170)]
    cells = ",".join("1" for _ in names)
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.csv").write_text(f"Path,{','.join(names)}\n{split},{cells}\n")
    data = DataSettings.model_validate({"manifest": tmp_path, "root": "x", "labels": names})
    splits = list(load_manifest(data).values())
    rows, _ = gather_rows(splits, [])
    shortcuts = [Shortcut(name, "width", 0.9, 0.8, 1.0, 0.9) for name in names]
    text = format_report(splits, rows, files_of(rows), [], shortcuts)
    assert "\nand 154 more labels, in report.txt\n" in text
    assert "A finding of some length 4, and 165 more" in " ".join(text.split())
    assert "size or format predicts 165 more labels" in text
    whole = format_report(splits, rows, files_of(rows), [], shortcuts, all_labels=True)
    assert all(f"{name} " in whole for name in names)
    assert " more" not in whole
    lines = text.splitlines()
    assert len(lines) < 50
    assert max(map(len, lines)) < 120


def test_screen__rows_that_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("Path,PatientID,A\n1,p,1\n2,p,2\n3,p,3\n")
    data = DataSettings.model_validate({"manifest": tmp_path, "root": "x", "where": "A > 2"})
    splits = list(load_manifest(data, ("train",)).values())
    rows, _ = gather_rows(splits, [])
    one = Examined(
        np.zeros((1, 32), np.uint8), np.zeros((1, 1024), np.uint8), np.zeros((1, 2), np.int32), np.zeros(1, bool),
        np.full(1, -1, np.int16),
    )  # fmt: skip
    assert format_report(splits, rows, one, [], []).splitlines()[:2] == [
        "1 rows: train 1 of 1 patients",
        "train: 2 of 3 rows are left out by data.where",
    ]


def test_screen__columns_that_other_names_hide(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("Path,PatientID,study_id,View Position,age,Sex\n1,p,s,PA,1,F\n")
    data = DataSettings.model_validate({"manifest": tmp_path, "root": "x", "labels": ["age"]})
    splits = list(load_manifest(data, ("train",)).values())
    rows, _ = gather_rows(splits, [])
    one = Examined(
        np.zeros((1, 32), np.uint8), np.zeros((1, 1024), np.uint8), np.zeros((1, 2), np.int32), np.zeros(1, bool),
        np.full(1, -1, np.int16),
    )  # fmt: skip
    assert format_report(splits, rows, one, [], []).splitlines()[1:4] == [
        "these columns are not recognised under their names; to use them, set",
        '\'data.columns={StudyID: "study_id", ViewPosition: "View Position"}\'',
        "",
    ]


def test_screen__labels_told_by_sources_with_remedies(splits: list[Split]) -> None:
    rows, _ = gather_rows(splits, [])
    found = Provenance(
        [
            Shortcut("A", "folder 1 of Path", 1.0, 1.0, 1.0, None, 0.7, "Path", "name the sources"),
            Shortcut("A", "the letters in file names", 0.97, 0.9, 0.99, None, 0.7, "Path", "name the sources"),
            Shortcut("A", "column Site", 0.8, 0.7, 0.9, None, 0.7, "column Site", "compare within its values"),
            Shortcut("B", "column Site", 0.69, 0.65, 0.9, None, 0.7, "column Site"),  # chance
            Shortcut("B", "folder 1 of Path", 0.5, float("nan"), float("nan"), None, 0.7, "Path"),
        ],
        ("Path", "column Site"),
        ("a note",),
    )
    text = format_report(splits, rows, files_of(rows), [], [], found)
    plain = " ".join(text.split())
    assert (
        "warning A can be told from folder 1 of Path, AUROC 1.00 (1.00 to 1.00); column Site, AUROC 0.80 (0.70 to 0.90)"
        " if the classes of a label come from different sources, an encoder that recognises the source has a high AUROC"
        in plain
    )
    assert text.endswith(
        "          - name the sources\n"
        "          - compare within its values\n"
        "sources predict no other label well enough for a warning: at best B from column Site, AUROC 0.69\n"
        "tested as sources: Path, column Site\n"
        "a note\n"
    )
    assert max(map(len, text.splitlines())) < 120
    assert "letters" not in plain  # of the same paths
    assert "the letters in file names, AUROC 0.97" in format_report(
        splits, rows, files_of(rows), [], [], found, all_labels=True
    )
    alone = format_report(splits, rows, files_of(rows), [], [], Provenance(found.shortcuts[3:]))
    assert "sources predict no label well enough for a warning" in alone
    assert "warning   B" not in alone
