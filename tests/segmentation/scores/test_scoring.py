from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from medmoco.evaluation.metrics.auroc import draw_counts
from medmoco.evaluation.scoring.table import MACRO
from medmoco.evaluation.scoring.trained_records import SegmentationScore
from medmoco.segmentation.scores.metrics import IN_PIXELS, OF_IMAGES, OF_VOLUMES, Measures, Units
from medmoco.segmentation.scores.scoring import Segmented, differences_of, layout, records_of, score

CLASSES = ("Liver", "Tumour")
NAN = float("nan")

# Five images of four patients: no tumour in image 2, and in image 3 one that is missed.
PATIENTS = np.array([7, 7, 2, 3, 4])
MEASURES = Measures(
    dice=np.array([[0.9, 0.5], [0.8, 0.7], [0.7, NAN], [0.95, 0], [0.9, 0.6]]),
    surface_dice=np.array([[0.95, 0.6], [0.85, 0.8], [0.8, NAN], [0.99, 0], [0.9, 0.7]]),
    hd95=np.array([[3.0, 9], [4, 5], [6, NAN], [1, 200], [3, 8]]),
    volume=np.array([[1500.0, 30], [1400, 20], [1600, NAN], [1200, 0], [1250, 12]]),
    truth=np.array([[1550.0, 25], [1390, 22], [1500, NAN], [1210, 8], [1300, 10]]),
)


def made_up(seed: int, images: int = 12) -> tuple[Measures, NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    truth = rng.uniform(1, 5, (images, 2))
    columns = [rng.uniform(0.5, 1, (images, 2)), rng.uniform(0.5, 1, (images, 2)), rng.uniform(0, 9, (images, 2)),
               truth + rng.normal(0, 0.5, (images, 2)), truth]  # fmt: skip
    empty = rng.random((images, 2)) < 0.2
    return Measures(*(np.where(empty, np.nan, column) for column in columns)), rng.integers(0, images // 2, images)


def by_hand(measures: Measures, place: int, weights: NDArray[np.int64]) -> dict[str, float]:
    """Return the metrics of a class from the images, each repeated as often as its weight says."""
    rows = [row for row, times in enumerate(weights) for _ in range(times) if not np.isnan(measures.dice[row, place])]
    if not rows:
        return dict.fromkeys(("dice", "surface_dice", "hd95", "volume_bias", "limit_low", "concordance"), NAN)
    ours, theirs = measures.volume[rows, place], measures.truth[rows, place]
    found = {
        metric: float(getattr(measures, metric)[rows, place].mean()) for metric in ("dice", "surface_dice", "hd95")
    }
    found["volume_bias"] = float((ours - theirs).mean())
    deviation = float((ours - theirs).std(ddof=1)) if len(rows) > 1 else NAN
    found["limit_low"] = found["volume_bias"] - 1.959963984540054 * deviation
    covariance = float(((ours - ours.mean()) * (theirs - theirs.mean())).mean())
    spread = float(ours.var() + theirs.var() + (ours.mean() - theirs.mean()) ** 2)
    found["concordance"] = 2 * covariance / spread if len(rows) > 1 else NAN
    return found


@given(st.integers(0, 1000))
def test_score__values_and_draws_are_those_of_a_loop(seed: int) -> None:
    measures, patients = made_up(seed)
    scores = score(measures, patients, CLASSES, draws=8, seed=seed)
    names, codes = np.unique(patients, return_inverse=True)
    counts = np.concatenate([block for _, block in draw_counts(names.size, draws=8, seed=seed, cells=names.size)])
    for place, label in enumerate(CLASSES):
        for metric, value in by_hand(measures, place, np.ones(len(patients), np.int64)).items():
            assert scores[label][metric].value == pytest.approx(value, rel=1e-6, nan_ok=True)
        for draw, times in enumerate(counts):
            for metric, value in by_hand(measures, place, times[codes]).items():
                assert scores[label][metric].draws[draw] == pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True)
    for draw in range(8):
        means = [scores[label]["hd95"].draws[draw] for label in CLASSES]
        defined = [mean for mean in means if not np.isnan(mean)]
        assert scores[MACRO]["hd95"].draws[draw] == pytest.approx(np.mean(defined) if defined else NAN, nan_ok=True)


def test_score__by_hand() -> None:
    scores = score(MEASURES, PATIENTS, CLASSES, draws=300, seed=0)
    assert scores["Liver"]["dice"].value == pytest.approx(0.85)
    assert scores["Tumour"]["dice"].value == pytest.approx(1.8 / 4)  # without image 2, with the missed tumour
    assert scores["Tumour"]["hd95"].value == pytest.approx(222 / 4)
    assert scores["Tumour"]["volume_bias"].value == pytest.approx((5 - 2 - 8 + 2) / 4)
    assert scores[MACRO]["dice"].value == pytest.approx((0.85 + 0.45) / 2)
    assert set(scores[MACRO]) == {"dice", "surface_dice", "hd95"}
    assert set(score(MEASURES, PATIENTS, CLASSES, draws=5, seed=0)) == {*CLASSES, MACRO}
    one = Measures(*(column[:, :1] for column in MEASURES))
    alone = score(one, PATIENTS, CLASSES[:1], draws=300, seed=0)
    assert set(alone) == {"Liver"}  # the mean over one class repeats it
    np.testing.assert_array_equal(alone["Liver"]["dice"].draws, scores["Liver"]["dice"].draws)


def test_score__concordance_falls_with_bias_and_scale() -> None:
    truth = np.linspace(1000, 2000, 10)[:, None]
    shares = np.full_like(truth, 0.9)
    for volume, expected in ((truth, 1), (truth + 500, 0.45), (3000 - truth, -1), (truth * 0 + 1500, 0)):
        measures = Measures(shares, shares, shares, volume, truth)
        found = score(measures, np.arange(10), ["Liver"], draws=20, seed=0)["Liver"]
        assert found["concordance"].value == pytest.approx(expected, abs=0.01)
    constant = Measures(shares, shares, shares, truth * 0 + 5, truth * 0 + 5)
    assert np.isnan(score(constant, np.arange(10), ["Liver"], draws=20, seed=0)["Liver"]["concordance"].value)


def test_records__count_images_patients_and_empty_masks() -> None:
    scores = score(MEASURES, PATIENTS, CLASSES, draws=200, seed=0)
    records = records_of("val", MEASURES, PATIENTS, CLASSES, scores, units=OF_VOLUMES, tolerance=2, encoder="run")
    found = {(record.label, record.metric): record for record in records}
    tumour = found["Tumour", "dice"]
    assert (tumour.n, tumour.n_patients, tumour.n_missed, tumour.n_false, tumour.n_empty) == (4, 3, 1, 0, 1)
    macro = found[MACRO, "dice"]
    assert (macro.n, macro.n_patients, macro.n_missed, macro.n_false, macro.n_empty) == (5, 4, 1, 0, 0)
    for record in records:
        assert record.low is not None
        assert record.value is not None
        assert record.high is not None
        assert record.low < record.value < record.high
        assert record.tolerance == (2 if record.metric == "surface_dice" else None)
        if record.metric == "concordance" or "dice" in record.metric:
            assert record.low > (-1 if record.metric == "concordance" else 0)
            assert record.high < 1
    frame = Segmented(tuple(records), (), "").to_frame()
    assert len(frame) == 2 * 7 + 3
    assert set(SegmentationScore.model_fields) - {"version", "preprocessing"} == set(frame.columns)


def test_records__a_class_without_masks_is_undefined_and_perfect_scores_have_no_interval() -> None:
    columns = [column.copy() for column in MEASURES]
    columns[0][:, 0] = 1
    for column in columns:
        column[:, 1] = NAN
    measures = Measures(*columns)
    scores = score(measures, PATIENTS, CLASSES, draws=50, seed=0)
    records = records_of("val", measures, PATIENTS, CLASSES, scores, units=OF_VOLUMES, tolerance=1.5, encoder="run")
    tumour = [record for record in records if record.label == "Tumour"]
    assert all((each.value, each.low, each.high, each.n) == (None, None, None, 0) for each in tumour)
    assert all(each.bootstrap_left_out == 50 for each in tumour)
    perfect = next(record for record in records if record.metric == "dice" and record.label == "Liver")
    assert (perfect.value, perfect.low, perfect.high) == (1, None, None)
    assert next(record for record in records if record.label == MACRO and record.metric == "dice").value == 1
    differences = differences_of(
        "val", (measures, measures), PATIENTS, CLASSES, ("run", "other"), units=OF_VOLUMES, draws=50, seed=0
    )
    text = layout(records, differences, ["head"], ["note"], units=OF_VOLUMES)
    assert "val: Tumour  (0 images of 0 patients; 5 without it do not count)" in text
    assert "undefined" in text
    assert "no interval" in text
    assert "limits of agreement" not in text[text.index("Tumour") : text.index("macro")]


def test_differences__are_paired() -> None:
    same = differences_of(
        "val", (MEASURES, MEASURES), PATIENTS, CLASSES, ("run", "other"), units=OF_VOLUMES, draws=100, seed=0
    )
    assert all((each.difference, each.low, each.high) == (0, 0, 0) for each in same)
    worse = MEASURES._replace(dice=MEASURES.dice - 0.1)
    better = differences_of(
        "val", (MEASURES, worse), PATIENTS, CLASSES, ("run", "other"), units=OF_VOLUMES, draws=100, seed=0
    )
    dice = next(each for each in better if (each.label, each.metric) == ("Liver", "dice"))
    # Every image differs by the same, so every draw does, which only paired draws show.
    assert (dice.difference, dice.low, dice.high) == pytest.approx((0.1, 0.1, 0.1))
    assert (dice.n, dice.n_patients, dice.control) == (5, 4, "other")
    assert {each.metric for each in same if each.label == MACRO} == {"dice", "surface_dice", "hd95"}


def test_differences__what_one_run_finds_where_there_is_nothing_counts_against_it() -> None:
    other = Measures(*(column.copy() for column in MEASURES))
    for column, value in zip(other, (0, 0, 200, 3, 0), strict=True):
        column[2, 1] = value  # the other run finds a tumour where there is none
    found = differences_of(
        "val", (MEASURES, other), PATIENTS, CLASSES, ("run", "other"), units=OF_VOLUMES, draws=100, seed=0
    )
    own, theirs = (score(each, PATIENTS, CLASSES, draws=100, seed=0) for each in (MEASURES, other))
    for each in found:
        expected = own[each.label][each.metric].value - theirs[each.label][each.metric].value
        assert each.difference == pytest.approx(expected)
    dice = {each.label: each for each in found if each.metric == "dice"}
    mean = np.nanmean(MEASURES.dice[:, 1])
    assert dice["Tumour"].difference == pytest.approx(mean - mean * 4 / 5)
    assert [each.n for each in dice.values()] == [5, 5, 5]


def test_layout__reads_well() -> None:
    scores = score(MEASURES, PATIENTS, CLASSES, draws=200, seed=0)
    worse = MEASURES._replace(dice=np.maximum(MEASURES.dice - 0.1, 0))
    other = score(worse, PATIENTS, CLASSES, draws=200, seed=0)
    records = [
        *records_of("test", MEASURES, PATIENTS, CLASSES, scores, units=OF_VOLUMES, tolerance=2.5, encoder="run"),
        *records_of(
            "test", worse, PATIENTS, CLASSES, other, units=OF_VOLUMES, tolerance=2.5, encoder="untrained", primary=False
        ),
    ]
    differences = differences_of(
        "test", (MEASURES, worse), PATIENTS, CLASSES, ("run", "untrained"), units=OF_VOLUMES, draws=200, seed=0
    )
    text = layout(records, differences, ["head"], ["note"], units=OF_VOLUMES)
    assert "test: Tumour  (4 images of 3 patients; 1 without it does not count)" in text
    assert "  run: found in 3 of 4 images that show it, and in 0 of 1 that do not\n" in text
    assert "found" not in text[: text.index("test: Tumour")]  # the liver is in all images, and was found in all
    assert "test: macro  (5 images of 4 patients)" in text
    assert "surface Dice at 2.5 mm" in text
    assert "volume bias mL" in text
    assert "run minus untrained     +0.100" in text
    assert "  run: 95 % limits of agreement of volumes -120.8 to +120.8 mL, concordance 0.920 (0.6" in text
    assert text.count("95 % limits of agreement of volumes") == 4
    assert text.startswith("head\n")
    assert text.endswith("note\n")
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(("units", "other"), [(IN_PIXELS, "mm"), (OF_IMAGES, "pixels")])
def test_layout__of_images(units: Units, other: str) -> None:
    scores = score(MEASURES, PATIENTS, CLASSES, draws=200, seed=0)
    records = records_of("test", MEASURES, PATIENTS, CLASSES, scores, units=units, tolerance=2.5, encoder="run")
    text = layout(records, (), [], [], units=units)
    for words in (f"surface Dice at 2.5 {units.length} ", f"HD95 {units.length}", f"area bias {units.volume}",
                  f"limits of agreement of areas -120.8 to +120.8 {units.volume},"):  # fmt: skip
        assert words in text
    assert not any(word in text for word in (other, "mL", "volume"))


@pytest.mark.parametrize("units", [OF_VOLUMES, OF_IMAGES, IN_PIXELS])
def test_records__state_the_unit_of_each_number(units: Units) -> None:
    scores = score(MEASURES, PATIENTS, CLASSES, draws=20, seed=0)
    records = records_of("val", MEASURES, PATIENTS, CLASSES, scores, units=units, tolerance=2, encoder="run")
    differences = differences_of(
        "val", (MEASURES, MEASURES), PATIENTS, CLASSES, ("run", "other"), units=units, draws=20, seed=0
    )
    expected = {
        "dice": None, "surface_dice": None, "concordance": None, "hd95": units.length, "volume_bias": units.volume,
        "limit_low": units.volume, "limit_high": units.volume,
    }  # fmt: skip
    assert {record.metric: record.unit for record in records} == expected
    assert all(record.unit == expected[record.metric] for record in differences)
    for record in records:
        assert record.tolerance_unit == (units.length if record.metric == "surface_dice" else None)
