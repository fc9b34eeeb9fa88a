from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from medmoco.data.manifest.manifest import Split
from medmoco.reporting.blocks import NO_BREAK, Answer, Section, Table, Text
from medmoco.reporting.runs import Run
from medmoco.reporting.summary import (
    answers,
    findings,
    headlines,
    is_synthetic,
    subtitle_of,
    summary,
    title_of,
)  # fmt: skip
from tests.helpers.words import blocks_of, missing_of, plots_of, tables_of, words_of


def _with_columns(run: Run, **columns: Any) -> Run:
    assert run.splits is not None
    splits: dict[str, Split] = {
        name: replace(split, table=split.table.assign(**columns)) for name, split in run.splits.items()
    }
    return replace(run, splits=splits)


def _summary(*runs: Run) -> Section:
    return Section("Summary", summary(runs))


# ---- title ----


@pytest.mark.parametrize(
    ("columns", "title"),
    [
        ({}, "Encoder pretrained on 320 images"),
        ({"Modality": "MG"}, "Encoder pretrained on 320 mammograms"),
        ({"Modality": "XYZ"}, "Encoder pretrained on 320 images"),
        ({"Modality": ["CR", "CT"] * 160}, "Encoder pretrained on 320 images"),
        ({"Modality": ["CR", "DX"] * 160}, "Encoder pretrained on 320 radiographs"),
        ({"ViewPosition": ["PA", "AP"] * 160}, "Encoder pretrained on 320 radiographs"),
        ({"ViewPosition": ["PA", "MLO"] * 160}, "Encoder pretrained on 320 images"),
        ({"ViewPosition": ["PA", ""] * 160}, "Encoder pretrained on 320 images"),
    ],
)
def test_title_of__names_what_is_known_of_every_image(run: Run, columns: dict[str, Any], title: str) -> None:
    assert run.splits is not None
    train = {"train": run.splits["train"]}
    assert title_of([_with_columns(replace(run, splits=train), **columns)]) == title


def test_title_of__phantoms_are_synthetic(run: Run) -> None:
    phantoms = _with_columns(run, PatientID="PHANTOM-0001", ViewPosition="PA")
    assert is_synthetic(phantoms)
    assert not is_synthetic(run)
    assert title_of([phantoms]) == "Encoder pretrained on 320 synthetic radiographs (phantoms)"
    assert "synthetic phantoms, so this says nothing about patients" in words_of(_summary(phantoms))


def test_title_of__rows_left_out_are_not_counted(run: Run, bare_run: Run) -> None:
    chosen = replace(run, settings=run.settings | {"data.where": 'Sex == "F"'})
    assert title_of([chosen]) == "Encoder pretrained on images"
    assert title_of([replace(bare_run, splits=None)]) == "Encoder pretrained on images"


def test_title_of__several_runs(run: Run, other_run: Run) -> None:
    assert title_of([run, other_run]) == "Two encoders pretrained on 320 images, compared"
    tuned = replace(other_run, is_finetuned=True, splits=None)
    assert title_of([run, tuned]) == "Two networks trained on different images, compared"
    assert title_of([tuned]) == "Classifier fine-tuned on images"


def test_subtitle_of__what_the_runs_agree_on(run: Run, other_run: Run) -> None:
    epochs = run.settings["train.epochs"]
    assert subtitle_of([run]) == f"MoCo v2, without labels · resnet18 · {epochs} epochs · images of 160 patients"
    other = replace(other_run, settings=other_run.settings | {"model.backbone": "resnet50"})
    assert subtitle_of([run, other]) == f"MoCo v2, without labels · {epochs} epochs · images of 160 patients"
    assert "400 of 1,000 steps" in subtitle_of([replace(run, step=400)])


# ---- the answer ----


def _moved(run: Run, by: float, **values: Any) -> Run:
    gains = [d.model_copy(update={"difference": by, "low": by - 0.01, "high": by + 0.01, **values})
             for d in run.curve_differences or ()]  # fmt: skip
    return replace(run, curve_differences=gains)


@pytest.mark.parametrize(
    ("by", "kind", "title"),
    [
        (0.07, "gain", "The pretrained encoder gains over raw pixels"),
        (-0.07, "loss", "The pretrained encoder loses against raw pixels"),
        (-0.005, "unclear", "The pretrained encoder cannot be told apart from raw pixels"),
    ],
)
def test_answer__says_which_way(run: Run, by: float, kind: str, title: str) -> None:
    changed = _moved(run, by)
    (found,) = answers([changed])
    assert (found.kind, found.title) == (kind, title)
    assert found.effect == f"{by:+.3f}".replace("-", "−")
    assert "Pneumonia on the test set, with the labels of 16 patients (10 %)" in found.text


def test_findings__the_fewest_and_the_most_labels_of_every_label(run: Run) -> None:
    most = [d.model_copy(update={"fraction": 1.0, "difference": -0.01, "low": -0.02, "high": 0.01})
            for d in run.curve_differences or ()]  # fmt: skip
    both = replace(run, curve_differences=[*(run.curve_differences or ()), *most])
    assert [(one.own.label, one.kind) for one in findings(both)] == [
        ("Pneumonia", "gain"), ("Pneumonia", "unclear"), ("Viral", "gain"), ("Viral", "unclear"),
    ]  # fmt: skip
    (table,) = [block for block in summary([both]) if isinstance(block, Table)]
    assert [row[0] for row in table.rows][:2] == ["Pneumonia, 16 patients (10 %)", "Pneumonia, 160 patients (100 %)"]
    assert [row[2] for row in table.rows] == ["gain", "no clear difference"] * 2


def test_findings__of_the_evaluation_without_a_curve(run: Run, bare_run: Run) -> None:
    scored = replace(run, curve=None, curve_differences=None)
    assert Counter(one.labels for one in findings(scored)) == {"all training patients": 2}
    assert not findings(bare_run)
    assert "medmoco evaluate --encoder bare" in missing_of(_summary(bare_run))[0]
    assert headlines([bare_run]) == []


def test_summary__scores_on_validation_are_said_to_be_optimistic(run: Run) -> None:
    on_val = [record.model_copy(update={"split": "val"}) for record in run.curve or ()]
    gains = [record.model_copy(update={"split": "val"}) for record in run.curve_differences or ()]
    words = words_of(_summary(replace(run, curve=on_val, curve_differences=gains)))
    assert "Scores on the validation set are optimistic" in words
    assert (
        "on the validation set, with the labels of"
        in headlines([replace(run, curve=on_val, curve_differences=gains)])[0]
    )
    assert "optimistic" not in words_of(_summary(run))


def test_summary__unfinished_training_is_named(run: Run) -> None:
    words = words_of(_summary(replace(run, state="stopped", step=400)))
    assert "The training of cxr-1 is not finished: it is stopped after 400 of 1,000 steps." in words


def test_summary__several_runs_in_one_figure(run: Run, other_run: Run) -> None:
    section = _summary(run, other_run)
    assert len([block for block in blocks_of(section) if isinstance(block, Answer)]) == 2
    (plot,) = plots_of(section)
    assert plot.figure.axes[0].get_legend_handles_labels()[1] == ["cxr-1", "cxr-2"]
    assert tables_of(section)[-1].rows[0][0] == "cxr-1, Pneumonia, 16 patients (10 %)"


def test_summary__p_values_are_explained_with_the_comparisons_of_each_run(run: Run) -> None:
    loud, quiet = _moved(run, 0.07, p_holm=0.2), replace(_moved(run, 0.07, p_holm=0.01), name="quiet")
    words = words_of(_summary(loud, quiet))
    assert "cxr-1: In 2 rows, the interval excludes 0 although p (Holm) is 0.05 or more." in words
    assert "p is corrected for all 4 comparisons of the same split" in words
    assert "quiet: In" not in words


def test_summary__runs_on_different_data_are_not_compared_blindly(run: Run) -> None:
    other = replace(run, name="other", environment=run.environment | {"manifest_sha256": "0"})
    assert "The runs have different manifests" in words_of(_summary(run, other))
    assert "different manifests" not in words_of(_summary(run, replace(run, name="again")))


def test_summary__many_runs_are_counted(run: Run) -> None:
    runs = [*(replace(run, name=f"run {at}") for at in range(3)), _moved(run, -0.07), _moved(run, 0.0)]
    section = _summary(*runs)
    assert not [block for block in blocks_of(section) if isinstance(block, Answer)]
    assert "3 with a gain, 1 with a loss, 1 that cannot be told apart from it." in words_of(section)


def test_answers__with_all_labels_if_that_is_another_answer(run: Run) -> None:
    most = [d.model_copy(update={"fraction": 1.0, "difference": 0.005, "low": -0.006, "high": 0.018})
            for d in run.curve_differences or ()]  # fmt: skip
    (found,) = answers([replace(run, curve_differences=[*(run.curve_differences or ()), *most])])
    expected = "(100 %), there is no clear difference from raw pixels: +0.005 (−0.006 to +0.018)."
    assert found.text.replace(NO_BREAK, " ").endswith(expected)
    same = [d.model_copy(update={"fraction": 1.0}) for d in run.curve_differences or ()]
    (found,) = answers([replace(run, curve_differences=[*(run.curve_differences or ()), *same])])
    assert found.text.endswith("the strongest control.")


def _warnings(run: Run, **values: Any) -> list[str]:
    scores = [record.model_copy(update=values) for record in run.evaluation.scores or ()]
    gains = [d.model_copy(update={"low": -0.01, "high": 0.01}) for d in run.evaluation.differences or ()]
    changed = replace(run, evaluation=replace(run.evaluation, scores=scores, differences=gains))
    return [block.text for block in summary([changed]) if isinstance(block, Text) and block.kind == "warning"]


def test_summary__scores_that_may_mean_nothing_are_warned_about(run: Run) -> None:
    chance = _warnings(run, auroc=0.51, auroc_low=0.4, auroc_high=0.6)
    assert [text.partition(":")[0] for text in chance] == ["Pneumonia on test", "Viral on test"]
    (pixels,) = _warnings(run, auroc=0.9, auroc_low=0.85, auroc_high=0.95)
    assert pixels.startswith("Pneumonia, Viral on test: with the labels of 100 % of the patients, raw pixels")
    assert not _warnings(replace(run, evaluation=replace(run.evaluation, scores=None)))
