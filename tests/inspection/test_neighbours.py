from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest

from medmoco.errors import ManifestError, SettingsError
from medmoco.inspection.neighbours import COLUMNS, nearest, neighbours
from tests.helpers.looks import make_data, make_run, names_a_secret


def split_of(name: str, size: int, seed: int) -> tuple[Any, np.ndarray]:
    generator = np.random.default_rng(seed)
    patients = generator.integers(6, size=size)
    features = generator.normal(size=(size, 5)).astype(np.float32)
    return SimpleNamespace(name=name, rows=2 + 3 * np.arange(size), patients=patients), features


@pytest.mark.parametrize("same_patient", [False, True])
@pytest.mark.parametrize("own_bank", [False, True])
def test_nearest__agrees_with_a_plain_loop(own_bank: bool, same_patient: bool) -> None:
    bank, keys = split_of("train", 40, 1)
    asked, queries = split_of("train", 40, 1) if own_bank else split_of("val", 7, 2)
    found = nearest(asked, queries, bank, keys, count=4, same_patient=same_patient)
    expected = []
    for i in range(len(asked.rows)):
        cosines = []
        for j in range(len(bank.rows)):
            own = bank.patients[j] == asked.patients[i]
            itself = own_bank and bank.rows[j] == asked.rows[i]
            if itself or (own and not same_patient):
                continue
            a, b = queries[i].astype(float), keys[j].astype(float)
            cosines.append((a @ b / np.linalg.norm(a) / np.linalg.norm(b), bank.rows[j], own))
        best = sorted(cosines, reverse=True)[:4]
        expected += [
            (asked.name, asked.rows[i], place, "train", row, cosine, own)
            for place, (cosine, row, own) in enumerate(best, 1)
        ]
    wanted = pd.DataFrame(expected, columns=list(COLUMNS))
    pd.testing.assert_frame_equal(found, wanted, check_dtype=False, rtol=1e-5)


def test_nearest__copies_are_in_the_order_of_their_rows() -> None:
    bank, keys = split_of("train", 60, 1)
    asked, queries = split_of("val", 3, 2)
    bank.patients += 100
    keys[:] = np.linspace(0.5, 2, 60)[:, None].astype(np.float32) * keys[0]  # one direction
    found = nearest(asked, queries, bank, keys, count=60, same_patient=False)
    assert found["neighbour_row"].tolist() == bank.rows.tolist() * 3


def test_nearest__a_bank_of_the_same_patient_only_has_none() -> None:
    bank, keys = split_of("train", 5, 1)
    bank.patients[:] = 3
    assert not len(nearest(bank, keys, bank, keys, count=4, same_patient=False))
    assert len(nearest(bank, keys, bank, keys, count=9, same_patient=True)) == 5 * 4


def test_neighbours__a_copy_is_the_nearest_and_the_picture_shows_all(tmp_path: Path) -> None:
    settings = make_data(tmp_path)
    out = tmp_path / "out" / "near.png"
    table = neighbours(settings, make_run(settings), out, [2, 9], count=3)
    written = pd.read_csv(tmp_path / "out" / "near.csv")
    pd.testing.assert_frame_equal(written, table, check_dtype=False, rtol=1e-5)
    assert written["row"].tolist() == [2, 2, 2, 9, 9, 9]
    assert (written["neighbour_row"][0], written["cosine"][0]) == (2, pytest.approx(1, abs=1e-5))
    assert written.groupby("row")["cosine"].apply(lambda cosines: cosines.is_monotonic_decreasing).all()
    height, width = cv2.imread(str(out)).shape[:2]
    assert width / height == pytest.approx(4 * 1.9 / (2 * 2.45), rel=0.01)
    assert not names_a_secret(out, tmp_path / "out" / "near.csv")


def test_neighbours__without_a_picture_no_image_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medmoco.inspection.neighbours.write_picture", pytest.fail)
    settings = make_data(tmp_path)
    table = neighbours(settings, "random", tmp_path / "near.csv", [2, 3], split="train", count=20, same_patient=True)
    assert [file.name for file in tmp_path.glob("near*")] == ["near.csv"]
    assert len(table) == 2 * 13
    assert table["same_patient"].sum() == 2  # each finds the other


def test_neighbours__within_one_patient_the_picture_has_the_image_alone(tmp_path: Path) -> None:
    settings = make_data(tmp_path, "evaluate.where=Easy == 1 and Hard == 1")
    only = neighbours(settings, "random", tmp_path / "a.png", [5], split="val", bank="val")
    assert only["neighbour_row"].tolist() == [11]
    settings = make_data(tmp_path / "more", "evaluate.where=PatientID == planted-val-0")
    assert not len(neighbours(settings, "random", tmp_path / "b.png", [2], split="val", bank="val"))
    assert cv2.imread(str(tmp_path / "b.png")).shape[1] == int(1.9 * 120)


@pytest.mark.parametrize(("out", "row", "error"), [("a.jpg", 2, SettingsError), ("a.png", 99, ManifestError)])
def test_neighbours__what_cannot_be_is_refused_before_the_work(
    tmp_path: Path, out: str, row: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medmoco.inspection.neighbours.features_of", pytest.fail)
    with pytest.raises(error, match=r"\.png for the picture|no row 99"):
        neighbours(make_data(tmp_path), "random", tmp_path / out, [row])


def test_neighbours__unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be written"):
        neighbours(make_data(tmp_path), "random", tmp_path / "file" / "a.csv", [2])


def test_neighbours__says_that_nobody_is_named(tmp_path: Path) -> None:
    settings = make_data(tmp_path)
    for table in settings.data.manifest.glob("*.csv"):
        table.write_text(table.read_text().replace("PatientID", "Site", 1))
    said: list[str] = []
    neighbours(settings, "random", tmp_path / "near.csv", [2], log=said.append)
    assert {line for line in said if "own patient" in line} == {
        f"{name}: no PatientID column; every row counts as its own patient" for name in ("train", "val")
    }
