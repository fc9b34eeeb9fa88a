from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from medmoco.data.csv_file import CsvFile, read_csv
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
