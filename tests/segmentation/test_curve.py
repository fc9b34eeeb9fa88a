"""Label efficiency of segmentation on small images: its points are those of its runs, which are trained once."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import save_file

from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features.encoder import load_encoder
from medmoco.evaluation.leakage.ledger import read_ledger
from medmoco.evaluation.results import Curve
from medmoco.segmentation.curve import RUNS, segmentation_curve
from tests.helpers.blobs import SECRET, make_settings, write_blobs

SHORT = ("train.threads=1", "evaluate.fractions=[0.3, 0.34, 1.0]", "segmentation.epochs=1")


def measured(folder: Path) -> Curve:
    settings = make_settings(folder / "data", 2, *SHORT)
    return segmentation_curve(
        settings, {"ours": str(folder / "ours.safetensors")}, folder / "curve", draws=1, test=True
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Curve, Path]:
    folder = tmp_path_factory.mktemp("curve")
    write_blobs(folder / "data", 2)
    network = load_encoder("random", make_settings(folder / "data", 2, "seed=5")).module.net
    save_file({name: value.clone() for name, value in network.state_dict().items()}, folder / "ours.safetensors")
    return measured(folder), folder


def test_curve__its_points_are_the_scores_of_its_runs(found: tuple[Curve, Path]) -> None:
    curve, folder = found
    names = {"ours_34_percent_draw_0", "ours_100_percent_draw_0", "from_scratch_34_percent_draw_0",
             "from_scratch_100_percent_draw_0"}  # fmt: skip
    assert {run.name for run in (folder / "curve" / RUNS).iterdir()} == names
    for point in curve.segmentation:
        name = point.encoder.replace(" ", "_")
        run = folder / "curve" / RUNS / f"{name}_{100 * point.fraction:g}_percent_draw_0"
        (record,) = [
            record for record in json.loads((run / "scores.json").read_text())
            if (record["label"], record["split"], record["metric"]) == (point.label, point.split, "dice")
        ]  # fmt: skip
        assert (point.dice, point.dice_low) == (record["value"], record["low"])
        assert (point.n_train_patients, point.n_train) == ((1, 2) if point.fraction < 1 else (3, 6))
    assert {point.encoder for point in curve.segmentation if point.primary} == {"ours"}
    assert {d.control for d in curve.segmentation_differences} == {"from scratch"}
    assert "30 % of 3 patients are as many as the next fraction, and are left out" in curve.table


def test_curve__is_one_test_evaluation(found: tuple[Curve, Path]) -> None:
    curve, folder = found
    (entry,) = read_ledger(folder / "curve" / "ledger.jsonl")
    last = {p.label: p.dice for p in curve.segmentation if p.split == "test" and p.primary and p.fraction == 1}
    last.pop("macro")
    assert (entry.command, entry.dice, entry.encoders) == ("curve", last, ("ours", "from scratch"))
    assert not list((folder / "curve" / RUNS).rglob("ledger.jsonl"))


def test_curve__files_hold_the_same_and_no_names(found: tuple[Curve, Path]) -> None:
    curve, folder = found
    again = Curve.load(folder / "curve")
    for name in ("segmentation", "segmentation_differences", "table"):
        assert getattr(again, name) == getattr(curve, name)
    assert len(pd.read_csv(folder / "curve" / "segmentation.csv")) == len(curve.segmentation) == len(curve.to_frame())
    for name in ("dice_test_large", "surface_dice_val_small", "dice_val_macro"):
        assert (folder / "curve" / f"{name}.svg").read_text().startswith("<?xml")
    text = "".join(file.read_text() for file in (folder / "curve").glob("*.*"))
    assert not any(word in text for word in (SECRET, str(folder)))
    assert max(map(len, curve.table.splitlines())) <= 120
    assert curve.plot(metric="surface_dice").axes[0].get_title() == "macro, test"


@pytest.mark.slow
def test_curve__a_finished_run_is_not_trained_again(found: tuple[Curve, Path]) -> None:
    curve, folder = found
    logs = {file: file.read_text() for file in (folder / "curve" / RUNS).glob("*/metrics.jsonl")}
    again = measured(folder)
    assert (again.segmentation, again.segmentation_differences) == (curve.segmentation, curve.segmentation_differences)
    assert logs == {file: file.read_text() for file in logs}


def test_curve__refuses_before_it_trains(tmp_path: Path) -> None:
    manifest = write_blobs(tmp_path / "data", 2)
    settings = make_settings(manifest, 2, *SHORT)
    with pytest.raises(SettingsError, match="'from scratch' is the name of a control"):
        segmentation_curve(settings, {"from scratch": "random"}, tmp_path / "curve")
    with pytest.raises(SettingsError, match=r"take images of segmentation\.size; leave out @"):
        segmentation_curve(settings, {"ours": "random@64"}, tmp_path / "curve")
    table = pd.read_csv(manifest / "train.csv")
    table["PatientID"] = range(len(table))  # some patients now lack the small class
    table.to_csv(manifest / "train.csv", index=False)
    with pytest.raises(ManifestError, match=r"of 17 % of the patients, no mask of the 1 training images shows .*small"):
        segmentation_curve(
            make_settings(manifest, 2, "evaluate.fractions=[0.17]"), {"ours": "random"}, tmp_path / "curve", draws=20
        )
    assert not (tmp_path / "curve" / RUNS).exists()
