"""The whole of `check` on real files with every fault planted, and on real films."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from medmoco.config import RunSettings, load
from medmoco.data.loading.loading import read_canvases
from medmoco.data.manifest.manifest import load_manifest
from medmoco.data.pack.pack_writing import make_pack
from medmoco.data.quality import audit as quality
from medmoco.data.quality import examine
from medmoco.data.quality.audit import Audit, audit
from medmoco.errors import ManifestError, SettingsError, Stopped
from medmoco.evaluation.leakage.shortcuts import find_provenance, find_shortcuts
from tests.helpers.dask_cluster import connected, on_dask, running
from tests.helpers.dicom_files import RAMP12, save_dicom
from tests.helpers.films import edited, film


def settings_of(manifest: Path, root: Path | str, *more: str) -> RunSettings:
    given = [
        f"out={manifest / 'run'}",
        f"data.manifest={manifest}",
        f"data.root={root}",
        "data.workers=2",
        "views.size=32",
    ]
    return load(None, [*given, "data.canvas_size=64", *more])


def save(folder: Path, name: str, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(folder / name)
    return name


def write(folder: Path, name: str, rows: Sequence[str]) -> None:
    (folder / f"{name}.csv").write_text("\n".join(["Path,PatientID,StudyID,Sick", *rows]) + "\n")


def listed(report_folder: Path) -> set[tuple[str, int, str, str]]:
    with (report_folder / "rows.csv").open() as file:
        return {(line["split"], int(line["row"]), line["severity"], line["fault"]) for line in csv.DictReader(file)}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """Three splits of good films, each kind of bad row among them."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(12):
        save(images, f"secret{number}.png", film(number))
    save(images, "again.tif", film(0))
    save(images, "brighter.jpg", edited(film(1), "gamma"))
    save(images, "copy.png", film(2))
    Image.fromarray(film(20)).convert("RGB").save(images / "colour.png")
    save(images, "constant.png", np.full((80, 80), 9, np.uint8))
    save(images, "small.png", film(21, 40, 30))
    save_dicom(
        images / "deep.dcm", RAMP12, PhotometricInterpretation="MONOCHROME1", WindowCenter=2000, WindowWidth=4000
    )
    (images / "empty.png").touch()
    (images / "cut.jpg").write_bytes((images / "brighter.jpg").read_bytes()[:-50])
    (images / "page.png").write_text("<html>not found</html>")
    train = [f"secret{number}.png,pat{number},st{number},{number % 2}" for number in range(6)]
    train += ["copy.png,pat20,,0", "colour.png,pat21,,1", "constant.png,pat22,,0", "small.png,pat23,,-1"]
    write(tmp_path, "train", [*train, "empty.png,pat24,,", "page.png,pat25,,0"])
    val = [f"secret{number}.png,pat{number},st{number},1" for number in range(6, 9)]
    write(tmp_path, "val", [*val, "again.tif,pat30,,1", "cut.jpg,pat31,,1", "gone.png,pat32,,1"])
    test = [f"secret{number}.png,pat{number},st{number},{number % 2}" for number in range(9, 12)]
    test += ["secret7.png,pat40,,1", "brighter.jpg,pat41,,0", "deep.dcm,pat3,st3,0"]
    write(tmp_path, "test", test)
    return tmp_path


def test_audit__finds_every_planted_fault_at_its_row(planted: Path) -> None:
    settings = settings_of(planted, planted / "images", "data.labels=[Sick]")
    report = audit(settings, planted / "report")
    assert listed(planted / "report") == {
        ("train", 8, "warning", "same pixels twice"),
        ("train", 9, "warning", "stored in colour"),
        ("train", 9, "warning", "mixed photometric interpretation"),
        ("train", 10, "warning", "constant image"),
        ("train", 11, "warning", "smaller than the canvas"),
        ("train", 12, "fault", "file empty"),
        ("train", 13, "fault", "file unreadable"),
        ("val", 5, "fault", "pixels in two splits"),
        ("val", 6, "fault", "file cut off"),
        ("val", 7, "fault", "file missing"),
        ("test", 5, "fault", "file in two splits"),
        ("test", 6, "warning", "near duplicate in two splits"),
        ("test", 7, "fault", "patient in two splits"),
        ("test", 7, "fault", "study in two splits"),
        ("test", 7, "warning", "mixed bit depth"),
        ("test", 7, "warning", "mixed photometric interpretation"),
    }
    assert {fault.kind for fault in report.faults} == {
        "file empty", "file unreadable", "pixels in two splits", "file cut off", "file missing", "file in two splits",
        "patient in two splits", "study in two splits",
    }  # fmt: skip
    text = (planted / "report/report.txt").read_text()
    assert text == report.text
    assert "24 rows: train 12 of 12 patients, val 6 of 6 patients, test 6 of 6 patients" in text
    assert "\nSick   4 / 6 / 1 / 1  6 / 0 / 0 / 0  3 / 3 / 0 / 0\n" in text
    assert "no negatives in val: Sick" in text
    assert max(map(len, text.splitlines())) < 120
    assert not any(word in text for word in ("secret", "pat4", "st3", str(planted)))


def test_audit__the_list_of_rows_says_what_and_where(planted: Path) -> None:
    audit(settings_of(planted, planted / "images"), planted / "report")
    with (planted / "report/rows.csv").open() as file:
        lines = list(csv.DictReader(file))
    found = {(line["split"], line["row"], line["fault"]): (line["detail"], line["Path"]) for line in lines}
    assert found["val", "5", "pixels in two splits"] == ("same pixels as train row 2", "again.tif")
    assert found["test", "6", "near duplicate in two splits"] == ("nearly the same as train row 3", "brighter.jpg")
    assert found["test", "5", "file in two splits"] == ("same file as val row 3", "secret7.png")
    assert found["train", "11", "smaller than the canvas"] == ("40 x 30 pixels", "small.png")
    assert found["train", "13", "file unreadable"][0].startswith("a web page or XML instead of the file;")
    assert [line["severity"] for line in lines] == sorted(line["severity"] for line in lines)  # faults first
    with (planted / "report/duplicates.csv").open() as file:
        duplicates = [(line["group"], line["split"], line["row"], line["Path"]) for line in csv.DictReader(file)]
    assert duplicates == [
        ("0", "train", "2", "secret0.png"), ("0", "val", "5", "again.tif"),
        ("1", "train", "3", "secret1.png"), ("1", "test", "6", "brighter.jpg"),
        ("2", "train", "4", "secret2.png"), ("2", "train", "8", "copy.png"),
        ("3", "val", "3", "secret7.png"), ("3", "test", "5", "secret7.png"),
    ]  # fmt: skip


def test_audit__same_answer_whatever_the_workers(planted: Path) -> None:
    settings = settings_of(planted, planted / "images", "data.labels=[Sick]")
    texts = []
    for workers in (0, 1, 3):
        data = settings.data.model_copy(update={"workers": workers})
        texts.append(audit(settings.model_copy(update={"data": data}), planted / f"{workers}").text)
        assert (planted / f"{workers}/rows.csv").read_bytes() == (planted / "0/rows.csv").read_bytes()
    assert len(set(texts)) == 1


def clean(folder: Path, sizes: dict[str, int], first: int = 0) -> Path:
    (folder / "images").mkdir(parents=True)
    number = first
    for split, size in sizes.items():
        rows = []
        for at in range(size):
            rows.append(f"{save(folder / 'images', f'{number}.png', film(number))},{number},,{at % 2}")
            number += 1
        write(folder, split, rows)
    return folder


def test_audit__nothing_to_say_of_good_rows(tmp_path: Path) -> None:
    folder = clean(tmp_path / "good", {"train": 6, "test": 4})  # a manifest without val is as good
    report = audit(settings_of(folder, folder / "images", "data.labels=[Sick]"), tmp_path / "report")
    assert not report.faults
    assert not any(len(finding.rows) for finding in report.findings)
    assert listed(tmp_path / "report") == set()
    assert "checked and not found: file missing, file empty" in report.text
    assert "warning" not in report.text


def test_audit__letters_burned_into_the_images_of_one_class(tmp_path: Path) -> None:
    rows = []
    for number in range(80):
        pixels = film(number)
        if number % 2:
            cv2.putText(pixels, "R", (6, 24), cv2.FONT_HERSHEY_PLAIN, 1.2, 255, 2)
        rows.append(f"{save(tmp_path, f'secret{number * 37 % 80}.png', pixels)},pat{number * 37 % 80},,{number % 2}")
    write(tmp_path, "train", rows)
    settings = settings_of(tmp_path, tmp_path, "data.labels=[Sick]")
    report = audit(settings, tmp_path / "report", (), find_shortcuts, find_provenance)
    warned = [one for one in report.provenance.shortcuts if one.warns]
    assert "bright markings near image borders" in {one.trait for one in warned}
    assert "Sick can be told from bright markings near image borders" in report.text
    assert not report.faults
    assert not any(word in report.text for word in ("secret", "pat1", str(tmp_path)))


def against(tmp_path: Path, other: Path, root: Path) -> Audit:
    own = tmp_path / "own"
    settings = settings_of(own, own / "images")
    file = tmp_path / "other.yaml"
    file.write_text(f"out: x\ndata: {{manifest: {other}, root: {root}, labels: [Absent]}}\n")
    return audit(settings, tmp_path / "report", [file])


def test_audit__other_pretraining_data_by_pixels_and_near(tmp_path: Path) -> None:
    own = clean(tmp_path / "own", {"train": 3, "val": 2, "test": 3})
    other = clean(tmp_path / "other", {"train": 4}, first=50)
    save(other / "images", "51.png", film(5))  # of the first test row
    save(other / "images", "52.png", edited(film(6), "half"))  # of the second
    save(other / "images", "53.png", film(1))  # of train: that is fine
    report = against(tmp_path, other, other / "images")
    assert listed(tmp_path / "report") == {
        ("test", 2, "fault", "pixels in pretraining data"),
        ("test", 3, "warning", "near duplicate in pretraining data"),
    }
    assert [fault.kind for fault in report.faults] == ["pixels in pretraining data"]
    assert "pretraining data for comparison: 4 rows" in report.text
    assert own.exists()


def test_audit__other_pretraining_data_by_patient(tmp_path: Path) -> None:
    clean(tmp_path / "own", {"train": 3, "val": 2, "test": 3})
    other = clean(tmp_path / "other", {"train": 3}, first=50)
    write(other, "train", ["50.png,4,,", "51.png,0,,", "52.png,04,,"])  # a val patient, a train patient, another
    report = against(tmp_path, other, other / "images")
    assert listed(tmp_path / "report") == {("val", 3, "warning", "patient in pretraining data")}
    assert not report.faults
    assert "1 patients; only the IDs agree, perhaps by chance" in report.text


def test_audit__other_pretraining_data_by_path(tmp_path: Path) -> None:
    own = clean(tmp_path / "own", {"train": 3, "val": 2, "test": 3})
    other = tmp_path / "other"
    other.mkdir()
    write(other, "train", ["own/images/0.png,a,,", "own/images/7.png,b,,", "own/images/absent.png,7,,"])
    report = against(tmp_path, other, tmp_path)
    assert listed(tmp_path / "report") == {
        ("test", 4, "fault", "file in pretraining data"),
        ("test", 4, "fault", "patient in pretraining data"),  # as images agree, so do ids
        ("pretraining", 4, "warning", "no image in pretraining data"),
    }
    manifest = audit(settings_of(own, own / "images"), tmp_path / "plain", [own, own])  # a manifest: the same root
    assert "pretraining 2 data for comparison: 3 rows" in manifest.text
    assert not manifest.faults
    assert report.faults


def test_audit__other_manifests_have_our_column_names_or_those_of_the_settings(tmp_path: Path) -> None:
    plain = clean(tmp_path / "own", {"train": 3, "val": 2, "test": 3})
    named = tmp_path / "named"
    named.mkdir()
    for file in plain.glob("*.csv"):
        (named / file.name).write_text(file.read_text().replace("Path,PatientID", "file;name,subject", 1))
    columns = "data.columns={Path: file;name, PatientID: subject}"
    report = audit(settings_of(named, plain / "images", columns), tmp_path / "report", [plain, named])
    assert "pretraining 2 data for comparison: 3 rows" in report.text
    assert not report.faults
    (plain / "train.csv").write_text("Path\n7.png\n")  # the last row of test
    report = audit(settings_of(named, plain / "images", columns), tmp_path / "again", [plain])
    assert ("test", 4, "fault", "file in pretraining data") in listed(tmp_path / "again")


def test_audit__what_cannot_be_used_is_refused(tmp_path: Path) -> None:
    folder = clean(tmp_path / "good", {"train": 2})
    settings = settings_of(folder, folder / "images")
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot be written"):
        audit(settings, tmp_path / "file")
    with pytest.raises(ManifestError, match="does not exist"):
        audit(settings, tmp_path / "report", [tmp_path / "absent"])
    with pytest.raises(SettingsError, match="does not exist"):
        audit(settings, tmp_path / "report", [tmp_path / "absent.yaml"])


@pytest.mark.slow
def test_audit__real_films(shared: Path, tmp_path: Path) -> None:
    """4,001 films without a fault; their larger versions betray pneumonia by their shape, as is known of them."""
    for name, count in {"cxr_dev": 4001, "cxr_dev_native": 1064}.items():
        folder = shared / "data" / name
        settings = settings_of(folder, folder / "{split}", "data.labels=[Pneumonia, Viral]")
        report = audit(settings, tmp_path / name, find_shortcuts=find_shortcuts)
        assert not any(len(finding.rows) for finding in report.findings)
        assert f"{count:,} JPEG" in report.text
        warned = {one.label: one for one in report.shortcuts if one.warns}
        assert set(warned) == ({"Pneumonia", "Viral"} if name == "cxr_dev_native" else set())
    assert warned["Pneumonia"].trait == "width / height"
    assert warned["Pneumonia"].on_test == pytest.approx(0.89, abs=0.01)
    assert "width / height alone predicts Pneumonia with AUROC 0.88 (0.8" in report.text


def test_audit__real_dicom_files(shared: Path, tmp_path: Path) -> None:
    """Three encodings of two films are the same pixels or, where lossy, near; what is no image is a fault."""
    names = sorted(file.name for file in (shared / "data/dicom").glob("*.dcm"))
    (tmp_path / "train.csv").write_text("\n".join(["Path", *names]) + "\n")
    report = audit(settings_of(tmp_path, shared / "data/dicom"), tmp_path / "report")
    found = {(names[row - 2], fault) for _, row, _, fault in listed(tmp_path / "report")}
    assert {name for name, fault in found if fault.startswith("file ")} == {
        "JPGExtended.dcm", "MR_truncated.dcm", "RG2_JPLY.dcm", "chrKoreanMulti.dcm", "liver_1frame.dcm", "rtdose.dcm",
    }  # fmt: skip
    assert ("MR_truncated.dcm", "file cut off") in found
    assert {name for name, fault in found if fault == "same pixels twice"} >= {
        "RG1_UNCR.dcm",
        "RG2_JPLL.dcm",
        "RG2_RLE.dcm",
    }
    assert ("RG1_JLSN.dcm", "near duplicate") in found
    assert {name for name, fault in found if fault == "stored in colour"} == {
        "examples_palette.dcm", "examples_rgb_color.dcm", "examples_ybr_color.dcm",
    }  # fmt: skip
    assert report.faults


@pytest.mark.slow
def test_audit__the_published_split_of_real_films_shares_patients(shared: Path, tmp_path: Path) -> None:
    """The makers' own split, as far as the films are here: 115 of its 282 test patients are in train."""
    folder = shared / "data/cxr_dev"
    lines = ["Path,PatientID,Split"]
    for split in ("train", "val", "test"):
        with (folder / f"{split}.csv").open() as file:
            lines += [
                f"{split}/{row['Path']},{row['PatientID']},{row['OfficialSplit']}" for row in csv.DictReader(file)
            ]
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    settings = settings_of(tmp_path, folder, f"data.manifest={tmp_path / 'all.csv'}")
    report = audit(settings, tmp_path / "report")
    (fault,) = report.faults
    assert (fault.kind, len(fault.rows), fault.remark) == ("patient in two splits", 219, "115 patients")


@pytest.mark.parametrize("named", [False, True], ids=["without a Frame column", "with one"])
def test_audit__several_pages_are_remarked_on_where_no_frame_is_named(tmp_path: Path, named: bool) -> None:
    """So are they when a pack is made and when training reads the files."""
    first, second = (Image.fromarray(film(seed)) for seed in (1, 2))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    (tmp_path / "train.csv").write_text("Path,PatientID,Frame\na.tif,P1,1\n" if named else "Path,PatientID\na.tif,P1\n")
    settings = settings_of(tmp_path, tmp_path)
    audit(settings, tmp_path / "report", find_shortcuts=find_shortcuts)
    lines: list[str] = []
    make_pack(settings.data, tmp_path / "pack", lines.append)
    _, notices = read_canvases(load_manifest(settings.data, ("train",))["train"], np.array([0]), settings)
    words = "only the first of several frames or pages is read"
    for said in ((tmp_path / "report/rows.csv").read_text(), (tmp_path / "pack/notices.csv").read_text(), str(notices)):
        assert (words in said) != named
    assert any(words in line for line in lines) != named


# ---- interruptions and clusters ----


def written(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("block", [1024, 4])
def test_audit__the_report_depends_neither_on_workers_nor_on_interruptions(
    planted: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    audit(settings_of(planted, planted / "images"), planted / "whole", [planted])
    monkeypatch.setattr(examine, "BLOCK", block)
    audit(settings_of(planted, planted / "images", "data.workers=3"), planted / "three", [planted])
    assert written(planted / "three") == written(planted / "whole")
    settings, out = settings_of(planted, planted / "images"), planted / "stopped"
    made = examine._examine_parts

    def interrupted(*given: Any, workers: int) -> Iterator[int]:
        for count, one in enumerate(made(*given, workers=workers)):
            if count == 9:
                os.kill(os.getpid(), signal.SIGTERM)
            yield one

    with monkeypatch.context() as patched:
        patched.setattr(examine, "_examine_parts", interrupted)
        with pytest.raises(Stopped, match=r"stopped reading after 10 of 23 images"):
            audit(settings, out, [planted])
    assert (out / "unfinished").is_dir() == (block == 4)
    said: list[str] = []
    audit(settings, out, [planted], log=said.append)
    assert len(said) == (block == 4)
    assert written(out) == written(planted / "whole")


def test_audit__reading_is_not_repeated_if_something_else_fails(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(planted, planted / "images", "data.labels=[Sick]")

    def fail(*_: object) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(settings, planted / "report", find_shortcuts=fail)
    monkeypatch.setattr(examine, "read_as_set", pytest.fail)
    said: list[str] = []
    # Labels and workers do not matter for what is read from files.
    other = settings_of(planted, planted / "images", "data.labels=[]", "data.workers=1")
    audit(other, planted / "report", log=said.append)
    assert said == ["23 of 23 images are already finished; their files have not changed since"]
    assert sorted(written(planted / "report")) == ["duplicates.csv", "report.txt", "rows.csv"]


@on_dask
def test_audit__on_a_cluster_a_worker_killed_half_way_changes_no_byte(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_of(planted, planted / "images")
    audit(settings, planted / "local")
    monkeypatch.setattr(examine, "BLOCK", 4)
    with running(planted / "cluster", 2) as cluster:

        def kill(parts: int) -> None:
            if parts == 2:
                cluster.processes[1].kill()

        with connected(cluster.address, kill) as dask:
            audit(settings, planted / "dask", cluster=dask)
        with (
            connected(cluster.address, lambda _: os.kill(os.getpid(), signal.SIGTERM)) as dask,
            pytest.raises(Stopped),
        ):
            audit(settings, planted / "stopped", cluster=dask)
        monkeypatch.setattr(quality, "first_existing", lambda _: str(planted / "gone.png"))
        with (
            connected(cluster.address) as dask,
            pytest.raises(SettingsError, match="cannot read the images of train"),
        ):
            audit(settings, planted / "refused", cluster=dask)
    said: list[str] = []
    audit(settings, planted / "stopped", log=said.append)
    assert said
    assert written(planted / "dask") == written(planted / "stopped") == written(planted / "local")
