"""The AUROC within subgroups of patients: by sex, view, age group, or any column with few values."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.config import EvaluateSettings
from medmoco.data.manifest.columns import IDENTIFYING
from medmoco.data.manifest.manifest import Split
from medmoco.data.manifest.row_filter import did_you_mean
from medmoco.errors import SettingsError
from medmoco.evaluation.metrics.auroc import Reals, auroc, bootstrap_auroc, or_none, share_interval, undefined
from medmoco.evaluation.records import GroupScore

Masks = dict[tuple[str, str], NDArray[np.bool_]]

NOT_GIVEN, NOT_AN_AGE = "not given", "not an age"

MOST_GROUPS = 50
_YEARS_IN = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}


def groups_of(split: Split, columns: Sequence[str], age_bands: Sequence[float]) -> Masks:
    """Return masks (N,) by column and group; each row is in one group of every column.

    Args:
        split: N rows.
        columns: Columns of its table. Cells are text, except for `Age`: a number of years, or a DICOM age such as
            "045Y" or "006M" (PS3.5, section 6.2, AS).
        age_bands: Lower bounds of age groups in years, in ascending order.

    Raises:
        SettingsError: a column is missing, identifies patients or files, or has too many values.
    """
    groups: Masks = {}
    for column in columns:
        cells = _column(split, column).astype(str).str.strip()
        names, order = _bands(cells, age_bands) if column == "Age" else (cells, sorted(set(cells) - {""}))
        if len(order) > MOST_GROUPS:
            raise SettingsError(
                f"evaluate.subgroups: {column!r} has {len(order)} values; name a column of at most {MOST_GROUPS}"
            )
        named = names.mask(cells == "", NOT_GIVEN).to_numpy(object)
        masks = {(column, name): np.asarray(named == name) for name in dict.fromkeys([*order, NOT_GIVEN])}
        groups |= {key: mask for key, mask in masks.items() if mask.any()}
    return groups


def _column(split: Split, column: str) -> pd.Series[Any]:
    if column in IDENTIFYING:
        raise SettingsError(f"evaluate.subgroups: {column} identifies patients or files; name a column of groups")
    if column not in split.table:
        guess = did_you_mean(column, list(split.table.columns))
        raise SettingsError(f"evaluate.subgroups: no column {column!r} in the {split.name} rows of {split.csv}{guess}")
    return split.table[column]


def _bands(cells: pd.Series[str], starts: Sequence[float]) -> tuple[pd.Series[str], list[str]]:
    """Return the age group of every cell, and all age groups from young to old."""
    names = [
        f"under {starts[0]:g}",
        *(f"{low:g} to under {high:g}" for low, high in pairwise(starts)),
        f"{starts[-1]:g} and over",
    ]

    def band(cell: str) -> str:
        years = years_in(cell)
        return NOT_AN_AGE if math.isnan(years) else names[bisect_right(starts, years)]

    return cells.map(band), [*names, NOT_AN_AGE]


def years_in(age: str) -> float:
    """Return a number of years, or a DICOM age such as "045Y" or "006M" (PS3.5, section 6.2, AS), in years; or nan."""
    found = re.fullmatch(r"([+-]?\d+(?:\.\d*)?)([DWMY]?)", age)
    return float(found[1]) * _YEARS_IN[found[2]] if found else math.nan


def score_groups(
    targets: Reals, scores: Reals, split: Split, settings: EvaluateSettings, *, seed: int
) -> list[GroupScore]:
    """Return the AUROC of every group, with an interval from bootstrap draws of its patients.

    The AUROC of a group with few patients is hidden, since it would be mostly noise and could reveal something about
    single patients.

    Args:
        targets: (N,), 1, 0 or nan.
        scores: (N,), finite.
        split: N rows.
        settings: Columns, age groups, smallest number of patients, and number of draws.
        seed: Random seed of the draws.

    Raises:
        SettingsError: as `groups_of`.
    """
    found = []
    for (column, group), mask in groups_of(split, settings.subgroups, settings.age_bands).items():
        rows = mask & ~np.isnan(targets)
        own = split.patients[rows]
        few = np.unique(own).size < settings.least_patients
        hidden = f"hidden (fewer than {settings.least_patients} patients)" if few else None
        reason = hidden or undefined(targets[rows])
        value, low, high, left_out = math.nan, math.nan, math.nan, 0
        if not reason:
            value = auroc(targets[rows], scores[rows])
            bootstrap = bootstrap_auroc(targets[rows], scores[rows], own, draws=settings.bootstrap, seed=seed)
            low, high, left_out = share_interval(value, bootstrap)
        found.append(GroupScore(
            column=column, group=group,
            n=int(rows.sum()), n_positive=int((targets[rows] == 1).sum()), n_patients=np.unique(own).size,
            auroc=or_none(value), auroc_low=or_none(low), auroc_high=or_none(high),
            undefined=reason, bootstrap_left_out=left_out,
        ))  # fmt: skip
    return found
