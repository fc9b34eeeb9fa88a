"""Detection runs from settings to scores: what they leave, resuming bit by bit, test only when asked for."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from medmoco import config
from medmoco.detection import detect as module
from medmoco.detection.detect import detect, settings_of_run
from medmoco.detection.learning import Detecting
from medmoco.errors import ManifestError, SettingsError, Stopped
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.leakage.ledger import read_ledger
from medmoco.evaluation.scoring.trained import Scoring
from medmoco.training.checkpoint import load_checkpoint
from medmoco.training.distributed import Group
from medmoco.training.run_folder import StartMode
from tests.helpers.rectangles import SECRET, make_settings, read_boxes, write_boxes, write_images
from tests.helpers.runs import assert_same
from tests.helpers.together import run_together, through_a_stop

RESUME = StartMode(resume=True)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_images(tmp_path / "data")


def checkpoint(run: Path) -> dict[str, Any]:
    return load_checkpoint(run / "checkpoints", pytest.fail)


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_detect__leaves_scores_and_boxes_and_compares_two_runs(
    manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, picture = [manifest.parent / name for name in ("one", "other")], manifest.parent / "boxes.png"
    settings = make_settings(manifest)
    backbone = load_encoder("random", make_settings(manifest, "seed=5")).module
    weights = manifest.parent / f"{SECRET}.safetensors"
    save_file(backbone.net.state_dict(), weights)
    detect(settings, "random", runs[0], scoring=Scoring(test=True))
    found = detect(settings, str(weights), runs[1], scoring=Scoring(test=True, against=runs[0], pictures=picture))
    assert {file.name for file in runs[1].iterdir()} == {
        "config.yaml", "environment.json", "status.json", "metrics.jsonl", "log.txt", "tensorboard", "checkpoints",
        "detections.csv", "detections.json", "scores.json", "differences.json", "table.txt", "ledger.jsonl",
    }  # fmt: skip
    assert read(runs[1] / "status.json")["state"] == "done"
    assert picture.is_file()
    records = read(runs[1] / "scores.json")
    assert {(r["split"], r["label"]) for r in records} == {
        (split, label) for split in ("val", "test") for label in ("Mass", "Nodule", "macro")
    }
    assert {r["encoder"] for r in records} == {"file", "untrained"}
    own = read(runs[0] / "scores.json")
    again = [r | {"primary": True} for r in records if not r["primary"]]
    assert again == own  # scored again from its file, to the last digit
    assert found.to_frame().query("primary")["encoder"].unique().tolist() == ["file"]
    assert {d["encoder"] + d["control"] for d in read(runs[1] / "differences.json")} == {"fileuntrained"}
    assert (runs[1] / "table.txt").read_text() == found.table
    assert "test evaluation 1, recorded in ledger.jsonl" in found.table
    assert max(map(len, found.table.splitlines())) <= 120
    (entry,) = read_ledger(runs[1] / "ledger.jsonl")
    assert (entry.command, set(entry.auroc)) == ("detect", {"Mass", "Nodule"})
    with (runs[1] / "detections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["split"] for row in rows} == {"val", "test"}
    assert all(0 <= float(row["x_min"]) <= float(row["x_max"]) <= 64.01 for row in rows)
    records = [json.loads(line) for line in (runs[1] / "metrics.jsonl").read_text().splitlines()]
    assert {"val_ap", "val_ap/Mass", "val_ap/Nodule"} <= records[-1].keys()
    assert {"classification", "bbox_regression"} <= records[0].keys()
    said = capsys.readouterr().err
    assert "train 12 images with 10 boxes in 8" in said
    for file in (file for run in runs for file in run.rglob("*") if file.is_file() and file.name != "config.yaml"):
        assert SECRET.encode() not in file.read_bytes()
    assert SECRET not in said


class Interrupted(Detecting):
    stop_at = 0

    def losses(self, batch: Any, measure: bool) -> Any:
        if batch.step == self.stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().losses(batch, measure)


@pytest.mark.parametrize(
    ("stop_at", "detector"), [(1, "retinanet"), pytest.param(2, "faster_rcnn", marks=pytest.mark.slow)]
)
def test_detect__resumed_is_bitwise_the_uninterrupted_run(
    manifest: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, detector: str
) -> None:
    """Stopped inside an epoch, and in its last step, where validation is still to come."""
    settings = make_settings(manifest, f"detection.detector={detector}", "detection.proposals=16")
    runs = [manifest.parent / name for name in ("straight", "broken")]
    detect(settings, "random", runs[0])
    with monkeypatch.context() as patched:
        patched.setattr(module, "Detecting", Interrupted)
        patched.setattr(Interrupted, "stop_at", stop_at)
        with pytest.raises(Stopped, match=f"after step {stop_at + 1} "):
            detect(settings, "random", runs[1])
    assert not (runs[1] / "scores.json").exists()
    detect(settings, "random", runs[1], start=RESUME)
    one, other = map(checkpoint, runs)
    for part in ("model", "optimizer", "best"):
        assert_same(one[part], other[part])
    for name in ("detections.csv", "scores.json", "table.txt"):
        assert (runs[0] / name).read_bytes() == (runs[1] / name).read_bytes()
    later = detect(settings, "random", runs[0], scoring=Scoring(test=True), start=RESUME)
    assert later is not None
    assert {score.split for score in later.scores} == {"val", "test"}


def _detect(group: Group, manifest: Path, out: Path, stop_at: int) -> str:
    """Run, or stop at a step and then resume; return the table."""

    def run(resume: bool) -> str:
        found = detect(
            make_settings(manifest),
            "random",
            out,
            scoring=Scoring(test=True),
            start=StartMode(resume=resume),
            group=group,
        )
        return found.table if found else ""

    return through_a_stop(group, module, "Detecting", Interrupted, stop_at, run) if stop_at else run(False)


@pytest.mark.slow
def test_detect__two_processes_leave_one_run_and_resume_bitwise(manifest: Path) -> None:
    runs = [manifest.parent / name for name in ("straight", "broken", "alone")]
    straight = run_together(2, _detect, manifest, runs[0], 0)
    broken = run_together(2, _detect, manifest, runs[1], 1)
    assert broken == straight
    assert straight[1] == ""
    assert "test evaluation 1, recorded in ledger.jsonl" in straight[0]
    one, other = map(checkpoint, runs[:2])
    for part in ("model", "optimizer", "best"):
        assert_same(one[part], other[part])
    detect(make_settings(manifest), "random", runs[2], scoring=Scoring(test=True))
    assert {file.name for file in runs[0].iterdir()} == {file.name for file in runs[2].iterdir()}
    losses = [
        [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs
    ]
    assert losses[0] == losses[1]
    assert [value for value in losses[0] if value] == pytest.approx([value for value in losses[2] if value], rel=1e-2)


def test_detect__resumes_only_what_it_started(manifest: Path) -> None:
    run, settings = manifest.parent / "run", make_settings(manifest, "detection.epochs=1")
    detect(settings, "random", run)
    assert str(manifest) not in str(checkpoint(run)["settings"])
    moved = shutil.copy(manifest / "boxes.csv", manifest.parent / "moved.csv")
    detect(
        make_settings(manifest, "detection.epochs=1", f"detection.boxes={moved}"),
        "random",
        run,
        start=RESUME,
    )
    for overrides, message in (("detection.size=48", "detection.size: was 64"), ("seed=3", "encoder: was random")):
        with pytest.raises(SettingsError, match=message):
            detect(make_settings(manifest, "detection.epochs=1", overrides), "random", run, start=RESUME)
    write_boxes(manifest, read_boxes(manifest)[:-1])
    with pytest.raises(SettingsError, match="table of boxes: was"):
        detect(settings, "random", run, start=RESUME)


def test_detect__refuses_what_cannot_be_learned_or_honestly_scored(manifest: Path) -> None:
    out = manifest.parent / "run"
    with pytest.raises(SettingsError, match=r"detection.global_batch_size 16 is more than the 12 annotated images"):
        detect(make_settings(manifest, "detection.global_batch_size=16"), "random", out)
    with pytest.raises(SettingsError, match=r"4 does not divide evenly among 1 .* x train.accumulation_steps 3"):
        settings_of_run(make_settings(manifest, "train.accumulation_steps=3"), out)
    with pytest.raises(SettingsError, match=r"train.compile"):
        settings_of_run(make_settings(manifest, "train.compile=true"), out)
    with pytest.raises(SettingsError, match=r"the pack's canvases have 32 pixels"):
        settings_of_run(make_settings(manifest, "data.pack=somewhere", "data.canvas_size=32"), out)
    shared = (manifest / "test.csv").read_text().replace(f"{SECRET}-test-0", f"{SECRET}-train-0")
    (manifest / "test.csv").write_text(shared)
    with pytest.raises(ManifestError, match="test shares 1 patients"):
        detect(make_settings(manifest), "random", out, scoring=Scoring(test=True))
    assert not out.exists()


def test_settings_of_run__detection_has_a_say_in_the_loop(manifest: Path) -> None:
    settings = settings_of_run(make_settings(manifest, "train.lr=9", "train.epochs=7"), manifest / "run")
    assert (settings.train.lr, settings.train.epochs, settings.data.canvas_size) == (1e-3, 2, 64)
    assert settings.out == manifest / "run"


@pytest.mark.slow
def test_detect__learns_what_shows(manifest: Path) -> None:
    """The rectangles it was trained on are found, by both detectors."""
    shutil.copy(manifest / "train.csv", manifest / "val.csv")
    shutil.rmtree(manifest / "val")
    shutil.copytree(manifest / "train", manifest / "val")
    rows = [row for row in read_boxes(manifest) if row[0] != "val"]
    write_boxes(manifest, [*rows, *(["val", *row[1:]] for row in rows if row[0] == "train")])
    chosen = ["detection.epochs=60", "views.jitter_probability=0", "detection.lr=2e-3", "detection.labels=[Mass]"]
    for detector in ("retinanet", "faster_rcnn"):
        settings = make_settings(manifest, *chosen, f"detection.detector={detector}", "detection.proposals=64")
        found = detect(settings, "random", manifest.parent / detector)
        ap50 = next(r.value for r in found.scores if (r.split, r.metric) == ("val", "ap50"))
        assert ap50 > 0.6, detector


def test_configs__example_is_what_detect_takes() -> None:
    settings = config.load(Path(__file__).parents[2] / "configs/detection.yaml")
    assert settings_of_run(settings, Path("x")).data.canvas_size == settings.detection.size
