"""Points are means over draws of the runs' own scores, with intervals of the means."""

from __future__ import annotations

import numpy as np
import pytest

from medmoco.evaluation.scoring.table import MACRO
from medmoco.segmentation.scores.curve_points import Scored, Trained, differences_between, layout, points_of
from medmoco.segmentation.scores.metrics import OF_VOLUMES
from medmoco.segmentation.scores.scoring import differences_of, records_of, score
from tests.helpers.made_segmentation import CLASSES, PATIENTS, made_measures

SCORED = Scored(CLASSES, {"val": PATIENTS}, 2.0, "mm", 100, 0)


def trained(name: str, skill: float, draws: int = 1, fraction: float = 1.0) -> Trained:
    measures = [{"val": made_measures(skill, seed)} for seed in range(draws)]
    return Trained(name, name == "run", fraction, 40 * fraction, 20 * fraction, measures)


def test_points__of_one_draw_are_the_scores_of_its_run() -> None:
    measures = made_measures(0.8)
    alone = score(measures, PATIENTS, CLASSES, draws=100, seed=0)
    records = {
        (record.label, record.metric): record
        for record in records_of(
            "val", measures, PATIENTS, CLASSES, alone, units=OF_VOLUMES, tolerance=2.0, encoder="run"
        )
    }
    points = list(points_of(trained("run", 0.8), SCORED))
    assert [point.label for point in points] == [*CLASSES, MACRO]
    for point in points:
        dice, surface = records[point.label, "dice"], records[point.label, "surface_dice"]
        assert (point.dice, point.dice_low, point.dice_high) == (dice.value, dice.low, dice.high)
        assert (point.surface_dice, point.surface_dice_low) == (surface.value, surface.low)
        assert (point.n, point.n_patients) == (dice.n, dice.n_patients)
        assert (point.n_missed, point.n_false) == (dice.n_missed, dice.n_false)
        assert (point.method, point.tolerance, point.draws) == ("segment", 2.0, 1)


def test_points__of_several_draws_are_their_means() -> None:
    both = list(points_of(trained("run", 0.8, draws=2), SCORED))
    alone = [
        list(points_of(Trained("run", True, 1.0, 40, 20, [{"val": made_measures(0.8, seed)}]), SCORED))
        for seed in range(2)
    ]
    for place, point in enumerate(both):
        assert point.dice == pytest.approx(np.mean([each[place].dice for each in alone]))
        assert point.dice is not None
        assert point.dice_low is not None
        assert point.dice_high is not None
        assert point.dice_low < point.dice < point.dice_high
        assert point.draws == 2


def test_differences__are_paired_and_means_over_draws() -> None:
    pair = made_measures(0.8), made_measures(0.7)
    alone = {
        (found.label, found.metric): found
        for found in differences_of(
            "val", pair, PATIENTS, CLASSES, ("run", "other"), units=OF_VOLUMES, draws=100, seed=0
        )
    }
    for found in differences_between(trained("run", 0.8), trained("other", 0.7), SCORED):
        own = alone[found.label, found.metric]
        assert (found.difference, found.low, found.high, found.n) == (own.difference, own.low, own.high, own.n)
    same = list(differences_between(trained("run", 0.8, 2), trained("run", 0.8, 2), SCORED))
    assert all((found.difference, found.low, found.high) == (0, 0, 0) for found in same)


def test_layout__has_a_block_for_each_class_and_metric() -> None:
    runs = [trained(name, skill, fraction=fraction)
            for name, skill in (("run", 0.8), ("from scratch", 0.7)) for fraction in (0.1, 1.0)]  # fmt: skip
    points = sorted(
        (point for each in runs for point in points_of(each, SCORED)),
        key=lambda point: ([*CLASSES, MACRO].index(point.label), point.encoder != "run", point.fraction),
    )
    differences = [found for place in (0, 1) for found in differences_between(runs[place], runs[place + 2], SCORED)]
    text = "\n".join(layout(points, differences))
    assert "val: anterior, Dice  (24 images of 12 patients)" in text
    assert "val: mean over classes, surface Dice at 2 mm" in text
    assert "run minus it, 95 % interval" in text
    assert text.count("from scratch  10 %      2         1") == 6
    assert max(map(len, text.splitlines())) <= 120
