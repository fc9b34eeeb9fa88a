"""Segmentation runs from settings to scores: what they leave, resuming bit by bit, test only when asked for."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from medmoco import config
from medmoco.errors import ManifestError, SettingsError, Stopped
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.leakage.ledger import read_ledger
from medmoco.evaluation.scoring.trained import Scoring
from medmoco.segmentation import segment as module
from medmoco.segmentation.learning import Segmenting
from medmoco.segmentation.segment import segment, settings_of_run
from medmoco.training.checkpoint import load_checkpoint
from medmoco.training.distributed import Group
from medmoco.training.run_folder import StartMode
from tests.helpers.blobs import SECRET, make_settings, write_blobs
from tests.helpers.dicom_files import save_dicom
from tests.helpers.runs import assert_same
from tests.helpers.together import run_together, through_a_stop

RESUME = StartMode(resume=True)
FILES = {
    "config.yaml", "environment.json", "status.json", "metrics.jsonl", "log.txt", "tensorboard", "checkpoints",
    "cases.csv", "cases.json", "segmenter", "scores.json", "differences.json", "table.txt",
}  # fmt: skip


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_blobs(tmp_path / "data", 2)


def checkpoint(run: Path) -> dict[str, Any]:
    return load_checkpoint(run / "checkpoints", pytest.fail)


def read(file: Path) -> Any:
    return json.loads(file.read_text())


@pytest.mark.parametrize("dimensions", [2, 3])
def test_segment__leaves_scores_and_compares_two_runs(
    tmp_path: Path, dimensions: int, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write_blobs(tmp_path / "data", dimensions)
    runs = [tmp_path / name for name in ("one", "other")]
    settings = make_settings(manifest, dimensions)
    backbone = load_encoder("random", make_settings(manifest, dimensions, "seed=5")).module
    weights = tmp_path / f"{SECRET}.safetensors"
    save_file({name: value.clone() for name, value in backbone.net.state_dict().items()}, weights)
    segment(settings, "random", runs[0], scoring=Scoring(test=True))
    found = segment(settings, str(weights), runs[1], scoring=Scoring(test=True, against=runs[0]))
    assert found
    assert {file.name for file in runs[1].iterdir()} == FILES | {"ledger.jsonl"}
    assert read(runs[1] / "status.json")["state"] == "done"
    records = read(runs[1] / "scores.json")
    assert {(r["split"], r["label"]) for r in records} == {
        (split, label) for split in ("val", "test") for label in ("large", "small", "macro")
    }
    assert {r["encoder"] for r in records} == {"file", "from scratch"}
    again = [r | {"primary": True} for r in records if not r["primary"]]
    assert again == read(runs[0] / "scores.json")  # scored again from its file, to the last digit
    assert found.to_frame().query("primary")["encoder"].unique().tolist() == ["file"]
    assert {d["encoder"] + d["control"] for d in read(runs[1] / "differences.json")} == {"filefrom scratch"}
    assert (runs[1] / "table.txt").read_text() == found.table
    assert "test evaluation 1, recorded in ledger.jsonl" in found.table
    assert max(map(len, found.table.splitlines())) <= 120
    (entry,) = read_ledger(runs[1] / "ledger.jsonl")
    assert (entry.command, entry.auroc, set(entry.dice)) == ("segment", {}, {"large", "small"})
    with (runs[1] / "cases.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["split"], int(row["row"])) for row in rows} == {
        (split, row) for split in ("val", "test") for row in range(2, 6)
    }
    logged = [json.loads(line) for line in (runs[1] / "metrics.jsonl").read_text().splitlines()]
    assert {"val_dice", "val_dice/large"} <= logged[-1].keys()
    assert {"cross_entropy", "dice_loss"} <= logged[0].keys()
    said = capsys.readouterr().err
    assert "train: 1 of 7 rows have no mask and are not used" in said
    assert "train 6 masks of 3 patients; val 4 masks of 2 patients; test 4 masks of 2 patients" in said
    for file in (file for run in runs for file in run.rglob("*") if file.is_file() and file.name != "config.yaml"):
        assert SECRET.encode() not in file.read_bytes()
    assert SECRET not in said


class Interrupted(Segmenting):
    stop_at = 0

    def losses(self, batch: Any, measure: bool) -> Any:
        if batch.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().losses(batch, measure)


@pytest.mark.parametrize("stop_at", [2, 3])
def test_segment__resumed_is_bitwise_the_uninterrupted_run(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    """Stopped inside an epoch, and in its last step, where validation is still to come."""
    settings = make_settings(manifest, 2)
    runs = [manifest.parent / name for name in ("straight", "broken")]
    segment(settings, "random", runs[0])
    with monkeypatch.context() as patched:
        patched.setattr(module, "Segmenting", Interrupted)
        patched.setattr(Interrupted, "stop_at", stop_at)
        with pytest.raises(Stopped, match=f"after step {stop_at + 1} "):
            segment(settings, "random", runs[1])
    assert not (runs[1] / "scores.json").exists()
    segment(settings, "random", runs[1], start=RESUME)
    one, other = map(checkpoint, runs)
    for part in ("model", "optimizer", "best"):
        assert_same(one[part], other[part])
    for name in ("cases.csv", "scores.json", "table.txt"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes()
    later = segment(settings, "random", runs[0], scoring=Scoring(test=True), start=RESUME)
    assert later is not None
    assert {score.split for score in later.scores} == {"val", "test"}


def test_segment__number_of_workers_does_not_matter(manifest: Path) -> None:
    runs = [manifest.parent / name for name in ("none", "two")]
    for run, workers in zip(runs, (0, 2), strict=True):
        segment(make_settings(manifest, 2, f"data.workers={workers}"), "random", run)
    assert_same(*(checkpoint(run)["model"] for run in runs))


def _segment(group: Group, manifest: Path, out: Path, stop_at: int) -> str:
    """Run, or stop at a step and then resume; return the table."""

    def run(resume: bool) -> str:
        found = segment(
            make_settings(manifest, 2), "random", out, scoring=Scoring(test=True), start=StartMode(resume=resume),
            group=group,
        )  # fmt: skip
        return found.table if found else ""

    return through_a_stop(group, module, "Segmenting", Interrupted, stop_at, run) if stop_at else run(False)


@pytest.mark.slow
def test_segment__two_processes_leave_one_run_and_resume_bitwise(manifest: Path) -> None:
    runs = [manifest.parent / name for name in ("straight", "broken", "alone")]
    straight = run_together(2, _segment, manifest, runs[0], 0)
    broken = run_together(2, _segment, manifest, runs[1], 1)
    assert broken == straight
    assert straight[1] == ""
    assert "test evaluation 1, recorded in ledger.jsonl" in straight[0]
    one, other = map(checkpoint, runs[:2])
    for part in ("model", "optimizer", "best"):
        assert_same(one[part], other[part])
    segment(make_settings(manifest, 2), "random", runs[2], scoring=Scoring(test=True))
    assert {file.name for file in runs[0].iterdir()} == {file.name for file in runs[2].iterdir()}


def test_segment__resumes_only_what_it_started(manifest: Path) -> None:
    run, settings = manifest.parent / "run", make_settings(manifest, 2, "segmentation.epochs=1")
    segment(settings, "random", run)
    assert str(manifest) not in str(checkpoint(run)["settings"])
    for overrides, message in (
        ("segmentation.foreground=0.2", "segmentation.foreground: was 0.5"),
        ("seed=3", "encoder: was random"),
    ):
        with pytest.raises(SettingsError, match=message):
            segment(make_settings(manifest, 2, "segmentation.epochs=1", overrides), "random", run, start=RESUME)
    shutil.copy(manifest / "train" / f"{SECRET}-0-mask.png", manifest / "train" / f"{SECRET}-1-mask.png")
    with pytest.raises(SettingsError, match="masks: was"):
        segment(settings, "random", run, start=RESUME)


def test_segment__refuses_what_cannot_be_learned_or_honestly_scored(manifest: Path) -> None:
    out = manifest.parent / "run"
    with pytest.raises(SettingsError, match=r"segmentation.global_batch_size 4 does not divide evenly among 1 "):
        settings_of_run(make_settings(manifest, 2, "train.accumulation_steps=3"), out)
    with pytest.raises(SettingsError, match=r"segmentation.size 64 is larger than data.canvas_size 32"):
        settings_of_run(make_settings(manifest, 2, "segmentation.size=64"), out)
    with pytest.raises(SettingsError, match=r"train.compile"):
        settings_of_run(make_settings(manifest, 2, "train.compile=true"), out)
    shared = (manifest / "test.csv").read_text().replace(f"{SECRET}-test-0", f"{SECRET}-train-0")
    (manifest / "test.csv").write_text(shared)
    with pytest.raises(ManifestError, match="test shares 1 patients"):
        segment(make_settings(manifest, 2), "random", out, scoring=Scoring(test=True))
    assert not out.exists()


def test_segment__a_frozen_encoder_stays_as_it_is(manifest: Path) -> None:
    settings = make_settings(manifest, 2, "segmentation.frozen=true")
    before = load_encoder("random", settings).module.net.state_dict()
    segment(settings, "random", manifest.parent / "run")
    after = checkpoint(manifest.parent / "run")["model"]
    for name, value in before.items():
        assert_same(value, after[f"backbone.net.{name}"])


def with_spacing(manifest: Path, target: Path, spacing: list[float], splits: Sequence[str]) -> Path:
    """Copy the images of some splits as DICOM files that state their pixel spacing; masks stay PNG."""
    shutil.copytree(manifest, target)
    for split in splits:
        for image in (target / split).glob("*[0-9].png"):
            save_dicom(image.with_suffix(".dcm"), np.asarray(Image.open(image)), 8, PixelSpacing=spacing)
        table = (target / f"{split}.csv").read_text()
        (target / f"{split}.csv").write_text(re.sub(r"^([^,]*)\.png", r"\1.dcm", table, flags=re.MULTILINE))
    return target


def test_segment__distances_are_in_mm_if_every_scored_image_states_its_spacing(manifest: Path) -> None:
    """With pixels of half a millimetre, every distance is half the number of pixels, and every area a quarter."""
    sets = {
        "pixels": manifest,
        "mm": with_spacing(manifest, manifest.parent / "dicom", [0.5, 0.5], ["val", "test"]),
        "mixed": with_spacing(manifest, manifest.parent / "mixed", [0.5, 0.5], ["val"]),
    }
    found = {}
    for name, folder in sets.items():
        tolerance = 1.0 if name == "mm" else 2.0
        settings = make_settings(folder, 2, "segmentation.epochs=1", f"segmentation.tolerance={tolerance}")
        run = manifest.parent / f"run-{name}"
        result = segment(settings, "random", run, scoring=Scoring(test=True))
        assert result
        facts = read(run / "cases.json")
        unit, area = ("mm", "mm2") if name == "mm" else ("pixels", "pixels")
        assert (facts["length_unit"], facts["volume_unit"]) == (unit, area)
        assert f"surface Dice at {tolerance:g} {unit}" in result.table
        assert f"HD95 {unit}" in result.table
        assert f"area bias {area}" in result.table
        assert f"distances are in {unit}" in (run / "table.txt").read_text()
        found[name] = {(r.split, r.label, r.metric): r.value for r in result.scores}
        units = {r.metric: r.unit for r in result.scores}
        assert (units["hd95"], units["volume_bias"], units["dice"]) == (unit, area, None)
    assert found["mixed"] == found["pixels"]
    scale = {"hd95": 0.5, "volume_bias": 0.25, "limit_low": 0.25, "limit_high": 0.25}
    for key, value in found["pixels"].items():
        assert found["mm"][key] == (None if value is None else pytest.approx(value * scale.get(key[2], 1), abs=1e-9))
    with pytest.raises(SettingsError, match="scored with other images and units"):
        segment(
            make_settings(sets["mm"], 2, "segmentation.epochs=1", "segmentation.tolerance=2"), "random",
            manifest.parent / "again", scoring=Scoring(test=True, against=manifest.parent / "run-pixels"),
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("dimensions", [2, 3])
def test_segment__learns_what_shows(tmp_path: Path, dimensions: int) -> None:
    """The balls it was trained on are found, within a voxel."""
    manifest = write_blobs(tmp_path / "data", dimensions)
    settings = make_settings(
        manifest, dimensions, "segmentation.epochs=40", "segmentation.least_steps=8", "segmentation.lr=3e-3",
        "views.jitter_probability=0", "segmentation.channels=16",
    )  # fmt: skip
    found = segment(settings, "random", tmp_path / "run")
    assert found
    value = {(r.label, r.metric): r.value for r in found.scores}
    assert value["large", "dice"] > 0.85
    assert value["small", "dice"] > 0.5
    assert np.isfinite(value["large", "hd95"])


def test_configs__example_is_what_segment_takes() -> None:
    settings = config.load(Path(__file__).parents[2] / "configs/segmentation.yaml")
    assert settings_of_run(settings, Path("x")).views.size % 8 == 0
