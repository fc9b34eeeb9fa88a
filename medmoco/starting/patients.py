"""Patients from file names: by a pattern that the user gives, or one to suggest."""

from __future__ import annotations

import re
import shlex

import pandas as pd

from medmoco.errors import SettingsError

_SUGGESTED = (
    r"^([^/]+)/",  # a folder per patient
    r"^([A-Za-z]+[-_]?\d+)[-_]",  # person12_bacteria_3, IM-0115-0001
    r"^(\d+)[-_]",  # 00000013_005
    r"^(.*\d)[-_]\d+$",  # NORMAL2-IM-0824-0001
    r"^(.*\d)[-_][^-_]*$",
    r"^([a-z]+\d+(?=_)|.+(?=[-_]))",  # both of person12_bacteria_3 and NORMAL2-IM-0824-0001
)
_LARGEST = 0.05  # share of the images that a single patient may have in a suggestion
_FEW = 10  # images that a patient may have in any collection


def extract_patients(paths: pd.Series[str], pattern: str) -> pd.Series[str]:
    """Return the patient of each image, the only group of a regular expression.

    Args:
        paths: (N,) paths with /. The pattern is searched in the file name, or in the whole path if it contains a slash.
        pattern: Regular expression with one group.

    Raises:
        SettingsError: the pattern is invalid, has no group or several, or does not match every image.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SettingsError(f"--patient {shlex.quote(pattern)} is not a regular expression: {error}") from None
    if compiled.groups != 1:
        raise SettingsError(
            f"--patient {shlex.quote(pattern)} has {compiled.groups} groups; put one pair of parentheses around the\n"
            r"part that identifies the patient, as in '(\d+)_', and write (?:...) for others"
        )
    texts = paths if "/" in pattern else paths.str.rpartition("/")[2]
    found = texts.str.extract(compiled, expand=False).fillna("").str.strip()
    missing = texts[found == ""]
    if len(missing):
        what = "paths" if "/" in pattern else "file names"
        raise SettingsError(
            f"--patient {shlex.quote(pattern)} does not match {len(missing):,} of {len(texts):,} {what}, for example\n"
            f"one of the form {_form(missing.iloc[0])!r} (x is a letter, 0 a digit). Change the pattern so that it\n"
            "matches all of them; A|B inside the parentheses matches A or B"
        )
    return found


def suggest_pattern(paths: pd.Series[str]) -> tuple[str, int] | None:
    """Return a pattern for `extract_patients` that file names suggest, and its number of patients; or None.

    Of the candidates that match every image and give several images to at least a tenth of the patients, but not too
    many to any, the one with the fewest patients is the safest.
    """
    names = paths.str.rpartition("/")[2].str.replace(r"\.[A-Za-z]+$", "", regex=True)
    best: tuple[str, int] | None = None
    for pattern in _SUGGESTED:
        found = (paths if "/" in pattern else names).str.extract(pattern, expand=False)
        sizes = found.value_counts()
        if found.isna().any() or not found.str.contains(r"\d").all() or len(sizes) < 2:
            continue
        several = (sizes > 1).mean() >= 0.1
        if several and sizes.max() <= max(_FEW, _LARGEST * len(paths)) and (best is None or len(sizes) < best[1]):
            suffix = pattern.removesuffix("$") + r"\.\w+$" if pattern.endswith("$") else pattern
            best = suffix, len(sizes)
    return best


def _form(name: str) -> str:
    """Return a name with its letters and digits hidden."""
    return re.sub(r"[^\W\d_]", "x", re.sub(r"\d", "0", name))
