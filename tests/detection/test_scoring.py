from __future__ import annotations

import numpy as np
import pytest

from medmoco.detection.boxes import Annotated
from medmoco.detection.learning import Detections
from medmoco.detection.scoring import (
    differences_of,
    layout,
    mean_average_precision,
    records_of,
    score,
)
from tests.helpers.rectangles import made_up

LABELS = ("Mass", "Nodule")


class Rows:
    patients = np.arange(4)


# Two labels in four images: the mass is found exactly, one nodule of two, with a false one before it.
TRUTH = Annotated(
    Rows(), np.full((4, 2), 100), np.array([0, 1, 2]),  # type: ignore[arg-type]
    np.array([[0.0, 0, 10, 10], [0, 0, 20, 20], [5, 5, 25, 25]]), np.array([0, 1, 1]),
)  # fmt: skip
FOUND = Detections(
    np.array([0, 1, 3]), np.array([[0.0, 0, 10, 10], [0, 0, 20, 20], [0, 0, 9, 9]]), np.array([0, 1, 1]),
    np.array([0.9, 0.6, 0.8]),
)  # fmt: skip


def test_score__by_hand() -> None:
    scores = score(TRUTH, FOUND, LABELS, draws=200, seed=0)
    assert scores["Mass"]["ap"].value == pytest.approx(1)
    # Precision 1/2 up to a recall of 1/2: 51 of 101 recalls.
    assert scores["Nodule"]["ap50"].value == pytest.approx(0.5 * 51 / 101)
    assert scores["macro"]["ap"].value == pytest.approx((1 + 0.5 * 51 / 101) / 2)
    assert scores["Nodule"]["sensitivity_at_0.125"].value == 0
    assert scores["Nodule"]["sensitivity_at_0.25"].value == pytest.approx(0.5)
    # Images 1 and 2 have a nodule: 0.6 and 0 against 0.8 and 0.
    assert scores["Nodule"]["auroc"].value == pytest.approx((0 + 1 + 0 + 0.5) / 4)
    mean, by_label = mean_average_precision(TRUTH, FOUND, 2)
    assert mean == scores["macro"]["ap"].value
    assert by_label.tolist() == [scores[label]["ap"].value for label in LABELS]


def test_score__of_draws_pairs_labels_and_detectors() -> None:
    annotated, found = made_up(0)
    scores = score(annotated, found, LABELS, draws=150, seed=3)
    again = score(annotated, found, LABELS, draws=150, seed=3)
    for label in (*LABELS, "macro"):
        np.testing.assert_array_equal(scores[label]["ap"].draws, again[label]["ap"].draws)
    np.testing.assert_allclose(
        scores["macro"]["ap"].draws, np.mean([scores[label]["ap"].draws for label in LABELS], axis=0)
    )
    same = differences_of("val", scores, again, ("run", "other"))
    assert all((d.difference, d.low, d.high) == (0, 0, 0) for d in same)
    worse = Detections(found.images, found.corners, found.labels, found.scores[::-1].copy())
    better = differences_of("val", scores, score(annotated, worse, LABELS, draws=150, seed=3), ("run", "other"))
    ap = next(d for d in better if (d.label, d.metric) == ("macro", "ap"))
    assert ap.low < ap.difference < ap.high
    values = [scores["macro"]["ap"].value, ap.difference]
    assert all(np.isfinite(values))


def test_score__a_label_without_boxes_is_left_out_of_the_mean() -> None:
    scores = score(TRUTH, FOUND, (*LABELS, "Other"), draws=100, seed=0)
    assert np.isnan(scores["Other"]["ap"].value)
    assert scores["macro"]["ap"].value == pytest.approx((1 + 0.5 * 51 / 101) / 2)
    records = records_of("val", TRUTH, (*LABELS, "Other"), scores, encoder="run")
    other = next(record for record in records if (record.label, record.metric) == ("Other", "ap"))
    assert (other.value, other.low, other.n_boxes) == (None, None, 0)


def test_records_and_table__say_what_was_scored() -> None:
    scores = score(TRUTH, FOUND, LABELS, draws=100, seed=0)
    records = records_of("val", TRUTH, LABELS, scores, encoder="run")
    ap = next(record for record in records if (record.label, record.metric) == ("Nodule", "ap50"))
    assert (ap.n, ap.n_boxes, ap.n_positive, ap.n_patients) == (4, 2, 2, 4)
    assert ap.low < ap.value < ap.high
    assert ap.bootstrap_left_out > 0  # draws without either image
    differences = differences_of("val", scores, scores, ("run", "untrained"))
    text = layout(records, differences, ["head"], ["note"])
    assert "val: Nodule  (4 images of 4 patients, 2 boxes in 2 images)" in text
    assert "run minus untrained" in text
    assert "+0.000" in text
    assert text.startswith("head\n")
    assert text.endswith("note\n")
    assert max(map(len, text.splitlines())) <= 120
