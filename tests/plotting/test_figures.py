from __future__ import annotations

import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from medmoco.plotting.figures import (
    Estimate,
    Line,
    calibration_figure,
    curve_figure,
    forest_figure,
    inline_svg,
    line_figure,
    method_words,
    pr_figure,
    roc_figure,
    save,
    thinned,
)  # fmt: skip

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


def test_curve_figure__leaves_out_what_is_undefined_or_of_others() -> None:
    rows = [
        *curve_points(),
        *curve_points(label="Edema"),
        *curve_points(split="val"),
        *curve_points(encoder="x", auroc=None),
    ]
    assert len(curve_figure(rows, "Viral", "test").axes[0].lines) == 4
    assert not curve_figure([], "Viral", "test").axes[0].lines


def test_inline_svg__ids_of_two_figures_differ_and_all_are_found() -> None:
    svgs = [inline_svg(FIGURES["curve"](), key, "alt") for key in ("one", "two")]
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in svgs]
    assert ids[0]
    assert not ids[0] & ids[1]
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svgs[0]))
    assert used
    assert used <= ids[0]


def test_inline_svg__needs_nothing_from_elsewhere() -> None:
    svg = inline_svg(FIGURES["roc"](), "k", "alt")
    assert "http" not in svg
    assert "<style" not in svg
    assert "<text" in svg


def test_inline_svg__what_users_write_is_escaped() -> None:
    hostile = '<script>alert(1)</script>&"$x^2$'
    svg = inline_svg(line_figure([Line(hostile[:30], [0, 1], [0, 1])], x=hostile, y="_y"), "k", hostile)
    assert "<script" not in svg
    root = ElementTree.fromstring(svg)
    assert root.attrib["aria-label"] == hostile
    assert hostile in {"".join(element.itertext()).strip() for element in root.iter("text")}


@pytest.mark.parametrize("name", ["_hidden", "a\x00b\nc", "x" * 90, "肺炎", "$\\frac{"])
def test_line_figure__any_name_is_drawn(name: str) -> None:
    svg = inline_svg(line_figure([Line(name, [0, 1], [0, 1])], x="x", y="y"), "k", "alt")
    assert ElementTree.fromstring(svg) is not None
    assert name.strip("_")[:1] in svg


def test_save__svg_is_reproducible_and_png_has_pixels(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg", "c.png"):
        save(FIGURES["curve"](), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a.svg").read_bytes()
    with Image.open(tmp_path / "c.png") as image:
        assert image.width > 800
        assert len(image.convert("L").getcolors() or []) > 2


def test_save__other_warnings_still_come_through(tmp_path: Path) -> None:
    class Loud(Figure):
        def draw(self, renderer: Any) -> None:
            warnings.warn("something else", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="something else"):
        save(Loud(), tmp_path / "x.png")


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
