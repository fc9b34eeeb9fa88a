"""Groups of rows by text and age, and their scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medmoco.config import DataSettings, EvaluateSettings
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.errors import SettingsError
from medmoco.evaluation.metrics.auroc import auroc, bootstrap_auroc, share_interval
from medmoco.evaluation.metrics.subgroups import groups_of, score_groups

BANDS = (0, 18, 40)


def made(folder: Path, columns: str, cells: list[str], patients: list[int] | None = None) -> Split:
    """Write a manifest of these cells, and read it."""
    codes = patients or list(range(len(cells)))
    lines = [f"Path,PatientID,{columns}", *(f"{row}.png,p{codes[row]},{text}" for row, text in enumerate(cells))]
    (folder / "test.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return load_manifest(DataSettings(manifest=folder, root=str(folder)), ["test"])["test"]


def test_groups__each_row_is_in_one_group_of_every_column(tmp_path: Path) -> None:
    split = made(tmp_path, "Sex,View", ["M,PA", "F,AP", ",PA", " F ,", "M,LL"])
    groups = groups_of(split, ["Sex", "View"], BANDS)
    assert {key: np.flatnonzero(mask).tolist() for key, mask in groups.items()} == {
        ("Sex", "F"): [1, 3],
        ("Sex", "M"): [0, 4],
        ("Sex", "not given"): [2],
        ("View", "AP"): [1],
        ("View", "LL"): [4],
        ("View", "PA"): [0, 2],
        ("View", "not given"): [3],
    }
    assert next(reversed(groups)) == ("View", "not given")


def test_groups__ages_go_by_bands(tmp_path: Path) -> None:
    ages = ["45", "045Y", "17.9", "18", "006M", "020W", "900D", "", "old", "-3", "40.0", "Y", "120Y", "240M"]
    groups = groups_of(made(tmp_path, "Age", ages), ["Age"], BANDS)
    assert {group: np.flatnonzero(mask).tolist() for (_, group), mask in groups.items()} == {
        "under 0": [9],
        "0 to under 18": [2, 4, 5, 6],
        "18 to under 40": [3, 13],
        "40 and over": [0, 1, 10, 12],
        "not an age": [8, 11],
        "not given": [7],
    }
    assert [group for _, group in groups][:2] == ["under 0", "0 to under 18"]


def test_groups__label_columns_can_be_groups(tmp_path: Path) -> None:
    made(tmp_path, "Edema", ["1", "0", ""])
    settings = DataSettings(manifest=tmp_path, root=str(tmp_path), labels={"Edema": {}})  # type: ignore[dict-item]
    groups = groups_of(load_manifest(settings, ["test"])["test"], ["Edema"], BANDS)
    assert [group for _, group in groups] == ["0", "1", "not given"]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("sex", "no column 'sex' in the test rows of .*; did you mean 'Sex'?"),
        ("PatientID", "PatientID identifies patients or files"),
        ("Path", "Path identifies patients or files"),
        ("Date", "'Date' has 51 values; name a column of at most 50"),
    ],
)
def test_groups__columns_that_are_none_are_refused(tmp_path: Path, column: str, message: str) -> None:
    split = made(tmp_path, "Sex,Date", [f"M,day {row}" for row in range(51)])
    with pytest.raises(SettingsError, match=message):
        groups_of(split, [column], BANDS)


def chosen(columns: list[str], **more: int) -> EvaluateSettings:
    return EvaluateSettings.model_validate({"subgroups": columns, "age_bands": list(BANDS), **more})


def test_records__are_the_scores_of_the_rows_of_the_group(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    patients = np.repeat(np.arange(60), 3)
    sexes = np.where(patients % 2 == 0, "M", "F")
    split = made(tmp_path, "Sex", sexes.tolist(), patients.tolist())
    targets = generator.choice([0.0, 1.0, np.nan], 180, p=[0.5, 0.4, 0.1])
    scores = generator.normal(size=180) + np.where(sexes == "M", 2, 0) * np.nan_to_num(targets)
    records = score_groups(targets, scores, split, chosen(["Sex"], least_patients=20, bootstrap=200), seed=1)
    assert [record.group for record in records] == ["F", "M"]
    for record in records:
        rows = (sexes == record.group) & ~np.isnan(targets)
        drawn = bootstrap_auroc(targets[rows], scores[rows], split.patients[rows], draws=200, seed=1)
        assert record.auroc == auroc(targets[rows], scores[rows])
        expected = share_interval(record.auroc, drawn)
        assert (record.auroc_low, record.auroc_high, record.bootstrap_left_out) == expected
        assert [record.n, record.n_positive] == [rows.sum(), (targets[rows] == 1).sum()]
        assert record.n_patients == len(set(patients[rows]))
        assert record.undefined is None
    assert records[1].auroc > records[0].auroc + 0.1


def test_records__few_patients_are_hidden_however_many_images_they_have(tmp_path: Path) -> None:
    patients = [*[0] * 40, *range(1, 21)]
    split = made(tmp_path, "Sex", ["M"] * 40 + ["F"] * 20, patients)
    targets, scores = np.tile([0.0, 1.0], 30), np.tile([0.0, 1.0], 30)
    settings = chosen(["Sex"], least_patients=20, bootstrap=100)
    few, many = score_groups(targets, scores, split, settings, seed=0)[::-1]
    assert [few.n, few.n_patients, few.auroc, few.auroc_low, few.auroc_high] == [40, 1, None, None, None]
    assert few.undefined == "hidden (fewer than 20 patients)"
    assert many.auroc == 1
    targets[-1] = np.nan  # a patient without a label does not count
    records = score_groups(targets, scores, split, settings, seed=0)
    assert [record.undefined for record in records] == ["hidden (fewer than 20 patients)"] * 2


def test_records__of_one_class_say_so(tmp_path: Path) -> None:
    split = made(tmp_path, "View", ["PA", "PA", "AP", "AP"])
    targets, scores = np.array([0.0, 1.0, 0.0, 0.0]), np.arange(4.0)
    settings = chosen(["View"], least_patients=1, bootstrap=100)
    one, both = score_groups(targets, scores, split, settings, seed=0)
    assert [one.auroc, one.undefined, one.bootstrap_left_out] == [None, "undefined (no positives)", 0]
    assert [getattr(both, name) for name in ("auroc", "auroc_low", "undefined")] == [1.0, None, None]
    assert both.bootstrap_left_out > 0
