from __future__ import annotations

import os
from pathlib import Path

import pytest

from medmoco.config import DataSettings
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.data.manifest.overlap import also_in, counted, image_keys, overlap_notices, patient_ids, study_ids


def load(folder: Path, root: str = "images", **tables: str) -> dict[str, Split]:
    folder.mkdir(exist_ok=True)
    for name, text in tables.items():
        (folder / f"{name}.csv").write_text(text)
    return load_manifest(DataSettings(manifest=folder, root=root), tuple(tables))


def test_patient_ids__are_text_and_blank_ones_are_nobody(tmp_path: Path) -> None:
    one = load(tmp_path / "a", train="Path,PatientID\na,007\nb,7\nc, \nd,\n")["train"]
    other = load(tmp_path / "b", train="Path,PatientID\nx,7\ny,\nz, \n")["train"]
    ids = [patient_ids(one), patient_ids(other)]
    assert ids[0] is not None
    assert ids[1] is not None
    assert also_in(ids[0], ids[1]).tolist() == [False, True, False, False]
    assert patient_ids(load(tmp_path / "c", train="Path\na\n")["train"]) is None


def test_counted__calls_no_image_a_patient(tmp_path: Path) -> None:
    named = load(tmp_path / "a", train="Path,PatientID\na,007\nb,007\nc,\n")["train"]
    assert counted(named) == "3 images of 2 patients"
    assert counted(load(tmp_path / "b", train="Path\na\nb\n")["train"]) == "2 images (patients unknown)"


def test_study_ids__belong_to_their_patient(tmp_path: Path) -> None:
    """CheXpert counts every patient's studies from study1."""
    header = "Path,PatientID,StudyID\n"
    splits = load(
        tmp_path, train=f"{header}a,p1,study1\nb,p2,study1\n", test=f"{header}c,p3,study1\nd,p2,study1\ne,p1,\n"
    )
    studies = [study_ids(splits[name]) for name in ("test", "train")]
    assert studies[0] is not None
    assert studies[1] is not None
    assert also_in(studies[0], studies[1]).tolist() == [False, True, False]
    alone = load(tmp_path / "alone", train="Path,StudyID\na,s1\nb,\n")["train"]
    assert study_ids(alone) is not None
    assert study_ids(alone).tolist() == ["s1", ""]
    assert study_ids(load(tmp_path / "none", train="Path\na\n")["train"]) is None


def test_image_keys__one_file_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one = load(tmp_path / "a", root="films", train="Path,Frame\nx/1.png,1\nx/1.png,2\n2.png,1\n")["train"]
    other = load(tmp_path / "b", root=str(tmp_path / "films/x"), train="Path\n./1.png\n2.png\n")["train"]
    assert also_in(image_keys(one), image_keys(other)).tolist() == [True, False, False]
    assert os.getcwd() == str(tmp_path)


def test_image_keys__a_series_tells_rows_of_a_folder_apart_but_not_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "scans/folder").mkdir(parents=True)
    root, header = str(tmp_path / "scans"), "Path,SeriesInstanceUID\n"
    (tmp_path / "scans/a.nii").touch()
    data = DataSettings(manifest=tmp_path / "m", root=root, dimensions=3, window="percentiles")
    (tmp_path / "m").mkdir()
    (tmp_path / "m/train.csv").write_text(f"{header}folder,1.1\nfolder,1.2\na.nii,1.3\n")
    (tmp_path / "m/val.csv").write_text(f"{header}folder,1.2\nfolder,1.4\na.nii,\n")
    splits = load_manifest(data, ("train", "val"))
    keys = [image_keys(splits[name]) for name in ("val", "train")]
    assert also_in(*keys).tolist() == [True, False, True]
    plain = load(tmp_path / "b", root=root, train="Path\na.nii\n")["train"]
    assert also_in(image_keys(plain), keys[1]).tolist() == [True]


def test_overlap_notices__count_patients_and_images_of_every_pair(tmp_path: Path) -> None:
    splits = load(
        tmp_path,
        train="Path,PatientID\na,1\nb,2\nc,3\nd,\n",
        val="Path,PatientID\ne,2\nf,3\ng,\n",
        test="Path,PatientID\na,9\nh,4\n",
    )
    assert overlap_notices(splits) == [
        "2 patients are in both train and val: scores will be too optimistic",
        "1 images are in both train and test: scores will be too optimistic",
    ]
    assert overlap_notices({"train": splits["train"]}) == []
