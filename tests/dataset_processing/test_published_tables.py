"""The real published tables, and the numbers their makers (or the files themselves) give for them."""

import gzip
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from medmoco.config import DataSettings
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.datasets.prepare import prepare
from medmoco.datasets.radiographs.padchest import TABLE

pytestmark = pytest.mark.slow
MANIFESTS = Path(__file__).parents[2] / "manifests"


def prepared(
    name: str, shared: Path, tmp_path: Path, tables: dict[str, str], **options: Any
) -> tuple[dict[str, Split], pd.DataFrame]:
    """Prepare real tables under their official names; return the manifest, and all rows together."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    for official, copy in tables.items():
        (source / official).symlink_to(shared / "data/manifests" / copy)
    prepare(name, source, out, **options)
    settings = DataSettings.model_validate({"manifest": out, "root": "x"})
    splits = load_manifest(settings)
    for split in splits.values():
        assert not any("are in both" in notice for notice in split.notices)  # no patient, no image in two splits
    return splits, pd.concat([split.table.assign(Split=name) for name, split in splits.items()])


def positives(table: pd.DataFrame, label: str) -> int:
    return int((table[label] == "1").sum())


NIH = {
    "Data_Entry_2017_v2020.csv.gz": "Data_Entry_2017_v2020.csv.gz",
    "test_list.txt.gz": "nih_test_list.txt.gz",
    "BBox_List_2017.csv.gz": "BBox_List_2017.csv.gz",
}


def test_nih__published_counts_and_the_manifest_in_the_repository(shared: Path, tmp_path: Path) -> None:
    splits, table = prepared("nih_chest_xray14", shared, tmp_path, NIH, gzip=True)
    # Wang et al. 2017 (arXiv:1705.02315v5), its released README and FAQ; the split sizes are those of its two lists.
    assert len(table) == 112_120
    assert table["PatientID"].nunique() == 30_805
    assert positives(table, "Pneumonia") == 1_431
    assert positives(table, "No Finding") == 60_361
    assert positives(table, "Hernia") == 227
    assert len(splits["test"]) == 25_596
    assert len(splits["train"]) + len(splits["val"]) == 86_524
    official = gzip.decompress((shared / "data/manifests/nih_test_list.txt.gz").read_bytes()).decode().split()
    assert set(splits["test"].table["Path"].str.removeprefix("images/")) == set(official)
    assert "images/00001203_011.png" in set(table["Path"][table["Split"] != "test"])  # the line that the list lacks
    boxes = pd.read_csv(tmp_path / "out/boxes.csv.gz")
    assert len(boxes) == 984
    assert boxes["Path"].nunique() == 880
    ours = MANIFESTS / "nih_chest_xray14"
    assert {file.name for file in ours.iterdir()} == {file.name for file in (tmp_path / "out").iterdir()}
    for file in ours.iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name
    assert sum(file.stat().st_size for file in ours.iterdir()) < 2_000_000


def test_nih__unchanged_by_row_order(shared: Path, tmp_path: Path) -> None:
    splits, _ = prepared("nih_chest_xray14", shared, tmp_path, NIH)
    table = pd.read_csv(shared / "data/manifests" / NIH["Data_Entry_2017_v2020.csv.gz"], dtype=str, index_col=False)
    shuffled = tmp_path / "shuffled"
    shuffled.mkdir()
    (shuffled / "test_list.txt.gz").symlink_to(tmp_path / "source/test_list.txt.gz")
    table.sample(frac=1, random_state=0).to_csv(shuffled / "Data_Entry_2017_v2020.csv", index=False)
    out = tmp_path / "again"
    prepare("nih_chest_xray14", shuffled, out)
    again = load_manifest(DataSettings.model_validate({"manifest": out, "root": "x"}))
    for name, split in splits.items():
        assert set(split.table["Path"]) == set(again[name].table["Path"])


def test_chexpert__published_counts(shared: Path, tmp_path: Path) -> None:
    tables = {"train.csv.gz": "chexpert_train.csv.gz", "valid.csv": "chexpert_valid.csv"}
    splits, table = prepared("chexpert", shared, tmp_path, tables)
    train = table[table["OfficialSplit"] == "train"]
    assert len(train) == 223_414  # the download page: 223,414 images of 64,540 patients, and 234 of 200 to validate on
    assert train["PatientID"].nunique() == 64_540
    assert len(splits["test"]) == 234
    assert splits["test"].table["PatientID"].nunique() == 200
    assert (train["Frontal/Lateral"] == "Frontal").sum() == 191_027  # in the table itself
    # Irvin et al. 2019 (arXiv:1901.07031), table 1, counts studies: positive, uncertain.
    studies = train.drop_duplicates("StudyID")
    assert len(studies) == 187_641
    published = {
        "No Finding": (16_627, 0), "Enlarged Cardiomediastinum": (9_020, 10_148), "Cardiomegaly": (23_002, 6_597),
        "Lung Lesion": (6_856, 1_071), "Lung Opacity": (92_669, 4_341), "Edema": (48_905, 11_571),
        "Consolidation": (12_730, 23_976), "Pneumonia": (4_576, 15_658), "Atelectasis": (29_333, 29_377),
        "Pneumothorax": (17_313, 2_663), "Pleural Effusion": (75_696, 9_419), "Pleural Other": (2_441, 1_771),
        "Fracture": (7_270, 484), "Support Devices": (105_831, 898),
    }  # fmt: skip
    for label, counts in published.items():
        assert tuple((studies[label] == cell).sum() for cell in ("1", "-1")) == counts, label


def test_rsna__published_counts(shared: Path, tmp_path: Path) -> None:
    headers = "kaggle_stage_2_train_images_dicom_headers.csv.gz"
    tables = {"stage_2_train_labels.csv.zip": "kaggle_stage_2_train_labels.csv.zip", headers: headers}
    _, table = prepared("rsna_pneumonia", shared, tmp_path, tables)
    # The competition's data page: 26,684 images; 30,227 rows, of which 9,555 are boxes, on 6,012 images.
    assert len(table) == table["PatientID"].nunique() == 26_684
    assert positives(table, "Pneumonia") == 6_012
    listed = pd.read_csv(tmp_path / "out/boxes.csv")
    assert set(listed["Path"]) == set(table["Path"])
    boxes = listed.dropna()
    assert (len(boxes), len(listed)) == (9_555, 30_227)
    assert set(boxes["Path"]) == set(table["Path"][table["Pneumonia"] == "1"])
    assert boxes[["x_min", "y_min"]].min(axis=None) >= 0
    assert boxes[["x_max", "y_max"]].max(axis=None) <= 1024
    assert table["ViewPosition"].value_counts().to_dict() == {"PA": 14_511, "AP": 12_173}


def test_padchest__counts(shared: Path, tmp_path: Path) -> None:
    tables = {f"{TABLE}.gz": f"{TABLE}.gz"}
    _, kept = prepared("padchest", shared, tmp_path, tables)
    left_out = pd.read_csv(tmp_path / "out/left_out.csv")
    # Bustos et al. 2020 (arXiv:1901.07441) count 160,868 images of 67,625 patients in 109,931 studies; the released
    # table has seven images fewer, and all patients and studies. The other numbers are of the table itself.
    assert len(kept) + len(left_out) == 160_861
    source = pd.read_csv(shared / "data/manifests" / f"{TABLE}.gz", dtype=str, keep_default_na=False)
    assert source["PatientID"].nunique() == 67_625
    assert source["StudyID"].nunique() == 109_931
    excluded = source["Labels"].str.contains("'[ ]*exclude'", regex=True) | (source["Projection"] == "EXCLUDE")
    assert len(left_out) == excluded.sum()
    rest = source[~excluded]
    assert kept["PatientID"].nunique() == rest["PatientID"].nunique()
    for label in ("normal", "pneumonia", "pleural effusion", "COPD signs", "breast mass"):
        assert positives(kept, label) == rest["Labels"].str.contains(f"'[ ]*{label}'", regex=True).sum(), label
    assert (kept["normal"] == "").sum() == (rest["Labels"] == "nan").sum() == 103


def test_vindr__published_counts(shared: Path, tmp_path: Path) -> None:
    _, table = prepared("vindr_cxr", shared, tmp_path, {"train.csv.gz": "vinbigdata-train.csv.gz"})
    # Nguyen et al. 2022 (doi:10.1038/s41597-022-01498-w): 15,000 training images with three readers each. 10,606
    # without a finding is what all three say in the competition's table, as are the boxes.
    assert len(table) == 15_000
    assert positives(table, "No finding") == (table["No finding readers"] == "3").sum() == 10_606
    source = pd.read_csv(shared / "data/manifests/vinbigdata-train.csv.gz", dtype=str, keep_default_na=False)
    listed = pd.read_csv(tmp_path / "out/boxes.csv")
    assert set(listed["Path"]) == set(table["Path"])
    boxes = listed.dropna()
    assert len(listed) - len(boxes) == 10_606
    assert len(boxes) == (source["class_name"] != "No finding").sum() == 36_096
    readers = source.drop_duplicates(["image_id", "rad_id", "class_name"]).groupby(["image_id", "class_name"]).size()
    for label in ("Cardiomegaly", "ILD", "Pneumothorax"):
        votes = readers.xs(label, level="class_name")
        assert positives(table, label) == (votes >= 2).sum(), label
        marked = table.set_index("Path")[f"{label} readers"].astype(int)
        assert marked.sum() == votes.sum(), label


def test_siim__published_counts(shared: Path, tmp_path: Path) -> None:
    tables = {"train-rle.csv.gz": "siim-pneumothorax-train-rle.csv.gz"}
    _, table = prepared("siim_pneumothorax", shared, tmp_path, tables)
    # The competition's second-stage training set: 12,047 images, 2,669 with a pneumothorax; 12,954 rows in the table.
    assert len(table) == 12_047
    assert positives(table, "Pneumothorax") == 2_669
    listed = pd.read_csv(tmp_path / "out/boxes.csv")
    boxes = listed.dropna()
    assert len(boxes) == 12_954 - 9_378
    assert len(listed) - len(boxes) == 12_047 - 2_669
    assert set(boxes["Path"]) == set(table["Path"][table["Pneumothorax"] == "1"])
    # Most pneumothoraces lie beside the midline and in the upper half, which a swap of x and y would not give.
    middle = (boxes["y_min"] + boxes["y_max"]) / 2
    assert (middle < 512).mean() > 0.6
