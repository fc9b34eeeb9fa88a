from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import medmoco
from medmoco import config
from medmoco.datasets.prepare import DATASETS
from tests.helpers.collections import write_images
from tests.helpers.commands import Call, refused


def test_prepare__writes_a_manifest_and_prints_its_sizes(call: Call, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "source" / name).mkdir(parents=True)
        for number in range(20):
            (tmp_path / "source" / name / f"{number}.png").touch()
    arguments = ["prepare", "image_folder", "--source", tmp_path / "source", "--out", tmp_path / "out", "--gzip"]
    assert call(*arguments).stdout.startswith("a folder of classes: train 28 images, ")
    assert (tmp_path / "out/train.csv.gz").is_file()
    assert "not an empty folder" in call(*arguments, code=2).stderr


def test_prepare__help_lists_every_data_set(call: Call) -> None:
    shown = call("prepare", "--help").stdout
    for name, line in DATASETS.items():
        assert f" {name:24}{line} " in shown


def test_split__writes_the_files_and_says_their_sizes(call: Call, tmp_path: Path) -> None:
    rows = "".join(f"{number}.png,{number // 2},{number % 2},{number % 3 - 1}\n" for number in range(200))
    (tmp_path / "all.csv").write_text(f"Path,Person,A,B\n{rows}")
    options = ["--labels", "A, B", "--group", "Person", "--val", 0.2, "--fractions", "10, 50"]
    out = call("split", "--csv", tmp_path / "all.csv", "--out", tmp_path / "out", *options, "--seed", 3).stdout
    assert "val 40 rows of 20 patients, test 40 rows of 20 patients, train_10 12 rows of 6 patients" in out
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"train.csv", "val.csv", "test.csv", "train_10.csv", "train_50.csv", "README.md"}


def test_split__of_a_table_under_other_names(call: Call, tmp_path: Path) -> None:
    rows = "".join(f"{number}.png,{number // 2},{'Mass|Cyst' if number % 3 else 'Cyst'},MR\n" for number in range(100))
    (tmp_path / "all.csv").write_text(f"File,Person,Findings,Modality\n{rows}x.png,7,Mass,CT\n")
    columns, where = "data.columns={Path: File, PatientID: Person}", "data.where=Modality == MR"
    labels = "data.labels={Mass: {column: Findings, contains: mass}}"
    words = ["--csv", tmp_path / "all.csv", "--out", tmp_path / "out", columns, where, labels]
    out = call("split", *words, "--val", 0.2).stdout
    assert "train 60 rows of 30 patients, val 20 rows of 10 patients, test 20 rows of 10 patients" in out
    assert "all.csv: 1 of 101 rows are left out by data.where" in out
    header, first, *_ = (tmp_path / "out/train.csv").read_text().splitlines()
    assert header == "File,Person,Findings,Modality"  # so that the same settings describe it
    assert first.endswith(",MR")
    page = (tmp_path / "out/README.md").read_text()
    assert "balanced by label: Mass." in page
    assert "| Mass |" in page


@pytest.mark.parametrize(
    "command",
    ["check", "pack", "pretrain", "tune", "bench", "evaluate", "curve", "finetune", "detect", "neighbours --rows 2",
     "projection", "placement", "preview"],
)  # fmt: skip
def test_commands__never_take_each_image_for_a_patient_in_silence(call: Call, tmp_path: Path, command: str) -> None:
    data = tmp_path / "data"
    call("phantom", "--out", data, "--patients", 10, "--image-size", 64)
    for name in ("train", "val", "test"):
        table = data / f"{name}.csv"
        table.write_text(table.read_text().replace("PatientID", "Patient ID", 1))
    settings = [f"out={tmp_path / 'run'}", f"data.manifest={data}", f"data.root={data}/{{split}}", "data.workers=0"]
    settings += ["data.labels=[Opacity]", "train.device=cpu", "tune.space={train.lr: [0.01, 0.1]}"]
    pictures = ("preview", "projection", "neighbours --rows 2")
    arguments = [*command.split(), "--config", "configs/demo.yaml"]
    if command not in ("check", "pretrain", "tune", "bench"):
        arguments += ["--out", tmp_path / "new.png" if command in pictures else tmp_path / "new"]
    if command not in ("check", "pack", "pretrain", "tune", "bench", "preview"):
        arguments += ["--encoder", "random"]
    said = call(*arguments, *settings, code=3).stderr
    assert "no row has a PatientID, but the column 'Patient ID' seems to identify the patient;" in said
    assert 'PatientID: "Patient ID"' in said


def test_check__ends_with_exit_code_3_after_the_whole_report(call: Call, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    for name in ("secret1", "secret2"):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "train.csv").write_text("Path,PatientID\nsecret1.png,hidden\n")
    (tmp_path / "test.csv").write_text("Path,PatientID\nsecret2.png,hidden\nsecret3.png,other\n")
    overrides = [f"data.manifest={tmp_path}", f"data.root={tmp_path}", "data.labels={}"]
    done = call("check", "--config", "configs/demo.yaml", *overrides, "--out", tmp_path / "report", code=3)
    assert "3 rows: train 1 of 1 patients, test 2 of 2 patients" in done.stdout
    for kind in ("file missing", "patient in two splits", "pixels in two splits"):
        assert f"fault             1  {kind}" in done.stdout
        assert kind in done.stderr
    assert done.stderr.strip().startswith("medmoco: faults were found (file missing, ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "secret" not in done.stdout + done.stderr
    assert "hidden" not in done.stdout + done.stderr
    assert (tmp_path / "report/report.txt").read_text() == done.stdout
    assert (tmp_path / "report/rows.csv").read_text().count("\n") > 3


def test_pack__failed_images_are_exit_code_3_and_training_says_so_too(call: Call, tmp_path: Path) -> None:
    data, folder = tmp_path / "data", tmp_path / "pack"
    call("phantom", "--out", data, "--patients", 10, "--image-size", 64)
    next((data / "train").rglob("*.png")).write_bytes(b"")
    settings = ["--config", "configs/demo.yaml", f"out={tmp_path / 'run'}", f"data.manifest={data}"]
    settings += [f"data.root={data}/{{split}}", "data.labels={}"]
    done = call("pack", "--out", folder, *settings, code=3)
    assert "1 images could not be packed; failed.csv in the pack lists their rows and the reasons" in done.stderr
    assert (folder / "pack.json").is_file()
    assert len(done.stderr.split("medmoco: ")[1].splitlines()) <= 5
    refused = call("pretrain", *settings, f"data.pack={folder}", code=3)
    assert "rows could not be packed (rows " in refused.stderr
    assert len(refused.stderr.splitlines()) <= 5


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["split", "--csv", "absent.csv", "--out", "x"], 3, "absent.csv: cannot be opened"),
        (["split", "--csv", "a.csv", "--out", "x", "--fractions", "1;5"], 2, "'1;5' is not a list of numbers"),
        (["pack", "--config", "configs/cxr.yaml"], 2, "give --out, or set data.pack"),
        (["pack", "--config", "configs/cxr.yaml", "data.pack=s3://b/p"], 2, "give --out, or set data.pack"),
    ],
)
def test_errors__are_short_and_have_their_exit_code(call: Call, arguments: list[str], code: int, expected: str) -> None:
    refused(call, arguments, code, expected)


@pytest.fixture
def films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with images and a CSV; nothing is timed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("medmoco.starting.init._images_per_second", lambda *_: 1000.0)
    write_images(tmp_path / "films", [f"p{number // 2}_{number}.png" for number in range(40)])
    rows = "".join(f"p{number // 2}_{number}.png,{'yes' if number % 2 else 'no'}\n" for number in range(40))
    (tmp_path / "films" / "labels.csv").write_text(f"image,Sick\n{rows}")
    return tmp_path


def test_init__prints_the_fingerprint_and_the_next_command(call: Call, films: Path) -> None:
    shown = call("init", "films", "--hours", 0.5, "--patient", r"^p(\d+)_")
    lines = shown.stdout.splitlines()
    assert [line.split() for line in lines[:3]] == [["train"], ["images", "40"], ["patients", "20"]]
    assert lines[-1] == "next        medmoco pretrain"
    assert "reading the headers of 41 files" in shown.stderr
    assert config.load(films / "medmoco.yaml").train.epochs == 200


def test_init__replaces_an_earlier_plan_only_with_overwrite(call: Call, films: Path) -> None:
    call("init", "films", "--out", "plan")
    assert "plan/medmoco.yaml and plan/manifest exist already" in call("init", "films", "--out", "plan", code=2).stderr
    call("init", "films", "--out", "plan", "--overwrite", "--seed", 7)
    assert config.load(films / "plan/medmoco.yaml").seed == 7


@pytest.mark.parametrize(("answer", "written"), [("y", True), ("n", False)])
def test_init__asks_on_a_terminal_whether_columns_are_read_correctly(
    call: Call, films: Path, monkeypatch: pytest.MonkeyPatch, answer: str, written: bool
) -> None:
    terminal = io.StringIO(f"{answer}\n")
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    shown = call("init", "films/labels.csv", code=0 if written else 2)
    assert "'image' is read as Path\nlabels in words (yes = 1, no = 0): 'Sick'\nIs this right?" in shown.stdout
    assert (films / "medmoco.yaml").exists() is written


def test_init__does_not_ask_without_a_terminal_or_with_yes(
    call: Call, films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Is this right?" not in call("init", "films/labels.csv").stdout
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert "Is this right?" not in call("init", "films/labels.csv", "--yes", "--overwrite").stdout


def test_init__chosen_labels(call: Call, films: Path) -> None:
    assert (
        "no column or class 'sick'; did you mean 'Sick'?"
        in call("init", "films/labels.csv", "--labels", "sick", code=2).stderr
    )
    call("init", "films/labels.csv", "--labels", " Sick ")
    assert list(config.load(films / "medmoco.yaml").data.labels) == ["Sick"]


def test_init__time_is_given_once(call: Call, films: Path) -> None:
    assert "exclude each other" in call("init", "films", "--minutes", 1, "--hours", 1, code=2).stderr


def test_phantom__options_of_volumes(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {}
    monkeypatch.setattr(medmoco, "phantom", lambda out, **options: given.update(options))
    call("phantom", "--out", tmp_path / "a", "--volumes", "--patients", 12, "--format", "dicom, nifti", "--workers", 2)
    assert given == {
        "volumes": True, "patients": 12, "image_size": None, "seed": 0, "formats": ["dicom", "nifti"], "workers": 2,
        "masks": False,
    }  # fmt: skip
    call("phantom", "--out", tmp_path / "b", "--image-size", 64)
    assert not given["volumes"]
    assert given["formats"] is None
    assert given["image_size"] == 64


@pytest.mark.slow
def test_phantom__writes_volumes(call: Call, tmp_path: Path) -> None:
    call("phantom", "--out", tmp_path / "ct", "--volumes", "--patients", 10, "--image-size", 64, "--format", "dicom")
    assert len(list((tmp_path / "ct" / "train").glob("PHANTOM-*/study1_series1/*.dcm"))) > 6 * 50
    refused_formats = call("phantom", "--out", tmp_path / "x", "--volumes", "--format", "png", code=2).stderr
    assert "choose from dicom, nifti" in refused_formats
