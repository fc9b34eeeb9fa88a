"""What says where an image comes from, without its anatomy: paths, IDs, other columns, file dates and image margins.

None of it reaches an encoder, except for the margins. But where the sources of a data set have different shares of a
label, an encoder that recognises the source predicts the label, and a score means nothing. Predictors are named by
their kind or column, never by a cell, which may identify a patient.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.config import RunSettings
from medmoco.data.manifest.columns import PATIENT, SERIES, STUDY, meaning
from medmoco.data.manifest.manifest import Split
from medmoco.data.quality.margins import N_BORDER, Margins
from medmoco.evaluation.metrics.subgroups import MOST_GROUPS, years_in

Texts = NDArray[np.object_]
Mask = NDArray[np.bool_]

_RARE = 0.01  # share of the rows below which categories count as one, so that single patients do not
_NUMBERS = 4  # numbers of a text that are used
_FINDING = {"", "0", "1", "-1", "0.0", "1.0", "-1.0"}
_SHOWN = 8  # values of a column that a remedy lists
_DAY = 24 * 3600  # seconds; files whose dates lie closer together were copied or unpacked at once


@dataclass(frozen=True)
class Predictor:
    """One property of N rows from which labels may be predicted."""

    name: str  # such as "the letters in PatientID"; contains no cell
    about: str  # what it belongs to, such as PatientID or image borders
    kind: Literal["categories", "numbers", "pixels"]
    values: NDArray[np.float64]  # (N, k); nan is unknown
    column: str | None = None  # column whose values are the categories


@dataclass(frozen=True)
class Rows:
    """N rows of the manifest, drawn from all splits."""

    table: pd.DataFrame  # every column as text
    files: NDArray[np.object_]
    margins: Margins  # (N, 88) uint8
    readable: Mask  # whether there are margins

    def predictors(self, settings: RunSettings) -> Iterator[Predictor]:
        """Yield every predictor that varies."""
        for predictor in (*self._of_paths(), *self._of_columns(settings), *self._of_files(), *self._of_margins()):
            known = predictor.values[~np.isnan(predictor.values).all(axis=1)]
            if len(known) and (known != known[0]).any():
                yield predictor

    def _of_paths(self) -> Iterator[Predictor]:
        parts = [path.split("/") for path in self.table["Path"]]
        for depth in range(max(map(len, parts)) - 1):
            name = f"folder {depth + 1} of Path"
            folders = np.array([part[depth] if len(part) > depth + 1 else "" for part in parts], dtype=object)
            yield Predictor(name, "Path", "categories", _categories(folders))
            yield from _of_texts(folders, name, "Path")
        yield from _of_texts(np.array([part[-1] for part in parts], dtype=object), "file names", "Path")

    def possible_findings(self, settings: RunSettings) -> list[str]:
        """Return the columns of 0 and 1 that are not tested, as they may be findings like the labels."""
        columns = [name for name in self._columns(settings) if not meaning(name)]
        return [name for name in columns if set(self.table[name].str.strip()) <= _FINDING]

    def _columns(self, settings: RunSettings) -> list[str]:
        labels = {name for label, policy in settings.data.labels.items() for name in (label, policy.column)}
        left_out = {"Path", "Split", settings.evaluate.classes, *labels}
        return [name for name in self.table.columns if name not in left_out and self.table[name].nunique() > 1]

    def _of_columns(self, settings: RunSettings) -> Iterator[Predictor]:
        for column in self._columns(settings):
            cells = self.table[column].str.strip().to_numpy(dtype=object)
            means = (meaning(column) or ("",))[0]
            if means in (PATIENT, STUDY, "Path") or column == SERIES:
                yield from _of_texts(cells, column, column)
            elif means or not set(cells) <= _FINDING:
                yield _of_cells(cells, column, is_age=means == "Age")

    def _of_files(self) -> Iterator[Predictor]:
        dates = np.array([_date(file) for file in self.files])
        if np.isfinite(dates).any() and np.nanmax(dates) - np.nanmin(dates) >= _DAY:
            yield Predictor("file dates", "file dates", "numbers", _ranks(dates[:, None] // _DAY))

    def _of_margins(self) -> Iterator[Predictor]:
        levels = np.where(self.readable[:, None], self.margins.astype(np.float64), np.nan)
        yield Predictor("image borders", "image borders", "pixels", levels[:, :N_BORDER])
        yield Predictor("bright markings near image borders", "image borders", "pixels", levels[:, N_BORDER:])


def rows_at(splits: Sequence[Split], at: NDArray[np.int64], margins: Margins, readable: Mask) -> Rows:
    """Return the rows at positions (N,), in ascending order, among all rows of splits that were loaded together."""
    ends = np.cumsum([len(split) for split in splits])
    parts = np.split(at, np.searchsorted(at, ends[:-1]))
    chosen = [
        (split.table.iloc[part - start], split.files[part - start])
        for split, part, start in zip(splits, parts, [0, *ends[:-1]], strict=True)
    ]
    table = pd.concat([table for table, _ in chosen], ignore_index=True).astype(object).fillna("")
    return Rows(table, np.concatenate([files for _, files in chosen]), margins[at], readable[at])


def _of_texts(texts: Texts, name: str, about: str) -> Iterator[Predictor]:
    """Yield the letters in texts such as IM-0001 and person12, and their numbers with their alphabetical order."""
    if not any(map(re.compile(r"\d").search, texts)):
        return
    letters = np.array([re.sub(r"\d+", "0", text) for text in texts], dtype=object)
    yield Predictor(f"the letters in {name}", about, "categories", _categories(letters))
    numbers = np.full((len(texts), _NUMBERS + 1), np.nan)
    for row, text in enumerate(texts):
        found = re.findall(r"\d+", text)[:_NUMBERS]
        numbers[row, : len(found)] = [float(number) for number in found]
    numbers[:, -1] = np.unique(texts.astype(str), return_inverse=True)[1]
    yield Predictor(f"the numbers or order of {name}", about, "numbers", _ranks(numbers))


def _of_cells(cells: Texts, column: str, *, is_age: bool) -> Predictor:
    """Return a column as numbers if nearly all of its cells are, else as categories."""
    codes, distinct = pd.factorize(cells)
    blank = np.array([text == "" for text in distinct])
    numbers = pd.to_numeric(pd.Series(distinct), errors="coerce").to_numpy(dtype=np.float64)
    if is_age:
        numbers = np.array([years_in(text) for text in distinct])
    values = np.where(np.isfinite(numbers), numbers, np.nan)[codes]
    filled = ~blank[codes]
    if filled.any() and np.isfinite(values[filled]).mean() >= 0.9:
        return Predictor(f"column {column}", f"column {column}", "numbers", _ranks(values[:, None]), column)
    return Predictor(f"column {column}", f"column {column}", "categories", _categories(cells), column)


def _categories(texts: Texts) -> NDArray[np.float64]:
    """Return codes (N, 1) of texts; rare ones share the code -1."""
    codes, _ = pd.factorize(texts)
    rare = np.bincount(codes) < max(2, _RARE * len(codes))
    return np.where(rare[codes], -1, codes)[:, None].astype(np.float64)


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of each number in its column, nan if unknown; long ids exceed what trees can compare."""
    ranks = [np.unique(column, return_inverse=True)[1].astype(np.float64) for column in values.T]
    return np.where(np.isnan(values), np.nan, np.stack(ranks, axis=1))


def _date(file: str) -> float:
    try:
        return os.stat(file).st_mtime
    except OSError:
        return np.nan


def remedy(predictor: Predictor, label: str, splits: Sequence[Split], settings: RunSettings) -> str:
    """Return how to evaluate a label without the help of a predictor, with settings to paste where there are any."""
    if predictor.kind == "pixels":
        return "crop the borders or cover the markings; `medmoco saliency` shows whether a classifier uses them"
    column = predictor.column
    if column is None:
        return (
            "names that contain the class predict it in any case; if names, numbers or dates tell sources apart, add a"
            " column with the source of each image, such as Site, and compare within: evaluate.subgroups=[Site]"
        )
    cells = pd.concat([split.table[column] for split in splits], ignore_index=True).str.strip()
    if column == "Age" or cells.nunique() > MOST_GROUPS:
        return "compare within groups of age: evaluate.subgroups=[Age]" if column == "Age" else ""
    targets = np.concatenate([split.labels[:, split.label_names.index(label)] for split in splits])
    patients = pd.Series(np.concatenate([split.patients for split in splits]))
    counts = [patients[targets == value].groupby(cells[targets == value]).nunique() for value in (0, 1)]
    fewest = pd.concat(counts, axis=1).fillna(0).min(axis=1)
    mixed = [value for value in fewest.index[fewest >= settings.evaluate.least_patients] if value]
    if not mixed:
        return (
            f"no value of {column} has both classes: if it does not merely restate {label}, these data cannot show"
            " whether an encoder sees more than the source"
        )
    name = column if re.fullmatch(r"\w+", column) else f'"{column}"'
    within = [shlex.quote(f"evaluate.subgroups=[{name}]")]
    if 0 < len(mixed) <= _SHOWN and len(mixed) < len(fewest):
        listed = ", ".join(f'"{value}"' for value in mixed)
        within.append(shlex.quote(f"evaluate.where={name} in ({listed})"))
    return f"compare within its values: {' or '.join(within)}"
