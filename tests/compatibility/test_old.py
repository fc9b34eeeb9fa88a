"""Runs, packs and exports written before the modules moved still load and still give the recorded results.

`make_old.py` wrote `old/` at commit fbad89f and keeps that commit's imports, so nothing is imported from it here.
Results have tolerances because processors differ in the last bits.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
import sklearn
from packaging.version import Version
from safetensors.numpy import load_file

import medmoco
from medmoco import config
from medmoco.data.loading.loading import read_canvases
from medmoco.data.manifest.manifest import load_manifest
from tests.helpers.commands import Call

OLD = Path(__file__).with_name("old")
SETTINGS = ("--config", "settings.yaml")
# OpenCV 4 warps, and scikit-learn fits, slightly differently from the versions that the results were stored with.
LOOSER = 10 if Version(cv2.__version__) < Version("5") or Version(sklearn.__version__) < Version("1.9") else 1
EXPECTED = json.loads((OLD / "expected.json").read_text())


@pytest.fixture(autouse=True)
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Train in float32, as the stored runs did, on CPUs with AMX too."""
    monkeypatch.setattr("medmoco.training.device.has_amx", lambda: False)


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the files as the working folder, because paths in them are relative to it."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    monkeypatch.chdir(folder)
    return folder


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def losses(run: Path) -> list[float]:
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


def leaves(tree: Any, place: str = "") -> dict[str, Any]:
    """Flatten nested objects and lists to place -> value, because pytest.approx does not take nested ones."""
    if not isinstance(tree, dict | list):
        return {place: tree}
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return {name: leaf for key, child in children for name, leaf in leaves(child, f"{place}/{key}").items()}


def about(tree: Any, **tolerances: float) -> dict[str, Any]:
    return {
        place: pytest.approx(value, **tolerances) if isinstance(value, float) else value
        for place, value in leaves(tree).items()
    }


def assert_close(found: Any, stored: Any) -> None:
    added = ("/version", "/primary")  # fields that records had not then
    found = {place: value for place, value in leaves(found).items() if not place.endswith(added)}
    assert found == about(stored, rel=1e-4 * LOOSER**2, abs=1e-5 * LOOSER)


def assert_resumed(old: Path, name: str) -> None:
    """Check that a resumed run finished, and that its new steps match those of the code that wrote it."""
    before, status = read(OLD / name / "status.json"), read(old / name / "status.json")
    added = len(EXPECTED["losses"][name])
    assert (status["state"], status["step"]) == ("done", before["step"] + added)
    assert losses(old / name)[-added:] == pytest.approx(EXPECTED["losses"][name], rel=1e-3 * LOOSER)


# ---- runs ----


@pytest.mark.parametrize("overrides", [[], ["data.pack=pack"]], ids=["images", "pack"])
def test_run__is_resumed(call: Call, old: Path, overrides: list[str]) -> None:
    said = call("pretrain", "--config", "run/config.yaml", "--resume", "train.epochs=3", *overrides).stderr
    assert "from step 6" in said
    assert_resumed(old, "run")


def test_finetuned_run__is_resumed(call: Call, old: Path) -> None:
    words = ["--encoder", "run", "--out", "finetuned", "--resume", "--allow-change", "finetune.epochs=3"]
    assert "from step 6" in call("finetune", *SETTINGS, *words).stderr
    assert_resumed(old, "finetuned")


def test_run__has_the_stored_scores(call: Call, old: Path) -> None:
    table = call("evaluate", *SETTINGS, "--encoder", "run", "--out", "again", "--test").stdout
    for name in ("scores", "differences", "operating", "calibration", "subgroups"):
        assert_close(read(old / f"again/{name}.json"), read(OLD / f"run/evaluation/{name}.json"))
    ledger = (OLD / "run/ledger.jsonl").read_text().splitlines()
    assert f"test evaluation {len(ledger) + 1}, recorded in ledger.jsonl" in table


def test_exported_encoder__has_the_scores_of_its_run(call: Call, old: Path) -> None:
    call("evaluate", *SETTINGS, "--encoder", "run=export/encoder.safetensors", "--out", "again", "--test")
    files = (old / "again/scores.json", OLD / "run/evaluation/scores.json")
    found, stored = ([record["auroc"] for record in read(file)] for file in files)
    assert_close(found, stored)


def test_named_encoders__have_the_stored_scores(call: Call, old: Path) -> None:
    call("evaluate", *SETTINGS, "--encoder", "mine=run", "--encoder", "other=random", "--out", "again")
    for name in ("scores", "differences"):
        assert_close(read(old / f"again/{name}.json"), read(OLD / f"evaluation_named/{name}.json"))


@pytest.mark.usefixtures("old")
def test_api__opens_all_that_a_run_folder_holds() -> None:
    run = medmoco.Run("run")
    assert run.status["state"] == "done"
    from_run, from_export = run.encoder.embed("data/test"), medmoco.load_encoder("export").embed("data/test")
    assert from_run == pytest.approx(from_export, rel=1e-4, abs=1e-5)
    assert medmoco.load_classifier("run/evaluation/classifier").labels == ("Opacity", "Interstitial")
    assert medmoco.Evaluation.load("run/evaluation").primary == "run"
    assert medmoco.Evaluation.load("evaluation_named").primary == "mine"
    assert len(medmoco.Curve.load("run/curve").to_frame()) == len(read(OLD / "run/curve/curve.json"))
    assert set(medmoco.External.load("run/external").scores) == set(read(OLD / "run/external/external.json"))


def test_report__shows_all_that_a_run_folder_holds(call: Call, old: Path) -> None:
    call("report", "run", "--card", "export/MODEL_CARD.md", "--out", "report.html")
    page = (old / "report.html").read_text()
    scores = [record["auroc"] for record in read(OLD / "run/evaluation/scores.json") if record["split"] == "test"]
    outside = [record["external"]["auroc"] for record in read(OLD / "run/external/external.json").values()]
    curve = [record["auroc"] for record in read(OLD / "run/curve/curve.json") if record["split"] == "test"]
    assert not [value for value in (*scores, *outside, *curve) if f"{value:.3f}" not in page]
    assert page.count('class="missing"') == 1  # the audit: `medmoco check` did not run


def test_report__shows_a_finetuned_run(call: Call, old: Path) -> None:
    call("report", "finetuned", "--out", "report.html")
    page = (old / "report.html").read_text()
    aurocs = read(OLD / "finetuned/classifier/classifier.json")["val_auroc"].values()
    assert not [value for value in aurocs if f"{value:.3f}" not in page]


def test_detections__are_compared_with(call: Call, old: Path) -> None:
    call("detect", *SETTINGS, "--encoder", "random", "--out", "new", "--against", "detection")
    stored, found = read(OLD / "detection/scores.json"), read(old / "new/scores.json")
    assert_close([record for record in found if record["encoder"] == "run"],
                 [record for record in stored if record["encoder"] == "run"])  # fmt: skip


# ---- packs ----


def test_pack__has_the_stored_canvases(old: Path) -> None:
    settings = config.load(old / "settings.yaml", ["data.pack=pack"])
    for name, split in load_manifest(settings.data, ("train", "val", "test")).items():
        canvases, _ = read_canvases(split, range(len(split)), settings)
        digests = [hashlib.sha256(canvas.pixels.tobytes()).hexdigest() for canvas in canvases]
        assert digests == EXPECTED["canvases"][name]


def test_pack__is_complete_and_stays_as_it_is(call: Call, old: Path) -> None:
    call("pack", *SETTINGS, "--out", "pack")
    stored = {file.name: file.read_bytes() for file in (OLD / "pack").iterdir()}
    assert {file.name: file.read_bytes() for file in (old / "pack").iterdir()} == stored


# ---- classifiers and exports ----


@pytest.mark.parametrize("classifier", EXPECTED["probabilities"])
def test_classifier__has_the_stored_probabilities(call: Call, old: Path, classifier: str) -> None:
    call("predict", *SETTINGS, "--classifier", classifier, "--out", "predicted.csv")
    with (old / "predicted.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    assert leaves(rows) == about(EXPECTED["probabilities"][classifier], abs=1e-5)


@pytest.mark.parametrize("folder", [pytest.param("export", marks=pytest.mark.slow), "classifier_export"])
def test_export__is_verified(call: Call, old: Path, folder: str) -> None:
    call("verify", folder)


@pytest.mark.parametrize(
    ("source", "stored"),
    [
        (["--run", "run"], "export/encoder.safetensors"),
        pytest.param(
            ["--classifier", "finetuned/classifier"],
            "classifier_export/classifier.safetensors",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_export__has_the_stored_tensors(call: Call, old: Path, source: list[str], stored: str) -> None:
    call("export", *source, "--out", "again", "--format", "safetensors")
    again, before = load_file(old / "again" / Path(stored).name), load_file(OLD / stored)
    assert {name: (value.dtype, value.shape, value.tobytes()) for name, value in again.items()} == {
        name: (value.dtype, value.shape, value.tobytes()) for name, value in before.items()
    }
