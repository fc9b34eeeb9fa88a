from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from medmoco.data.manifest.manifest import Split
from medmoco.reporting.blocks import Text
from medmoco.reporting.runs import Run, read_run
from medmoco.reporting.training import (
    data_section,
    methods_section,
    overview,
    training_section,
)  # fmt: skip
from tests.helpers.made_runs import make_run
from tests.helpers.words import blocks_of, missing_of, plots_of, tables_of, words_of


def test_overview__a_column_for_each_run(run: Run, other_run: Run) -> None:
    table = overview([run, other_run])
    assert list(table.head) == ["", "cxr-1", "cxr-2"]
    rows = {row[0]: list(row[1:]) for row in table.rows}
    assert rows["Training images"] == ["320", "320"]
    assert rows["Test split scored"] == ["2 times", "2 times"]
    assert rows["Seed"] == ["0", "1"]


def test_overview__nothing_known(bare_run: Run) -> None:
    rows = {row[0]: row[1] for row in overview([bare_run]).rows}
    assert rows["State"] == "unknown"
    assert rows["Test split scored"] == "no ledger"


# ---- data ----


def test_data_section__counts_are_those_of_the_manifest(run: Run) -> None:
    assert run.splits is not None
    counts, labels, *_ = tables_of(data_section([run]))
    assert [list(row) for row in counts.rows] == [["train", "320", "160"], ["val", "120", "60"], ["test", "200", "100"]]
    for row in labels.rows:
        column = list(run.splits["train"].label_names).index(row[0])
        cells = run.splits[row[1]].table[row[0]].astype(str)
        assert [int(cell) for cell in row[2:]] == [int((cells == text).sum()) for text in ("1", "0", "-1", "")], column


def test_data_section__exclusions_and_audit(run: Run) -> None:
    words = words_of(data_section([run]))
    assert "2 training images could not be used" in words
    assert "file cut off | 2" in words
    assert "constant image | warning | 1" in words
    assert "560 rows: train 320" in words
    assert "secret-12" not in words


def test_data_section__what_is_missing_is_said(bare_run: Run) -> None:
    section = data_section([replace(bare_run, splits=None)])
    assert any("manifest" in text for text in missing_of(section))
    assert any("medmoco check" in text for text in missing_of(section))


def _with_column(run: Run, column: str, values: list[str]) -> Run:
    assert run.splits is not None
    train: Split = run.splits["train"]
    table = train.table.assign(**{column: pd.Series(values, index=train.table.index)})
    return replace(run, splits={"train": replace(train, table=table)})


def test_data_section__small_groups_are_hidden(run: Run) -> None:
    changed = _with_column(run, "Sex", ["rare"] * 38 + ["F"] * 281 + [" "])
    words = words_of(data_section([changed]))
    assert "rare: of fewer than 20 patients" in words  # 38 images of 19 patients
    assert "F: 281" in words
    assert "unknown: of fewer than 20 patients" in words


def test_data_section__age_as_quartiles(run: Run) -> None:
    changed = _with_column(run, "Age", ["010Y"] * 100 + ["20"] * 100 + ["30.0"] * 118 + ["", "12M"])
    assert "20 (10 to 30), median and quartiles; 2 unknown" in words_of(data_section([changed]))
    few = _with_column(run, "Age", ["33"] * 5 + [""] * 315)
    assert "hidden; 315 unknown" in words_of(data_section([few]))


# ---- curves ----


def test_training_section__curves_of_all_runs_in_one_plot(run: Run, other_run: Run) -> None:
    plots = plots_of(training_section([run, other_run]))
    loss = plots[0]
    assert loss.caption.startswith("Contrastive loss")
    axes = loss.figure.axes[0]
    assert axes.get_legend_handles_labels()[1] == ["cxr-1", "cxr-2", "chance 6.93"]
    assert list(axes.lines[0].get_xdata())[:2] == [10, 20]
    assert "Chance, ln(1 + negatives), is 6.93" in loss.alt
    assert {row[0] for row in loss.table.rows} == {"cxr-1", "cxr-2"}
    assert len(plots) == 5


@pytest.mark.parametrize(
    ("losses", "course"),
    [
        ([6.9, 4.5], "It falls from 6.900 to 4.500."),
        ([4.5, 7.2, 6.9], "It rises from 4.500 to 6.900."),
        ([4.5, 7.2, 4.5001], "It ends where it started, at 4.500."),
        ([4.5], "It is 4.500."),
    ],
)
def test_training_section__captions_say_what_happened(run: Run, losses: list[float], course: str) -> None:
    metrics = [{"step": step, "contrast": loss, "chance": 6.9} for step, loss in enumerate(losses)]
    (plot,) = plots_of(training_section([replace(run, metrics=metrics)]))
    assert plot.caption.startswith(f"Contrastive loss. {course} Chance, ln(1 + negatives), is 6.90.")


def test_training_section__captions_count_the_courses_of_many_lines(run: Run) -> None:
    metrics = [{"step": step, **{f"knn_auroc/{at}": 0.6 + step * (at - 1) / 10 for at in range(6)}} for step in (0, 1)]
    (plot,) = plots_of(training_section([replace(run, metrics=metrics)]))
    assert "4 of 6 lines end higher than they start." in plot.caption


def test_training_section__a_classifier_is_not_drawn_with_contrast(run: Run, tmp_path: Path) -> None:
    tuned = read_run(make_run(tmp_path / "tuned", finetuned=True))
    captions = {plot.caption.split(".")[0]: plot for plot in plots_of(training_section([run, tuned]))}
    assert {"Contrastive loss", "Classification loss", "Validation AUROC", "kNN AUROC"} <= captions.keys()
    assert {row[0] for row in captions["Contrastive loss"].table.rows} == {"cxr-1"}
    assert {row[0] for row in captions["Validation AUROC"].table.rows} == {"tuned"}


def test_training_section__gaps_and_nulls_are_left_out(run: Run) -> None:
    metrics = [{"step": 1, "loss": None}, {"step": 2, "loss": 3.0, "knn_auroc/Viral": 0.7, "knn_auroc/Edema": 0.6}]
    section = training_section([replace(run, metrics=metrics)])
    plots = {plot.caption.split(".")[0]: plot for plot in plots_of(section)}
    assert [list(row) for row in plots["Contrastive loss"].table.rows] == [["cxr-1", "2", "3.000"]]
    assert [row[0] for row in plots["kNN AUROC"].table.rows] == ["cxr-1, Edema", "cxr-1, Viral"]


def test_training_section__marks_the_best_and_the_last_score(run: Run, other_run: Run) -> None:
    chosen = replace(run, best_step=600, step=800, classifier={"encoder": {"kind": "run", "selected_by": "kNN"}})
    section = training_section([chosen])
    (plot,) = [plot for plot in plots_of(section) if plot.caption.startswith("kNN")]
    assert plot.figure.axes[0].get_legend_handles_labels()[1] == ["cxr-1", "best 0.720", "last 0.800"]
    words = words_of(section)
    assert "cxr-1: the best kNN AUROC, a mean over the labels, is 0.720 (step 600), with its checkpoint in" in words
    assert "the last is 0.800 (step 1,000). The best of 5 scores is optimistic" in words
    assert "--encoder last=cxr-1 --encoder best=cxr-1/best" in words
    assert "stopped early, after 800 of 1,000 steps" in words
    assert "scores of the best checkpoint" in words
    assert "the best kNN AUROC" not in words_of(training_section([run]))
    assert "0.800 (step 1,000), with its checkpoint in `cxr-1/best`; it is also the last." in words_of(
        training_section([replace(run, best_step=1000)])
    )
    (plot,) = [plot for plot in plots_of(training_section([chosen, other_run])) if plot.caption.startswith("kNN")]
    assert plot.figure.axes[0].get_legend_handles_labels()[1][2:] == ["cxr-1, best 0.720", "cxr-1, last 0.800"]


def test_training_section__the_mean_over_one_label_is_not_drawn_again(run: Run) -> None:
    scores = {"knn_auroc/Viral": 0.7, "knn_auroc": 0.7}
    (plot,) = plots_of(training_section([replace(run, metrics=[{"step": 2, **scores}])]))
    assert [list(row) for row in plot.table.rows] == [["cxr-1", "2", "0.700"]]


def test_training_section__nothing_there(bare_run: Run) -> None:
    section = training_section([bare_run])
    assert not plots_of(section)
    assert any("medmoco pretrain" in text for text in missing_of(section))


# ---- settings ----


def test_methods_section__settings_that_differ_come_first(run: Run, other_run: Run) -> None:
    _, first, everything, _ = tables_of(methods_section([run, other_run]))
    assert [list(row) for row in first.rows] == [["seed", "0", "1"]]
    assert len(everything.rows) > 50


def test_methods_section__same_settings(run: Run) -> None:
    assert Text("The runs have the same settings.") in blocks_of(methods_section([run, run]))
    rows = {row[0]: row[1] for row in tables_of(methods_section([run]))[1].rows}
    assert rows["train.clip_norm"] == "null"
    assert rows["evaluate.mirror"] == "false"
    assert rows["views.crop_scale"] == "0.3, 1.0"


@pytest.mark.parametrize("libraries", [None, 3, {"torch": "2.14.1"}])
def test_methods_section__libraries(run: Run, libraries: object) -> None:
    changed = replace(run, environment={"python": "3.11.7", "libraries": libraries})
    words = words_of(methods_section([changed]))
    assert "python | 3.11.7" in words
    assert ("torch | 2.14.1" in words) == isinstance(libraries, dict)
