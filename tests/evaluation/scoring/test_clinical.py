"""Thresholds and calibration are fitted on validation and applied elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medmoco.config import RunSettings, load
from medmoco.evaluation.scoring.clinical import (
    Clinical,
    describe_operating_points,
    fit_operating_points,
    score_clinically,
)
from medmoco.evaluation.scoring.scoring import Key, Predictions


@pytest.fixture
def settings(tmp_path: Path) -> RunSettings:
    return load(
        None, [f"out={tmp_path}", f"data.manifest={tmp_path}", f"data.root={tmp_path}", "evaluate.bootstrap=100"]
    )


def made(size: int, shift: float) -> tuple[Any, Any]:
    generator = np.random.default_rng(size)
    targets = (generator.random(size) < 0.5).astype(np.float64)
    scores = 3 * (generator.normal(size=size) + 2 * targets - 1) + shift
    split = SimpleNamespace(labels=targets[:, None], label_names=("A",), patients=np.arange(size))
    return split, scores


def predictions_of(method: str, **scores: Any) -> dict[Key, Predictions]:
    return {Key("A", split, method, "run"): Predictions(np.atleast_2d(row), [], []) for split, row in scores.items()}


def test_score_clinically__one_threshold_for_both_splits_and_calibration_that_helps(settings: RunSettings) -> None:
    (val, on_val), (test, on_test) = made(300, 2.0), made(400, 2.0)
    found = score_clinically({"val": val, "test": test}, predictions_of("linear", val=on_val, test=on_test), settings)
    thresholds = {(r.split, r.specificity_wanted): r.threshold for r in found.operating_points}
    assert thresholds["val", 0.9] == thresholds["test", 0.9] < thresholds["test", 0.95]
    (record,) = [r for r in found.calibration if r.split == "test"]
    assert record.after.ece < record.before.ece / 2  # scores were shifted by 2 and 1.5 times too sure
    assert record.after.slope == pytest.approx(1, abs=0.25)
    assert not found.subgroups  # none were asked for


@pytest.mark.parametrize(("method", "fits"), [("knn", 1), ("linear", 2)])
def test_score_clinically__neither_shares_of_neighbours_nor_means_over_draws(
    settings: RunSettings, method: str, fits: int
) -> None:
    val, scores = made(100, 0.0)
    found = score_clinically({"val": val}, predictions_of(method, val=np.tile(scores, (fits, 1))), settings)
    assert found == Clinical()


def test_score_clinically__without_validation_nothing_is_fitted(settings: RunSettings) -> None:
    test, scores = made(100, 0.0)
    found = score_clinically({"test": test}, predictions_of("linear", test=scores), settings)
    assert (found.operating_points, found.calibration) == ((), ())


def test_describe_operating_points__one_class_leaves_scores_as_they_are(settings: RunSettings) -> None:
    (split, scores), chosen = made(200, 1.0), settings.evaluate
    both = {
        "A": fit_operating_points(split.labels[:, 0], scores, chosen),
        "B": fit_operating_points(np.ones(200), scores, chosen),
    }
    described = describe_operating_points(both, chosen)
    assert described["calibration"]["A"]["kind"] == "platt"
    assert described["calibration"]["B"] == {"kind": "none", "slope": 1.0, "intercept": 0.0}
    assert [len(described["operating_points"][label]) for label in "AB"] == [2, 0]
