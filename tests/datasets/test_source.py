"""The folder of a public data set: one scan, tables by name, images wherever they lie."""

import gzip
import os
from pathlib import Path

import pandas as pd
import pytest

from medmoco.datasets.source import Source, check_columns, numbers
from medmoco.errors import ManifestError


def make(folder: Path, *files: str) -> Source:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("A,B\n1,2\n")
    return Source(folder, folder / "out")


def test_files__sorted_without_hidden_ones(tmp_path: Path) -> None:
    source = make(tmp_path, "b/2.png", "a.csv", "b/.hidden.png", ".git/x.png", "__MACOSX/b/2.png", "b/c/1.JPG")
    assert source.files == ["a.csv", "b/2.png", "b/c/1.JPG"]
    assert source.images == ["b/2.png", "b/c/1.JPG"]


def test_files__links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    source = make(tmp_path / "source", "a.csv")
    make(tmp_path / "disk", "images/1.png")
    (tmp_path / "source/data").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/images/again").symlink_to(tmp_path / "disk")
    (tmp_path / "disk/up").symlink_to(tmp_path / "source")
    (tmp_path / "source/broken.png").symlink_to(tmp_path / "absent")
    assert source.files == ["a.csv", "data/images/1.png"]


def test_find__earlier_name_then_higher_folder(tmp_path: Path) -> None:
    source = make(tmp_path, "new/table.csv", "old.csv", "x/y/old.csv")
    (tmp_path / "new/list.txt.gz").write_bytes(gzip.compress(b"a\r\nb\n"))
    assert source.find("table.csv", "old.csv") == tmp_path / "new/table.csv"
    assert source.find("old.csv") == tmp_path / "old.csv"
    assert source.lines("list.txt") == ["a", "b"]
    assert source.table("old.csv").to_dict("list") == {"A": ["1"], "B": ["2"]}
    assert source.table_if_there("none.csv") is None
    with pytest.raises(ManifestError, match=r"no none\.csv or other\.csv in this folder"):
        source.find("none.csv", "other.csv")


def test_find__the_same_name_twice(tmp_path: Path) -> None:
    source = make(tmp_path, "a/t.csv", "b/t.csv.gz")
    with pytest.raises(ManifestError, match=r"several files are named t\.csv"):
        source.find("t.csv")


def test_files__not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ManifestError, match="not a folder"):
        _ = Source(tmp_path / "file", tmp_path).files


def locate(source: Source, *paths: str) -> list[str]:
    return source.locate(pd.Series(paths)).tolist()


def test_locate__the_official_place_wins(tmp_path: Path) -> None:
    source = make(tmp_path, "images/1.png", "copy/images/1.png", "other/1.png")
    assert locate(source, "images/1.png") == ["images/1.png"]


def test_locate__in_other_folders(tmp_path: Path) -> None:
    source = make(tmp_path, "images_001/images/1.png", "images_002/images/2.png", "flat/3.png")
    assert locate(source, "images/1.png", "images/2.png", "images/3.png", "images/4.png") == [
        "images_001/images/1.png",
        "images_002/images/2.png",
        "flat/3.png",
        "",
    ]


def test_locate__with_another_suffix(tmp_path: Path) -> None:
    source = make(tmp_path, "png/1.2.3.4.png", "train/2.jpg")
    assert locate(source, "train/1.2.3.4.dcm", "train/2.dicom") == ["png/1.2.3.4.png", "train/2.jpg"]


def test_locate__names_that_repeat_need_their_folders(tmp_path: Path) -> None:
    names = [f"train/patient{number}/study1/view1_frontal.jpg" for number in range(3)]
    source = make(tmp_path, *(f"CheXpert-v1.0/{name}" for name in names))
    assert locate(source, *names) == [f"CheXpert-v1.0/{name}" for name in names]
    assert locate(source, "train/patient9/study1/view1_frontal.jpg", "view1_frontal.jpg") == ["", ""]


def test_locate__one_file_is_not_many_images(tmp_path: Path) -> None:
    source = make(tmp_path, "somewhere/view1_frontal.jpg")
    assert locate(source, "p1/view1_frontal.jpg", "p2/view1_frontal.jpg") == ["", ""]
    assert locate(source, "p1/view1_frontal.jpg") == ["somewhere/view1_frontal.jpg"]


def test_table__strips_names_and_wants_its_columns(tmp_path: Path) -> None:
    source = make(tmp_path)
    (tmp_path / "t.csv").write_text("ImageId, EncodedPixels\na,-1\n")
    assert list(source.table("t.csv", columns=["ImageId", "EncodedPixels"])) == ["ImageId", "EncodedPixels"]
    with pytest.raises(ManifestError, match=r"t\.csv: no column 'ImageID'; did you mean 'ImageId'"):
        source.table_if_there("t.csv", columns=["ImageID"])
    with pytest.raises(ManifestError, match="no column 'B'"):
        check_columns(pd.DataFrame({"A": ["1"]}), ["A", "B"], tmp_path)


def test_numbers__or_an_error(tmp_path: Path) -> None:
    assert numbers(pd.Series(["1", " 2.5", ""])).fillna(-9).tolist() == [1, 2.5, -9]
    with pytest.raises(
        ManifestError, match="column 'x' of a table has 2 cells that are not numbers; download it again"
    ):
        numbers(pd.Series(["1", "one", "2,5", ""], name="x"))
    with pytest.raises(ManifestError, match="2 cells that are not numbers; it has a decimal comma"):
        numbers(pd.Series(["1", "2,5", "one", ""], name="x"))


def test_files__a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ManifestError, match="a folder inside cannot be read: Permission denied") as caught:
        _ = Source(tmp_path, tmp_path).files
    assert len(str(caught.value).splitlines()) == 1


def test_headers__of_files_below_the_folder(tmp_path: Path) -> None:
    assert make(tmp_path, "a.dcm").headers(["a.dcm"])["Fault"].tolist() == ["the content is not DICOM"]
