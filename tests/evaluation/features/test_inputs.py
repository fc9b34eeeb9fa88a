from __future__ import annotations

from pathlib import Path

import pytest

from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features.inputs import (
    find_label,
    find_rows,
    load_splits,
    make_folder,
)
from tests.helpers.looks import make_data


def test_load_splits__restricts_and_numbers_patients_together(tmp_path: Path) -> None:
    splits = load_splits(make_data(tmp_path, "evaluate.where=Easy == 1"), ("val", "train", "val"))
    assert list(splits) == ["val", "train"]
    assert splits["val"].rows.tolist() == [3, 5, 7, 9, 11, 13]
    assert not set(splits["val"].patients) & set(splits["train"].patients)


def test_load_splits__a_missing_image_is_refused(tmp_path: Path) -> None:
    settings = make_data(tmp_path)
    (tmp_path / "secret-data/val/secret-3.png").unlink()
    with pytest.raises(ManifestError, match="rows 5") as caught:
        load_splits(settings, ("val",))
    assert "secret-3" not in str(caught.value)


def test_find_rows__in_the_order_asked_for(tmp_path: Path) -> None:
    val = load_splits(make_data(tmp_path, "evaluate.where=Easy == 1"), ("val",))["val"]
    assert find_rows(val, [13, 3, 13]).tolist() == [5, 0]
    assert find_rows(val, []).tolist() == []


def test_find_rows__one_that_is_not_there_is_named(tmp_path: Path) -> None:
    val = load_splits(make_data(tmp_path, "evaluate.where=Easy == 1"), ("val",))["val"]
    with pytest.raises(
        ManifestError, match=r"val\.csv: val has no row 1, 4; its 6 rows lie between 3 and 13"
    ) as caught:
        find_rows(val, [3, 1, 4])
    assert len(str(caught.value).splitlines()) <= 5
    with pytest.raises(ManifestError, match=r"no row 100, .*, 109, \.\.\.; its"):
        find_rows(val, list(range(100, 120)))


def test_find_label__the_first_or_one_that_is_there() -> None:
    assert find_label(None, ("A", "B")) == "A"
    assert find_label("B", ("A", "B")) == "B"
    assert find_label(None, ()) is None
    with pytest.raises(SettingsError, match="no label 'C'; known: A, B"):
        find_label("C", ("A", "B"))


def test_make_folder__a_place_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be the folder of the results"):
        make_folder(tmp_path / "file" / "in")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
