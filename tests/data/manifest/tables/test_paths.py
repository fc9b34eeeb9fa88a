from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medmoco.data.manifest.csv_file import CsvFile
from medmoco.data.manifest.tables.paths import below_root, path_fault, with_slashes


def table(*paths: str) -> CsvFile:
    return CsvFile(Path("t.csv"), pd.DataFrame({"Path": paths}, dtype=str), np.arange(2, 2 + len(paths)), "")


def cells(file: CsvFile) -> list[str]:
    return file.table["Path"].tolist()


def test_with_slashes__backslashes_are_read_as_slashes() -> None:
    assert cells(with_slashes(table("a\\b\\c.png", "a/b.png", "\\\\x\\y"))) == ["a/b/c.png", "a/b.png", "//x/y"]
    plain = table("a/b.png")
    assert with_slashes(plain) is plain


def test_below_root__absolute_paths_become_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to("images")
    monkeypatch.chdir(tmp_path)
    inside = f"{tmp_path}/images/p/a.png"
    for root in ("images", "images/", str(tmp_path / "images"), "./images", "link"):
        assert cells(below_root(table(inside, "b.png"), root, "")) == ["p/a.png", "b.png"]
    for path in (f"{tmp_path}/imagesx/a.png", f"{tmp_path}/a.png", "/etc/x", f"{tmp_path}/images/"):
        assert cells(below_root(table(path), "images", "")) == [path]
    out = cells(below_root(table(f"{tmp_path}/images/../../x"), "images", ""))
    assert path_fault(out[0]) == "Path leaves data.root by '..'; move data.root up instead"


def test_below_root__each_row_has_the_root_of_its_split() -> None:
    file = table("/d/train/a", "/d/val/a", "/d/train/b")
    assert cells(below_root(file, "/d/{split}", ["train", "val", "val"])) == ["a", "a", "/d/train/b"]
    assert cells(below_root(file, "/d/{split}", "train")) == ["a", "/d/val/a", "b"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("a/b", ""),
        ("a..b/./c", ""),
        (" ", "blank"),
        ("/etc/x", "absolute and not below data.root; set data.root to a folder that contains all images"),
        ("\\\\server\\x", "absolute and not below"),
        ("c:\\x", "on the Windows drive c:"),
        ("a/../../b", "leaves data.root"),
        ("a\\..\\..\\b", "leaves data.root"),
    ],
)
def test_path_fault__says_what_is_wrong(path: str, words: str) -> None:
    assert (words in path_fault(path)) if words else path_fault(path) == ""
