"""Runs, packs and exports of medmoco before its modules moved: they load, and give what they gave then.

`make_old.py` made the files in `old/`, and `expected.json` in it. Processors differ in the last bits, hence tolerances.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from medmoco import config
from medmoco.data.loading import read_canvases
from medmoco.data.manifest import load_manifest
from tests.cli.commands import Call
from tests.compatibility.make_old import OLD, SPLITS, digest, losses

SETTINGS = ("--config", "settings.yaml")
EXPECTED = json.loads((OLD / "expected.json").read_text())


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the files, made the working folder: that is what paths in them are relative to."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    monkeypatch.chdir(folder)
    return folder


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def leaves(tree: Any, place: str = "") -> dict[str, Any]:
    """Return the values in nested objects and lists by their place; pytest.approx takes neither nests nor words."""
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
    assert leaves(found) == about(stored, rel=1e-4, abs=1e-5)


def assert_resumed(old: Path, name: str) -> None:
    """A run was resumed to its end, and its new steps are those that the code that wrote it would have taken."""
    before, status = read(OLD / name / "status.json"), read(old / name / "status.json")
    added = len(EXPECTED["losses"][name])
    assert (status["state"], status["step"]) == ("done", before["step"] + added)
    assert losses(old / name / "metrics.jsonl")[-added:] == pytest.approx(EXPECTED["losses"][name], rel=1e-3)


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
    looks = (OLD / "run/ledger.jsonl").read_text().splitlines()
    assert f"look {len(looks) + 1} at a test split" in table


def test_exported_encoder__has_the_scores_of_its_run(call: Call, old: Path) -> None:
    call("evaluate", *SETTINGS, "--encoder", "run=export/encoder.safetensors", "--out", "again", "--test")
    files = (old / "again/scores.json", OLD / "run/evaluation/scores.json")
    found, stored = ([record["auroc"] for record in read(file)] for file in files)
    assert_close(found, stored)


def test_named_encoders__have_the_stored_scores(call: Call, old: Path) -> None:
    call("evaluate", *SETTINGS, "--encoder", "mine=run", "--encoder", "other=random", "--out", "again")
    for name in ("scores", "differences"):
        assert_close(read(old / f"again/{name}.json"), read(OLD / f"evaluation_named/{name}.json"))


def test_report__shows_what_a_run_folder_holds(call: Call, old: Path) -> None:
    call("report", "run", "finetuned", "--out", "report.html")
    page = (old / "report.html").read_text()
    scores = [record["auroc"] for record in read(OLD / "run/evaluation/scores.json") if record["split"] == "test"]
    outside = [record["external"]["auroc"] for record in read(OLD / "run/external/external.json").values()]
    curve = [record["auroc"] for record in read(OLD / "run/curve/curve.json") if record["split"] == "test"]
    missing = [value for value in (*scores, *outside, *curve) if f"{value:.3f}" not in page]
    assert not missing


def test_detections__are_compared_with(call: Call, old: Path) -> None:
    call("detect", *SETTINGS, "--encoder", "random", "--out", "new", "--against", "detection")
    stored, found = read(OLD / "detection/scores.json"), read(old / "new/scores.json")
    assert_close([record for record in found if record["encoder"] == "run"],
                 [record for record in stored if record["encoder"] == "run"])  # fmt: skip


# ---- packs ----


def test_pack__has_the_stored_canvases(old: Path) -> None:
    settings = config.load(old / "settings.yaml", ["data.pack=pack"])
    for name, split in load_manifest(settings.data, SPLITS).items():
        canvases, _ = read_canvases(split, range(len(split)), settings)
        assert [digest(canvas) for canvas in canvases] == EXPECTED["canvases"][name]


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
