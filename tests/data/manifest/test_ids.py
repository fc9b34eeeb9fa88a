"""Ids that other programs have spoiled, and the many that only look odd."""

from __future__ import annotations

import pandas as pd
import pytest

from medmoco.data.manifest.ids import BLANK, POINT, ROUNDED, doubts


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["12", "12.0", "12.0", "13.0"], ["", POINT, POINT, ""]),
        (["012", "12", "12.00", "x.0", "x", "1.2.0", "1.2"], [""] * 7),
        (["nan", "nan", "NaN", "NA", "Unknown", "Unknown"], [BLANK, BLANK, "", "", BLANK, BLANK]),
        (["1.23457E+12", "4E+10", "1,5E+11", "1E5", "A+1", "1E+05x"], [ROUNDED, ROUNDED, ROUNDED, "", "", ""]),
        (["", ""], ["", ""]),
        ([], []),
    ],
)
def test_doubts__each_kind(ids: list[str], expected: list[str]) -> None:
    assert doubts(pd.Series(ids, dtype=str)).tolist() == expected
