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
