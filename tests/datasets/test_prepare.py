"""Names of data sets to manifests, through the function; the command and the scripts are tested with the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from medmoco.datasets import prepare as module
from medmoco.datasets.prepare import COLLECTIONS, DATASETS, RADIOGRAPHS, prepare
from medmoco.datasets.radiographs.padchest import TABLE
from medmoco.errors import SettingsError
from tests.helpers.dataset_files import nih_files, put, refusal

TABLES = [
    ("nih_chest_xray14", "Data_Entry_2017.csv"), ("chexpert", "train.csv"),
    ("mimic_cxr_jpg", "mimic-cxr-2.0.0-split.csv"), ("rsna_pneumonia", "stage_2_train_labels.csv"),
    ("padchest", TABLE), ("vindr_cxr", "train.csv"), ("vindr_cxr", "image_labels_train.csv"),
    ("siim_pneumothorax", "train-rle.csv"), ("covid19_image_data", "metadata.csv"),
]  # fmt: skip


def test_datasets__are_the_modules_of_the_two_rooms() -> None:
    for room, names in {"radiographs": RADIOGRAPHS, "collections": COLLECTIONS}.items():
        folder = Path(module.__file__).with_name(room)
        assert set(names) == {file.stem for file in folder.glob("*.py")} - {"__init__"}
    assert list(DATASETS) == sorted({**RADIOGRAPHS, **COLLECTIONS})


def test_datasets__are_listed_without_loading_pandas() -> None:
    program = "import sys, medmoco.datasets.prepare; sys.exit('pandas' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_prepare__returns_what_it_wrote(tmp_path: Path) -> None:
    source = put(tmp_path / "source", nih_files(older=False))
    first, second, other = (
        prepare("nih_chest_xray14", str(source), tmp_path / name, seed=seed, gzip=name == "b")
        for name, seed in {"a": 1, "b": 1, "c": 2}.items()
    )
    assert first.folder == tmp_path / "a"
    assert first.left_out == 0
    assert first.counts == second.counts
    assert (first.counts["test"], sum(first.counts.values())) == (12, 60)
    assert first.text.startswith(f"NIH ChestX-ray14: train {first.counts['train']} rows of ")
    assert {file.name for file in (tmp_path / "b").iterdir()} == {
        "train.csv.gz", "val.csv.gz", "test.csv.gz", "boxes.csv.gz", "README.md",
    }  # fmt: skip
    assert (first.folder / "val.csv").read_text() != (other.folder / "val.csv").read_text()


def test_prepare__refuses_an_unknown_name_an_absent_source_and_a_full_folder(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="'chexprt'; did you mean 'chexpert'"):
        prepare("chexprt", tmp_path, tmp_path / "out")
    with pytest.raises(SettingsError, match="'x'\navailable: chexpert, covid19_image_data, "):
        prepare("x", tmp_path, tmp_path / "out")
    with pytest.raises(SettingsError, match="absent does not exist"):
        prepare("chexpert", tmp_path / "absent", tmp_path / "out")
    (tmp_path / "full").touch()
    with pytest.raises(SettingsError, match="not an empty folder"):
        prepare("chexpert", tmp_path / "absent", tmp_path)


@pytest.mark.parametrize(("name", "table"), TABLES)
def test_prepare__another_table_under_the_name(tmp_path: Path, name: str, table: str) -> None:
    assert f"{table}: no column " in refusal(name, put(tmp_path / "source", {table: "A,B\n1,2\n"}))


@pytest.mark.parametrize("name", ["kermany_pneumonia", "shenzhen_montgomery_tb", "image_folder", "dicom_tree"])
def test_prepare__a_folder_without_anything(tmp_path: Path, name: str) -> None:
    (tmp_path / "source").mkdir()
    assert "no usable row" in refusal(name, tmp_path / "source")
