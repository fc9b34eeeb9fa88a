from __future__ import annotations

from typing import Any

import pytest
from matplotlib.figure import Figure

from medmoco.reporting.blocks import (
    NO_BREAK,
    Group,
    Plot,
    Table,
    Text,
    count,
    number,
    p_value,
    plots_first,
    several,
    with_interval,
)  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"), [(0.12345, "0.123"), (None, "–"), ("0.1", "–"), (1, "1.000"), (float("inf"), "inf")]
)
def test_number__cases(value: Any, text: str) -> None:
    assert number(value) == text


def test_count__separates_thousands() -> None:
    assert [count(12345), count(2.5), count(None)] == ["12,345", "2.5", "–"]


def test_with_interval__breaks_only_before_the_interval() -> None:
    assert with_interval(0.88, 0.8, 0.9).split(" ") == ["0.880", f"(0.800{NO_BREAK}to{NO_BREAK}0.900)"]


def test_with_interval__without_ends_or_value() -> None:
    assert with_interval(0.88, None, 0.9) == "0.880"
    assert with_interval(None, 0.8, 0.9) == "–"


def test_p_value__small_ones_are_not_zero() -> None:
    assert p_value(0.0).replace(NO_BREAK, " ") == "< 0.001"
    assert [p_value(0.02), p_value(None)] == ["0.020", "–"]


def test_several__one_and_more() -> None:
    assert [several(1, "image"), several(0, "image"), several(2000, "image")] == ["1 image", "0 images", "2,000 images"]


def test_plots_first__only_plots_stand_beside_each_other() -> None:
    plot = Plot(Figure(), "", "", Table("", [], []))
    text = Text("x")
    assert plots_first([text, plot]) == [Group([plot]), text]
    assert plots_first([text]) == [text]
