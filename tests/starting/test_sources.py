"""Folders, tables and manifests as one table of images."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from medmoco.errors import ManifestError, SettingsError
from medmoco.starting import sources
from medmoco.starting.sources import Images, _locate, read_source
from tests.helpers.collections import write_images


def _read(source: Path, images: Path | None = None, chosen: list[str] | None = None) -> Images:
    return read_source(source, images, chosen)


def _empty(folder: Path, *names: str) -> Path:
    """Make files without content, since their names alone are read here."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


# ---- folders ----


def test_folder__flat_has_no_labels(tmp_path: Path) -> None:
    found = _read(_empty(tmp_path, *(f"{number}.png" for number in range(5))))
    assert found.labels == ()
    assert list(found.table["Path"]) == [f"{number}.png" for number in range(5)]
    assert set(found.official) == {""}


def test_folder__class_folders_become_labels(tmp_path: Path) -> None:
    found = _read(_empty(tmp_path, *(f"{name}/{n}/x.png" for name in ("CNV", "DME", "NORMAL") for n in range(4))))
    assert found.labels == ("CNV", "DME", "NORMAL")
    assert found.table["CNV"].tolist() == ["1"] * 4 + ["0"] * 8


def test_folder__splits_inside_a_shared_folder(tmp_path: Path) -> None:
    names = [
        f"chest_xray/{split}/{kind}/{n}.png" for split in ("train", "valid", "test") for kind in "AB" for n in "12"
    ]
    found = _read(_empty(tmp_path, *names))
    assert found.labels == ("A", "B")
    assert dict(zip(found.table["Path"], found.official, strict=True))["chest_xray/valid/A/1.png"] == "val"


@pytest.mark.parametrize("name", ["patient{:04}/1.png", "sub-{:02}/1.png", "{:08}/1.png", "study{}/1.png"])
def test_folder__folders_of_patients_are_no_labels(tmp_path: Path, name: str) -> None:
    assert _read(_empty(tmp_path, *(name.format(number) for number in range(10)))).labels == ()


def test_folder__chosen_classes(tmp_path: Path) -> None:
    folder = _empty(tmp_path, *(f"{name}/{n}.png" for name in ("CNV", "DME", "NORMAL") for n in range(4)))
    assert _read(folder, chosen=["DME"]).labels == ("DME",)
    with pytest.raises(SettingsError, match="no folder 'Dme'; the folders are: CNV, DME, NORMAL"):
        _read(folder, chosen=["Dme"])


@pytest.mark.parametrize("suffix", ["", ".dcm", ".png"])
def test_folder__folders_that_may_be_patients_are_only_counted(tmp_path: Path, suffix: str) -> None:
    names = ("DOE_JANE", "ROE_JOHN", "") if suffix != ".png" else ("patient01", "patient02", "")
    folder = _empty(tmp_path, *(f"{name}/{n}{suffix}" for name in names for n in range(4)))
    with pytest.raises(SettingsError) as caught:
        _read(folder, chosen=["Mass"])
    assert str(caught.value) == "--labels: there is no folder 'Mass' among the 2 folders"


def test_folder__names_a_table_that_it_does_not_read(tmp_path: Path) -> None:
    found = _read(_empty(tmp_path, "a.png", "b.png", "labels.csv"))
    assert "`medmoco init" in found.notes[0]
    assert "labels.csv" in found.notes[0]


def test_folder__what_medmoco_wrote_is_not_read(tmp_path: Path) -> None:
    _empty(tmp_path, "a.png", "runs/x/report.png", "manifest/train.csv", "medmoco.yaml")
    written = [tmp_path / "runs", tmp_path / "manifest", tmp_path / "medmoco.yaml"]
    assert list(read_source(tmp_path, None, None, written).table["Path"]) == ["a.png"]


@pytest.mark.parametrize(
    ("source", "message"),
    [("nowhere", "does not exist"), ("empty", "holds no files"), ("one.txt", "neither a folder nor a CSV file")],
)
def test_source__refused(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "one.txt").touch()
    with pytest.raises((SettingsError, ManifestError), match=message):
        _read(tmp_path / source)


# ---- tables ----


def _csv(file: Path, header: str, *rows: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([header, *rows]) + "\n")
    return file


def test_table__of_chestxray14(tmp_path: Path) -> None:
    _empty(tmp_path, *(f"images_{n % 2}/{n:08}_000.png" for n in range(6)))
    rows = [f"{n:08}_000.png,{['Mass|Nodule', 'No Finding', 'Mass'][n % 3]},{n},{50 + n},F,PA" for n in range(7)]
    header = "Image Index,Finding Labels,Patient ID,Patient Age,Patient Gender,View Position"
    found = _read(_csv(tmp_path / "Data_Entry.csv", header, *rows))
    assert found.labels == ("Mass", "No Finding", "Nodule")
    assert found.table["Path"][1] == "images_1/00000001_000.png"
    assert {"PatientID", "Age", "Sex", "ViewPosition"} <= set(found.table)
    assert found.faults.tolist() == [""] * 6 + ["image file not found"]
    assert found.columns[:2] == ("'Image Index' is read as Path", "'Patient ID' is read as PatientID")


@pytest.mark.parametrize("prefix", ["/data/cxr/", "C:\\scans\\", "./", "cxr\\", ""])
def test_table__paths_of_other_machines(tmp_path: Path, prefix: str) -> None:
    _empty(tmp_path, *(f"p{n}/study1/view1.png" for n in range(4)))
    join = "\\" if "\\" in prefix else "/"
    rows = [f"{prefix}{join.join([f'p{n}', 'study1', 'view1.png'])},{n % 2}" for n in range(4)]
    found = _read(_csv(tmp_path / "labels.csv", "file,Sick", *rows))
    assert list(found.table["Path"]) == [f"p{n}/study1/view1.png" for n in range(4)]
    assert found.labels == ("Sick",)


def test_table__finds_the_column_by_its_cells(tmp_path: Path) -> None:
    _empty(tmp_path / "images", *(f"{n}.jpg" for n in range(4)))
    file = _csv(tmp_path / "train.csv", "id_code,diagnosis,path", *(f"{n},{n},none" for n in range(4)))
    assert list(_read(file).table["Path"]) == [f"images/{n}.jpg" for n in range(4)]


def test_table__looks_for_files_only_in_the_titled_column_if_it_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def locate(paths: pd.Series[str], files: Sequence[str]) -> pd.Series[str]:
        tried.append(paths.name)
        return _locate(paths, files)

    monkeypatch.setattr(sources, "_locate", locate)
    _empty(tmp_path, *(f"{n}.png" for n in range(4)))
    _read(_csv(tmp_path / "all.csv", "copy,image,Sick", *(f"{n}.png,{n}.png,{n % 2}" for n in range(4))))
    assert set(tried) == {"image", "Path"}


def test_table__of_one_row(tmp_path: Path) -> None:
    _empty(tmp_path, "a.png")
    assert list(_read(_csv(tmp_path / "all.csv", "Sick,x", "1,a.png")).table["Path"]) == ["a.png"]


def test_table__images_elsewhere(tmp_path: Path) -> None:
    _empty(tmp_path / "films", *(f"{n}.png" for n in range(4)))
    file = _csv(tmp_path / "tables" / "all.csv", "image,Sick", *(f"{n}.png,{n % 2}" for n in range(4)))
    with pytest.raises(ManifestError, match="--images DIR"):
        _read(file)
    assert _read(file, images=tmp_path / "films").root == str(tmp_path / "films")


def test_table__rows_of_one_image_are_combined(tmp_path: Path) -> None:
    _empty(tmp_path, "a.png", "b.png")
    rows = ["a.png,0,", "a.png,1,0", "a.png,0,-1", "b.png,0,1", "gone.png,0,1"]
    found = _read(_csv(tmp_path / "all.csv", "Path,Mass,Edema", *rows))
    assert found.faults.tolist() == ["", *["same image as in an earlier row"] * 2, "", "image file not found"]
    assert found.table["Mass"].tolist() == ["1", "1", "1", "0", "0"]
    assert found.table["Edema"].tolist() == ["-1", "-1", "-1", "1", "1"]
    assert found.columns[-1].startswith("2 rows repeat an image")


def test_table__official_split(tmp_path: Path) -> None:
    _empty(tmp_path, *(f"{n}.png" for n in range(6)))
    splits = ["training", "training", "validation", "validation", "test", "test"]
    found = _read(_csv(tmp_path / "all.csv", "image,subset", *(f"{n}.png,{split}" for n, split in enumerate(splits))))
    assert found.official.tolist() == ["train", "train", "val", "val", "test", "test"]


# ---- manifests ----


@pytest.mark.parametrize("layout", ["{split}/x{n}.png", "x{n}.png", "../images/x{n}.png"])
def test_manifest__is_used_as_it_is(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "mine"
    for split in ("train", "val"):
        numbers = [f"{split}{n}" for n in range(3)]
        _csv(folder / f"{split}.csv", "Path,Sick", *(f"x{n}.png,{at % 2}" for at, n in enumerate(numbers)))
        for number in numbers:
            write_images(folder, [layout.format(split=split, n=number)])
    found = _read(folder, images=(tmp_path / "images") if "images" in layout else None)
    assert found.manifest == folder
    assert found.labels == ("Sick",)
    assert found.root.endswith("{split}") is ("{split}" in layout)


def test_manifest__as_one_file_with_a_split_column(tmp_path: Path) -> None:
    _empty(tmp_path, "a.png", "b.png")
    assert _read(_csv(tmp_path / "all.csv", "Path,Split", "a.png,train", "b.png,val")).manifest == tmp_path / "all.csv"


@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz"])
def test_manifest__of_any_kind_of_table(tmp_path: Path, suffix: str) -> None:
    pack = gzip.compress if suffix.endswith(".gz") else bytes
    _empty(tmp_path, "a.png", "b.png")
    for name, rows in {"train": ["a.png\ttrain"], "all": ["a.png\ttrain", "b.png\tval"]}.items():
        lines = ["Path\tSplit", *rows]
        if "jsonl" in suffix:
            lines = [json.dumps(dict(zip(["Path", "Split"], row.split("\t"), strict=True))) for row in rows]
        (tmp_path / f"{name}{suffix}").write_bytes(pack("\n".join(lines).encode()))
    for source in (tmp_path, tmp_path / f"all{suffix}"):
        assert _read(source).manifest == source


def test_manifest__without_its_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest").mkdir()
    _csv(tmp_path / "manifest/train.csv", "Path", "a.png")
    with pytest.raises(ManifestError, match="give the folder to which Path is relative with --images DIR"):
        _read(tmp_path / "manifest")


@pytest.mark.parametrize("layout", ["{split}/a/x.png", "films/{split}.png"])
@pytest.mark.parametrize("place", ["mine", "elsewhere"])
def test_manifest__with_absolute_paths(tmp_path: Path, layout: str, place: str) -> None:
    names = {split: layout.format(split=split) for split in ("train", "val")}
    images = _empty(tmp_path / place, *names.values())
    for split, name in names.items():
        _csv(tmp_path / "mine" / f"{split}.csv", "Path", f"{images / name}")
    found = _read(tmp_path / "mine")
    roots = [found.root.replace("{split}", split) for split in found.official]
    assert not any(path.startswith("/") for path in found.table["Path"])
    files = [Path(root, path) for root, path in zip(roots, found.table["Path"], strict=True)]
    assert files == [images / name for name in names.values()]


def test_manifest__absolute_paths_outside_the_given_folder_are_refused(tmp_path: Path) -> None:
    images = _empty(tmp_path / "images", "a.png")
    _csv(tmp_path / "mine" / "train.csv", "Path", f"{images / 'a.png'}")
    with pytest.raises(ManifestError, match=r"its images are not where Path says, below .*mine;"):
        _read(tmp_path / "mine", images=tmp_path / "mine")
