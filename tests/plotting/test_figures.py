from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from medmoco.plotting.figures import (
    Estimate,
    Line,
    calibration_figure,
    confusion_figure,
    curve_figure,
    forest_figure,
    line_figure,
    method_words,
    pr_figure,
    roc_figure,
    thinned,
)  # fmt: skip
from medmoco.plotting.style import inline_svg

LINES = [Line("a", [0.0, 0.5, 1.0], [0.1, 0.7, 1.0]), Line("b", [0.0, 1.0], [0.0, 1.0], [0, 0.9], [0.1, 1], 1)]


def curve_points(**changes: Any) -> list[Any]:
    rows: list[dict[str, Any]] = [
        {"label": "Viral", "split": "test", "method": method, "encoder": encoder, "fraction": fraction,
         "auroc": 0.7 + fraction / 10, "auroc_low": 0.6, "auroc_high": 0.9} | changes
        for encoder in ("run", "untrained") for method in ("linear", "finetune") for fraction in (1.0, 0.01, 0.1)
    ]  # fmt: skip
    return [SimpleNamespace(**row) for row in rows]


FIGURES = {
    "line": lambda: line_figure(LINES, x="step", y="loss", reference=6.9, named="chance"),
    "curve": lambda: curve_figure(curve_points(), "Viral", "test"),
    "roc": lambda: roc_figure(LINES, [(0.1, 0.6)]),
    "pr": lambda: pr_figure(LINES, 0.3),
    "calibration": lambda: calibration_figure(LINES),
    "confusion": lambda: confusion_figure([[5, 0], [0.5, 0]], ["cat", "$dog"], "Class, test"),
    "forest": lambda: forest_figure(
        [
            Estimate("Sex", "F", 0.8, 0.7, 0.9),
            Estimate("Sex", "M", None, None, None, colour=1),
        ],
        x="AUROC",
        reference=0.5,
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures__the_same_twice(name: str) -> None:
    first, second = (inline_svg(FIGURES[name](), "k", "alt") for _ in range(2))
    assert first == second
    ElementTree.fromstring(first)  # well formed, without a namespace that is not declared


@pytest.mark.parametrize("name", FIGURES)
def test_figures__leave_no_global_state(name: str) -> None:
    watched = matplotlib.rcParams.keys() - {"backend"}  # found out by matplotlib when it is first asked for
    before = {key: matplotlib.rcParams[key] for key in watched}
    inline_svg(FIGURES[name](), "k", "alt")
    assert {key: matplotlib.rcParams[key] for key in watched} == before


def test_curve_figure__one_line_for_each_encoder_and_method() -> None:
    figure = curve_figure(curve_points(), "Viral", "test")
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    names = axes.get_legend_handles_labels()[1]
    assert names == ["run, linear probe", "run, fine-tuned", "untrained, linear probe", "untrained, fine-tuned"]
    for line in axes.lines:  # sorted by share, whatever the order of the rows
        assert list(line.get_xdata()) == sorted(line.get_xdata())
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in axes.lines}
    assert len(looks) == 4


def test_curve_figure__names_to_show() -> None:
    figure = curve_figure(curve_points(), "Viral", "test", names={"run": "run (96 x 96 pixels)"})
    names = figure.axes[0].get_legend_handles_labels()[1]
    assert names[0] == "run (96 x 96 pixels), linear probe"
    assert names[2] == "untrained, linear probe"


def test_curve_figure__dotted_lines_lead_to_the_forecasts() -> None:
    ends = {"label": "Viral", "split": "test", "method": "linear", "auroc_low": 0.7, "auroc_high": None}
    ahead = [
        SimpleNamespace(**ends, encoder=encoder, fraction=fraction, auroc=auroc)
        for encoder, fraction, auroc in (("run", 2.0, 0.85), ("run", 5.0, 0.9), ("untrained", 2.0, None))
    ]
    (axes,) = curve_figure(curve_points(), "Viral", "test", forecasts=ahead).axes
    assert axes.get_legend_handles_labels()[1][-1] == "forecast"
    (dotted,) = [line for line in axes.lines if line.get_linestyle() == ":" and len(line.get_xdata())]
    assert list(dotted.get_ydata()) == [pytest.approx(0.8), 0.85, 0.9]
    assert axes.get_xticks().tolist() == [1, 10, 100, 200, 500]


def test_curve_figure__leaves_out_what_is_undefined_or_of_others() -> None:
    rows = [
        *curve_points(),
        *curve_points(label="Edema"),
        *curve_points(split="val"),
        *curve_points(encoder="x", auroc=None),
    ]
    assert len(curve_figure(rows, "Viral", "test").axes[0].lines) == 4
    assert not curve_figure([], "Viral", "test").axes[0].lines


@pytest.mark.parametrize("name", ["_hidden", "a\x00b\nc", "x" * 90, "肺炎", "$\\frac{"])
def test_line_figure__any_name_is_drawn(name: str) -> None:
    svg = inline_svg(line_figure([Line(name, [0, 1], [0, 1])], x="x", y="y"), "k", "alt")
    assert ElementTree.fromstring(svg) is not None
    assert name.strip("_")[:1] in svg


def test_curve_figure__of_another_metric() -> None:
    ends = {"label": "Age", "split": "test", "method": "ridge", "encoder": "run", "r2_low": -0.5, "r2_high": 0.5}
    points = [SimpleNamespace(**ends, fraction=fraction, r2=r2) for fraction, r2 in ((0.1, 0.2), (1.0, None))]
    (axes,) = curve_figure([*points, *curve_points()], "Age", "test", "r2").axes
    assert axes.get_ylabel() == "R²"
    assert [line.get_ydata().tolist() for line in axes.get_lines()] == [[0.2]]


def test_confusion_figure__rows_are_true_classes() -> None:
    (axes,) = confusion_figure([[30, 10], [2, 58]], ["cat", "dog"], "Class, test").axes
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [
        ((0, 0), "30"), ((1, 0), "10"), ((0, 1), "2"), ((1, 1), "58"),
    ]  # fmt: skip
    assert axes.collections[0].get_array().tolist()[0] == [0.75, 0.25]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def test_method_words__unknown_ones_stay() -> None:
    assert [method_words(method) for method in ("linear", "other")] == ["linear probe", "other"]


@pytest.mark.parametrize("size", [3, 50, 20_000])
def test_thinned__nothing_that_is_seen_is_lost(size: int) -> None:
    generator = np.random.default_rng(0)
    x, y = (np.concatenate([[0], np.sort(generator.random(size)), [1]]) for _ in range(2))
    some_x, some_y = thinned(x, y)
    assert (some_x[0], some_y[0], some_x[-1], some_y[-1]) == (0, 0, 1, 1)
    assert len(some_x) <= 2 * 400 + 2
    # Each point that was left out lies within a cell of the last one that was kept before it.
    at = np.searchsorted(np.round(some_x, 4), np.round(x, 4), "right") - 1
    assert np.abs(np.asarray(some_x)[at] - x).max() < 2 / 400
    for distance in np.hypot(np.subtract.outer(x, some_x), np.subtract.outer(y, some_y)).min(axis=1)[::50]:
        assert distance < 1.5 / 400
