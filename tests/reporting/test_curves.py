from __future__ import annotations

from dataclasses import replace

import pytest

from medmoco.evaluation.forecast_records import Forecast, LabelsNeeded
from medmoco.reporting.curves import calibration_blocks, curve_plots, curve_section, curves_section, external_section
from medmoco.reporting.runs import Run
from medmoco.reporting.scores import rows_of
from tests.helpers.words import missing_of, plots_of, tables_of, words_of


def test_curves_section__roc_is_that_of_a_plain_loop(run: Run) -> None:
    table = run.evaluation.predictions
    assert table is not None
    chosen = table[(table["label"] == "Viral") & (table["method"] == "linear") & (table["encoder"] == "run")]
    targets, scores = chosen["target"].to_numpy(), chosen["score"].to_numpy()
    plot = next(p for p in plots_of(curves_section([run])) if p.caption.startswith("Receiver") and "Viral" in p.caption)
    for name, specificity, sensitivity in plot.table.rows[:7]:
        assert name == "cxr-1"
        best = 0.0
        for threshold in scores:
            if (scores[targets == 0] < threshold).mean() >= float(specificity) - 1e-9:
                best = max(best, (scores[targets == 1] >= threshold).mean())
        assert float(sensitivity) == pytest.approx(best, abs=5e-4)


def test_curves_section__precision_is_that_of_a_plain_loop(run: Run) -> None:
    table = run.evaluation.predictions
    assert table is not None
    chosen = table[(table["label"] == "Viral") & (table["method"] == "linear") & (table["encoder"] == "run")]
    targets, scores = chosen["target"].to_numpy(), chosen["score"].to_numpy()
    plot = next(p for p in plots_of(curves_section([run])) if p.caption.startswith("Prec") and "Viral" in p.caption)
    for _, sensitivity, precision in plot.table.rows[:7]:
        best = 0.0
        for threshold in scores:
            told = scores >= threshold
            if targets[told].sum() / targets.sum() >= float(sensitivity) - 1e-9:
                best = max(best, targets[told].mean())
        assert float(precision) == pytest.approx(best, abs=5e-4)


def test_curves_section__one_run_beside_its_controls_and_operating_points(run: Run) -> None:
    axes = plots_of(curves_section([run]))[0].figure.axes[0]
    names = axes.get_legend_handles_labels()[1]
    assert [name.rpartition(" ")[0] for name in names if name[-1].isdigit()] == ["cxr-1", "untrained", "pixels"]
    assert "operating point" in names
    marked = next(line for line in axes.lines if line.get_label() == "operating point")
    records = [r for r in run.evaluation.operating or [] if (r.label, r.split, r.encoder) ==
               ("Pneumonia", "test", "run")]  # fmt: skip
    assert list(marked.get_ydata()) == [record.sensitivity for record in records]


def test_curves_section__several_runs_without_controls(run: Run, other_run: Run) -> None:
    names = plots_of(curves_section([run, other_run]))[0].figure.axes[0].get_legend_handles_labels()[1]
    assert [name.split()[0] for name in names] == ["chance", "cxr-1", "cxr-2"]


def test_curves_section__one_class_only_is_not_drawn(run: Run) -> None:
    table = run.evaluation.predictions
    assert table is not None
    changed = replace(run, evaluation=replace(run.evaluation, predictions=table[table["target"] == 1]))
    assert not [plot for plot in plots_of(curves_section([changed])) if plot.caption.startswith("Receiver")]


def test_curves_section__missing(bare_run: Run) -> None:
    assert len(missing_of(curves_section([bare_run]))) == 2


# ---- calibration ----


def test_calibration_blocks__bins_without_images_are_left_out(run: Run) -> None:
    records = [r for r in run.evaluation.calibration or [] if r.label == "Viral" and r.split == "test"]
    plot, table = calibration_blocks([run], rows_of(run, records, "run"))
    filled = [each for each in records[0].after.bins if each.n]
    lines = {line.get_label(): line for line in plot.figure.axes[0].lines}  # type: ignore[union-attr]
    assert list(lines["platt"].get_xdata()) == [each.predicted for each in filled]
    assert [row[0] for row in table.rows] == ["uncalibrated", "platt, fitted on validation"]  # type: ignore[union-attr]
    assert table.rows[0][2] == f"{records[0].before.brier:.3f}"  # type: ignore[union-attr]


def test_calibration_blocks__all_bins_empty(run: Run) -> None:
    record = next(iter(run.evaluation.calibration or []))
    empty = record.after.model_copy(update={"bins": (), "slope": None})
    changed = record.model_copy(update={"before": empty, "after": empty})
    (table,) = calibration_blocks([run], rows_of(run, [changed], "run"))
    assert table.rows[0][3] == "–"  # type: ignore[union-attr]


# ---- label fractions ----


def test_curve_section__numbers_and_what_is_undefined(run: Run) -> None:
    section = curve_section([run])
    assert [part.title for part in section.sections] == ["Viral"]
    assert "The figure of Pneumonia is in the summary." in words_of(section)
    (plot,) = curve_plots(run)[:1]
    assert plot.table.rows[0][:2] == ["1 %, cxr-1", "undefined (no positives in train)"]
    fractions = [float(row[0].partition(" ")[0]) for row in plot.table.rows]
    assert fractions == sorted(fractions)
    assert "10 %, untrained | +0.070 (+0.020 to +0.110) | 0.012 | linear probe" in words_of(section)


def test_curve_section__forecasts_with_their_caveat(run: Run) -> None:
    key = {"label": "Viral", "split": "test", "method": "linear", "encoder": "run"}
    ahead = Forecast(**key, auroc=0.9, auroc_low=0.8, auroc_high=0.95, gain=0.02, gain_low=0.01, gain_high=0.04,
                     fraction=2.0, times=2.0, n_train_patients=320.0)  # fmt: skip
    needed = LabelsNeeded(**key, control="pixels", fraction=0.1, n_train_patients=16.0, auroc=0.75, needed=41.0,
                          needed_low=16.0, needed_high=800.0, least=2.0, most=800.0)  # fmt: skip
    section = curve_section([replace(run, curve_forecast=[ahead], labels_needed=[needed])])
    words = words_of(section)
    assert "they are not guarantees" in words
    assert "320 (2 times), cxr-1 | +0.020 (+0.010 to +0.040) | 0.900 (0.800 to 0.950) | linear probe" in words
    assert "pixels, for 0.750 | 41 (16 to >800) | 16 | linear probe" in words
    assert [plot.caption.endswith("dotted lines forecasts.") for plot in plots_of(section)] == [True]
    assert "not guarantees" not in words_of(curve_section([run]))


def test_curve_section__runs_beside_each_other(run: Run, other_run: Run) -> None:
    section = curve_section([run, other_run])
    assert [part.title for part in section.sections] == ["Pneumonia", "Viral"]
    assert [plot.caption.split(", ")[2].split(";")[0] for plot in plots_of(section)] == ["cxr-1", "cxr-2"] * 2


def test_curve_section__controls_with_a_preprocessing_of_their_own(run: Run) -> None:
    own = "224 x 224 pixels, mean 0.498, std 0.502"
    curve = [
        point.model_copy(update={"preprocessing": own}) if point.encoder == "untrained" else point
        for point in run.curve or ()
    ]
    section = curve_section([replace(run, curve=curve)])
    assert f"untrained (cxr-1): images of {own}." in words_of(section)
    assert "untrained (224 x 224 pixels)" in words_of(section)


def test_curve_section__nothing_defined(run: Run) -> None:
    undefined = {"auroc": None, "auroc_low": None, "auroc_high": None, "undefined": "undefined (no positives)"}
    section = curve_section([replace(run, curve=[point.model_copy(update=undefined) for point in run.curve or []])])
    assert not plots_of(section)
    assert "undefined (no positives)" in words_of(section)


def test_curve_section__missing(bare_run: Run) -> None:
    assert "medmoco curve" in missing_of(curve_section([bare_run]))[0]


# ---- external validation ----


def test_external_section__the_drop(run: Run, other_run: Run) -> None:
    table = tables_of(external_section([run, other_run]))[0]
    rows = [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in table.rows]
    assert [row[0] for row in rows] == ["Pneumonia, cxr-1", "Viral, cxr-1", "Pneumonia, cxr-2", "Viral, cxr-2"]
    assert rows[0][1:] == [
        "+0.070 (+0.010 to +0.130)", "0.870 (0.820 to 0.910)", "200", "0.800 (0.740 to 0.850)", "200",
    ]  # fmt: skip


def test_external_section__its_own_operating_points_and_subgroups(run: Run) -> None:
    section = external_section([run])
    assert [part.title for part in section.sections] == [
        "Operating points, Pneumonia", "Operating points, Viral", "Subgroups, Pneumonia", "Subgroups, Viral",
    ]  # fmt: skip
    assert "hidden (fewer than 20 patients)" in words_of(section)


def test_external_section__missing(bare_run: Run) -> None:
    assert "medmoco external" in missing_of(external_section([bare_run]))[0]
