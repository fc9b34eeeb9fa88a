"""Patient ids that other programs have spoiled: numbers that became floats, blanks that became words.

Ids are text and none is changed, "012" and "12" are two patients. But what is told here makes two patients of one, or
one of many, and is said wherever patients count.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DOUBTS = {
    "id with and without .0": (
        "ending in .0 (12.0) that other rows have without (12): probably one patient, taken as two; write them alike"
    ),
    "id like a blank": "that names nobody, such as nan: they are taken as one patient; leave these cells blank",
    "id rounded": "that a spreadsheet rounded (1.2E+10): patients may share it; export the ids again, as text",
}
"""Kind of doubt -> how "rows have a PatientID ..." goes on."""

POINT, BLANK, ROUNDED = DOUBTS
_BLANKS = {"nan", "none", "null", "na", "n/a", "#n/a", "<na>", "nat", "unknown", "missing", "-", "?"}


def doubts(ids: pd.Series[str]) -> NDArray[np.object_]:
    """Return the kind of doubt about each id, (N,); blank where there is none.

    A word for nobody is doubtful where several rows have it: one alone is as good as an id.
    """
    codes, texts = pd.factorize(ids)
    known = set(texts)
    kinds = [_kind(text, known, count) for text, count in zip(texts, np.bincount(codes), strict=True)]
    return np.array(kinds, dtype=object)[codes]


def _kind(text: str, known: set[str], count: int) -> str:
    if text.endswith(".0") and text[:-2].isdecimal() and text[:-2] in known:
        return POINT
    if count > 1 and text.lower() in _BLANKS:
        return BLANK
    return ROUNDED if "+" in text and re.fullmatch(r"\d([.,]\d+)?[eE]\+\d+", text) else ""
