from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from medmoco.data.manifest.csv_file import CsvFile, read_csv
from medmoco.errors import ManifestError


def read(tmp_path: Path, text: str | bytes, repetitive: Iterable[str] = ()) -> CsvFile:
    path = tmp_path / "some.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_csv(path, repetitive)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_read_csv__dialects(tmp_path: Path, separator: str, bom: bytes, newline: str) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator, lineterminator=newline)
    cells = [["Path", "PatientID", "Note"], ["a.png", "1", 'Größe; 5 cm, "rund"\tx\nzweite Zeile'], ["b.png", "2", ""]]
    writer.writerows(cells)
    file = read(tmp_path, bom + buffer.getvalue().encode())
    assert file.table["Note"].tolist() == [cells[1][2], ""]
    assert file.table["PatientID"].tolist() == ["1", "2"]
    assert file.rows.tolist() == [2, 3]


def test_read_csv__header_commas_do_not_decide(tmp_path: Path) -> None:
    file = read(tmp_path, "Path;Box [x,y,w,h,a,b,c];N\na.png;1;2\n")
    assert list(file.table.columns) == ["Path", "Box [x,y,w,h,a,b,c]", "N"]


def test_read_csv__rows_after_multi_line_cells_and_empty_lines(tmp_path: Path) -> None:
    text = 'Path,Note,A\na,"one\ntwo\nthree",1\n\nb,x,0\nc,y,bad\n'
    file = read(tmp_path, text)
    assert file.rows.tolist() == [2, 4, 5]
    with pytest.raises(ManifestError, match=r"row 4 \(and 1 more rows\): mend it"):
        file.refuse(np.array([False, True, True]), "mend it")


def test_read_csv__empty_line_at_the_end(tmp_path: Path) -> None:
    assert read(tmp_path, "Path\na\nb\n\n\n").rows.tolist() == [2, 3]


def test_read_csv__repetitive_columns_are_categories_of_text(tmp_path: Path) -> None:
    file = read(tmp_path, "Path,A,B\na,1,x\nb,1.0,y\nc,,\nd,-1,x\n", repetitive=["A", "not a column"])
    assert file.table["A"].dtype == "category"
    assert file.table["A"].tolist() == ["1", "1.0", "", "-1"]
    assert file.table["B"].tolist() == ["x", "y", "", "x"]


def test_read_csv__select_and_require(tmp_path: Path) -> None:
    file = read(tmp_path, "Path,Finding\na,1\nb,0\n")
    assert file.select(np.array([False, True])).rows.tolist() == [3]
    file.require("Finding", "unused")
    with pytest.raises(ManifestError, match="did you mean 'Finding'"):
        file.require("finding", "name a column")


def test_read_csv__spaces_around_names_and_ids_do_not_count(tmp_path: Path) -> None:
    """ " EncodedPixels" stands in SIIM's table, padded ids in what DICOM tools write; notes stay as they are."""
    text = "\ufeff\ufeffPath , PatientID\u00a0,StudyID, Note\na, P1 ,s\u00a0, x \nb,P1,\ts,y\n"
    file = read(tmp_path, text)
    assert list(file.table.columns) == ["Path", "PatientID", "StudyID", "Note"]
    assert file.table["PatientID"].tolist() == ["P1", "P1"]
    assert file.table["StudyID"].tolist() == ["s", "s"]
    assert file.table["Note"].tolist() == [" x ", "y"]
    saved_twice_by_pandas = read(tmp_path, ",Unnamed: 0,Path,\n0,0,a,\n")
    assert saved_twice_by_pandas.table.columns.is_unique
    with pytest.raises(ManifestError, match="names the column 'A' twice"):
        read(tmp_path, "Path,A, A\na,1,1\n")


@pytest.mark.parametrize("name", ["path", "Image Index", "filename", "image_path", "DicomPath"])
def test_require__names_the_column_that_seems_meant(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestError, match=f"; did you mean '{name}'. Then set 'data.columns={{Path: \"{name}\"}}'"):
        read(tmp_path, f"{name},A\na,1\n").require("Path", "it must be there")


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"PK\3\4\x14\0", "an Excel workbook"),
        (b"\xd0\xcf\x11\xe0\xa1", "an Excel workbook"),
        (b"PAR1\x15", "a Parquet file"),
    ],
)
def test_read_csv__names_files_of_other_programs(tmp_path: Path, start: bytes, kind: str) -> None:
    (tmp_path / "t.csv").write_bytes(start + b"\0\xff" * 50)
    with pytest.raises(ManifestError, match=f"this is {kind}; save it as 'CSV UTF-8'"):
        read_csv(tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("Path,A\na,0,5\n", "a number with a decimal comma (0,5) counts as two cells: write 0.5"),
        ("a.png,1\nb.png,0\n", "row 1 names a file; it must name the columns, Path among them: add a header"),
        ("sep=;\nPath;A\na;1\n", "row 1 is an instruction for Excel, 'sep=;'; delete it"),
    ],
)
def test_read_csv__what_spreadsheets_write(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(ManifestError, match=re.escape(part)):
        read(tmp_path, text)


def test_refuse__names_a_decimal_comma_in_the_first_bad_row(tmp_path: Path) -> None:
    file = read(tmp_path, "Path;A;B\na;0;1\nb;1;0,5\nc;x;1\n")
    for bad, expected in (([False, True, False], True), ([False, False, True], False)):
        with pytest.raises(ManifestError) as caught:
            file.refuse(np.array(bad), "mend it", ["A", "B"])
        assert ("mend it; it has a decimal comma: write numbers with a point" in str(caught.value)) == expected
