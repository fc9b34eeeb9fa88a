"""A frozen classifier on other data, on small real images."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from medmoco.config import RunSettings, load
from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.evaluate import evaluate
from medmoco.evaluation.leakage.ledger import read_ledger
from medmoco.evaluation.results import External
from medmoco.evaluation.supervised.external import external
from tests.helpers.squares import SMALL, write_images


def settings_of(folder: Path, *more: str) -> RunSettings:
    paths = [f"out={folder / 'run'}", f"data.manifest={folder}", f"data.root={folder / 'images'}"]
    return load(None, [*paths, *SMALL, "model.backbone=test_resnet", "evaluate.bootstrap=200", *more])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Own data with a run's classifier, and a copy of another hospital whose images are noisier."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("own", "other")}
    write_images(folders["own"], {"train": 80, "val": 40, "test": 60})
    write_images(folders["other"], {"test": 50})
    for file in (folders["other"] / "images").iterdir():
        generator = np.random.default_rng(len(file.name))
        pixels = np.asarray(Image.open(file)).astype(int)
        pixels = pixels + generator.normal(0, 25, (2, 2)).repeat(24, 0).repeat(20, 1).astype(int)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)
    run = folders["own"] / "run"
    run.mkdir()
    (run / "config.yaml").write_text("")
    evaluate(settings_of(folders["own"]), {"run": "random"}, run / "evaluation", test=True)
    return folders.__getitem__


def test_external__nothing_is_fitted_and_the_drop_is_the_difference(
    data: Callable[[str], Path], tmp_path: Path
) -> None:
    own = data("own")
    classifier = own / "run/evaluation/classifier"
    before = classifier.joinpath("classifier.json").read_bytes()
    result = external(settings_of(own), settings_of(data("other")), classifier, tmp_path)
    again = External.load(tmp_path)
    for name in ("scores", "operating_points", "calibration", "subgroups", "table"):
        assert getattr(again, name) == getattr(result, name)
    assert result.to_frame()[["label", "drop"]].to_numpy().tolist() == [["Bright", result.scores["Bright"].drop]]
    found = json.loads((tmp_path / "external.json").read_text())["Bright"]
    scores = json.loads((own / "run/evaluation/scores.json").read_text())
    (known,) = [
        r for r in scores if [r[k] for k in ("label", "split", "method", "encoder")]
        == ["Bright", "test", "linear", "untrained"]
    ]  # fmt: skip
    assert found["internal"]["auroc"] == pytest.approx(known["auroc"], abs=0.01)  # the probe is folded in float32
    assert found["internal"]["n"] == known["n"]
    assert found["drop"] == pytest.approx(found["internal"]["auroc"] - found["external"]["auroc"])
    assert found["drop_low"] < found["drop"] < found["drop_high"]
    assert found["drop"] > 0
    assert classifier.joinpath("classifier.json").read_bytes() == before
    points = json.loads((tmp_path / "operating.json").read_text())
    thresholds = {(p["split"], p["specificity_wanted"]): p["threshold"] for p in points}
    for wanted in (0.9, 0.95):
        assert thresholds["internal", wanted] == thresholds["external", wanted]
    assert f"drop            {found['drop']:+.3f}" in result.table
    assert {r["split"] for r in json.loads((tmp_path / "calibration.json").read_text())} == {"internal", "external"}
    assert [entry.command for entry in read_ledger(own / "run/ledger.jsonl")] == ["external", "external"]
    text = "".join(file.read_text() for file in tmp_path.iterdir())
    assert not any(word in text for word in ("secret", "confidential", str(own)))


def test_external__own_images_are_no_external_test(data: Callable[[str], Path], tmp_path: Path) -> None:
    own = data("own")
    classifier = own / "run/evaluation/classifier"
    with pytest.raises(ManifestError, match="60 of 60 external images are files of the classifier's own data"):
        external(settings_of(own), settings_of(own), classifier, tmp_path)
    assert not (tmp_path / "external.json").exists()
    allowed = settings_of(own, "evaluate.allow_leakage=true")
    external(allowed, settings_of(own), classifier, tmp_path)
    assert json.loads((tmp_path / "external.json").read_text())["Bright"]["drop"] == 0


def test_external__labels_must_be_the_classifiers(data: Callable[[str], Path], tmp_path: Path) -> None:
    other = settings_of(data("other"), "data.labels=[Dark]")
    with pytest.raises(SettingsError, match=r"external settings do not name the classifier's label Bright.*Dark"):
        external(settings_of(data("own")), other, data("own") / "run/evaluation/classifier", tmp_path)


def test_external__says_what_it_knows_of_patients(data: Callable[[str], Path], tmp_path: Path) -> None:
    other = data("other")
    test = pd.read_csv(other / "test.csv", dtype=str)
    folder = tmp_path / "same"
    folder.mkdir()
    test.assign(PatientID=pd.read_csv(data("own") / "train.csv", dtype=str)["PatientID"][0] + " ").to_csv(
        folder / "test.csv", index=False
    )
    said: list[str] = []
    settings = settings_of(other, f"data.manifest={folder}")
    external(
        settings_of(data("own")), settings, data("own") / "run/evaluation/classifier", tmp_path / "out", log=said.append
    )
    assert "50 of 50 external images have a PatientID that also occurs in the classifier's own data" in said[0]
    test.drop(columns="PatientID").to_csv(folder / "test.csv", index=False)
    external(
        settings_of(data("own")), settings, data("own") / "run/evaluation/classifier", tmp_path / "out", log=said.append
    )
    assert "external: 50 images; test: no PatientID column; every row counts as its own patient" in said
    table = (tmp_path / "out/table.txt").read_text()
    assert "external 50 images (patients unknown)" in table
    assert re.search(r"external +AUROC .*\(45 images, \d+ positive\)", table)
