from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medmoco.config import RunSettings, load
from medmoco.data.manifest.manifest import Split, load_manifest, present_splits
from medmoco.evaluation.leakage.provenance import Predictor, remedy, rows_at


def settings_of(folder: Path, *more: str) -> RunSettings:
    given = [f"data.manifest={folder / 'all.csv'}", f"data.root={folder}", f"out={folder / 'run'}"]
    return load(None, [*given, "data.labels=[Sick]", *more])


def splits_of(folder: Path, table: pd.DataFrame, *more: str) -> tuple[list[Split], RunSettings]:
    table.to_csv(folder / "all.csv", index=False)
    settings = settings_of(folder, *more)
    return list(load_manifest(settings.data, present_splits(settings.data)).values()), settings


def predictors_of(folder: Path, table: pd.DataFrame, *more: str) -> dict[str, Predictor]:
    splits, settings = splits_of(folder, table, *more)
    count = len(table)
    rows = rows_at(splits, np.arange(count), np.zeros((count, 88), np.uint8), np.zeros(count, bool))
    return {predictor.name: predictor for predictor in rows.predictors(settings)}


@pytest.fixture
def table() -> pd.DataFrame:
    at = np.arange(40)
    return pd.DataFrame({
        "Path": [f"{'AB'[n % 2]}/{'scan' if n < 20 else 'film'}_{n:03d}.png" for n in at],
        "PatientID": [f"{'IM-' if n % 4 else 'person'}{n // 2}" for n in at],
        "Sick": at % 2, "Split": np.where(at < 30, "train", "test"), "Site": [["north", "south"][n % 2] for n in at],
        "Age": [f"{n:03d}Y" for n in at], "kVp": at + 0.5, "Mass": at % 3 % 2, "Sex": at % 2,
    })  # fmt: skip


def test_predictors__are_what_the_manifest_has_except_labels_and_findings(tmp_path: Path, table: pd.DataFrame) -> None:
    found = predictors_of(tmp_path, table)
    assert set(found) == {
        "folder 1 of Path", "the letters in file names", "the numbers or order of file names",
        "the letters in PatientID", "the numbers or order of PatientID", "column Site", "column Age", "column kVp",
        "column Sex",
    }  # fmt: skip
    assert found["column Age"].values[:3, 0].tolist() == [0, 1, 2]
    assert found["column Site"].kind == "categories"
    letters = found["the letters in PatientID"].values[:, 0]
    assert [np.unique(letters[table["PatientID"].str.startswith(start)]).size for start in ("IM", "person")] == [1, 1]
    splits, settings = splits_of(tmp_path, table)
    rows = rows_at(splits, np.arange(40), np.zeros((40, 88), np.uint8), np.zeros(40, bool))
    assert rows.possible_findings(settings) == ["Mass"]
    assert "column Site" not in predictors_of(
        tmp_path, table, "data.labels={Sick: {column: Site, map: {north: 1, south: 0}}}"
    )


def test_predictors__rows_of_several_splits(tmp_path: Path, table: pd.DataFrame) -> None:
    splits, _ = splits_of(tmp_path, table)
    marked = np.arange(40)[:, None] * np.ones((1, 88), np.uint8)
    rows = rows_at(splits, np.array([3, 29, 30, 38]), marked, np.ones(40, bool))
    assert rows.table["Path"].tolist() == table["Path"][[3, 29, 30, 38]].tolist()
    assert [os.path.basename(file) for file in rows.files] == [path[2:] for path in rows.table["Path"]]
    assert rows.margins[:, 0].tolist() == [3, 29, 30, 38]


def test_predictors__numbers_of_any_length_keep_their_order(tmp_path: Path, table: pd.DataFrame) -> None:
    table["PatientID"] = [f"{10**45 + n // 2}" if n % 4 else "none" for n in range(40)]
    table["kVp"] = [str(10.0**n) if n < 39 else "" for n in range(40)]
    found = predictors_of(tmp_path, table)
    assert np.isnan(found["the numbers or order of PatientID"].values[::4, 0]).all()
    assert (np.diff(found["the numbers or order of PatientID"].values[1::4, -1]) > 0).all()
    kvp = found["column kVp"].values[:, 0]
    assert kvp[:39].tolist() == list(range(39))
    assert np.isnan(kvp[39])


@pytest.mark.parametrize(("hours", "is_tested"), [(20, False), (60, True)])
def test_predictors__file_dates_only_if_not_copied_at_once(
    tmp_path: Path, table: pd.DataFrame, hours: int, is_tested: bool
) -> None:
    for number, path in enumerate(table["Path"]):
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        file.touch()
        os.utime(file, (1.6e9 + 3600 * hours * number / 39,) * 2)
    assert ("file dates" in predictors_of(tmp_path, table)) == is_tested


def test_predictors__a_folder_for_each_patient_is_not_a_source(tmp_path: Path, table: pd.DataFrame) -> None:
    table["Path"] = [f"p{n // 2:03d}x/{n}.png" for n in range(40)]
    table = pd.concat([table.assign(Path=f"{copy}/" + table["Path"]) for copy in range(6)])
    found = predictors_of(tmp_path, table)
    assert "folder 2 of Path" in found  # 12 images each of 240 rows
    few = predictors_of(tmp_path, table.assign(Path=[f"a/{n}b/x.png" for n in range(240)]))
    assert "folder 2 of Path" not in few


def test_remedy__names_the_values_with_both_classes(tmp_path: Path) -> None:
    at = np.arange(400)
    site = np.select([at < 200, at < 300], ["both, one", "only sick"], "only well")
    sick = np.select([at < 200, at < 300], [at % 2, 1], 0)
    table = pd.DataFrame(
        {"Path": at.astype(str), "Sick": sick, "Split": "train", "The site": site, "Scanner": at % 2 + 7}
    )
    splits, settings = splits_of(tmp_path, table)

    def of(column: str | None) -> str:
        kind = "categories"
        return remedy(Predictor("x", "x", kind, np.zeros((1, 1)), column), "Sick", splits, settings)  # type: ignore[arg-type]

    assert of("The site") == (
        "compare within its values: 'evaluate.subgroups=[\"The site\"]' or"
        ' \'evaluate.where="The site" in ("both, one")\''
    )
    pasted = 'evaluate.where="The site" in ("both, one")'
    assert load(None, [f"data.manifest={tmp_path}", "data.root=x", "out=x", pasted]).evaluate.where == pasted[15:]
    assert "Scanner" in of("Scanner")
    assert "evaluate.subgroups=[Site]" in of(None)
    splits, settings = splits_of(tmp_path, table[table["The site"] != "both, one"])
    assert of("The site").startswith("no value of The site has both classes")
