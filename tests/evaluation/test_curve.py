"""Scores at growing shares of labels, on small real images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from medmoco.config import RunSettings, load
from medmoco.errors import SettingsError
from medmoco.evaluation.curve import curve
from medmoco.evaluation.evaluate import evaluate
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.leakage.ledger import read_ledger
from medmoco.evaluation.results import Curve
from tests.helpers import foreign
from tests.helpers.squares import SMALL, write_images

FINETUNE = ["finetune.epochs=2", "finetune.least_steps=1", "finetune.global_batch_size=8", "finetune.patience=0"]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunSettings]:
    folder = tmp_path_factory.mktemp("squares")
    write_images(folder, {"train": 60, "val": 30, "test": 40})
    paths = [f"out={folder / 'run'}", f"data.manifest={folder}", f"data.root={folder / 'images'}"]
    keys = [*SMALL, "model.backbone=test_resnet", "evaluate.bootstrap=100", "evaluate.fractions=[0.2,1.0]"]
    return lambda *more: load(None, [*paths, *keys, *more])


@pytest.fixture(scope="module")
def found(settings: Callable[..., RunSettings], tmp_path_factory: pytest.TempPathFactory) -> tuple[Curve, Path]:
    out = tmp_path_factory.mktemp("curve")
    return curve(settings(*FINETUNE), {"run": "random"}, out, draws=2, finetune=True, test=True), out


def test_curve__its_ends_are_what_evaluate_says(
    found: tuple[Curve, Path], settings: Callable[..., RunSettings], tmp_path: Path
) -> None:
    rows = found[0].points
    for fraction, draws in ((0.2, 2), (1.0, 1)):
        more = (f"evaluate.label_fraction={fraction}", f"evaluate.label_draws={draws}")
        alone = evaluate(settings(*more), {"run": "random"}, tmp_path, test=True)
        for record in alone.scores:
            if record.method == "linear":
                keys = ("label", "split", "method", "encoder")
                (row,) = [
                    r for r in rows
                    if r.fraction == fraction and all(getattr(r, key) == getattr(record, key) for key in keys)
                ]  # fmt: skip
                assert row.auroc == record.auroc
                assert (row.auroc_low, row.auroc_high) == (record.auroc_low, record.auroc_high)
                assert row.draws == draws


def test_curve__files_hold_the_same_and_no_names(found: tuple[Curve, Path]) -> None:
    result, out = found
    again = Curve.load(out)
    assert (again.points, again.differences, again.table) == (result.points, result.differences, result.table)
    assert {record["version"] for record in json.loads((out / "curve.json").read_text())} == {1}
    assert {point.encoder for point in again.points if point.primary} == {"untrained"}
    table = pd.read_csv(out / "curve.csv")
    assert table["auroc"].tolist() == pytest.approx([row.auroc for row in result.points], abs=1e-5)
    assert (out / "curve_test_Bright.svg").read_text().startswith("<?xml")
    assert "no forecast for more labels: fewer than 3 label fractions have a score" in result.table
    text = "".join(file.read_text() for file in out.glob("*.*"))
    assert not any(word in text for word in ("secret", "confidential", str(out)))
    assert max(map(len, result.table.splitlines())) <= 120


def test_curve__fine_tuning_is_scored_on_the_same_draws(found: tuple[Curve, Path]) -> None:
    rows = {(r.method, r.encoder, r.fraction): r for r in found[0].points if r.split == "test" and r.label == "Bright"}
    for fraction in (0.2, 1.0):
        probe, tuned = rows["linear", "untrained", fraction], rows["finetune", "untrained", fraction]
        assert tuned.n_train_patients == probe.n_train_patients
        if tuned.auroc < 1:  # a perfect score has no interval
            assert 0 <= tuned.auroc_low <= tuned.auroc <= tuned.auroc_high <= 1
    assert len(list((found[1] / "finetune").iterdir())) == 3  # two draws, and all labels


def test_curve__is_one_test_evaluation(found: tuple[Curve, Path]) -> None:
    (entry,) = read_ledger(found[1] / "ledger.jsonl")
    (row,) = [
        r for r in found[0].points
        if [r.label, r.split, r.method, r.encoder] == ["Bright", "test", "linear", "untrained"]
        and r.fraction == 1
    ]  # fmt: skip
    assert entry.command == "curve"
    assert entry.auroc == {"Bright": row.auroc}


def test_curve__without_test_only_val_is_scored(settings: Callable[..., RunSettings], tmp_path: Path) -> None:
    result = curve(settings("evaluate.fractions=[1.0]"), {"run": "random"}, tmp_path, draws=1)
    assert {row.split for row in result.points} == {"val"}
    assert not (tmp_path / "ledger.jsonl").exists()


def test_curve__forecasts_from_three_fractions(settings: Callable[..., RunSettings], tmp_path: Path) -> None:
    write_images(tmp_path, {"train": 120, "val": 60})
    for split, seed in (("train", 0), ("val", 1)):  # a fifth of the labels is wrong, so that there is something to gain
        table = pd.read_csv(tmp_path / f"{split}.csv")
        wrong = np.random.default_rng(seed).random(len(table)) < 0.2
        table["Bright"] = table["Bright"].where(~wrong, 1 - table["Bright"])
        table.to_csv(tmp_path / f"{split}.csv", index=False)
    places = (f"data.manifest={tmp_path}", f"data.root={tmp_path / 'images'}")
    result = curve(settings(*places, "evaluate.fractions=[0.05,0.3,1.0]"), {"run": "random"}, tmp_path, draws=5)
    again = Curve.load(tmp_path)
    assert (again.forecast, again.labels_needed) == (result.forecast, result.labels_needed)
    assert [(found.encoder, found.fraction) for found in again.forecast if found.label == "Bright"] == [
        ("untrained", 2), ("untrained", 5), ("pixels", 2), ("pixels", 5),
    ]  # fmt: skip
    last = {point.encoder: point for point in result.points if (point.fraction, point.label) == (1, "Bright")}
    assert any(found.auroc for found in again.forecast)
    for found in again.forecast:
        assert found.n_train_patients == found.times * last["pixels"].n_train_patients
        assert found.undefined or found.gain == pytest.approx(found.auroc - last[found.encoder].auroc)
    assert len(pd.read_csv(tmp_path / "forecast.csv")) == len(again.forecast)
    assert {found.control for found in again.labels_needed} == {"pixels"}
    assert result.table.endswith("they are not guarantees.\n")


def test_curve__classes_and_targets(settings: Callable[..., RunSettings], tmp_path: Path) -> None:
    more = ("evaluate.classes=Bright", "evaluate.targets=[Bright]", "data.labels={}")
    result = curve(settings(*more, *FINETUNE), {"run": "random"}, tmp_path, draws=2, finetune=True, test=True)
    again = Curve.load(tmp_path)
    for name in ("points", "classes", "regression", "regression_differences"):
        assert getattr(again, name) == getattr(result, name)
    assert {point.label for point in result.points} == {"0", "1", "macro"}
    keys = {(s.method, s.encoder, s.fraction) for s in result.classes if s.split == "test"}
    assert {("linear", "pixels", 0.2), ("finetune", "untrained", 0.2), ("finetune", "untrained", 1.0)} <= keys
    point, score = (
        next(r for r in records if (r.split, r.method, r.encoder, r.fraction) == ("test", "linear", "pixels", 0.2))
        for records in (result.points, result.classes)
    )
    alone = evaluate(
        settings(*more, "evaluate.label_fraction=0.2", "evaluate.label_draws=2"), {"run": "random"}, tmp_path / "alone"
    )
    val = next(s for s in alone.classes if (s.method, s.encoder) == ("linear", "pixels"))
    assert val == next(s for s in result.classes if (s.split, s.method, s.encoder, s.fraction) == (
        "val", "linear", "pixels", 0.2))  # fmt: skip
    assert (point.draws, score.draws) == (2, 2)
    assert [s for s in result.regression if s.split == "val" and s.fraction == 0.2] == list(alone.regression)
    for name in ("macro", "0", "Bright"):
        assert (tmp_path / f"curve_test_{name}.svg").is_file()
    assert again.plot().axes[0].get_title() == "macro, test"
    assert again.plot("Bright").axes[0].get_ylabel() == "R²"
    (entry,) = read_ledger(tmp_path / "ledger.jsonl")
    assert set(entry.r2) == {"Bright"}
    assert max(map(len, result.table.splitlines())) <= 120


def test_curve__targets_alone_and_nothing_to_fine_tune(settings: Callable[..., RunSettings], tmp_path: Path) -> None:
    chosen = settings("evaluate.targets=[Bright]", "data.labels={}", "evaluate.fractions=[1.0]")
    result = curve(chosen, {"run": "random"}, tmp_path, draws=1)
    assert (result.points, result.primary) == ((), "untrained")
    assert result.plot().axes[0].get_title() == "Bright, val"
    assert (tmp_path / "curve.csv").read_text().startswith("label,split")
    with pytest.raises(SettingsError, match="no labels to learn"):
        curve(chosen, {"run": "random"}, tmp_path, finetune=True)


@pytest.mark.slow
def test_curve__says_how_images_of_a_control_were_prepared(
    settings: Callable[..., RunSettings], tmp_path: Path
) -> None:
    torch.save(foreign.moco(foreign.torchvision_resnet(seed=0), foreign.torchvision_resnet(seed=1)), tmp_path / "w.pth")
    chosen = settings("model.backbone=resnet10t", "evaluate.fractions=[1.0]")
    save_file(load_encoder("random", chosen).module.net.state_dict(), tmp_path / "own.safetensors")
    sources = {"own": str(tmp_path / "own.safetensors"), "imagenet": f"{tmp_path / 'w.pth'}@40"}
    found, own = curve(chosen, sources, tmp_path / "curve"), "40 x 40 pixels, mean 0.449, std 0.226"
    assert f"imagenet: images of {own}\n" in found.table
    assert {point.encoder: point.preprocessing for point in found.points} == {
        "own": None, "imagenet": own, "untrained": None, "pixels": None,
    }  # fmt: skip
    assert Curve.load(tmp_path / "curve").points == found.points
    table = pd.read_csv(tmp_path / "curve" / "curve.csv").set_index("encoder")["preprocessing"]
    assert (table["imagenet"] == own).all()
    assert table["own"].isna().all()
    names = found.plot().axes[0].get_legend_handles_labels()[1]
    assert "imagenet (40 x 40 pixels)" in names
    scored = evaluate(chosen, sources, tmp_path / "evaluation")
    assert {(s.encoder, s.size, s.preprocessing) for s in scored.scores if s.encoder in sources} == {
        ("own", 32, None), ("imagenet", 40, own),
    }  # fmt: skip
    assert own in scored.table
    assert "preprocessing" in scored.to_frame()


def test_curve__without_such_a_control_nothing_mentions_it(found: tuple[Curve, Path]) -> None:
    for file in found[1].glob("*.*"):
        assert b"preprocessing" not in file.read_bytes()
    assert "preprocessing" not in found[0].to_frame()
