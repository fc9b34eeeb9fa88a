from __future__ import annotations

from typing import Any

import pytest

from medmoco.evaluation.records import CurveDifference, CurvePoint, Difference, Score
from medmoco.evaluation.verdict import curve_verdict, verdict, verdicts


def _point(encoder: str, auroc: float | None, fraction: float = 0.02, **other: Any) -> CurvePoint:
    fields: dict[str, Any] = {
        "label": "Pneumonia", "split": "test", "method": "linear", "encoder": encoder, "primary": encoder == "run",
        "auroc": auroc, "auroc_low": None, "auroc_high": None,
        "fraction": fraction, "n_train_patients": 500 * fraction, "n": 400, "n_positive": 300,
        "n_patients": 191,
    }  # fmt: skip
    return CurvePoint(**{**fields, **other})


def _difference(control: str, value: float, low: float, high: float, fraction: float = 0.02) -> CurveDifference:
    return CurveDifference(
        label="Pneumonia", split="test", method="linear", encoder="run", control=control, difference=value, low=low,
        high=high, fraction=fraction,
    )  # fmt: skip


POINTS = [_point("run", 0.94), _point("untrained", 0.88), _point("pixels", 0.90), _point("run", 0.98, 1.0),
          _point("untrained", 0.97, 1.0), _point("pixels", 0.985, 1.0)]  # fmt: skip
DIFFERENCES = [
    _difference("untrained", 0.06, 0.03, 0.09),
    _difference("pixels", 0.04, 0.01, 0.07),
    _difference("untrained", 0.01, -0.01, 0.02, 1.0),
    _difference("pixels", -0.005, -0.01, 0.01, 1.0),
]


def test_verdict__compares_with_the_strongest_control_at_the_fewest_labels() -> None:
    assert verdict(POINTS, DIFFERENCES, "test") == (
        "Pneumonia, with the labels of 10 patients (2 %): the pretrained encoder has an AUROC of 0.940 on test, raw"
        " pixels 0.900; the difference is +0.040 (95 % interval +0.010 to +0.070)."
    )


def test_verdict__counts_images_if_patients_are_unknown() -> None:
    points = [point.model_copy(update={"n_train": point.n_train_patients}) for point in POINTS]
    assert verdict(points, DIFFERENCES, "test").startswith("Pneumonia, with the labels of 10 images (2 %): ")
    points = [point.model_copy(update={"n_train": 30.0}) for point in POINTS]
    assert verdict(points, DIFFERENCES, "test") == verdict(POINTS, DIFFERENCES, "test")


def test_verdict__a_named_encoder_may_be_the_strongest_control() -> None:
    points = [*POINTS, _point("imagenet", 0.95)]
    sentence = verdict(points, [*DIFFERENCES, _difference("imagenet", -0.01, -0.03, -0.001)], "test")
    assert "imagenet 0.950; the difference is -0.010 (95 % interval -0.030 to -0.001)." in sentence


def test_verdict__is_about_the_fewest_labels_that_could_be_compared() -> None:
    undefined = [_difference("untrained", 0.0, 0.0, 0.0, 0.01).model_copy(update={"difference": None})]
    points = [_point("run", None, 0.01), _point("untrained", None, 0.01), *POINTS]
    assert verdict(points, [*undefined, *DIFFERENCES], "test") == verdict(POINTS, DIFFERENCES, "test")


def test_verdict__says_when_the_interval_contains_0() -> None:
    unclear = [_difference("untrained", 0.06, 0.03, 0.09), _difference("pixels", 0.04, -0.01, 0.07)]
    assert verdict(POINTS, unclear, "test").endswith(
        "; this interval contains 0, so the difference may be due to chance."
    )


@pytest.mark.parametrize(
    ("points", "differences"),
    [
        ([], []),
        ([point for point in POINTS if point.encoder == "run"], []),
        (POINTS, []),
        ([_point("random", 0.7, primary=True), _point("pixels", 0.9)], []),
    ],
)
def test_verdict__is_empty_without_a_comparison(points: list[CurvePoint], differences: list[CurveDifference]) -> None:
    assert verdict(points, differences, "test") == ""


def test_verdict__of_another_split_is_empty() -> None:
    assert verdict(POINTS, DIFFERENCES, "val") == ""


def test_curve_verdict__adds_that_a_gain_is_only_with_few_labels() -> None:
    first = verdict(POINTS, DIFFERENCES, "test")
    assert curve_verdict(POINTS, DIFFERENCES, "test") == (
        f"{first} With the labels of 500 patients (100 %), there is no evidence of a difference from raw pixels: -0.005"
        " (95 % interval -0.010 to +0.010); the gain is only with few labels."
    )


@pytest.mark.parametrize(
    "differences",
    [
        [*DIFFERENCES[:3], _difference("pixels", 0.02, 0.01, 0.03, 1.0)],  # a gain with all labels too
        [*DIFFERENCES[:1], _difference("pixels", 0.04, -0.01, 0.07), *DIFFERENCES[2:]],  # none with the fewest
        [*DIFFERENCES[:1], _difference("pixels", -0.04, -0.07, -0.01), *DIFFERENCES[2:]],  # a loss
        DIFFERENCES[:2],  # a single fraction
        [],
    ],
)
def test_curve_verdict__is_otherwise_the_first_sentence(differences: list[CurveDifference]) -> None:
    assert curve_verdict(POINTS, differences, "test") == verdict(POINTS, differences, "test")


def _score(encoder: str, auroc: float, low: float, high: float, **other: Any) -> Score:
    fields: dict[str, Any] = {
        "label": "Pneumonia", "split": "test", "method": "linear", "encoder": encoder, "primary": encoder == "run",
        "auroc": auroc, "auroc_low": low, "auroc_high": high, "average_precision": None, "n": 400, "n_positive": 300,
        "n_patients": 191,
    }  # fmt: skip
    return Score(**{**fields, **other})


def _gap(control: str, value: float, low: float, high: float, **other: Any) -> Difference:
    fields: dict[str, Any] = {
        "label": "Pneumonia", "split": "test", "method": "linear", "encoder": "run", "control": control,
        "difference": value, "low": low, "high": high, "n": 400, "n_positive": 300, "n_patients": 191,
    }  # fmt: skip
    return Difference(**{**fields, **other})


def _scores(own: float, untrained: float, pixels: float, half: float = 0.01) -> list[Score]:
    named = {"run": own, "untrained": untrained, "pixels": pixels}
    return [_score(name, value, value - half, value + half) for name, value in named.items()]


FUNDUS = _scores(0.980, 0.981, 0.984)
EQUAL = [_gap("untrained", -0.001, -0.006, 0.004), _gap("pixels", -0.004, -0.01, 0.002)]


def test_verdicts__raw_pixels_as_good_as_every_encoder_suggest_a_shortcut() -> None:
    (found,) = verdicts(FUNDUS, EQUAL)
    assert (found.label, found.split, found.kind) == ("Pneumonia", "test", "pixels")
    assert str(found).startswith(
        "Pneumonia on test: raw pixels (0.984) do as well as every encoder: the pretrained encoder minus raw pixels is"
        " -0.004 (95 % interval -0.010 to +0.002). Suspect a shortcut, or an easy label: `medmoco check` "
    )


@pytest.mark.parametrize(
    ("scores", "differences", "kind", "words"),
    [
        # an interval too wide to call them equally good
        (FUNDUS, [EQUAL[0], _gap("pixels", -0.004, -0.09, 0.08)], "unclear", "-0.004 (95 % interval -0.090 to +0.080)"),
        # another encoder is better than raw pixels
        ([*FUNDUS, _score("imagenet", 0.999, 0.995, 1.0)], [*EQUAL, _gap("imagenet", -0.02, -0.03, -0.01)], "loss",
         "A clear loss: the pretrained encoder minus imagenet, the strongest control, is -0.020"),
        # raw pixels do as well, but not well
        (_scores(0.70, 0.68, 0.70), EQUAL, "unclear", "No evidence of a difference: the pretrained encoder minus raw"),
        (_scores(0.94, 0.88, 0.90), [_gap("untrained", 0.06, 0.03, 0.09), _gap("pixels", 0.04, 0.01, 0.07)], "gain",
         "A clear gain: the pretrained encoder minus raw pixels, the strongest control, is +0.040"),
        (_scores(0.94, 0.95, 0.90), [_gap("untrained", -0.01, -0.03, 0.01), _gap("pixels", 0.04, 0.01, 0.07)],
         "unclear", "minus the untrained network, the strongest control, is -0.010"),
        (_scores(0.53, 0.50, 0.48, 0.06), EQUAL, "chance", "No encoder is clearly better than chance"),
    ],
)  # fmt: skip
def test_verdicts__kinds(scores: list[Score], differences: list[Difference], kind: str, words: str) -> None:
    (found,) = verdicts(scores, differences)
    assert found.kind == kind
    assert words in found.text


def test_verdicts__of_each_label_on_test_if_it_was_evaluated() -> None:
    validated = [score.model_copy(update={"split": "val", "auroc": 0.5}) for score in FUNDUS]
    second = [score.model_copy(update={"label": "Viral"}) for score in _scores(0.94, 0.88, 0.90)]
    gaps = [_gap("untrained", 0.06, 0.03, 0.09, label="Viral"), _gap("pixels", 0.04, 0.01, 0.07, label="Viral")]
    macro = [score.model_copy(update={"label": "macro"}) for score in FUNDUS]
    found = verdicts([*validated, *FUNDUS, *second, *macro], [*EQUAL, *gaps])
    assert [(each.label, each.split, each.kind) for each in found] == [
        ("Pneumonia", "test", "pixels"), ("Viral", "test", "gain"),
    ]  # fmt: skip
    assert verdicts([], []) == ()
    assert verdicts(FUNDUS, []) == ()
    undefined = [score.model_copy(update={"auroc": None}) for score in FUNDUS]
    assert verdicts(undefined, EQUAL) == ()
