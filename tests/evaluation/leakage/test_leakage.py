"""Planted leaks between real files of a run's pretraining data and an evaluation's test split."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medmoco.config import RunSettings, as_tree, load, to_yaml
from medmoco.data.loading.loading import check_images
from medmoco.data.manifest.manifest import load_manifest
from medmoco.data.pack.pack_writing import make_pack
from medmoco.errors import ManifestError
from medmoco.evaluation.evaluate import evaluate
from medmoco.evaluation.features.features import Extracted, extract
from medmoco.evaluation.leakage.leakage import (
    Leaks,
    Pretraining,
    compare_pixels,
    find_leaks,
    find_pretraining,
    refuse_leaks,
)
from medmoco.evaluation.records import Leakage, Overlap
from medmoco.evaluation.results import Evaluation
from medmoco.models.backbones import create_backbone
from medmoco.models.moco import create_moco
from medmoco.training.checkpoint import portable_settings, save_checkpoint
from tests.helpers.films import edited, film

NONE = Overlap(patients=0, images=0)


def write(folder: Path, split: str, films: Sequence[int], patients: Sequence[object]) -> None:
    """Write films by their seeds; files are named by folder, split and row, and saved with their own compression."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = ["Path,PatientID,Sick"]
    for number, (seed, patient) in enumerate(zip(films, patients, strict=True)):
        name = f"secret-{split}-{number}.png"
        Image.fromarray(film(seed)).save(folder / "images" / name, compress_level=1 + number % 9)
        lines.append(f"{name},{patient},{number % 2}")
    (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")


def settings_of(folder: Path, *more: str) -> RunSettings:
    given = [
        f"out={folder / 'run'}", f"data.manifest={folder}", f"data.root={folder / 'images'}", "data.labels=[Sick]",
        "data.canvas_size=48", "data.workers=0", "views.size=32", "model.backbone=test_resnet", "method.queue_size=4",
        "train.global_batch_size=4", "train.device=cpu", "evaluate.batch_size=4", "evaluate.bootstrap=100",
    ]  # fmt: skip
    return load(None, [*given, *more])


def make_run(settings: RunSettings) -> Path:
    """Leave what pretraining leaves and evaluation needs."""
    model = create_moco(create_backbone(settings.model, seed=0, size=32), settings.method, seed=0)
    content = {"model": model.state_dict(), "settings": portable_settings(settings)}
    save_checkpoint(settings.out / "checkpoints", 3, content)
    (settings.out / "config.yaml").write_text(to_yaml(as_tree(settings)))
    digest = check_images(load_manifest(settings.data, ("train",))["train"], settings.data).sha256
    (settings.out / "environment.json").write_text(json.dumps({"manifest_sha256": digest}))
    return settings.out


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A run on other data: films 100 to 107 of patients a to h."""
    write(tmp_path / "other", "train", range(100, 108), "abcdefgh")
    return make_run(settings_of(tmp_path / "other"))


def own(tmp_path: Path, test_films: Sequence[int], test_patients: Sequence[object], *more: str) -> RunSettings:
    """Films 0 to 7 to learn from and the given ones to score."""
    write(tmp_path / "own", "train", range(8), range(8))
    write(tmp_path / "own", "test", test_films, test_patients)
    return settings_of(tmp_path / "own", *more)


def leaks_of(settings: RunSettings, encoder: str) -> tuple[Leaks, Leaks, list[str], list[str]]:
    """Return what is found without and with pixels, the notes, and what was said."""
    splits = load_manifest(settings.data, ("train", "test"))
    pretraining = find_pretraining(encoder)
    extracted: dict[str, Extracted] = {
        name: extract({}, split, settings, torch.device("cpu")) for name, split in splits.items()
    }
    said: list[str] = []
    by_pixels, notes = compare_pixels(pretraining, splits, extracted, settings, said.append, {})
    return find_leaks(splits, pretraining), by_pixels, [*pretraining.notes, *notes], said


def test_leaks__none_between_other_films_of_other_patients(tmp_path: Path, other: Path) -> None:
    before, after, notes, _ = leaks_of(own(tmp_path, [20, 21, 22], "xyz"), str(other))
    assert before == after == {"test": Leakage(pretraining=NONE, train=NONE)}
    assert notes == []


def test_leaks__by_patient_and_by_pixels_of_another_file(tmp_path: Path, other: Path) -> None:
    before, after, notes, said = leaks_of(own(tmp_path, [20, 103, 3, 103], "xbb3"), str(other))
    assert before["test"] == Leakage(pretraining=Overlap(patients=1, images=0), train=Overlap(patients=1, images=0))
    assert after["test"] == Leakage(pretraining=Overlap(patients=1, images=2), train=Overlap(patients=1, images=1))
    assert said == ["pixels of 8 more pretraining images, to compare with val and test"]
    assert notes == []


def test_leaks__the_same_file_under_another_root(tmp_path: Path, other: Path) -> None:
    settings = own(tmp_path, [20, 21], "xy")
    (tmp_path / "own/test.csv").write_text("Path,PatientID,Sick\nother/images/secret-train-5.png,x,1\n")
    (tmp_path / "own/train.csv").write_text("Path,PatientID,Sick\nown/images/secret-train-1.png,y,1\n")
    above = settings.model_copy(update={"data": settings.data.model_copy(update={"root": str(tmp_path)})})
    before, _, _, _ = leaks_of(above, str(other))
    assert before["test"] == Leakage(pretraining=Overlap(patients=0, images=1), train=NONE)


def test_leaks__near_duplicates_and_constant_images_are_none(tmp_path: Path, other: Path) -> None:
    settings = own(tmp_path, [20, 21, 22], "xyz")
    Image.fromarray(edited(film(100), "gamma")).save(tmp_path / "own/images/secret-test-0.png")
    black = Image.fromarray(np.zeros((96, 80), np.uint8))
    for file in ("own/images/secret-test-1.png", "own/images/secret-train-2.png", "other/images/secret-train-2.png"):
        black.save(tmp_path / file)
    _, after, _, _ = leaks_of(settings, str(other))
    assert after == {"test": Leakage(pretraining=NONE, train=NONE)}


def test_leaks__of_the_same_manifest_cost_no_second_pass(tmp_path: Path) -> None:
    settings = own(tmp_path, [20, 5, 21], "xy7")
    _, after, notes, said = leaks_of(settings, str(make_run(settings)))
    assert after["test"] == Leakage(pretraining=Overlap(patients=1, images=1), train=Overlap(patients=1, images=1))
    assert said == notes == []


def test_leaks__pretraining_pixels_are_read_once_for_each_kind_of_canvas(tmp_path: Path, other: Path) -> None:
    settings = own(tmp_path, [20, 103], "xy")
    first, again = leaks_of(settings, str(other)), leaks_of(settings, str(other))
    assert len(first[3]) == 1
    assert again[3] == []
    assert again[1] == first[1]
    assert first[1]["test"].pretraining == Overlap(patients=0, images=1)
    data = settings.data.model_copy(update={"canvas_size": 40})
    changed = leaks_of(settings.model_copy(update={"data": data}), str(other))
    assert len(changed[3]) == 1
    assert changed[1] == first[1]
    (other / "pretraining_pixels.npz").write_bytes(b"PK\3\4 half a file")
    assert leaks_of(settings, str(other))[1] == first[1]


@pytest.mark.parametrize("canvas_size", [48, 40])
def test_leaks__of_a_run_from_a_pack(tmp_path: Path, canvas_size: int) -> None:
    """Its canvases where they are of the size, else the files; without the row that could not be packed."""
    write(tmp_path / "other", "train", range(100, 108), "abcdefgh")
    (tmp_path / "other/images/secret-train-6.png").write_bytes(b"")
    plain = settings_of(tmp_path / "other")
    make_pack(plain.data, tmp_path / "pack", lambda _: None)
    data = plain.data.model_copy(update={"pack": str(tmp_path / "pack"), "pack_failures": "leave_out"})
    run = make_run(plain.model_copy(update={"data": data}))
    settings = own(tmp_path, [20, 103, 21], "xyg", f"data.canvas_size={canvas_size}")
    _, after, notes, _ = leaks_of(settings, str(run))
    assert after["test"].pretraining == Overlap(patients=0, images=1)
    assert notes == []
    shutil.rmtree(tmp_path / "pack")
    (run / "pretraining_pixels.npz").unlink()
    _, after, notes, _ = leaks_of(settings, str(run))
    assert after["test"].pretraining == Overlap(patients=1, images=0)
    assert "has changed since" in notes[0]
    assert "not compared with all pretraining images by pixels: train.csv row 8" in notes[1]


def test_leaks__the_run_keeps_neither_ids_nor_their_order(tmp_path: Path, other: Path) -> None:
    leaks_of(own(tmp_path, [20, 103], "xy"), str(other))
    with np.load(other / "pretraining_pixels.npz") as kept:
        assert set(kept) == {"name", "digests"}
        lines = [line.tobytes() for line in kept["digests"]]
    assert len(lines) == 8
    assert lines == sorted(lines)
    raw = (other / "pretraining_pixels.npz").read_bytes()
    assert b"secret" not in raw
    assert str(tmp_path).encode() not in raw


def test_leaks__without_patients_they_are_unknown(tmp_path: Path, other: Path) -> None:
    settings = own(tmp_path, [20, 103], "xy")
    file = tmp_path / "own/test.csv"
    file.write_text(file.read_text().replace("PatientID", "Person"))
    _, after, _, _ = leaks_of(settings, str(other))
    assert after["test"] == Leakage(
        pretraining=Overlap(patients=None, images=1), train=Overlap(patients=None, images=0)
    )
    with pytest.raises(ManifestError, match="test shares 1 images with the data the encoder was"):
        refuse_leaks(after, settings)


def test_find_pretraining__says_what_it_cannot_know(tmp_path: Path, other: Path) -> None:
    assert find_pretraining("random") == Pretraining()
    assert not find_pretraining("random").is_unknown
    weights = find_pretraining("weights.safetensors")
    assert weights.is_unknown
    assert "a weights file does not say what it was pretrained on" in weights.notes[0]
    assert find_pretraining(str(other)).notes == ()
    assert find_pretraining(str(other / "best")).run == other
    (tmp_path / "plain folder").mkdir()
    (note,) = find_pretraining(str(tmp_path / "plain folder")).notes
    assert "an export or import does not say what it was pretrained on" in note
    manifest = tmp_path / "other/train.csv"
    lines = manifest.read_text()
    manifest.write_text("\n".join(lines.splitlines()[:-1]) + "\n")
    changed = find_pretraining(str(other))
    assert changed.split is not None
    assert len(changed.split) == 7
    assert "has changed since" in changed.notes[0]
    manifest.unlink()
    gone = find_pretraining(str(other))
    assert gone.is_unknown
    assert gone.notes == (
        "the manifest of the run can no longer be read: whether it was trained on val or test images was not checked",
    )
    manifest.write_text(lines)
    config = other / "config.yaml"
    config.write_text(config.read_text().replace("init: null", "init: before.pth"))
    assert "started from other weights" in find_pretraining(str(other)).notes[0]


def test_leaks__pretraining_images_that_are_gone_are_said(tmp_path: Path, other: Path) -> None:
    (tmp_path / "other/images/secret-train-6.png").unlink()
    before, after, notes, _ = leaks_of(own(tmp_path, [20, 103], "xb"), str(other))
    assert before == after
    assert len(notes) == 1
    assert notes[0].startswith(
        "val and test were not compared with all pretraining images by pixels: train.csv row 8: "
    )
    assert "secret" not in notes[0]
    assert not (other / "pretraining_pixels.npz").exists()


def test_evaluate__a_leaking_run_is_refused_and_allowed_with_every_score_saying_so(
    tmp_path: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = own(tmp_path, [20, 103, 21, 22, 104], "xyzvw")
    with pytest.raises(ManifestError) as caught:
        evaluate(settings, {"run": str(other)}, tmp_path / "scores", test=True)
    assert str(caught.value).startswith(
        "test shares 0 patients and 2 images with the data the encoder was pretrained on"
    )
    assert caught.value.exit_code == 3
    assert not any((tmp_path / "scores").iterdir())
    allowed = own(tmp_path, [20, 103, 21, 22, 104], "xyzvw", "evaluate.allow_leakage=true")
    found = evaluate(allowed, {"run": str(other)}, tmp_path / "scores", test=True)
    for record in [*Evaluation.load(tmp_path / "scores").scores, *found.differences]:
        assert record.leakage == Leakage(pretraining=Overlap(patients=0, images=2), train=NONE)
    assert "! test shares 0 patients and 2 images with the data the encoder was pretrained on" in found.table
    # By patient it is refused before any work.
    monkeypatch.setattr("medmoco.evaluation.features.features.extract", lambda *_: pytest.fail("an image was read"))
    with pytest.raises(ManifestError, match="1 patients and 0 images"):
        evaluate(own(tmp_path, [20, 21, 22], "xyc"), {"run": str(other)}, tmp_path / "scores", test=True)


def test_evaluate__images_that_several_runs_saw_are_read_once(tmp_path: Path, other: Path) -> None:
    twin = shutil.copytree(other, tmp_path / "twin")
    said: list[str] = []
    runs = {"run": str(other), "twin": str(twin)}
    evaluate(own(tmp_path, [20, 21, 22], "xyz"), runs, tmp_path / "scores", test=True, log=said.append)
    assert sum("more pretraining images" in line for line in said) == 1


def test_evaluate__where_leaves_the_rest_of_pretraining_to_be_compared(tmp_path: Path) -> None:
    """Pretraining saw all of train, also the rows that `where` leaves out: film 0 is in one of those."""
    settings = own(tmp_path, [20, 0, 21, 22, 23, 24], "xyzwvu")
    for name in ("train", "test"):
        file = tmp_path / f"own/{name}.csv"
        lines = file.read_text().splitlines()
        views = ["View", *("AP" if row == 0 and name == "train" else "PA" for row in range(len(lines) - 1))]
        file.write_text("\n".join(f"{line},{view}" for line, view in zip(lines, views, strict=True)) + "\n")
    run = make_run(settings)
    within = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"where": "View == PA"})})
    said: list[str] = []
    with pytest.raises(ManifestError, match="test shares 0 patients and 1 images with the data the encoder was"):
        evaluate(within, {"run": str(run)}, tmp_path / "scores", test=True, log=said.append)
    assert "pixels of 1 more pretraining images, to compare with val and test" in said
    with pytest.raises(ManifestError, match="1 images with train"):
        evaluate(settings, {"run": "random"}, tmp_path / "scores", test=True)
    evaluate(
        within, {"run": "random"}, tmp_path / "scores", test=True
    )  # it learned from nothing, and the probe not from film 0


def test_leaks__patients_of_a_run_that_cannot_be_known(tmp_path: Path, other: Path) -> None:
    settings = own(tmp_path, [20, 21], "ax")
    manifest = tmp_path / "other/train.csv"
    manifest.write_text(manifest.read_text().replace("PatientID", "patient_id"))
    before, _, notes, _ = leaks_of(settings, str(other))
    assert before["test"].pretraining == Overlap(patients=None, images=0)
    assert notes[0].startswith("the run's training rows have no PatientID")


def test_leaks__ids_are_compared_without_padding(tmp_path: Path, other: Path) -> None:
    before, _, _, _ = leaks_of(own(tmp_path, [20, 21, 22], ["a ", "\u00a0b", "3 "]), str(other))
    assert before["test"] == Leakage(pretraining=Overlap(patients=2, images=0), train=Overlap(patients=1, images=0))
