"""Results for notebooks: tables and figures."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest

from medmoco.errors import CheckpointError, SettingsError
from medmoco.evaluation.discrimination import Kind
from medmoco.evaluation.results import Curve, Evaluation, External
from tests.helpers.made_runs import make_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run written before records had versions."""
    return make_run(tmp_path_factory.mktemp("results") / "runs" / "cxr")


@pytest.fixture(scope="module")
def evaluation(folder: Path) -> Evaluation:
    return Evaluation.load(folder / "evaluation")


def test_summary__the_primary_encoder_first_next_to_its_controls(evaluation: Evaluation) -> None:
    summary = evaluation.summary()
    assert summary.columns.tolist() == ["run", "untrained", "pixels"]
    assert summary.index.tolist() == [(split, label) for split in ("val", "test") for label in ("Pneumonia", "Viral")]
    score = next(s for s in evaluation.scores if (s.label, s.split, s.encoder) == ("Viral", "test", "pixels"))
    assert summary.loc[("test", "Viral"), "pixels"] == (
        f"{score.auroc:.3f} ({score.auroc_low:.3f} to {score.auroc_high:.3f})"
    )
    assert "<table" in evaluation._repr_html_()
    assert repr(evaluation) == "Evaluation(primary='run', labels=['Pneumonia', 'Viral'], splits=['val', 'test'])"


@pytest.mark.parametrize("kind", ["roc", "precision_recall"])
def test_plot_curve__a_curve_for_each_encoder_or_label(evaluation: Evaluation, kind: Kind) -> None:
    before = dict(matplotlib.rcParams)
    (axes,) = evaluation.plot_curve("Viral", kind).axes
    names = [name.rpartition(" ")[0] for name in axes.get_legend_handles_labels()[1][1:]]
    assert names == ["run", "untrained", "pixels"]
    (axes,) = evaluation.plot_curve(kind=kind, split="val").axes
    assert [name.split()[0] for name in axes.get_legend_handles_labels()[1][1:]] == ["Pneumonia", "Viral"]
    assert dict(matplotlib.rcParams) == before


def test_plot_curve__refuses_what_was_not_scored(evaluation: Evaluation) -> None:
    with pytest.raises(SettingsError, match="no curve of 'Edema'"):
        evaluation.plot_curve("Edema")


def test_curve__is_drawn_and_refuses_what_was_not_scored(folder: Path) -> None:
    curve = Curve.load(folder / "curve")
    assert curve.primary == "run"
    (axes,) = curve.plot().axes
    assert axes.get_title() == "Pneumonia, test"
    with pytest.raises(SettingsError, match="no curve of 'Viral' on split 'val'"):
        curve.plot("Viral", split="val")


def test_external__has_a_row_for_each_label(folder: Path) -> None:
    frame = External.load(folder / "external").to_frame()
    assert frame["label"].tolist() == ["Pneumonia", "Viral"]
    assert frame["external.auroc"].tolist() == [0.8, 0.8]


def test_load__a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no predictions\.csv"):
        Evaluation.load(tmp_path)
    for kind in (Curve, External):
        with pytest.raises(CheckpointError, match="cannot be read"):
            kind.load(tmp_path)


# ---- classes and numeric targets ----


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("targets") / "cxr", targets=True)


def test_load__folders_of_older_versions_have_no_targets(evaluation: Evaluation, folder: Path) -> None:
    curve = Curve.load(folder / "curve")
    for found in (evaluation, curve):
        assert (found.classes, found.regression, found.regression_differences) == ((), (), ())
    with pytest.raises(SettingsError, match="no confusion matrix of 'linear' of 'run' on split 'test'"):
        evaluation.plot_confusion()


def test_summary__has_rows_for_classes_and_targets(targets: Path) -> None:
    summary = Evaluation.load(targets / "evaluation").summary()
    assert summary.columns.tolist() == ["run", "untrained", "pixels", "training mean"]
    assert summary.loc[("test", "Finding top-1"), "pixels"] == "0.750 (0.700 to 0.800)"
    assert summary.loc[("test", "Finding balanced accuracy"), "run"] == "0.740 (no interval)"
    assert summary.loc[("test", "Age mean absolute error"), "training mean"] == "8.500 (7.000 to 10.25)"
    assert summary.loc[("test", "Viral"), "training mean"] == ""
    knn = Evaluation.load(targets / "evaluation").summary("knn")
    assert ("test", "Finding top-1") in knn.index
    assert ("test", "Age R2") not in knn.index


def test_to_frame__has_rows_for_classes_and_targets(targets: Path) -> None:
    found = Evaluation.load(targets / "evaluation")
    frame = found.to_frame()
    assert len(frame) == len(found.scores) + len(found.classes) + len(found.regression)
    assert frame["r2"].notna().sum() == 4
    assert frame["top1"].notna().sum() == 6


def test_plot_confusion__of_the_primary_encoder_or_another(targets: Path) -> None:
    found = Evaluation.load(targets / "evaluation")
    assert found.plot_confusion().axes[0].get_title() == "Finding, test"
    assert found.plot_confusion(method="knn", encoder="pixels").axes
    with pytest.raises(SettingsError, match="no confusion matrix"):
        found.plot_confusion(encoder="other")


def test_curve__of_a_target_shows_r2(targets: Path, tmp_path: Path) -> None:
    curve = Curve.load(targets / "curve")
    (axes,) = curve.plot("Age").axes
    assert axes.get_ylabel() == "R²"
    assert len(axes.get_lines()) == 4
    (tmp_path / "classes.json").touch()  # of an earlier curve
    curve.save(tmp_path)
    assert (tmp_path / "curve_test_Age.svg").is_file()
    assert not (tmp_path / "classes.json").exists()
    assert Curve.load(tmp_path).regression == curve.regression
