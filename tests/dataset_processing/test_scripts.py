"""Every data set script on an excerpt in the makers' own format."""

import gzip
import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dataset_processing import (
    chexpert,
    covid19_image_data,
    dicom_tree,
    image_folder,
    kermany_pneumonia,
    medmnist,
    mimic_cxr_jpg,
    nih_chest_xray14,
    padchest,
    rsna_pneumonia,
    shenzhen_montgomery_tb,
    siim_pneumothorax,
    vindr_cxr,
)
from medmoco.config import DataSettings
from medmoco.data.manifest.file_checks import check_files
from medmoco.data.manifest.manifest import load_manifest
from medmoco.datasets.preparation import run
from tests.helpers.dicom_files import RAMP12, save_dicom

SCRIPTS = Path(__file__).parents[2] / "dataset_processing"
Files = dict[str, pd.DataFrame]


def put(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def go(script: ModuleType, source: Path, *options: str) -> Files:
    """Run a script; return what it wrote by name, with all splits together as `all`."""
    out = source.parent / f"out{len(list(source.parent.iterdir()))}"
    run(script.ABOUT, script.prepare, ["--source", str(source), "--out", str(out), *options])
    files: Files = {file.stem: pd.read_csv(file, dtype=str, keep_default_na=False) for file in out.glob("*.csv")}
    splits = {name: table for name, table in files.items() if name in ("train", "val", "test")}
    files["all"] = pd.concat([table.assign(Split=name) for name, table in splits.items()]).set_index("Path")
    if "PatientID" in files["all"]:
        named = files["all"][files["all"]["PatientID"] != ""]
        assert named.groupby("PatientID")["Split"].nunique().max() == 1
    settings = DataSettings.model_validate({"manifest": out, "root": str(source)})
    for split in load_manifest(settings, list(splits)).values():
        assert not any("are in both" in notice for notice in split.notices)
    files["page"] = (out / "README.md").read_text()  # type: ignore[assignment]
    return files


def refusal(script: ModuleType, source: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match="3"):
        run(script.ABOUT, script.prepare, ["--source", str(source), "--out", str(source.parent / "refused")])
    message = capsys.readouterr().err
    assert len(message.splitlines()) <= 5
    return message


def labels(table: pd.DataFrame, path: str, names: list[str]) -> list[str]:
    return [str(table.loc[path, name]) for name in names]


# ---- NIH ChestX-ray14 ----

NIH_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]{}\n"
)
NIH_SIZES = ",2682,2749,0.143,0.143"


def nih_files(older: bool) -> dict[str, str]:
    """Thirty patients with two images each; the older file has units of age and a column without a name."""
    ages = ["058Y", "011M", "009D", "414Y"] if older else ["58", "0", "0", "95"]
    end = "," if older else ""
    rows = "".join(
        f"{patient:08d}_{image:03d}.png,{'Pneumonia|Effusion' if patient % 3 == 0 else 'No Finding'},{image + 4},"
        f"{patient},{ages[patient % 4]},{'MF'[patient % 2]},{'PA' if image else 'AP'}{NIH_SIZES}{end}\n"
        for patient in range(1, 31)
        for image in (0, 1)
    )
    return {
        "Data_Entry_2017.csv" if older else "Data_Entry_2017_v2020.csv": NIH_HEADER.format(end) + rows,
        "test_list.txt": "".join(f"{patient:08d}_{image:03d}.png\n" for patient in range(1, 7) for image in (0, 1)),
        "BBox_List_2017.csv": "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        + f"00000003_001.png,Infiltrate,225.084745762712,547.019,86.5,79.25{',,,' if older else ''}\n",
    }


@pytest.mark.parametrize("older", [False, True])
def test_nih__official_test_list_and_val_by_patient(tmp_path: Path, older: bool) -> None:
    files = go(nih_chest_xray14, put(tmp_path / "source", nih_files(older)))
    assert set(files["test"]["PatientID"]) == {f"{patient:08d}" for patient in range(1, 7)}
    assert files["val"]["PatientID"].nunique() in (2, 3)
    table = files["all"]
    assert len(table) == 60
    row = table.loc["images/00000003_001.png"]
    assert row[["PatientID", "StudyID", "ViewPosition", "Sex"]].tolist() == ["00000003", "00000003-005", "PA", "F"]
    assert labels(table, "images/00000003_001.png", ["Pneumonia", "Effusion", "Hernia", "No Finding"]) == list("1100")
    assert labels(table, "images/00000004_000.png", ["Pneumonia", "No Finding"]) == ["0", "1"]
    ages = [table.loc[f"images/{patient:08d}_000.png", "Age"] for patient in (4, 1, 2, 3)]
    assert ages == (["58", "0", "0", ""] if older else ["58", "0", "0", "95"])
    assert list(table.columns)[-16:-1] == nih_chest_xray14.LABELS
    box = files["boxes"].iloc[0].tolist()
    assert box == ["images/00000003_001.png", "Infiltration", "225.085", "547.019", "311.585", "626.269"]
    assert "60 images; its makers published 112,120" in files["page"]


def test_nih__twelve_folders(tmp_path: Path) -> None:
    source = put(tmp_path / "source", nih_files(older=False))
    names = [f"{patient:08d}_{image:03d}.png" for patient in range(1, 31) for image in (0, 1)]
    put(source, {f"images_{number % 12 + 1:03d}/images/{name}": "" for number, name in enumerate(names)})
    files = go(nih_chest_xray14, source)
    assert all((source / path).is_file() for path in files["all"].index)
    assert files["boxes"]["Path"].tolist() == ["images_006/images/00000003_001.png"]


def test_nih__refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = nih_files(older=False)
    without = {name: text for name, text in files.items() if name != "test_list.txt"}
    assert "no test_list.txt in it" in refusal(nih_chest_xray14, put(tmp_path / "a", without), capsys)
    wrong = put(tmp_path / "b", {**files, "test_list.txt": "x.png\n"})
    assert "none of its files is in Data_Entry_2017" in refusal(nih_chest_xray14, wrong, capsys)
    name = "Data_Entry_2017_v2020.csv"
    odd = put(tmp_path / "c", {**files, name: files[name].replace("Pneumonia|", "Pneumonis|")})
    assert "'Pneumonis' is none of the 15" in refusal(nih_chest_xray14, odd, capsys)


# ---- CheXpert and MIMIC-CXR-JPG ----

CHEXPERT_HEADER = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(chexpert.LABELS) + "\n"


def chexpert_row(
    part: str, patient: int, view: str = "frontal", projection: str = "AP", cells: str = ",1.0,-1.0"
) -> str:
    blanks = "," * (13 - cells.count(","))
    place = f"CheXpert-v1.0-small/{part}/patient{patient:05d}/study2/view1_{view}.jpg"
    return f"{place},Female,{patient},{view.title()},{projection},{cells}{blanks}\n"


def chexpert_files() -> dict[str, str]:
    train = [chexpert_row("train", patient) + chexpert_row("train", patient, "lateral", "") for patient in range(1, 41)]
    train.append(chexpert_row("train", 41, "frontal", "LL", "0.0,,").replace("Female", "Unknown"))
    valid = [chexpert_row("valid", patient, cells=",".join(["0.0"] * 14)) for patient in range(50, 53)]
    return {"train.csv": CHEXPERT_HEADER + "".join(train), "valid.csv": CHEXPERT_HEADER + "".join(valid)}


def test_chexpert__uncertain_and_blank_apart(tmp_path: Path) -> None:
    files = go(chexpert, put(tmp_path / "source", chexpert_files()))
    table = files["all"]
    assert len(table) == 84
    assert set(files["test"]["PatientID"]) == {"patient00050", "patient00051", "patient00052"}
    assert set(files["test"]["OfficialSplit"]) == {"valid"}
    assert files["val"]["PatientID"].nunique() == 4
    path = "train/patient00007/study2/view1_lateral.jpg"
    assert table.loc[path, ["StudyID", "ViewPosition", "Sex", "Age", "Frontal/Lateral"]].tolist() == [
        "patient00007/study2",
        "LATERAL",
        "F",
        "7",
        "Lateral",
    ]
    assert labels(table, path, chexpert.LABELS[:4]) == ["", "1", "-1", ""]
    odd = table.loc["train/patient00041/study2/view1_frontal.jpg"]
    assert odd[["ViewPosition", "Sex", "No Finding"]].tolist() == ["LL", "", "0"]


def test_chexpert__source_may_be_the_folder_above(tmp_path: Path) -> None:
    place = "CheXpert-v1.0-small"
    source = put(tmp_path / "source", {f"{place}/{name}": text for name, text in chexpert_files().items()})
    put(source, {f"{place}/train/patient{patient:05d}/study2/view1_frontal.jpg": "" for patient in range(1, 42)})
    files = go(chexpert, source)
    assert all((source / path).is_file() for path in files["all"].index)
    assert len(files["all"]) == 41
    assert len(files["left_out"]) == 43


def mimic_files(extra: str = "") -> dict[str, bytes]:
    people = [("10000032", "50414267", "02aa804e", "train", "PA"), ("10000033", "50414268", "174413ec", "validate", "")]
    people += [
        ("10000034", "50414269", "2a2277a9", "test", "LATERAL"),
        ("10000032", "50414270", "e084de3b", "train", "AP"),
    ]
    split = "dicom_id,study_id,subject_id,split\n" + "".join(f"{d},{s},{p},{part}\n" for p, s, d, part, _ in people)
    meta = "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows\n"
    meta += "".join(f'{d},{p},{s},"CHEST (PA, LAT)",{view},3056\n' for p, s, d, _, view in people)
    found = "subject_id,study_id," + ",".join(sorted(mimic_cxr_jpg.LABELS)) + "\n"
    found += "".join(f"{p},{s},1.0,,-1.0,0.0{',' * 10}\n" for p, s, *_ in people[:3]) + extra
    texts = {"split": split, "metadata": meta, "chexpert": found}
    return {f"mimic-cxr-2.0.0-{name}.csv.gz": gzip.compress(text.encode()) for name, text in texts.items()}


def test_mimic__official_split_and_studies_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = go(mimic_cxr_jpg, put(tmp_path / "source", mimic_files()))
    assert [len(files[name]) for name in ("train", "val", "test")] == [2, 1, 1]
    table = files["all"]
    path = "files/p10/p10000033/s50414268/174413ec.jpg"
    assert table.loc[path, ["Split", "PatientID", "StudyID", "ViewPosition"]].tolist() == [
        "val",
        "10000033",
        "50414268",
        "",
    ]
    assert labels(table, path, sorted(mimic_cxr_jpg.LABELS)[:4]) == ["1", "", "-1", "0"]
    assert set(labels(table, "files/p10/p10000032/s50414270/e084de3b.jpg", mimic_cxr_jpg.LABELS)) == {""}
    twice = put(tmp_path / "twice", mimic_files(f"10000032,50414267{',' * 14}\n"))
    assert "1 values of study_id twice" in refusal(mimic_cxr_jpg, twice, capsys)


# ---- RSNA, SIIM, VinDr ----


def rsna_files() -> dict[str, str | bytes]:
    ids = [f"{number:04d}-aa" for number in range(40)]
    rows, classes = ["patientId,x,y,width,height,Target"], ["patientId,class"]
    for number, name in enumerate(ids):
        boxes = [f"{name},264.0,152.0,213.0,379.5,1", f"{name},562.0,152.0,256.0,453.0,1"]
        rows += boxes if number % 4 == 0 else [f"{name},,,,,0"]
        kind = "Lung Opacity" if number % 4 == 0 else "Normal" if number % 2 else "No Lung Opacity / Not Normal"
        classes += [f"{name},{kind}"] * (2 if number % 4 == 0 else 1)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("stage_2_train_labels.csv", "\n".join(rows) + "\n")
    mapping = [{"subset_img_id": name, "img_id": f"{number // 2:08d}_001.png"} for number, name in enumerate(ids)]
    return {
        "stage_2_train_labels.csv.zip": archive.getvalue(),
        "stage_2_detailed_class_info.csv": "\n".join(classes) + "\n",
        rsna_pneumonia.MAPPING: json.dumps(mapping),
    }


def test_rsna__classes_boxes_and_patients_by_the_mapping(tmp_path: Path) -> None:
    files = go(rsna_pneumonia, put(tmp_path / "source", rsna_files()), "--workers", "1")
    table = files["all"]
    assert len(table) == 40
    assert (table["Pneumonia"] == "1").sum() == 10
    assert table["PatientID"].nunique() == 20
    assert labels(table, "stage_2_train_images/0004-aa.dcm", ["Pneumonia", "Normal", "Class"]) == [
        "1",
        "0",
        "Lung Opacity",
    ]
    assert labels(table, "stage_2_train_images/0001-aa.dcm", ["Pneumonia", "Normal"]) == ["0", "1"]
    assert labels(table, "stage_2_train_images/0002-aa.dcm", ["Pneumonia", "Normal"]) == ["0", "0"]
    assert len(files["boxes"]) == 20 + 30  # boxes, and images without any
    assert files["boxes"].iloc[0].tolist() == [
        "stage_2_train_images/0000-aa.dcm",
        "Pneumonia",
        "264",
        "152",
        "477",
        "531.5",
    ]


def test_rsna__headers_of_a_table_or_of_the_images(tmp_path: Path) -> None:
    source = put(tmp_path / "source", {name: text for name, text in rsna_files().items() if "mapping" not in name})
    (source / "stage_2_train_images").mkdir()
    for number in range(40):
        file = source / f"stage_2_train_images/{number:04d}-aa.dcm"
        save_dicom(file, RAMP12, PatientSex="F", PatientAge=f"{number:03d}Y", ViewPosition="AP")
    files = go(rsna_pneumonia, source, "--workers", "1")
    row = files["all"].loc["stage_2_train_images/0021-aa.dcm"]
    assert row[["PatientID", "ViewPosition", "Sex", "Age"]].tolist() == ["0021-aa", "AP", "F", "21"]
    assert "a patient may be in two splits" in files["page"]
    headers = ["PatientID,ViewPosition,PatientSex,PatientAge", *(f"{number:04d}-aa,PA,M,50" for number in range(40))]
    put(source, {"kaggle_stage_2_train_images_dicom_headers.csv": "\n".join(headers) + "\n"})
    assert set(go(rsna_pneumonia, source, "--workers", "1")["all"]["ViewPosition"]) == {"PA"}


def test_rsna__a_mapping_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = put(tmp_path / "source", {**rsna_files(), rsna_pneumonia.MAPPING: '[{"id": 1}]'})
    assert "not the list of subset_img_id" in refusal(rsna_pneumonia, source, capsys)


def siim_code(mask: Any) -> str:
    """Encode a (1024, 1024) mask as the makers do: gaps and runs, down the columns."""
    flat = np.flatnonzero(np.diff(np.concatenate([[0], mask.T.ravel(), [0]])))
    starts, ends = flat[::2], flat[1::2]
    gaps = starts - np.concatenate([[0], ends[:-1]])
    return " ".join(f"{gap} {run}" for gap, run in zip(gaps, ends - starts, strict=True))


def test_siim__one_row_per_image_and_a_box_per_mask(tmp_path: Path) -> None:
    first, second = np.zeros((2, 1024, 1024), int)
    first[100:151, 30:40] = 1
    first[120:171, 35:61] = 1
    second[0, 1023] = 1
    rows = "".join(f"1.2.{number}, -1\n" for number in range(30))
    text = f"ImageId, EncodedPixels\n{rows}1.2.99,{siim_code(first)}\n1.2.99, {siim_code(second)}\n"
    files = go(siim_pneumothorax, put(tmp_path / "source", {"train-rle.csv": text}), "--workers", "1")
    assert len(files["all"]) == 31
    assert files["all"].loc["dicom-images-train/1.2.99.dcm", "Pneumothorax"] == "1"
    assert (files["all"]["Pneumothorax"] == "1").sum() == 1
    assert set(files["boxes"]["Path"]) == set(files["all"].index)
    assert files["boxes"][["x_min", "y_min", "x_max", "y_max"]].to_numpy()[:2].tolist() == [
        ["30", "100", "61", "171"],
        ["1023", "0", "1024", "1"],
    ]


def test_siim__mask_boxes_equal_a_plain_loop() -> None:
    generator = np.random.default_rng(0)
    for _ in range(30):
        mask = np.zeros((1024, 1024), int)
        for left, top, width, height in generator.integers([0, 0, 1, 1], [900, 900, 124, 124], size=(3, 4)):
            mask[top : top + height, left : left + width] = 1
        lines, columns = np.nonzero(mask)
        expected = (columns.min(), lines.min(), columns.max() + 1, lines.max() + 1)
        assert siim_pneumothorax.mask_box(siim_code(mask)) == expected
    whole_column = np.zeros((1024, 1024), int)
    whole_column[:, 5:7] = 1  # one run over two columns
    assert siim_pneumothorax.mask_box(siim_code(whole_column)) == (5, 0, 7, 1024)


def test_siim__no_mask_at_all(tmp_path: Path) -> None:
    text = "ImageId, EncodedPixels\n" + "".join(f"1.2.{number}, -1\n" for number in range(30))
    files = go(siim_pneumothorax, put(tmp_path / "source", {"train-rle.csv": text}), "--workers", "1")
    assert set(files["all"]["Pneumothorax"]) == {"0"}
    assert len(files["boxes"]) == 30
    assert set(files["boxes"]["Label"]) == {""}


@pytest.mark.parametrize("code", ["1 2 3", "x y", "1048570 7", "5 0", "-3 2"])
def test_siim__codes_refused(tmp_path: Path, code: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = put(tmp_path / "source", {"train-rle.csv": f"ImageId, EncodedPixels\na,-1\nb,{code}\n"})
    assert "EncodedPixels" in refusal(siim_pneumothorax, source, capsys)


def test_vindr__majority_of_three_readers(tmp_path: Path) -> None:
    rows = ["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max"]
    for number in range(30):
        rows += [f"n{number:02d},No finding,14,R{reader},,,," for reader in (1, 2, 3)]
    rows += ["two,Cardiomegaly,3,R8,1,2,3.5,4", "two,Cardiomegaly,3,R9,1,2,3,5", "two,ILD,5,R10,7,8,9,10"]
    rows += [
        "one,ILD,5,R8,1,1,2,2",
        "one,ILD,5,R8,3,3,4,4",
        "one,Cardiomegaly,3,R9,1,2,3,4",
        "one,No finding,14,R10,,,,",
        "half,ILD,5,R8,1,1,2,2",
        "half,No finding,14,R10,,,,",
    ]
    text = "\n".join(rows) + "\n"
    files = go(vindr_cxr, put(tmp_path / "source", {"train.csv": text}), "--workers", "1")
    table = files["all"]
    assert len(table) == 33
    names = ["Cardiomegaly", "ILD", "No finding"]
    assert labels(table, "train/two.dicom", names) == ["1", "0", "0"]
    assert labels(table, "train/two.dicom", [f"{name} readers" for name in names]) == ["2", "1", "0"]
    assert labels(table, "train/one.dicom", names) == ["0", "0", "0"]
    assert labels(table, "train/one.dicom", [f"{name} readers" for name in names]) == ["1", "1", "1"]
    assert labels(table, "train/half.dicom", names) == ["0", "0", "0"]
    assert labels(table, "train/n00.dicom", names) == ["0", "0", "1"]
    assert "PatientID" not in table
    assert len(files["boxes"]) == 7 + 30  # boxes, and images without any
    assert files["boxes"].iloc[0].tolist() == ["train/two.dicom", "Cardiomegaly", "1", "2", "3.5", "4", "R8"]


def test_vindr__physionets_tables_keep_the_official_test(tmp_path: Path) -> None:
    marks = ["image_id,rad_id,Cardiomegaly,Other diseases,No finding"]
    for number in range(20):
        marks += [
            f"i{number:02d},R{reader},{int(reader <= number % 4)},0,{int(reader > number % 4)}" for reader in (1, 2, 3)
        ]
    drawn = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\ni01,R1,Cardiomegaly,1,2,3,4\ni00,R1,No finding,,,,\n"
    source = put(tmp_path / "source", {
        "annotations/image_labels_train.csv": "\n".join(marks) + "\n",
        "annotations/image_labels_test.csv": "image_id,Cardiomegaly,Other disease,No finding\nt1,1,1,0\nt2,0,0,1\n",
        "annotations/annotations_train.csv": drawn,
        "annotations/annotations_test.csv": "image_id,class_name,x_min,y_min,x_max,y_max\nt1,Cardiomegaly,5,6,7,8\n",
    })  # fmt: skip
    files = go(vindr_cxr, source, "--workers", "1")
    assert sorted(files["test"]["Path"]) == ["test/t1.dicom", "test/t2.dicom"]
    names = ["Cardiomegaly", "Other diseases", "No finding", "Cardiomegaly readers"]
    assert labels(files["all"], "test/t1.dicom", names) == ["1", "1", "0", ""]
    assert labels(files["all"], "train/i02.dicom", names) == ["1", "0", "0", "2"]
    assert labels(files["all"], "train/i01.dicom", names) == ["0", "0", "1", "1"]
    assert sorted(files["boxes"]["Reader"])[-2:] == ["R1", "consensus"]
    assert (files["boxes"]["Label"] == "").sum() == 22 - 2


# ---- PadChest ----


def padchest_table() -> str:
    columns = (
        ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,MethodLabel,Labels,"
        "labelCUIS\n"
    )
    cells = {
        0: "\"['normal']\"", 1: "\"['pneumonia', ' pneumonia', 'COPD signs']\"", 2: "\"[' pneumonia', '']\"", 3: "nan",
        4: "\"['exclude', 'nodule']\"", 5: '"[]"', 6: "\"['x'\"",
    }  # fmt: skip
    rows = [
        f"{number},{number}_a.png,{number % 3},20140915,s{number},00{number // 2},{'' if number == 8 else '1930.0'},"
        f"{'nan' if number == 9 else 'F'},{'EXCLUDE' if number == 7 else 'PA'},Physician,{cells.get(number, cells[0])},"
        f"\"['C1'\n 'C2']\"\n"
        for number in range(40)
    ]
    return columns + "".join(rows)


def test_padchest__labels_of_multi_line_rows(tmp_path: Path) -> None:
    files = go(padchest, put(tmp_path / "source", {f"{padchest.TABLE}.gz": gzip.compress(padchest_table().encode())}))
    table = files["all"]
    assert len(table) == 38
    assert sorted(files["left_out"]["Path"]) == ["1/4_a.png", "1/7_a.png"]
    names = ["COPD signs", "nodule", "normal", "pneumonia"]
    assert list(table.columns)[-5:-1] == names
    assert labels(table, "1/1_a.png", names) == ["1", "0", "0", "1"]
    assert labels(table, "2/2_a.png", names) == ["0", "0", "0", "1"]
    for unknown in ("0/3_a.png", "2/5_a.png", "0/6_a.png"):
        assert labels(table, unknown, names) == ["", "", "", ""]
    assert table.loc["0/0_a.png", ["PatientID", "StudyID", "ViewPosition", "Sex", "Age"]].tolist() == [
        "000",
        "s0",
        "PA",
        "F",
        "84",
    ]
    assert table.loc["2/8_a.png", "Age"] == ""
    assert table.loc["0/9_a.png", "Sex"] == ""


# ---- those without a table ----


def test_kermany__patients_from_names(tmp_path: Path) -> None:
    names = [f"train/PNEUMONIA/person{number}_bacteria_{number * 3}.jpeg" for number in range(1, 30)]
    names += [f"train/NORMAL/IM-{number:04d}-0001.jpeg" for number in range(1, 20)]
    names += ["test/NORMAL/NORMAL2-IM-0007-0001.jpeg", "test/PNEUMONIA/person1_virus_6.jpeg", "test/NORMAL/odd.jpeg"]
    names += ["val/PNEUMONIA/BACTERIA-1008087-0001.jpeg", "val/PNEUMONIA/VIRUS-1008087-0002.jpeg", "extra.png"]
    source = put(tmp_path / "source", {f"chest_xray/{name}": "" for name in names})
    put(source, {"chest_xray/chest_xray/train/NORMAL/IM-0001-0001.jpeg": "", "chest_xray/__MACOSX/._x.jpeg": ""})
    files = go(kermany_pneumonia, source)
    table = files["all"]
    assert len(table) == len(names) - 1
    patients = {name: table.loc[f"chest_xray/{name}", "PatientID"] for name in names[-6:-1]}
    assert list(patients.values()) == ["IM-0007", "person1", "", "1008087", "1008087"]
    row = table.loc["chest_xray/test/PNEUMONIA/person1_virus_6.jpeg"]
    assert row[["OfficialSplit", "Pneumonia", "Bacterial", "Viral"]].tolist() == ["test", "1", "0", "1"]
    assert row["Split"] == table.loc["chest_xray/train/PNEUMONIA/person1_bacteria_3.jpeg", "Split"]
    assert "2 patients are in two of its parts" in files["page"]
    assert sorted(files["left_out"]["Reason"]) == [
        "a second copy of a file in the same split and class",
        "not in {train,val,test}/{NORMAL,PNEUMONIA}",
    ]


def test_tuberculosis__labels_ages_and_sexes(tmp_path: Path) -> None:
    shenzhen, montgomery = "ChinaSet_AllFiles", "MontgomerySet"
    texts = {
        f"{shenzhen}/ClinicalReadings/CHNCXR_0001_0.txt": "male 45yrs\nnormal",
        f"{shenzhen}/ClinicalReadings/CHNCXR_0330_1.txt": "female , 9 months\r\nbilateral PTB",
        f"{montgomery}/ClinicalReadings/MCUCXR_0001_0.txt": "Patient's Sex: F\nPatient's Age: 027Y\nnormal",
        f"{montgomery}/NLM-Montgomery-CXRSet-ReadMe.txt": "read me",
    }
    texts |= {f"{shenzhen}/ClinicalReadings/CHNCXR_{number:04d}_1.txt": "Male 30yrs" for number in range(400, 430)}
    source = put(tmp_path / "source", texts)
    table = go(shenzhen_montgomery_tb, source)["all"]
    assert len(table) == 33
    columns = ["Sex", "Age", "Hospital", "Tuberculosis"]
    assert labels(table, f"{shenzhen}/CXR_png/CHNCXR_0001_0.png", columns) == ["M", "45", "Shenzhen", "0"]
    assert labels(table, f"{shenzhen}/CXR_png/CHNCXR_0330_1.png", columns) == ["F", "0", "Shenzhen", "1"]
    assert labels(table, f"{montgomery}/CXR_png/MCUCXR_0001_0.png", columns) == ["F", "27", "Montgomery", "0"]
    put(source, {f"{montgomery}/{folder}/MCUCXR_0001_0.png": "" for folder in ("CXR_png", "ManualMask/leftMask")})
    found = go(shenzhen_montgomery_tb, source)
    assert found["all"].index.tolist() == [f"{montgomery}/CXR_png/MCUCXR_0001_0.png"]


COVID = """patientid,offset,sex,age,finding,view,modality,folder,filename,license,clinical_notes
2,0,M,65,Pneumonia/Viral/COVID-19,PA,X-ray,images,a.jpg,CC BY,"two
lines"
2,3,M,65,Pneumonia/Viral/COVID-19,L,X-ray,images,b.jpg,CC BY,
4,0,F,,Pneumonia,AP,X-ray,images,c.jpg,,
5,0,F,7.5,No Finding,AP,X-ray,images,d.jpg,,
6,0,,,todo,PA,X-ray,images,e.jpg,,
7,0,,,Pneumonia/Bacterial/Klebsiella,PA,X-ray,images,f.jpg,,
8,0,,,Pneumonia/Viral/COVID-19,Axial,CT,volumes,g.nii.gz,,
"""


def test_covid__findings_are_a_tree(tmp_path: Path) -> None:
    more = "".join(f"{number},0,,,Tuberculosis,PA,X-ray,images,{number}.jpg,,\n" for number in range(20, 50))
    files = go(covid19_image_data, put(tmp_path / "source", {"metadata.csv": COVID + more}))
    table = files["all"]
    names = ["Pneumonia", "Viral", "COVID-19", "Bacterial", "Klebsiella", "No Finding"]
    assert labels(table, "images/a.jpg", names) == ["1", "1", "1", "0", "0", "0"]
    assert labels(table, "images/c.jpg", names) == ["1", "", "", "", "", "0"]
    assert labels(table, "images/d.jpg", names) == ["0", "0", "0", "0", "0", "1"]
    assert labels(table, "images/e.jpg", names) == [""] * 6
    assert labels(table, "images/f.jpg", names) == ["1", "0", "0", "1", "1", "0"]
    assert table.loc["images/d.jpg", ["Age", "Sex", "ViewPosition"]].tolist() == ["7", "F", "AP"]
    assert table.loc["images/a.jpg", "Split"] == table.loc["images/b.jpg", "Split"]
    assert files["left_out"].to_numpy().tolist() == [["volumes/g.nii.gz", "modality CT, not a radiograph"]]


def test_covid__its_first_version(tmp_path: Path) -> None:
    text = 'Patientid,offset,sex,age,finding,view,date, url,filename,license\n1,,,,"COVID-19, ARDS",PA,2020,u,a.jpg,\n'
    text += "".join(f"{number},,,,SARS,CT,2020,u,{number}.jpg,\n" for number in range(2, 4))
    text += "".join(f"{number},,,,SARS,PA,2020,u,{number}.jpg,\n" for number in range(4, 40))
    files = go(covid19_image_data, put(tmp_path / "source", {"metadata.csv": text}))
    assert labels(files["all"], "images/a.jpg", ["COVID-19", "ARDS", "SARS"]) == ["1", "1", "0"]
    assert len(files["left_out"]) == 2


def test_image_folder__classes_alone(tmp_path: Path) -> None:
    source = put(tmp_path / "source", {f"{name}/{number}.png": "" for name in ("cat", "dog") for number in range(40)})
    put(source, {"stray.png": "", "cat/notes.txt": "", "cat/deeper/x.jpg": ""})
    files = go(image_folder, source)
    assert len(files["all"]) == 81
    assert labels(files["all"], "cat/deeper/x.jpg", ["Class", "cat", "dog"]) == ["cat", "1", "0"]
    assert [(files["test"]["Class"] == name).sum() for name in ("cat", "dog")] == [pytest.approx(8, abs=1)] * 2
    assert files["left_out"]["Path"].tolist() == ["stray.png"]
    assert "1 other files are not images" in files["page"]


def test_image_folder__splits_and_many_classes(tmp_path: Path) -> None:
    names = {
        f"{split}/n{number:03d}/{image}.JPEG": ""
        for split in ("train", "val")
        for number in range(101)
        for image in "ab"
    }
    files = go(image_folder, put(tmp_path / "source", names))
    assert len(files["val"]) == 202
    assert len(files["test"]) == pytest.approx(0.2 * 202, abs=1)
    assert set(files["val"].columns) == {"Path", "Class"}
    assert "101 classes are too many" in files["page"]


def test_medmnist__png_files_and_labels(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in {"train": 5, "val": 3, "test": 2}.items():
        arrays[f"{split}_images"] = generator.integers(256, size=(count, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8)[:, None] % 3
    np.savez_compressed(tmp_path / "some.npz", **arrays)
    out = tmp_path / "out"
    run(medmnist.ABOUT, medmnist.prepare, ["--source", str(tmp_path / "some.npz"), "--out", str(out)])
    data = DataSettings.model_validate({"manifest": out, "root": str(out), "labels": ["label_0", "label_2"]})
    loaded = load_manifest(data)
    assert {name: split.labels.tolist() for name, split in loaded.items()}["train"] == [
        [1, 0],
        [0, 0],
        [0, 1],
        [1, 0],
        [0, 0],
    ]
    for name, split in loaded.items():
        check_files(split, data)
        for file, image in zip(split.files, arrays[f"{name}_images"], strict=True):
            with Image.open(file) as opened:
                np.testing.assert_array_equal(np.asarray(opened), image)


def test_medmnist__many_findings_and_colours(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.full((4, 28, 28, 3), (9, 99, 199), np.uint8)
        arrays[f"{split}_labels"] = np.eye(4, 14, dtype=np.uint8)
    np.savez(tmp_path / "some.npz", **arrays)
    out = tmp_path / "out"
    run(medmnist.ABOUT, medmnist.prepare, ["--source", str(tmp_path / "some.npz"), "--out", str(out)])
    assert list(pd.read_csv(out / "val.csv").columns) == ["Path", *(f"label_{number}" for number in range(14))]
    with Image.open(out / "images/test/000003.png") as opened:
        assert opened.getpixel((3, 3)) == (9, 99, 199)


def npz(**changes: Any) -> bytes:
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        arrays |= {f"{split}_images": np.zeros((2, 28, 28), np.uint8), f"{split}_labels": np.zeros((2, 1), np.uint8)}
    file = io.BytesIO()
    np.savez_compressed(file, **{name: array for name, array in (arrays | changes).items() if array is not None})
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"no archive", "not a MedMNIST .npz file"),
        (npz()[:-30], "not a MedMNIST .npz file"),
        (npz(val_labels=None), "(KeyError)"),
        (npz(train_labels=np.array([[{"a": 1}], [2]], object)), "(ValueError)"),  # would need pickle
        (npz(train_images=np.zeros((2, 28, 28, 28), np.uint8)), "volumes cannot be written"),
        (npz(train_images=np.zeros((2, 28, 28))), "not 8-bit images"),
        (npz(train_labels=np.zeros((3, 1), np.uint8)), "do not fit"),
    ],
)
def test_medmnist__refused(tmp_path: Path, content: bytes, part: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "some.npz").write_bytes(content)
    assert part in refusal(medmnist, tmp_path / "some.npz", capsys)


def test_medmnist__a_bomb_is_refused_before_it_is_inflated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "some.npz").write_bytes(npz(train_images=np.zeros((500, 28, 28), np.uint8)))
    monkeypatch.setattr(medmnist, "inflation_limit", lambda size: 20 * size)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was opened"))
    assert "such a ratio is no set of images" in refusal(medmnist, tmp_path / "some.npz", capsys)


def test_dicom_tree__headers_frames_and_what_is_no_image(tmp_path: Path) -> None:
    source = put(tmp_path / "source", {"notes.txt": "x", "a/.hidden": ""})
    for patient in range(20):
        for image in range(2):
            file = source / f"a/p{patient}/{image}"  # no suffix
            file.parent.mkdir(parents=True, exist_ok=True)
            save_dicom(file, RAMP12, StudyInstanceUID=f"1.{patient}", PatientAge="058Y", PatientSex="M")
            tags = {"PatientID": f"00{patient}"} if patient else {"PatientID": None}
            save_dicom(file, RAMP12, StudyInstanceUID=f"1.{patient}", PatientAge="058Y", PatientSex="M", **tags)
    save_dicom(source / "cine.dcm", np.stack([RAMP12] * 3), NumberOfFrames=3, PatientID="c")
    files = go(dicom_tree, source, "--workers", "2")
    table = files["all"].reset_index()
    assert len(table) == 43
    assert table[table["Path"] == "cine.dcm"]["Frame"].tolist() == ["1", "2", "3"]
    row = table[table["Path"] == "a/p7/1"].iloc[0]
    assert row[["Frame", "PatientID", "StudyID", "Sex", "Age", "Rows"]].tolist() == ["1", "007", "1.7", "M", "58", "64"]
    assert table[table["PatientID"] == ""]["Split"].nunique() == 1  # one study
    assert files["left_out"].to_numpy().tolist() == [["notes.txt", "not a DICOM file by its content"]]
    assert "4711" not in files["page"]
    assert "2 rows name no patient" in files["page"]


# ---- all of them ----

TABLES = [
    (nih_chest_xray14, "Data_Entry_2017.csv"), (chexpert, "train.csv"), (mimic_cxr_jpg, "mimic-cxr-2.0.0-split.csv"),
    (rsna_pneumonia, "stage_2_train_labels.csv"), (padchest, padchest.TABLE), (vindr_cxr, "train.csv"),
    (vindr_cxr, "image_labels_train.csv"), (siim_pneumothorax, "train-rle.csv"), (covid19_image_data, "metadata.csv"),
]  # fmt: skip


@pytest.mark.parametrize(("script", "name"), TABLES, ids=lambda value: getattr(value, "__name__", value))
def test_scripts__another_table_under_the_name(
    tmp_path: Path, script: ModuleType, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(script, put(tmp_path / "source", {name: "A,B\n1,2\n"}), capsys)
    assert f"{name}: no column " in message


@pytest.mark.parametrize("script", [kermany_pneumonia, shenzhen_montgomery_tb, image_folder, dicom_tree])
def test_scripts__a_folder_without_anything(
    tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "source").mkdir()
    assert "no usable row" in refusal(script, tmp_path / "source", capsys)


def test_scripts__run_as_programs(tmp_path: Path) -> None:
    source = put(tmp_path / "source", nih_files(older=False))
    command = [
        sys.executable,
        str(SCRIPTS / "nih_chest_xray14.py"),
        "--source",
        str(source),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SCRIPTS.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("NIH ChestX-ray14: train ")
    assert done.stderr == ""
    again = subprocess.run(command, capture_output=True, text=True, check=False, cwd=SCRIPTS.parent)
    assert again.returncode == 2
    assert again.stderr.startswith("medmoco: ")
    assert "Traceback" not in again.stderr


def test_scripts__page_lists_each() -> None:
    page = (SCRIPTS / "README.md").read_text(encoding="utf-8")
    scripts = {path.name for path in SCRIPTS.glob("*.py")} - {"__init__.py"}
    assert len(scripts) == 13
    assert all(f"| `{name}` |" in page for name in scripts)
