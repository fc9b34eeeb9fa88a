from __future__ import annotations

from typing import Any

import pytest

from medmoco.evaluation.records import CurveDifference, CurvePoint
from medmoco.evaluation.verdict import verdict


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
