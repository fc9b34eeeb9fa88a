from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from dataset_processing import chest_films
from dataset_processing.chest_films import FOLDER, SIZE, rebuild, shrink

SPLITS = ("train", "val", "test")


def _tables() -> dict[str, pd.DataFrame]:
    return {split: pd.read_csv(FOLDER / f"{split}.csv", dtype=str, keep_default_na=False) for split in SPLITS}


def test_films__are_those_of_the_tables_and_no_patient_is_in_two_splits() -> None:
    tables = _tables()
    listed = [path for table in tables.values() for path in table["Path"]]
    assert len(set(listed)) == len(listed) == 1500
    assert {f"images/{file.name}" for file in (FOLDER / "images").iterdir()} == set(listed)
    patients = [set(table["PatientID"]) for table in tables.values()]
    assert len(set.union(*patients)) == sum(map(len, patients))
    for table in tables.values():
        assert set(table["Pneumonia"]) == {"0", "1"}
        assert (table["Viral"] == "").equals(table["Pneumonia"] == "0")


def test_films__are_small_grayscale_squares() -> None:
    for file in sorted((FOLDER / "images").iterdir())[::50]:
        assert cv2.imread(str(file), cv2.IMREAD_UNCHANGED).shape == (SIZE, SIZE)
        assert file.stat().st_size < 5000


def test_rebuild__makes_the_same_films_from_the_archive(shared: Path) -> None:
    native, compared = shared / "data" / "cxr_dev_native", 0
    for split, table in _tables().items():
        for path, source in zip(table["Path"][::10], table["Source"][::10], strict=True):
            film = native / split / source.partition("/")[2]
            if film.is_file():
                made = cv2.imdecode(np.frombuffer(shrink(film), np.uint8), cv2.IMREAD_GRAYSCALE).astype(float)
                ours = cv2.imread(str(FOLDER / path), cv2.IMREAD_GRAYSCALE).astype(float)
                assert np.abs(made - ours).mean() < 3  # ours are from 224-pixel copies
                compared += 1
    assert compared > 20


def test_rebuild__writes_every_film_or_says_how_many_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, source = tmp_path / "tables", tmp_path / "archive"
    (source / "train").mkdir(parents=True)
    folder.mkdir()
    for split in SPLITS:
        cv2.imwrite(str(source / "train" / f"{split}.png"), np.full((300, 200), 90, np.uint8))
        (folder / f"{split}.csv").write_text(f"Path,Source\nimages/{split}.jpg,train/{split}.png\n")
    monkeypatch.setattr(chest_films, "FOLDER", folder)
    assert rebuild(source, tmp_path / "out") == 3
    assert cv2.imread(str(tmp_path / "out/images/val.jpg"), cv2.IMREAD_UNCHANGED).shape == (SIZE, SIZE)
    (source / "train" / "val.png").unlink()
    with pytest.raises(SystemExit, match=r"1 of 3 films are not in .*, the first being train/val.png"):
        rebuild(source, tmp_path / "out")
