"""`medmoco split`: files, counts, and what is refused."""

import itertools
import re
import shlex
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmoco.config import DataSettings
from medmoco.data.manifest.manifest import load_manifest
from medmoco.data.manifest.split_files import assign, counts_page, patient_ids, split, write_folder
from medmoco.errors import ManifestError, MedmocoError, SettingsError


def make_table(rows: int = 600, patients: int = 200) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    owner = generator.integers(patients, size=rows)
    return pd.DataFrame(
        {
            "Path": [f"{number}.png" for number in range(rows)],
            "PatientID": [f"{number:05d}" for number in owner],
            "A": np.where(generator.random(rows) < 0.1, "1", "0"),
            "B": generator.choice(["1.0", "0", "-1", ""], size=rows),
            "Official": np.where(owner < 30, "test", np.where(owner < 150, "Train", "")),
        }
    )


Files = dict[str, pd.DataFrame]


def run(tmp_path: Path, table: pd.DataFrame | None = None, name: str = "out", **options: Any) -> Files:
    file = tmp_path / "all.csv"
    (make_table() if table is None else table).to_csv(file, index=False)
    split(file, tmp_path / name, **options)
    return {file.stem: pd.read_csv(file, dtype=str, keep_default_na=False) for file in (tmp_path / name).glob("*.csv")}


def people(table: pd.DataFrame) -> set[str]:
    return set(table["PatientID"])


def test_split__every_row_once_and_no_patient_twice(tmp_path: Path) -> None:
    files = run(tmp_path, labels=["A", "B"], seed=4)
    assert sorted(files) == ["test", "train", "val"]
    together = pd.concat(files.values())
    both = [table.sort_values("Path", ignore_index=True) for table in (together, make_table())]
    pd.testing.assert_frame_equal(*both)
    assert len(people(files["val"])) == pytest.approx(19, abs=1)
    assert sum(len(people(table)) for table in files.values()) == len(people(together))
    settings = DataSettings.model_validate({"manifest": tmp_path / "out", "root": "x", "labels": ["A", "B"]})
    assert not any(split.notices for split in load_manifest(settings).values())


def test_split__does_not_depend_on_row_order(tmp_path: Path) -> None:
    first = run(tmp_path, labels=["A", "B"], fractions=[5, 50])
    again = run(tmp_path, make_table().sample(frac=1, random_state=1), "again", labels=["A", "B"], fractions=[5, 50])
    assert sorted(first) == sorted(again) == ["test", "train", "train_05", "train_50", "val"]
    for name, table in first.items():
        assert set(table["Path"]) == set(again[name]["Path"])


def test_split__fractions_are_nested_patients_of_train(tmp_path: Path) -> None:
    files = run(tmp_path, fractions=[50, 1, 10, 2.5])
    order = ["train_01", "train_2.5", "train_10", "train_50", "train"]
    sizes = [len(people(files[name])) for name in order]
    total = sizes[-1]
    assert sizes == [max(1, round(share * total)) for share in (0.01, 0.025, 0.1, 0.5, 1)]
    for small, large in itertools.pairwise(order):
        assert people(files[small]) < people(files[large])
        whole_patients = files[large][files[large]["PatientID"].isin(people(files[small]))]
        assert set(files[small]["Path"]) == set(whole_patients["Path"])


def test_split__keeps_official_rows(tmp_path: Path) -> None:
    files = run(tmp_path, keep="Official", labels=["A"], val=0.25)
    official = make_table()
    assert set(files["test"]["Path"]) == set(official["Path"][official["Official"] == "test"])
    rest = official[official["Official"] != "test"]
    assert len(people(files["val"])) == pytest.approx(0.25 * rest["PatientID"].nunique(), abs=1)


def test_split__page_counts_what_the_files_hold(tmp_path: Path) -> None:
    files = run(tmp_path, labels=["A", "B"], fractions=[10])
    page = (tmp_path / "out" / "README.md").read_text()
    for name, column in (("rows", "Path"), ("patients", "PatientID")):
        counts = [files[file][column].nunique() for file in ("train", "val", "test", "train_10")]
        assert f"| {name} | {' | '.join(map(str, counts))} |" in page
    cells = []
    for file in ("train", "val", "test", "train_10"):
        values = files[file]["B"].replace("1.0", "1").value_counts()
        cells.append(" / ".join(str(values.get(cell, 0)) for cell in ("1", "0", "-1", "")))
    assert f"| B | {' | '.join(cells)} |" in page
    assert not re.search(r"\d{5}|\.png", page)


def test_split__rows_without_patient_stay_with_their_study_or_file(tmp_path: Path) -> None:
    table = make_table(300)
    table["PatientID"] = ""
    table["StudyID"] = [f"s{number // 3}" if number < 150 else "" for number in range(300)]
    table["Path"] = [f"{number // 2}.dcm" for number in range(300)]
    table["Frame"] = [str(number % 2 + 1) for number in range(300)]
    files = run(tmp_path, table)
    where = pd.concat([part.assign(Where=name) for name, part in files.items()])
    named = where[where["StudyID"] != ""]
    assert named.groupby("StudyID")["Where"].nunique().max() == 1
    assert where[where["StudyID"] == ""].groupby("Path")["Where"].nunique().max() == 1
    assert "300 rows have no patient ID" in (tmp_path / "out" / "README.md").read_text()


def test_split__rows_of_one_image_stay_together_whatever_its_column(tmp_path: Path) -> None:
    """VinDr's table has a row for each box, and neither Path nor PatientID."""
    table = pd.DataFrame({"image_id": [f"{n // 5}" for n in range(600)], "x": [str(n) for n in range(600)]})
    files = run(tmp_path, table)
    images = [set(files[name]["image_id"]) for name in ("train", "val", "test")]
    assert sum(map(len, images)) == len(set.union(*images)) == 120


def test_split__tables_without_path_or_patient(tmp_path: Path) -> None:
    table = make_table()[["A", "B"]].assign(Name=[f"row {number // 2}" for number in range(600)])
    assert sum(map(len, run(tmp_path, table).values())) == 600
    grouped = run(tmp_path, table, "named", group="Name")
    assert not set(grouped["train"]["Name"]) & set(grouped["test"]["Name"])


def test_split__labels_with_one_class_are_named(tmp_path: Path) -> None:
    table = make_table()
    table["Rare"] = ["1", *"0" * 599]
    run(tmp_path, table, labels=["A", "Rare"])
    lines = [
        line
        for line in (tmp_path / "out" / "README.md").read_text().splitlines()
        if "Labels with only one class" in line
    ]
    assert len(lines) == 2
    assert all(line.endswith(": Rare.") for line in lines)


@pytest.mark.parametrize(
    ("options", "error", "part"),
    [
        ({"labels": ["a"]}, ManifestError, "no column 'a'; did you mean 'A'"),
        ({"labels": ["Official"]}, ManifestError, "'Official' must be 1, 0, -1"),
        ({"group": "Patient"}, SettingsError, "no column 'Patient'; did you mean 'PatientID'"),
        ({"keep": "Offical"}, SettingsError, "did you mean 'Official'"),
        ({"keep": "A"}, ManifestError, "row 2: 'A' must be train, val, test or blank"),
        ({"keep": "Official", "test": 0.1}, SettingsError, "drop --test"),
        ({"val": 0.5, "test": 0.5}, SettingsError, "sum must be below 1"),
        ({"val": -0.1}, SettingsError, "neither can be negative"),
        ({"fractions": [0]}, SettingsError, "--fractions: 0 is not a percentage"),
        ({"fractions": [100]}, SettingsError, "train.csv is 100"),
    ],
)
def test_split__refused(tmp_path: Path, options: dict[str, Any], error: type[MedmocoError], part: str) -> None:
    with pytest.raises(error, match=re.escape(part)) as caught:
        run(tmp_path, **options)
    assert len(str(caught.value).splitlines()) <= 5
    assert not (tmp_path / "out").exists()


def test_split__shared_patients_of_a_kept_split_are_refused(tmp_path: Path) -> None:
    table = make_table()
    table.loc[table["PatientID"] == table["PatientID"][0], "Official"] = ""
    table.loc[0, "Official"] = "test"
    with pytest.raises(ManifestError, match="1 patients have rows both inside and outside"):
        run(tmp_path, table, keep="Official")


def test_split__folder_in_use(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(SettingsError, match="not an empty folder"):
        run(tmp_path)


def test_split__empty(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no rows below the header"):
        run(tmp_path, make_table().iloc[:0])


def test_patient_ids__blank_ids_never_meet_named_ones() -> None:
    table = pd.DataFrame({"PatientID": ["a.png", "", " "], "Path": ["x.png", "a.png", "b.png"]})
    ids, unnamed = patient_ids(table)
    assert unnamed == 2
    assert ids.nunique() == 3


def test_assign__official_rows_are_not_drawn() -> None:
    patients = pd.Series([f"p{number}" for number in range(100)])
    official = pd.Series(["val"] * 10 + [""] * 90)
    splits = assign(patients, pd.DataFrame(index=patients.index), official, {"test": 0.5}, seed=0)
    assert (splits[:10] == "val").all()
    assert splits[10:].value_counts().to_dict() == {"train": 45, "test": 45}


def test_counts_page__without_labels_is_two_lines() -> None:
    table = pd.DataFrame({"Path": ["a", "b"], "PatientID": ["1", "1"]})
    page = counts_page({"train": table}, pd.Series(["1", "1"]), pd.DataFrame(index=table.index))
    assert page.splitlines()[2:] == ["| rows | 2 |", "| patients | 1 |"]


def test_write_folder__says_why_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot write to"):
        write_folder(tmp_path / "file" / "out", {}, "page")


@pytest.mark.parametrize("column", ["Patient ID", "patient_id", "PatientId", "subject_id", "Pat.-Nr."])
def test_split__patients_under_another_name(tmp_path: Path, column: str) -> None:
    table = make_table().rename(columns={"PatientID": column})
    with pytest.raises(SettingsError, match=re.escape(f"did you mean --group {shlex.quote(column)}?")):
        run(tmp_path, table)
    files = run(tmp_path, table, group=column)
    for name in ("train", "val", "test"):
        assert files[name][column].tolist() == files[name]["PatientID"].tolist()
    assert not people(files["train"]) & people(files["test"])


def test_split__says_what_it_did_not_group_by(tmp_path: Path) -> None:
    table = make_table(100).drop(columns="PatientID").assign(split=["train", "test"] * 50, study_id="s")
    table.to_csv(tmp_path / "all.csv", index=False)
    said = split(tmp_path / "all.csv", tmp_path / "out").splitlines()
    assert said[1].startswith("There is no PatientID column: each image counts as its own patient")
    assert said[2:] == [
        "The column 'study_id' is not read as StudyID:"
        " 'data.columns={StudyID: \"study_id\"}' keeps the images of a study together.",
        "The column 'split' was not used; `--keep split` keeps its val and test rows.",
    ]
    assert all(line in (tmp_path / "out" / "README.md").read_text() for line in said[1:])
    said = split(tmp_path / "all.csv", tmp_path / "labelled", labels=["A"], group="Path").splitlines()
    assert said[1] == "The column PatientID was added as a copy of 'Path', so that the other commands group by it too."


def test_split__says_when_another_group_parts_patients(tmp_path: Path) -> None:
    table = make_table().assign(Visit=[f"v{number}" for number in range(600)])
    table.to_csv(tmp_path / "all.csv", index=False)
    said = split(tmp_path / "all.csv", tmp_path / "out", group="Visit").splitlines()
    files = [pd.read_csv(tmp_path / "out" / f"{name}.csv", dtype=str) for name in ("train", "val", "test")]
    parted = sum(sum(patient in people(part) for part in files) > 1 for patient in people(table))
    assert said[1].startswith(f"{parted} patients (PatientID) are in two splits")
    table.assign(Site="x", PatientID="").to_csv(tmp_path / "all.csv", index=False)
    split(tmp_path / "all.csv", tmp_path / "blank", group="Visit")
    assert pd.read_csv(tmp_path / "blank" / "train.csv", dtype=str)["PatientID"].str.startswith("v").all()


def test_split__says_which_ids_are_doubtful(tmp_path: Path) -> None:
    table = make_table()
    table.loc[:9, "PatientID"] = ["nan"] * 8 + ["1.2E+10"] * 2
    table.to_csv(tmp_path / "all.csv", index=False)
    said = split(tmp_path / "all.csv", tmp_path / "out").splitlines()
    assert said[1].startswith("8 rows have a PatientID that means a missing value, such as nan")
    assert said[2].startswith("2 rows have a PatientID that a spreadsheet has rounded")


def test_split__the_same_number_with_and_without_a_point(tmp_path: Path) -> None:
    table = make_table()
    table["PatientID"] = [f"{number // 3}{'.0' if number == 2 else ''}" for number in range(600)]
    with pytest.raises(ManifestError, match=r"row 4: PatientID ends in \.0"):
        run(tmp_path, table)
    table["PatientID"] = [f"{number // 3}.0" for number in range(600)]
    assert sum(map(len, run(tmp_path, table).values())) == 600


@pytest.mark.parametrize(
    ("rows", "options", "part"),
    [
        (
            3,
            {},
            "3 patients with --val 0.1, --test 0.2: val would be empty; raise --val, or give --val 0 to leave it out",
        ),
        (2, {"val": 0, "test": 0.05}, "2 patients with --val 0, --test 0.05: test would be empty"),
        (1, {"val": 0, "test": 0.99}, "train would be empty; lower them"),
    ],
)
def test_split__no_split_is_left_empty(tmp_path: Path, rows: int, options: dict[str, Any], part: str) -> None:
    table = pd.DataFrame({"Path": [f"{n}.png" for n in range(rows)], "PatientID": [f"p{n}" for n in range(rows)]})
    with pytest.raises(ManifestError, match=re.escape(part)):
        run(tmp_path, table, **options, seed=1)
    assert not (tmp_path / "out").exists()


def test_split__goes_without_a_split_on_request(tmp_path: Path) -> None:
    assert sorted(run(tmp_path, val=0)) == ["test", "train"]


HEADERS = ("PatientID", " PatientID ", "patient_id", "Patient ID", "PATIENTID", "subject", "Who")
PADDING = st.sampled_from(["", " ", "  ", "\u00a0", "\t"])


@st.composite
def tables_of_patients(draw: st.DrawFn) -> tuple[str, list[str], list[str]]:
    """Return a header, ids as they are spelt, and the patients that they are."""
    some = ["P1", "p1", "1", "01", "1 2", "12", "Ä", "x.0"]
    patients = some + draw(st.lists(st.sampled_from(some), min_size=8, max_size=24))
    spelt = [draw(PADDING) + patient + draw(PADDING) for patient in patients]
    return draw(st.sampled_from(HEADERS)), spelt, patients


@given(tables_of_patients(), st.booleans(), st.integers(0, 9))
def test_split__never_parts_a_patient_in_silence(
    table: tuple[str, list[str], list[str]], named: bool, seed: int
) -> None:
    header, spelt, patients = table
    options: dict[str, Any] = {"group": header.strip() if named else None, "seed": seed}
    with TemporaryDirectory() as folder:
        lines = [f"Path,{header}", *(f'{number}.png,"{text}"' for number, text in enumerate(spelt))]
        Path(folder, "all.csv").write_text("\n".join(lines) + "\n")
        try:
            said = split(Path(folder, "all.csv"), Path(folder, "out"), val=0, test=0.4, **options)
        except SettingsError:
            assert not named
            assert header not in ("PatientID", " PatientID ", "Who")
            return
        places: dict[str, set[str]] = {}
        for name in ("train", "test"):
            for path in pd.read_csv(Path(folder, "out", f"{name}.csv"), dtype=str)["Path"]:
                places.setdefault(patients[int(path.removesuffix(".png"))], set()).add(name)
    assert all(len(found) == 1 for found in places.values()) or "each image counts as its own patient" in said
    assert ("own patient" in said) == (header == "Who" and not named)


def duplicates(folder: Path, groups: dict[int, list[str]]) -> Path:
    folder.mkdir(exist_ok=True)
    lines = [f"{group},train,2,{path}" for group, paths in groups.items() for path in paths]
    (folder / "duplicates.csv").write_text("\n".join(["group,split,row,Path", *lines]) + "\n")
    return folder


def owners(table: pd.DataFrame, patients: list[str]) -> list[str]:
    """Return the first Path of each patient."""
    return [table.loc[table["PatientID"] == patient, "Path"].iloc[0] for patient in patients]


def test_split__keeps_duplicates_in_one_split(tmp_path: Path) -> None:
    table = make_table()
    plain = run(tmp_path, table, "plain")
    ids = [sorted(people(plain[name]))[:3] for name in ("train", "val", "test")]
    one, two, three = (owners(table, list(patients)) for patients in zip(*ids, strict=True))
    folder = duplicates(tmp_path / "check", {0: one, 1: [*two[:2], "elsewhere.png"], 2: [two[1], *three]})
    files = run(tmp_path, table, merge_duplicates=folder)
    for group in (one, [*two[:2], *three]):
        assert sum(bool(set(group) & set(part["Path"])) for part in files.values()) == 1
    assert sum(map(len, files.values())) == len(table)
    page = (tmp_path / "out" / "README.md").read_text()
    assert "Duplicates: 8 rows have a duplicate; 8 patients that share some form 2 groups" in page
    assert "the largest has 5 patients. 1 Paths of duplicates.csv are not in this table." in page
    assert not re.search(r"\d{5}|\.png", page)
    again = run(tmp_path, table.sample(frac=1, random_state=1), "again", merge_duplicates=folder / "duplicates.csv")
    for name, part in files.items():
        assert set(part["Path"]) == set(again[name]["Path"])


def test_split__without_duplicates_is_the_same(tmp_path: Path) -> None:
    plain = run(tmp_path, name="plain", labels=["A"])
    merged = run(tmp_path, labels=["A"], merge_duplicates=duplicates(tmp_path / "check", {}))
    for name, table in plain.items():
        pd.testing.assert_frame_equal(table, merged[name])
    assert "no two patients share one" in (tmp_path / "out" / "README.md").read_text()


def test_split__refuses_what_does_not_list_duplicates(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read, or is not a list of duplicates"):
        run(tmp_path, merge_duplicates=tmp_path / "nothing")
    (tmp_path / "duplicates.csv").write_text("row,Path\n1,0.png\n")
    with pytest.raises(SettingsError, match="give the folder that `medmoco check` writes"):
        run(tmp_path, merge_duplicates=tmp_path)
    with pytest.raises(ManifestError, match=r"none of the 2 Paths in duplicates\.csv"):
        run(tmp_path, merge_duplicates=duplicates(tmp_path / "check", {0: ["train/0.png", "train/1.png"]}))
    table = make_table()
    official = (
        table.loc[table["Official"] == "test", "Path"].iloc[0],
        table.loc[table["Official"] == "", "Path"].iloc[0],
    )
    with pytest.raises(ManifestError, match="Patients that share duplicates count as one"):
        run(tmp_path, keep="Official", merge_duplicates=duplicates(tmp_path / "check", {0: official}))


def test_split__without_patients_counts_images_or_studies(tmp_path: Path) -> None:
    table = make_table(100).drop(columns="PatientID")
    table.to_csv(tmp_path / "all.csv", index=False)
    text = split(tmp_path / "all.csv", tmp_path / "images", val=0.1, test=0.2, fractions=[10]).splitlines()[0]
    assert text.startswith("train 70 images, val 10 images, test 20 images, train_10 7 images (patients unknown); ")
    page = (tmp_path / "images" / "README.md").read_text()
    assert page.startswith("# Splits by image\n\nSeed 0. Fractions are of images, ")
    assert "10 % of the training" not in page
    assert "| images | 70 | 10 | 20 | 7 |" in page
    assert "patients |" not in page
    table.assign(StudyID=[f"s{number // 2}" for number in range(100)]).to_csv(tmp_path / "all.csv", index=False)
    text = split(tmp_path / "all.csv", tmp_path / "studies", val=0.1, test=0.2).splitlines()[0]
    assert text.startswith(
        "train 70 rows of 35 studies, val 10 rows of 5 studies, test 20 rows of 10 studies (patients"
    )
    assert "| studies | 35 | 5 | 10 |" in (tmp_path / "studies" / "README.md").read_text()
