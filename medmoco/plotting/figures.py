"""Draw figures of results with matplotlib, without pyplot, which has global state and may need a display.

Colours are those of Okabe and Ito (2008), safe for colour-blind readers; lines also differ in dashes and markers, for
print. Every function returns a matplotlib Figure, for `inline_svg` to embed in a page or `save` to write to a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, Protocol

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from medmoco.plotting.style import STYLE, ShownFigure

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#8A6100", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_GREY = "#595959"
_GRID = 400  # cells a side in which a curve is drawn, finer than a screen shows


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
        name: Name in the legend.
        x: (N,) x coordinates.
        y: (N,) y coordinates.
        low: (N,) lower bounds of intervals, or empty.
        high: (N,) upper bounds of intervals, or empty.
        colour: Number of the colour and marker.
        dash: Number of the dash pattern; by default that of the colour.
        marked: Draw a marker at every point.
        stepped: Keep the level until the next point.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    colour: int = 0
    dash: int | None = None
    marked: bool = False
    stepped: bool = False


@dataclass(frozen=True)
class Estimate:
    """One line of a forest plot; the value and its interval may be unknown.

    Attributes:
        group: Heading above the line, shared by consecutive lines.
        name: Name at the axis.
        value: The estimate.
        low: Lower bound of its interval.
        high: Upper bound of its interval.
        colour: Number of the colour and marker.
    """

    group: str
    name: str
    value: float | None
    low: float | None
    high: float | None
    colour: int = 0


class Point(Protocol):
    """One point of a label-efficiency curve, as in curve.json, with a metric and its interval, such as auroc_low."""

    @property
    def label(self) -> str: ...  # noqa: D102
    @property
    def split(self) -> str: ...  # noqa: D102
    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def encoder(self) -> str: ...  # noqa: D102
    @property
    def fraction(self) -> float: ...  # noqa: D102


class Forecast(Point, Protocol):
    """A forecast AUROC with its interval, for a fraction above those of the points."""

    @property
    def auroc(self) -> float | None: ...  # noqa: D102
    @property
    def auroc_low(self) -> float | None: ...  # noqa: D102
    @property
    def auroc_high(self) -> float | None: ...  # noqa: D102


@matplotlib.rc_context(STYLE)
def line_figure(
    lines: Sequence[Line],
    *,
    x: str,
    y: str,
    reference: float | None = None,
    named: str = "",
    marks: Sequence[tuple[str, float, float]] = (),
) -> Figure:
    """Draw lines over steps or epochs.

    Args:
        lines: Lines to draw.
        x: Label of the x axis.
        y: Label of the y axis.
        reference: Reference level.
        named: Name of the reference level.
        marks: Points to mark, with their names: (name, x, y).
    """
    figure, axes = _new()
    for line in lines:
        _draw(axes, line)
    for number, (name, *at) in enumerate(marks):
        shape = _MARKERS[number % len(_MARKERS)]
        axes.plot(*at, shape, color="white", markeredgecolor="black", markersize=7, label=_shortened(name), zorder=5)
    if reference is not None:
        axes.axhline(reference, color=_GREY, linestyle=":", linewidth=1.2, label=named)
    axes.set(xlabel=x, ylabel=y)
    _legend(figure, axes)
    return figure


@matplotlib.rc_context(STYLE)
def curve_figure(
    points: Sequence[Point],
    label: str,
    split: str,
    metric: Literal["auroc", "r2", "dice", "surface_dice"] = "auroc",
    forecasts: Sequence[Forecast] = (),
    names: Mapping[str, str] | None = None,
) -> Figure:
    """Draw a metric against the fraction of the training patients whose labels were used.

    Dotted lines extend the curves to their forecasts.

    Args:
        points: Points of all labels and splits.
        label: Label to draw.
        split: Split of the scores.
        metric: Metric to draw.
        forecasts: Forecasts of AUROCs of all labels and splits.
        names: Names to show in place of those of encoders.
    """
    figure, axes = _new()
    ticks: set[float] = set()
    found = [(p, getattr(p, metric, None)) for p in points if (p.label, p.split) == (label, split)]
    chosen = [(p, float(value)) for p, value in found if value is not None]
    encoders, methods = (list(dict.fromkeys(getattr(p, key) for p, _ in chosen)) for key in ("encoder", "method"))
    for encoder, method in dict.fromkeys((p.encoder, p.method) for p, _ in chosen):
        own = sorted(
            ((p, value) for p, value in chosen if (p.encoder, p.method) == (encoder, method)),
            key=lambda pair: pair[0].fraction,
        )
        number = encoders.index(encoder)
        # Points are shifted, so that intervals do not overlap.
        shift = 1.07 ** (number - (len(encoders) - 1) / 2 + methods.index(method) / len(methods))
        name = (names or {}).get(encoder, encoder)
        name = name if len(methods) == 1 else f"{name}, {method_words(method)}"
        low, high = ([_or(getattr(p, f"{metric}_{end}"), value) for p, value in own] for end in ("low", "high"))
        _draw(axes, Line(
            name,
            [100 * p.fraction * shift for p, _ in own],
            [value for _, value in own],
            low,
            high,
            colour=number, dash=methods.index(method), marked=True,
        ))  # fmt: skip
        key = (label, split, encoder, method)
        ahead = [f for f in forecasts if (f.label, f.split, f.encoder, f.method) == key and f.auroc is not None]
        if ahead:
            _draw_forecast(axes, own[-1], ahead, shift, number)
        ticks |= {100 * p.fraction for p in (*(p for p, _ in own), *ahead)}
    for line in axes.lines[:1]:  # the primary encoder
        line.set_linewidth(2.6)
    if len(ticks) > len({p.fraction for p, _ in chosen}):
        axes.plot([], [], color=_GREY, linestyle=":", label="forecast")
    axes.set_xscale("log")
    axes.set_xticks(sorted(ticks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
    name = {"auroc": "AUROC", "r2": "R²", "dice": "Dice", "surface_dice": "surface Dice"}[metric]
    axes.set(xlabel="labelled training patients, %", ylabel=name, title=f"{label}, {split}")
    _legend(figure, axes)
    return figure


@matplotlib.rc_context(STYLE)
def rank_figure(lines: Sequence[Line], title: str) -> Figure:
    """Draw the cumulative distribution of the ranks of perturbed copies.

    Args:
        lines: x is the rank, y the fraction of images with this rank or a better one.
        title: Title of the figure.
    """
    figure, axes = _new()
    for line in lines:
        _draw(axes, line)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set(
        xlabel="rank of the perturbed copy, 1 is the nearest", ylabel="fraction of images", title=title, ylim=(0, 1.02)
    )
    _legend(figure, axes)
    return figure


@matplotlib.rc_context(STYLE)
def roc_figure(lines: Sequence[Line], points: Sequence[tuple[float, float]] = ()) -> Figure:
    """Draw receiver operating characteristics.

    Args:
        lines: x is 1 - specificity, y sensitivity.
        points: Operating points of the first line.
    """
    figure, axes = _new(square=True)
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1.2, label="chance")
    for line in lines:
        _draw(axes, line)
    if points:
        axes.plot(*zip(*points, strict=True), "o", color="white", markeredgecolor="black", markersize=6,
                  label="operating point", zorder=5)  # fmt: skip
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    _legend(figure, axes)
    return figure


@matplotlib.rc_context(STYLE)
def pr_figure(lines: Sequence[Line], prevalence: float) -> Figure:
    """Draw precision against recall.

    Args:
        lines: x is recall, y precision.
        prevalence: Fraction of positives, which is the precision of chance.
    """
    figure, axes = _new(square=True)
    axes.axhline(prevalence, color=_GREY, linestyle=":", linewidth=1.2, label="chance (fraction of positives)")
    for line in lines:
        _draw(axes, line)
    axes.set(xlabel="sensitivity (recall)", ylabel="PPV (precision)", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    _legend(figure, axes)
    return figure


@matplotlib.rc_context(STYLE)
def calibration_figure(lines: Sequence[Line]) -> Figure:
    """Draw observed fractions of positives against predicted probabilities.

    Args:
        lines: x is the mean prediction of each bin, y the observed fraction with its interval.
    """
    figure, axes = _new(square=True)
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1.2, label="perfect")
    for line in lines:
        _draw(axes, line)
    axes.set(xlabel="predicted probability", ylabel="observed fraction", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _legend(figure, axes)
    return figure


@matplotlib.rc_context(STYLE)
def forest_figure(rows: Sequence[Estimate], *, x: str, reference: float | None = None) -> Figure:
    """Draw a forest plot: estimates with their intervals, below the headings of their groups.

    Args:
        rows: Estimates; those of a group follow each other.
        x: Label of the x axis.
        reference: Reference level.
    """
    heads = [group for group, _ in groupby(rows, lambda row: row.group)]
    lines = len(rows) + sum(bool(head) for head in heads)
    figure = ShownFigure(figsize=(4.6, 0.75 + 0.25 * lines), layout="constrained")
    axes = figure.subplots()
    at, ticks, names = 0, list[int](), list[str]()
    for group, members in groupby(rows, lambda row: row.group):
        if group:
            ticks, names, at = [*ticks, at], [*names, group], at + 1
        for row in members:
            colour, marker = _COLOURS[row.colour % len(_COLOURS)], _MARKERS[row.colour % len(_MARKERS)]
            if row.value is not None:
                axes.plot([_or(row.low, row.value), _or(row.high, row.value)], [at, at], color=colour)
                axes.plot([row.value], [at], marker, color=colour, markersize=5)
            ticks, names, at = [*ticks, at], [*names, row.name], at + 1
    if reference is not None:
        axes.axvline(reference, color=_GREY, linestyle=":", linewidth=1.2)
    axes.set_yticks(ticks, [_shortened(name) for name in names])
    for text in axes.get_yticklabels():
        if text.get_text() in heads:
            text.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set(xlabel=x, ylim=(at - 0.4, -0.6))
    return figure


@matplotlib.rc_context(STYLE)
def confusion_figure(confusion: Sequence[Sequence[float]], names: Sequence[str], title: str) -> Figure:
    """Draw a confusion matrix, shaded by the fraction of each true class.

    Args:
        confusion: Images by true class (rows) and predicted class (columns).
        names: Names of the classes.
        title: Title of the figure.
    """
    counts = np.array(confusion, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-9)
    side = max(3.6, 1.4 + 0.62 * len(names))
    figure = ShownFigure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    edges = np.arange(len(names) + 1) - 0.5
    axes.pcolormesh(edges, edges, shares, cmap="Blues", vmin=0, vmax=1)  # shapes; a picture in an SVG is a data: URL
    axes.invert_yaxis()
    axes.set_aspect("equal")
    for (row, column), value in np.ndenumerate(counts):
        colour = "#fafafa" if shares[row, column] > 0.6 else "#1a1a1a"  # not black, which a dark page makes white
        axes.text(column, row, f"{value:.4g}", ha="center", va="center", color=colour)
    shown = [_shortened(name) for name in names]
    axes.set_xticks(range(len(names)), shown, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), shown)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    return figure


def thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """Leave out points that lie in the same cell of a fine grid as the one before, which would not be visible.

    Args:
        x: (N,) in 0..1.
        y: (N,) in 0..1.
    """
    cells = np.round(np.stack([x, y]) * _GRID)
    kept = np.ones(len(x), bool)
    kept[1:-1] = (cells[:, 1:-1] != cells[:, :-2]).any(axis=0)
    return x[kept].round(4).tolist(), y[kept].round(4).tolist()


def method_words(method: str) -> str:
    """Return the name of a method in prose."""
    return {"linear": "linear probe", "knn": "kNN", "finetune": "fine-tuned", "ridge": "ridge regression"}.get(
        method, method
    )


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


def _new(*, square: bool = False) -> tuple[Figure, Axes]:
    figure = ShownFigure(figsize=(4.6, 4.8 if square else 3.4), layout="constrained")
    return figure, figure.subplots()


def _draw(axes: Axes, line: Line) -> None:
    colour = _COLOURS[line.colour % len(_COLOURS)]
    dash = _DASHES[(line.colour if line.dash is None else line.dash) % len(_DASHES)]
    marker = _MARKERS[line.colour % len(_MARKERS)] if line.marked else ""
    style = "steps-post" if line.stepped else "default"
    axes.plot(line.x, line.y, color=colour, linestyle=dash, marker=marker, drawstyle=style, label=_shortened(line.name))
    if line.low:
        axes.vlines(line.x, line.low, line.high, color=colour, linewidth=1.0)


def _draw_forecast(axes: Axes, last: tuple[Point, float], ahead: Sequence[Forecast], shift: float, number: int) -> None:
    """Extend a curve from its last point to its forecasts, by a dotted line with hollow markers and intervals."""
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    x = [100 * each.fraction * shift for each in (last[0], *ahead)]
    y = [last[1], *(_or(each.auroc, last[1]) for each in ahead)]
    low, high = ([_or(getattr(each, f"auroc_{end}"), last[1]) for each in ahead] for end in ("low", "high"))
    axes.plot(x, y, color=colour, linestyle=":", marker=marker, markerfacecolor="white", markevery=slice(1, None))
    axes.vlines(x[1:], low, high, color=colour, linewidth=1.0, linestyle=":")


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    if handles:
        columns = 1 if max(map(len, names)) > 24 else 2
        figure.set_figheight(figure.get_figheight() + 0.2 * max(0, -(-len(names) // columns) - 2))  # for more rows
        figure.legend(handles, names, loc="outside lower center", ncols=min(columns, len(names)), handlelength=3.2)


def _shortened(name: str) -> str:
    """Return a user's name shortened to fit the plot, without characters that legends or XML do not allow."""
    clean = "".join(letter if letter.isprintable() else " " for letter in name)
    clean = clean if len(clean) <= 34 else f"{clean[:33]}…"
    return f" {clean}" if clean.startswith("_") else clean  # matplotlib omits names that start with _ from legends
