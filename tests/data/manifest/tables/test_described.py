from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medmoco.config import DataSettings
from medmoco.data.manifest.manifest import load_manifest, present_splits, read_described
from medmoco.errors import ManifestError, SettingsError

TABLE = "file,subject,Modality,Split\na\\1.png,p1,MR,Train\na\\2.png,p1,CT,train\na\\3.png,p2,MR,val\n,p3,CT,exclude\n"
COLUMNS = {"Path": "file", "PatientID": "subject"}


def settings(manifest: Path, **changes: Any) -> DataSettings:
    return DataSettings.model_validate({"manifest": manifest, "root": "r", "columns": COLUMNS, **changes})


@pytest.fixture
def one_file(tmp_path: Path) -> Path:
    (tmp_path / "all.csv").write_text(TABLE)
    return tmp_path / "all.csv"


def test_described__rows_left_out_are_not_checked_but_counted(one_file: Path) -> None:
    splits = load_manifest(settings(one_file, where="Split != exclude and Modality == 'MR'"), ("train", "val"))
    assert splits["train"].files.tolist() == ["r/a/1.png"]
    assert splits["train"].rows.tolist() == [2]
    assert splits["train"].notices == ("train: 1 of 2 rows are left out by data.where",)
    assert splits["val"].notices == ()
    with pytest.raises(ManifestError, match="row 5: Path is blank"):
        load_manifest(settings(one_file), ("train", "val"))


def test_described__the_rows_kept_identify_the_data(one_file: Path) -> None:
    both = load_manifest(settings(one_file, where="Split != exclude"), ("train", "val"))
    some = load_manifest(settings(one_file, where="Split != exclude and Modality == MR"), ("train", "val"))
    assert some["train"].sha256 != both["train"].sha256
    assert some["val"].sha256 == both["val"].sha256  # its rows are the same


def test_present_splits__those_with_rows_that_are_kept(one_file: Path, tmp_path: Path) -> None:
    assert present_splits(settings(one_file, where="Modality == MR")) == ("train", "val")
    assert present_splits(settings(one_file, where="Modality == CT and Split != exclude")) == ("train",)
    for name, modality in (("train", "CT"), ("val", "MR")):
        (tmp_path / f"{name}.csv").write_text(f"file,subject,Modality\n{name}.png,p,{modality}\n")
    data = settings(tmp_path, where="Modality == CT")
    assert present_splits(data) == ("train",)
    with pytest.raises(ManifestError, match=r"val\.csv: there are no rows .*data\.where"):
        load_manifest(data, ("train", "val"))


def test_described__conditions_are_refused_under_their_key(one_file: Path) -> None:
    with pytest.raises(SettingsError, match=r"data\.where: no column 'Modalty'; did you mean 'Modality'"):
        load_manifest(settings(one_file, where="Modalty == MR"), ("train",))
    with pytest.raises(SettingsError, match=r"data\.where: cannot read"):
        load_manifest(settings(one_file, where="Modality = MR"), ("train",))
    with pytest.raises(ManifestError, match=r"no row that data\.where keeps has the Split val"):
        load_manifest(settings(one_file, where="Modality == CT and Split != exclude"), ("train", "val"))


def test_read_described__for_splits_by_patient(one_file: Path) -> None:
    table, labels, notices = read_described(one_file, settings(one_file, where="PatientID != p3"))
    assert table["PatientID"].tolist() == ["p1", "p1", "p2"]
    assert table.index.tolist() == [2, 3, 4]
    assert labels.shape == (3, 0)
    assert notices == ["all.csv: 1 of 4 rows are left out by data.where"]
