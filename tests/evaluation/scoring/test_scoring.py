"""Differences between encoders: pairing, p and its adjustment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmoco.evaluation.metrics.significance import bootstrap_p
from medmoco.evaluation.records import Score
from medmoco.evaluation.scoring.scoring import Key, Scored, differences_of, draw_labels, predict_linear, score_all
from medmoco.evaluation.scoring.table import MACRO
from tests.helpers.studies import made_settings, made_study


def score_of(key: Key, auroc: float | None) -> Score:
    nothing = dict.fromkeys(("auroc_low", "auroc_high", "average_precision", "undefined"))
    return Score(**key._asdict(), **nothing, auroc=auroc, n=9, n_positive=3, n_patients=9)


def scored_of(label: str, method: str, encoder: str, mean: float, **more: Any) -> tuple[Key, Scored]:
    key = Key(label, "val", method, encoder)
    noise = np.random.default_rng([len(label), 1]).normal(0, 0.02, 500)  # the draws of patients are everybody's
    own = np.random.default_rng([len(label), len(encoder)]).normal(0, 0.005, 500)
    return key, Scored(score_of(key, mean), mean + noise + own, **more)


def test_differences_of__p_is_of_the_paired_draws_and_adjusted_within_its_family() -> None:
    scored = dict(
        scored_of(label, method, encoder, 0.8 + bonus)
        for label in ("A", "B", MACRO)
        for method in ("linear", "knn")
        for encoder, bonus in (("run", 0.012), ("untrained", 0.0), ("pixels", 0.01))
    )
    found = differences_of(scored, [("run", "untrained"), ("run", "pixels")])
    assert len(found) == 12
    for record in found:
        key = Key(record.label, "val", record.method, "run")
        draws = scored[key].bootstrap - scored[key._replace(encoder=record.control)].bootstrap
        assert record.p == bootstrap_p(draws)
        assert record.difference == pytest.approx(0.012 if record.control == "untrained" else 0.002)
        assert record.excludes_zero == (record.p < 0.05)
    family = [r for r in found if r.method == "linear" and r.label != MACRO]
    least = min(family, key=lambda record: record.p)
    assert least.p_holm == pytest.approx(4 * least.p)  # two labels, two controls
    assert all(record.p_holm >= record.p for record in found)


def test_differences_of__an_undefined_score_has_no_difference_and_no_place_in_the_family() -> None:
    scored = dict(scored_of("A", "linear", encoder, 0.8 + 0.02 * (encoder == "run")) for encoder in ("run", "pixels"))
    for encoder in ("run", "pixels"):
        key = Key("B", "val", "linear", encoder)
        scored[key] = Scored(score_of(key, None), np.full(500, np.nan))
    defined, undefined = differences_of(scored, [("run", "pixels")])
    assert defined.p_holm == defined.p
    assert [getattr(undefined, name) for name in ("difference", "low", "high", "p", "p_holm", "delong_p")] == [None] * 6
    assert not undefined.excludes_zero


def test_differences_of__delong_where_both_have_independent_rows() -> None:
    targets = np.repeat([0.0, 1.0], 50)
    good, bad = (np.random.default_rng(0).normal(size=100) + shift * targets for shift in (2.0, 0.5))
    scored = dict([
        scored_of("A", "linear", "run", 0.9, independent=(targets, good)),
        scored_of("A", "linear", "pixels", 0.6, independent=(targets, bad)),
        scored_of("A", "linear", "untrained", 0.6),
    ])  # fmt: skip
    found = {r.control: r.delong_p for r in differences_of(scored, [("run", "pixels"), ("run", "untrained")])}
    assert found["pixels"] < 0.001
    assert found["untrained"] is None


def test_score_all__a_split_without_predictions_is_undefined(tmp_path: Path) -> None:
    study, settings = made_study(), made_settings(tmp_path)
    draws = draw_labels(study.splits["train"], settings)
    found = predict_linear(study, "run", draws, settings)
    kept = {key: predictions for key, predictions in found.items() if key.split == "test"}
    scored = score_all(study, ["linear"], ["run"], kept, draws, settings)
    for label in (*draws, MACRO):
        assert scored[Key(label, "test", "linear", "run")].score.auroc is not None
        assert scored[Key(label, "val", "linear", "run")].score.auroc is None
    assert scored[Key("Viral", "val", "linear", "run")].score.undefined == "undefined (not predicted)"
