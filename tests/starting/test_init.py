"""`medmoco init`, and that every plan of it trains."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pytest

import medmoco
from medmoco.config import load
from medmoco.data.loading.workers import shared_bytes
from medmoco.errors import ManifestError, SettingsError
from medmoco.starting import init as init_module
from medmoco.starting.init import Started
from medmoco.starting.machine import Gpu, Machine
from medmoco.starting.plan import Choice, as_tree
from tests.helpers.collections import write_images
from tests.helpers.dicom_files import RAMP12, save_dicom

SHORT = 0.002
"""Minutes: no plan gets more than an epoch or two."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working folder."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_module, "_images_per_second", lambda *_: 1000.0)


def _class_folders(folder: Path) -> Path:
    return write_images(folder, [f"{kind}/p{n}.png" for kind in ("CNV", "NORMAL") for n in range(20)])


def _assert_trains(started: Started) -> None:
    text = started.config.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    run = medmoco.pretrain(started.config, progress=False)
    assert run.status["state"] == "done"


# ---- every plan trains ----


@pytest.mark.slow
def test_init__of_class_folders_trains(place: Path) -> None:
    _class_folders(place / "oct")
    started = medmoco.init("oct", minutes=SHORT)
    assert started.config == Path("medmoco.yaml")
    assert load(started.config).data.labels.keys() == {"CNV", "NORMAL"}
    assert started.text.endswith("next        medmoco pretrain")
    _assert_trains(started)


@pytest.mark.slow
def test_init__of_twenty_images_trains(place: Path) -> None:
    write_images(place / "pngs", [f"{n}.png" for n in range(20)])
    started = medmoco.init("pngs", minutes=SHORT)
    assert started.counts == {"train": 20}
    assert [path.name for path in sorted(started.manifest.iterdir())] == ["README.md", "train.csv"]
    settings = load(started.config)
    assert (settings.train.global_batch_size, settings.method.queue_size, settings.data.labels) == (4, 8, {})
    _assert_trains(started)


@pytest.mark.slow
def test_init__of_two_images_trains(place: Path) -> None:
    write_images(place / "pngs", ["a.png", "b.png"])
    _assert_trains(medmoco.init("pngs", minutes=SHORT))


@pytest.mark.slow
def test_init__of_coloured_images_trains(place: Path) -> None:
    write_images(place / "tiles", [f"{kind}/{n}.jpg" for kind in "AB" for n in range(12)], colour=True)
    started = medmoco.init("tiles", minutes=SHORT)
    assert load(started.config).data.channels == "rgb"
    _assert_trains(started)


def test_init__of_dicom_with_faults_trains(place: Path) -> None:
    (place / "dicom").mkdir()
    for number in range(8):
        save_dicom(place / f"dicom/IM{number}", RAMP12 // (number + 1), PatientID=f"p{number}")
    cut = place / "dicom/IM3"
    cut.write_bytes(cut.read_bytes()[:3000])
    started = medmoco.init("dicom", minutes=SHORT)
    assert (started.counts, started.left_out) == ({"train": 7}, 1)
    assert pd.read_csv(started.manifest / "left_out.csv")["Path"].tolist() == ["IM3"]
    _assert_trains(started)


def test_init__of_a_table_trains(place: Path) -> None:
    names = [f"{n:08}_000.png" for n in range(40)]
    write_images(place / "cxr/images", names)
    with (place / "cxr/Data.csv").open("w") as file:
        findings = ["Mass|Nodule", "No Finding", "Mass", "No Finding"]
        rows = [[name, n // 2, findings[n % 4]] for n, name in enumerate(names)]
        csv.writer(file).writerows([["Image Index", "Patient ID", "Finding Labels"], *rows])
    started = medmoco.init("cxr/Data.csv", minutes=SHORT)
    tables = {name: pd.read_csv(started.manifest / f"{name}.csv") for name in started.counts}
    assert set(tables["train"]) == {"Path", "PatientID", "Finding Labels", "Mass", "No Finding", "Nodule"}
    assert not set(tables["train"]["PatientID"]) & set(tables["test"]["PatientID"])
    _assert_trains(started)


@pytest.mark.slow
def test_init__of_a_manifest_uses_it_as_it_is_and_trains(place: Path) -> None:
    medmoco.phantom("phantoms", patients=20, image_size=64)
    before = {path: path.read_bytes() for path in Path("phantoms").glob("*.csv")}
    started = medmoco.init("phantoms", minutes=SHORT)
    settings = load(started.config)
    assert (started.manifest, settings.data.root) == (Path("phantoms"), "phantoms/{split}")
    assert {path: path.read_bytes() for path in Path("phantoms").glob("*.csv")} == before
    assert not Path("manifest").exists()
    _assert_trains(started)


@pytest.mark.slow
def test_init__what_was_not_decoded_is_put_in_quarantine_and_trains(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medmoco.starting.collection._DECODED", 1)
    write_images(place / "pngs", [f"{n}.png" for n in range(20)])
    cut = place / "pngs/7.png"
    cut.write_bytes(cut.read_bytes()[:300])
    started = medmoco.init("pngs", minutes=SHORT)
    assert load(started.config).data.bad_images == "quarantine"
    _assert_trains(started)


@pytest.mark.slow
def test_init__slow_decoding_makes_a_pack_and_trains(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(place / "pngs", [f"{n}.png" for n in range(20)])
    monkeypatch.setattr(init_module, "_images_per_second", lambda *_: 10**6)
    started = medmoco.init("pngs", minutes=SHORT)
    settings = load(started.config)
    assert settings.data.pack == "pack"
    run = medmoco.pretrain(medmoco.load_config(settings, train={"epochs": 1, "warmup_epochs": 0}), progress=False)
    assert run.status["state"] == "done"
    assert Path("pack/pack.json").is_file()


@pytest.mark.slow
def test_init__of_links_trains(place: Path) -> None:
    write_images(place.parent / "store", [f"{n}.png" for n in range(8)])
    (place / "mine").mkdir()
    for file in (place.parent / "store").iterdir():
        (place / "mine" / file.name).symlink_to(file)
    started = medmoco.init("mine", minutes=SHORT)
    assert load(started.config).data.allow_symlinks
    _assert_trains(started)


# ---- where it writes ----


@pytest.mark.usefixtures("no_timing")
def test_init__does_not_replace_what_exists_without_being_asked(place: Path) -> None:
    _class_folders(place / "oct")
    medmoco.init("oct")
    with pytest.raises(
        SettingsError, match=r"medmoco\.yaml and manifest exist already; give another folder with --out"
    ):
        medmoco.init("oct")
    Path("manifest/mine.txt").touch()
    Path("runs/oct").mkdir(parents=True)
    medmoco.init("oct", overwrite=True, labels=["CNV"])
    settings = load("medmoco.yaml")
    assert list(settings.data.labels) == ["CNV"]
    assert settings.out == Path("runs/oct-2")
    assert Path("manifest/mine.txt").exists()


@pytest.mark.usefixtures("no_timing")
def test_init__writes_to_another_folder(place: Path) -> None:
    _class_folders(place / "oct")
    started = medmoco.init("oct", "plans/a b")
    assert started.text.endswith("next        medmoco pretrain --config 'plans/a b/medmoco.yaml'")
    settings = load(started.config)
    assert (settings.data.manifest, settings.data.root) == (Path("plans/a b/manifest"), "oct")
    assert settings.out == Path("plans/a b/runs/oct")


@pytest.mark.usefixtures("no_timing")
def test_init__an_absolute_source_gives_an_absolute_root(place: Path) -> None:
    _class_folders(place / "oct")
    assert load(medmoco.init(place / "oct").config).data.root == str(place / "oct")


@pytest.mark.usefixtures("no_timing")
def test_init__of_the_working_folder_itself(place: Path) -> None:
    write_images(place, [f"{n}.png" for n in range(8)])
    assert medmoco.init(".").counts == {"train": 8}
    assert medmoco.init(".", overwrite=True).counts == {"train": 8}


@pytest.mark.usefixtures("no_timing")
def test_init__writes_nothing_if_columns_are_not_confirmed(place: Path) -> None:
    write_images(place, [f"{n}.png" for n in range(8)])
    Path("all.csv").write_text("image,Sick\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(8)))
    asked: list[str] = []
    with pytest.raises(SettingsError, match="nothing was written"):
        medmoco.init("all.csv", "out", confirm=lambda text: bool(asked.append(text)))
    assert asked == ["'image' is read as Path\nlabels of 0 and 1: 'Sick'"]
    assert not Path("out").exists()


# ---- what it says ----


@pytest.mark.usefixtures("no_timing")
def test_init__names_neither_patients_nor_files(place: Path) -> None:
    write_images(place / "films", [f"secret{n // 2}_view{n}.png" for n in range(30)])
    (place / "films/secretcut_1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    started = medmoco.init("films")
    assert "suggest 15 patients" in started.text
    assert "secret" not in started.text + started.config.read_text()


@pytest.mark.usefixtures("no_timing")
def test_init__fits_the_workers_into_shared_memory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(place / "pngs", [f"{n}.png" for n in range(20)])
    small = Machine(2, 10**10, (), 30_000, has_amx=False)
    monkeypatch.setattr(init_module, "inspect_machine", lambda: small)
    started = medmoco.init("pngs")
    assert load(started.config).data.workers == 0
    assert "of shared memory are free" in started.config.read_text()


def test_fit_shared_memory__counts_what_a_run_of_several_processes_takes() -> None:
    values = {"out": "x", "data.manifest": "m", "data.root": ".", "data.labels": ["Sick"], "data.workers": 4,
              "train.global_batch_size": 256}  # fmt: skip
    choices = [Choice(key, value, "") for key, value in values.items()]
    needed = 2 * shared_bytes(load(as_tree(choices)), 32, 8, 4)
    assert init_module._fit_shared_memory(choices, 8, needed) == choices
    fewer = load(as_tree(init_module._fit_shared_memory(choices, 8, needed - 1)))
    assert fewer.data.workers == 3


@pytest.mark.usefixtures("no_timing")
def test_init__few_images_on_several_gpus_start_on_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(place / "pngs", [f"{n}.png" for n in range(20)])
    machine = Machine(2, 10**11, (Gpu("A", 4 * 10**10),) * 8, 10**10, has_amx=False)
    monkeypatch.setattr(init_module, "inspect_machine", lambda: machine)
    assert medmoco.init("pngs").text.endswith("next        medmoco pretrain --devices 1")


@pytest.mark.usefixtures("no_timing")
def test_init__keeps_the_earlier_manifest_if_it_fails(place: Path) -> None:
    _class_folders(place / "oct")
    started = medmoco.init("oct")
    with pytest.raises(SettingsError, match="no folder 'cnv'"):
        medmoco.init("oct", overwrite=True, labels=["cnv"])
    assert (started.manifest / "val.csv").is_file()
    write_images(place / "flat", [f"{n}.png" for n in range(8)])
    medmoco.init("flat", overwrite=True)
    assert not (started.manifest / "val.csv").exists()


def test_init__patients_of_a_manifest_are_its_own(place: Path) -> None:
    medmoco.phantom("phantoms", patients=10, image_size=64)
    with pytest.raises(SettingsError, match="is a manifest, which is used as it is; add a column PatientID"):
        medmoco.init("phantoms", patient=r"(\d+)")


def test_init__refuses_a_single_image_and_no_time(place: Path) -> None:
    write_images(place / "pngs", ["a.png"])
    with pytest.raises(ManifestError, match="needs at least two images, but only 1 can be used"):
        medmoco.init("pngs")
    with pytest.raises(SettingsError, match="--minutes 0 is not a time"):
        medmoco.init("pngs", minutes=0)
