"""What a report says about classes and numeric targets."""

from __future__ import annotations

from dataclasses import replace

from medmoco.evaluation.records import Leakage, Overlap
from medmoco.reporting.appendix import appendix_section
from medmoco.reporting.curves import curve_section
from medmoco.reporting.runs import Run
from medmoco.reporting.scores import scores_section
from medmoco.reporting.targets import regression_curves, targets_section
from tests.helpers.words import missing_of, plots_of, tables_of, words_of


def test_targets_section__nothing_without_targets(run: Run, bare_run: Run) -> None:
    section = targets_section([run, bare_run])
    assert not section.blocks
    assert not section.sections


def test_targets_section__numbers_are_those_of_the_files(target_run: Run) -> None:
    section = targets_section([target_run])
    assert [part.title for part in section.sections] == ["Finding, test", "Age, test"]
    words = words_of(section)
    for text in (
        "Confusion matrix, Finding on test, cxr-3 by linear probe",
        "true class | predicted Pneumonia | predicted Viral\nPneumonia | 75 | 25\nViral | 25 | 75",
        "Finding on test: 200 images of 100 patients, 2 classes",
        "cxr-3, linear probe | 0.740 | 0.750 (0.700 to 0.800)",
        "pixels, kNN | 0.740 | 0.750 (0.700 to 0.800)",
        "Pneumonia | 100 | 0.750 | 0.750 | 0.750",
        "cxr-3 | – | 0.550 (0.200 to 0.700) | – | – | 8.500 (7.000 to 10.25) | –",
        "training mean | −3.250 (−12.500 to +1.000) | 0.010 (0.200 to 0.700) | 0.030 | −3.250 (−12.50 to +1.000)"
        " | 8.500 (7.000 to 10.25) | 0.030",
        "R2 by ridge regression on test, with 95 % intervals",
    ):
        assert text in words, text
    assert len(plots_of(section)) == 2


def test_targets_section__undefined_classes_have_no_matrix(target_run: Run) -> None:
    found = target_run.evaluation
    classes = [
        score.model_copy(update={"undefined": "undefined (no rows with a class)"}) for score in found.classes or ()
    ]
    section = targets_section([replace(target_run, evaluation=replace(found, classes=classes, regression=None))])
    assert not plots_of(section)
    assert "undefined (no rows with a class)" in words_of(section)


def test_targets_section__two_runs_side_by_side(target_run: Run, run: Run) -> None:
    other = replace(target_run, name="cxr-4")
    section = targets_section([target_run, other, run])
    assert [part.title for part in section.sections] == [
        "Finding, test, cxr-3", "Age, test, cxr-3", "Finding, test, cxr-4", "Age, test, cxr-4",
    ]  # fmt: skip
    assert "pixels (cxr-4), kNN" in words_of(section)


def test_targets_section__the_forest_shows_one_split_and_a_colour_for_each_encoder(target_run: Run) -> None:
    def with_targets(run: Run, split: str, targets: tuple[str, ...]) -> Run:
        scores = [
            score.model_copy(update={"label": target, "split": split})
            for target in targets
            for score in run.evaluation.regression or ()
        ]
        return replace(run, evaluation=replace(run.evaluation, classes=None, regression=scores, split=split))

    other, third = replace(target_run, name="cxr-4"), replace(target_run, name="cxr-5")
    runs = [
        with_targets(third, "val", ("Age",)),
        with_targets(target_run, "test", ("Age", "Width")),
        with_targets(other, "test", ("Age", "Width")),
    ]
    (forest,) = plots_of(targets_section(runs))
    assert forest.caption == "R2 by ridge regression on test, with 95 % intervals."
    axes = forest.figure.axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    encoders = ["cxr-3", "untrained (cxr-3)", "pixels (cxr-3)", "training mean (cxr-3)"]
    both = [*encoders, *(name.replace("cxr-3", "cxr-4") for name in encoders)]
    assert names == ["Age", *both, "Width", *both]
    looks = [(line.get_color(), line.get_marker()) for line in axes.lines if line.get_marker() not in ("None", None)]
    assert looks[:8] == looks[8:]
    assert looks[0] != looks[4]  # of two runs


def test_regression_curves__are_part_of_label_efficiency(target_run: Run) -> None:
    section = curve_section([target_run])
    assert "Age" in [part.title for part in section.sections]
    (table,) = [table for table in tables_of(section) if "Age on test" in table.caption]
    assert [row[:3] for row in table.rows[:2]] == [["10 %", "cxr-3", "3"], ["10 %", "untrained", "3"]]
    found = [score.model_copy(update={"r2": None, "undefined": "why"}) for score in target_run.curve_regression or ()]
    (block,) = regression_curves(replace(target_run, curve_regression=found))["Age"]
    assert block in tables_of(curve_section([replace(target_run, curve_regression=found)]))


def test_scores_section__targets_alone_are_an_evaluation(target_run: Run) -> None:
    found = replace(target_run.evaluation, scores=())
    assert not missing_of(scores_section([replace(target_run, evaluation=found)]))
    assert found.primary == "run"
    assert "ridge" not in set(found.predictions["method"])  # type: ignore[index]


def test_scores_section__leaks_are_said_if_targets_alone_are_scored(target_run: Run) -> None:
    leakage = Leakage(train=Overlap(patients=3, images=0), pretraining=None)
    regression = [score.model_copy(update={"leakage": leakage}) for score in target_run.evaluation.regression or ()]
    found = replace(target_run.evaluation, scores=(), regression=regression)
    words = words_of(scores_section([replace(target_run, evaluation=found)]))
    assert words.count("cxr-3: test shares 3 patients and 0 images with train: its scores are inflated.") == 1


def test_sections__images_are_not_called_patients_if_these_are_unknown(target_run: Run) -> None:
    found = target_run.evaluation
    files = {name: [score.model_copy(update={"n_patients": score.n}) for score in getattr(found, name) or ()]
             for name in ("scores", "classes", "regression")}  # fmt: skip
    runs = [replace(target_run, evaluation=replace(found, **files))]  # type: ignore[arg-type]
    captions = [
        table.caption for section in (scores_section(runs), targets_section(runs)) for table in tables_of(section)
    ]
    assert any(caption.startswith("Viral on test: 200 images, ") for caption in captions)
    assert "Finding on test: 200 images, 2 classes" in captions
    assert "Age on test: 200 images; the error has the unit of the target" in captions
    assert not any("patient" in caption for caption in captions)


def test_appendix_section__names_the_measures_of_targets(target_run: Run) -> None:
    words = words_of(appendix_section([target_run]))
    assert "top-1 and balanced accuracy" in words
    assert "R2 and mean absolute error of numeric targets" in words
