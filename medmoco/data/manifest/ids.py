"""Patient IDs that other programs have corrupted: numbers turned into floats, blanks turned into words.

IDs are text and are never changed: "012" and "12" are two patients. The doubtful IDs found here split one patient into
two or merge several into one, so the user is warned wherever patients are counted.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
from numpy.typing import NDArray

DOUBTS = {
    "id with and without .0": (
        "ending in .0 (12.0) that other rows have without it (12): probably one patient counted as two; use one form"
    ),
    "id like a blank": "that means a missing value, such as nan: they count as one patient; leave these cells blank",
    "id rounded": "that a spreadsheet has rounded (1.2E+10): patients may share it; export the IDs again, as text",
}
"""Kind of doubt -> the rest of a sentence that begins "rows have a PatientID"."""

POINT, BLANK, ROUNDED = DOUBTS
_BLANKS = {"nan", "none", "null", "na", "n/a", "#n/a", "<na>", "nat", "unknown", "missing", "-", "?"}


def doubts(ids: pd.Series[str]) -> NDArray[np.object_]:
    """Return the kind of doubt about each ID, (N,); blank if there is none.

    A word for a missing value is doubtful only if several rows share it: a single one is as good as an ID.
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
