"""The table that a person reads: every character of it where that is what matters."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from medmoco.evaluation.records import Difference, Score
from medmoco.evaluation.scoring.table import MACRO, class_blocks, figure, layout, regression_blocks, summary_cells
from medmoco.evaluation.target_records import ClassScore, RegressionDifference, RegressionScore

VAL_NOTE = "the linear probe's strength was also chosen on val; only test scores are unbiased"


def record(label: str = "Effusion", split: str = "test", method: str = "linear", **other: Any) -> Score:
    scores = {"auroc": 0.81249, "auroc_low": 0.75, "auroc_high": 0.87, "average_precision": 0.4}
    counts = {"n": 160, "n_positive": 31, "n_patients": 80, "bootstrap": 200, "bootstrap_left_out": 0}
    named = {"label": label, "split": split, "method": method, "encoder": "run"}
    policy = {"label_policy": {"uncertain": "ignore", "missing": "zero"}, "n_labels": 3, "n_labels_defined": 2}
    nothing = {"undefined": None, "flag": None, "note": None, "leakage": {"pretraining": None, "train": None}}
    return Score.model_validate({**named, **scores, **counts, **policy, **nothing, **other})


def undefined(reason: str, **other: Any) -> Score:
    nothing = dict.fromkeys(("auroc", "auroc_low", "auroc_high", "average_precision"))
    return record(**nothing, undefined=reason, bootstrap_left_out=200, **other)


def difference(label: str = "Effusion", split: str = "test", method: str = "linear", **other: Any) -> Difference:
    named = {
        "label": label,
        "split": split,
        "method": method,
        "encoder": "run",
        "control": "untrained",
        "n": 160,
        "n_positive": 31,
        "n_patients": 80,
    }
    return Difference.model_validate({**named, "difference": 0.1127, "low": -0.0504, "high": 0.17, **other})


def test_layout__every_character() -> None:
    records = [
        record(),
        record(encoder="untrained", auroc=0.7, auroc_low=0.6, auroc_high=0.8, average_precision=1.0),
        record(method="knn", auroc=1.0, auroc_low=1.0, auroc_high=1.0),
    ]
    assert layout(records, [difference()], ["one", "two"], ["last"]) == (
        "one\n"
        "two\n"
        "\n"
        "test: Effusion  (160 images, 31 positive, 80 patients; uncertain: ignore, missing: zero)\n"
        "  method  encoder       AUROC   95 % interval    avg. precision   run minus control, 95 % interval\n"
        "  linear  run           0.812   0.750 to 0.870   0.400\n"
        "  linear  untrained     0.700   0.600 to 0.800   1.000            +0.113  -0.050 to +0.170\n"
        "  knn     run           1.000   1.000 to 1.000   0.400\n"
        "\n"
        "last\n"
    )


def test_layout__leaks_stand_above_the_scores_they_spoil() -> None:
    leak = {"pretraining": {"patients": 12, "images": 3}, "train": {"patients": None, "images": 1}}
    lines = layout([record(leakage=leak), record("Mass")], [], [], []).splitlines()
    assert lines[2:4] == [
        "  ! test shares 12 patients and 3 images with the data the encoder was pretrained on: its scores are inflated",
        "  ! test shares 1 images with train: its scores are inflated",
    ]
    assert sum("shares" in line for line in lines) == 2
    assert max(map(len, lines)) <= 120


def test_regression_blocks__leaks_stand_above_the_errors_they_spoil() -> None:
    leak = {"pretraining": {"patients": 12, "images": 3}, "train": {"patients": None, "images": 1}}
    lines = regression_blocks([regression_score(leakage=leak), regression_score(split="val")], [])
    warnings = [
        "  ! test shares 12 patients and 3 images with the data the encoder was pretrained on: its scores are inflated",
        "  ! test shares 1 images with train: its scores are inflated",
    ]
    assert lines[1:3] == lines[7:9] == warnings
    assert sum("shares" in line for line in lines) == 4


@pytest.mark.parametrize("other", ["pixels", "a_name_that_users_chose"])
def test_layout__columns_stand_below_their_heads(other: str) -> None:
    encoders = ("run", "untrained", other)
    records = [
        record(method=method, encoder=encoder, flag=flag)
        for method, encoder, flag in product(("linear", "knn"), encoders, (None, "constant"))
    ]
    controls = [difference(method=method) for method in ("linear", "knn")]
    head, *lines = layout(records, controls, [], []).splitlines()[2 : 3 + len(records)]
    assert len(lines) == 12
    for line in lines:
        assert line.index("0.812") == head.index("AUROC")
        assert line.index("0.750 to") == head.index("95 % interval")
        assert line.index("0.400") == head.index("avg. precision")
        assert ("+0.113" in line) == ("untrained" in line)
        if "untrained" in line:
            assert line.index("+0.113") == head.index("run minus control")


def test_layout__a_block_for_each_split_and_label() -> None:
    records = [record(label, split) for split in ("val", "test") for label in ("Effusion", "Mass", MACRO)]
    differences = [difference("Mass", "test", control="run", difference=0.25)]
    text = layout(records, differences, [], [])
    heads = [line.partition("  (")[0] for line in text.splitlines() if " images, " in line]
    assert heads == ["val: Effusion", "val: Mass", "val: macro", "test: Effusion", "test: Mass", "test: macro"]
    assert text.count("mean of 2 of 3 labels") == 2
    assert text.count("uncertain: ignore") == 4
    blocks = text.split("\n\n")
    assert [block for block in blocks if "+0.250" in block] == [blocks[4]]  # and in no other split or label


def test_layout__the_mean_of_one_label_is_left_out() -> None:
    text = layout([record(), record(MACRO)], [], [], [])
    assert "test: Effusion" in text
    assert MACRO not in text


def test_layout__undefined_rows_say_why_and_hold_no_number() -> None:
    records = [undefined("undefined (no positives)"), undefined("undefined (no positives)", encoder="untrained")]
    nothing = difference(difference=None, low=None, high=None)
    lines = layout(records, [nothing], [], []).splitlines()
    assert lines[1].endswith("patients; uncertain: ignore, missing: zero)")  # no word about its draws
    assert lines[3:5] == [
        "  linear  run           undefined (no positives)",
        "  linear  untrained     undefined (no positives)",
    ]


def test_layout__no_interval_and_no_difference() -> None:
    alone = {"auroc_low": None, "auroc_high": None}
    records = [record(**alone), record(encoder="untrained"), record(encoder="pixels")]
    differences = [difference(low=None, high=None), difference(control="pixels", difference=None, low=None, high=None)]
    lines = layout(records, differences, [], []).splitlines()
    assert lines[3:6] == [
        "  linear  run           0.812   no interval      0.400",
        "  linear  untrained     0.812   0.750 to 0.870   0.400            +0.113  no interval",
        "  linear  pixels        0.812   0.750 to 0.870   0.400",
    ]


def test_layout__draws_left_out_are_counted() -> None:
    text = layout([record(bootstrap_left_out=7)], [], [], [])
    assert "missing: zero; 7 of 200 draws had one class and were left out)" in text


def test_layout__flags_and_notes_are_explained_below() -> None:
    records = [
        record(flag="all scores are equal", auroc=0.5),
        record(method="knn", note="strength not chosen on val: no positives"),
    ]
    text = layout(records, [], [], ["last"])
    assert "  linear  run           0.500!  0.750 to 0.870   0.400\n" in text
    assert "  knn     run           0.812   0.750 to 0.870   0.400\n" in text
    assert text.split("\n\n")[-1] == (
        "! test, Effusion, linear, run: all scores are equal; possibly nothing was learned\n"
        "test, Effusion, knn, run: strength not chosen on val: no positives\n"
        "last\n"
    )


def test_layout__val_is_called_biased_where_it_is_scored() -> None:
    assert VAL_NOTE in layout([record(split="val"), record()], [], [], [])
    assert VAL_NOTE not in layout([record()], [], [], [])


# ---- classes and numeric targets ----

ACCURACIES = {
    "top1": 0.75, "top1_low": 0.6, "top1_high": 0.85,
    "balanced_accuracy": 0.7, "balanced_accuracy_low": 0.55, "balanced_accuracy_high": None,
}  # fmt: skip


def class_score(names: tuple[str, ...] = ("Normal", "Pneumonia"), **other: Any) -> ClassScore:
    reports = [{"name": name, "precision": None, "recall": 0.5, "f1": 0.0, "support": 80} for name in names]
    named = {"label": "Class", "split": "test", "method": "linear", "encoder": "run", "primary": True}
    content = {"n": 160, "n_patients": 80, "classes": reports, "confusion": [[40.0] * len(names)] * len(names)}
    return ClassScore.model_validate({**named, **content, **ACCURACIES, **other}, strict=False)


def test_class_blocks__every_character() -> None:
    records = [
        class_score(bootstrap=200, bootstrap_left_out=3),
        class_score(encoder="pixels", primary=False),
        class_score(method="knn", confusion=((1.25, 0), (3, 4))),
    ]
    assert "\n".join(class_blocks(records)) == (
        "test: Class  (160 images of 2 classes, 80 patients; 3 of 200 draws lacked a class and were left out)\n"
        "  method    encoder     top-1   95 % interval     balanced acc.  95 % interval\n"
        "  linear    run         0.750   0.600 to 0.850    0.700          no interval\n"
        "  linear    pixels      0.750   0.600 to 0.850    0.700          no interval\n"
        "  knn       run         0.750   0.600 to 0.850    0.700          no interval\n"
        "\n"
        "  run by linear, a line for each true class; the columns on the right: images by predicted class\n"
        "                 precision     recall         F1     images     Normal  Pneumonia\n"
        "    Normal               -      0.500      0.000         80         40         40\n"
        "    Pneumonia            -      0.500      0.000         80         40         40\n"
    )


def test_class_blocks__many_classes_have_a_report_and_no_matrix() -> None:
    names = tuple(f"Consolidation {number}" for number in range(14))
    lines = class_blocks([class_score(names)])
    assert max(map(len, lines)) <= 120
    assert "  run by linear, a line for each true class" in lines
    assert sum(line.startswith("    Consolida…") for line in lines) == 14


def test_class_blocks__undefined_and_of_a_fraction() -> None:
    nothing = dict.fromkeys(ACCURACIES)
    lines = class_blocks([class_score(undefined="undefined (no rows with a class)", **nothing)])
    assert lines[2:] == ["  linear    run         undefined (no rows with a class)", ""]
    lines = class_blocks([class_score(label_fraction=0.05)], fractions=True)
    assert lines[2:] == ["  linear    run         5 %       0.750   0.600 to 0.850    0.700          no interval", ""]


def regression_score(**other: Any) -> RegressionScore:
    named = {"label": "Age", "split": "test", "method": "ridge", "encoder": "run", "primary": True}
    errors = {"r2": 0.61234, "r2_low": 0.5, "r2_high": 0.7, "mae": 8.25, "mae_low": 7.5, "mae_high": 9.125}
    return RegressionScore.model_validate({**named, **errors, "n": 160, "n_patients": 80, **other})


def test_regression_blocks__every_character() -> None:
    nothing = dict.fromkeys(("r2", "r2_low", "r2_high"))
    records = [
        regression_score(),
        regression_score(encoder="training mean", primary=False, undefined="undefined (why)", **nothing),
    ]
    named = {"label": "Age", "split": "test", "method": "ridge", "encoder": "run", "control": "training mean"}
    values = {"metric": "mae", "difference": -3.5, "low": -12.25, "high": 1.0}
    text = "\n".join(regression_blocks(records, [RegressionDifference.model_validate({**named, **values})]))
    assert text == (
        "test: Age, R2  (160 images, 80 patients; higher is better)\n"
        "  encoder        R2        95 % interval         run minus control, 95 % interval\n"
        "  run            0.612     0.500 to 0.700\n"
        "  training mean  undefined (why)\n"
        "\n"
        "test: Age, mean absolute error  (160 images, 80 patients; lower is better)\n"
        "  encoder        error     95 % interval         run minus control, 95 % interval\n"
        "  run            8.250     7.500 to 9.125\n"
        "  training mean  8.250     7.500 to 9.125        -3.500  -12.25 to +1.000\n"
    )
    lines = regression_blocks([regression_score(label_fraction=0.5)], [], fractions=True)
    assert lines[2] == "  run         50 %      0.612     0.500 to 0.700"


def test_layout__targets_alone_are_noted_too() -> None:
    text = layout([], [], ["head"], ["last"], [], [regression_score(split="val", note="not chosen")])
    assert text.startswith("head\n\nval: Age, R2")
    assert text.endswith(f"{VAL_NOTE}\nval, Age, ridge, run: not chosen\nlast\n")


def test_layout__images_are_not_called_patients_if_these_are_unknown() -> None:
    alone = {"n": 160, "n_patients": 160}
    text = layout([record(**alone)], [], [], [], [class_score(**alone)], [regression_score(**alone)])
    assert "test: Effusion  (160 images, 31 positive; " in text
    assert "test: Class  (160 images of 2 classes)" in text
    assert "test: Age, R2  (160 images; higher is better)" in text
    assert "patients" not in text


def test_layout__a_class_names_its_column() -> None:
    records = [record(name, class_column="Class", label_policy={}) for name in ("Normal", "Viral", MACRO)]
    text = layout(records, [], [], [])
    assert text.count("80 patients; a class of the column Class, against all others)") == 2
    assert "mean of 2 of 3 classes" in text


def test_figure__at_least_three_digits() -> None:
    assert [figure(value) for value in (0.01234, 9.87654, 45.678, 123.456, 12345.6)] == [
        "0.012", "9.877", "45.68", "123.5", "12346",
    ]  # fmt: skip
    assert figure(-0.5, "+") == "-0.500"


def test_summary_cells__of_each_kind_of_score() -> None:
    assert summary_cells(record(auroc_low=None)) == {"": "0.812 (no interval)"}
    assert summary_cells(class_score()) == {
        "top-1": "0.750 (0.600 to 0.850)", "balanced accuracy": "0.700 (no interval)",
    }  # fmt: skip
    assert summary_cells(regression_score(r2=None)) == {
        "R2": "undefined", "mean absolute error": "8.250 (7.500 to 9.125)",
    }  # fmt: skip
