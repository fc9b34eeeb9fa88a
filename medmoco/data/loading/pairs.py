"""Which images and which of their views a training step compares.

A pair is a query's image and its key's: the same one, or another of the patient, its partner. View 0 is of the first,
view 1 of the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.config import DecoderSettings, MethodSettings, PositiveSettings
from medmoco.data.manifest.manifest import Split, require_column
from medmoco.errors import ManifestError
from medmoco.utils.rng import PARTNER, uniform

Samples = NDArray[np.int64]  # (B,) positions in a split

_PAIRS_AT_A_TIME = 2**22


class Wanted(NamedTuple):
    """Views that a process makes of its share of a batch.

    Attributes:
        view: 0 or 1.
        shuffled: Of the share of the order in which the key encoder sees the batch, instead of that of the queries.
    """

    view: int
    shuffled: bool


@dataclass(frozen=True)
class Plan:
    """The views of a step, and what becomes of them.

    Attributes:
        wanted: What is made.
        queries: Places in it whose views are queries, one for each direction of the loss.
        keys: Places in it whose views are the keys of these.
    """

    wanted: tuple[Wanted, ...]
    queries: tuple[int, ...]
    keys: tuple[int, ...]

    @property
    def shuffled(self) -> bool:
        """Whether the key encoder sees the batch in an order of its own."""
        return any(wanted.shuffled for wanted in self.wanted)


ONE_VIEW = Plan((Wanted(0, False),), (0,), ())
"""What fine-tuning, detection and autoencoders want."""

TWO_VIEWS = Plan((Wanted(0, False), Wanted(1, False)), (0,), (1,))
"""A query and its key in the same place, for training loops other than medmoco's own."""


def plan_of(method: MethodSettings, decoder: DecoderSettings | None = None) -> Plan:
    """Return the views that a method compares; one where there is nothing but a decoder to train.

    Shuffled keys are of views made for them, so that only embeddings need to travel between processes. Where batch
    norm has no groups there is nothing to shuffle for, and a view serves as query and key.
    """
    if decoder and not decoder.contrast:
        return ONE_VIEW
    shuffled = method.batch_norm == "split"
    first, second = Wanted(0, False), Wanted(1, False)
    if not method.symmetric:
        return Plan((first, Wanted(1, shuffled)), (0,), (1,))
    if not shuffled:
        return Plan((first, second), (0, 1), (1, 0))
    return Plan((first, Wanted(1, True), second, Wanted(0, True)), (0, 2), (1, 3))


def partner_notices(split: Split, positives: PositiveSettings) -> tuple[str, ...]:
    """Say how many rows have no partner, where partners are wanted.

    Raises:
        ManifestError: none has one, or a column is missing.
    """
    if positives.image == "same":
        return ()
    alone = Partners(split, positives, 0).alone()
    if alone == len(split):
        raise ManifestError(
            f"{split.csv.name}: no {split.name} row has another image of its patient that positives.agree and differ"
            " allow;\nname other columns, or set positives.image=same"
        )
    return (
        f"{split.name}: {alone} of {len(split)} rows have no other image of their patient that fits; their key is of"
        " their own image",
    )


class Partners:
    """Finds another image of the same patient for each of a split's N rows.

    Memory and the time for a batch grow with the images of its patients alone.
    """

    def __init__(self, split: Split, positives: PositiveSettings, seed: int) -> None:
        """Number patients and the columns' values.

        Raises:
            ManifestError: there is no PatientID, or no such column.
        """
        needed = {"PatientID": "image=patient", **dict.fromkeys(positives.agree, "agree")}
        for column, setting in (needed | dict.fromkeys(positives.differ, "differ")).items():
            require_column(split, column, f"positives.{setting} needs")
        self._seed, self._probability = seed, positives.probability
        self._agree = _codes(split.table, positives.agree)
        self._differ = _codes(split.table, positives.differ)
        self._by_patient = np.argsort(split.patients, kind="stable")
        _, dense, counts = np.unique(split.patients, return_inverse=True, return_counts=True)
        starts = np.cumsum(counts) - counts
        self._starts, self._counts = starts[dense], counts[dense]

    def of(self, samples: Samples, epoch: int) -> Samples:
        """Return each sample's partner in an epoch, (B,), any of those that fit alike.

        It is the sample itself where none fits, and by chance where that is wanted.
        """
        others, numbers = self._candidates(samples)
        share = uniform(self._seed, PARTNER, epoch, samples) / self._probability  # below 1, it is uniform again
        paired = (numbers > 0) & (share < 1)
        place = np.cumsum(numbers) - numbers + np.floor(share * numbers).astype(np.int64)
        found = samples.copy()
        found[paired] = others[place[paired]]
        return found

    def alone(self) -> int:
        """Return how many rows have no partner."""
        ends = np.searchsorted(np.cumsum(self._counts), np.arange(0, self._counts.sum(), _PAIRS_AT_A_TIME), "right")
        chunks = np.split(np.arange(len(self._counts)), np.unique(ends[ends > 0]))
        return sum(int((self._candidates(chunk)[1] == 0).sum()) for chunk in chunks)

    def _candidates(self, samples: Samples) -> tuple[Samples, Samples]:
        """Return the images that fit each sample, one sample's after the other's, and how many each has, (B,)."""
        counts = self._counts[samples]
        which = np.repeat(np.arange(len(samples)), counts)
        within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        others = self._by_patient[np.repeat(self._starts[samples], counts) + within]
        own = samples[which]
        fits = others != own
        for codes in self._agree:
            fits &= (codes[others] == codes[own]) & (codes[own] >= 0)
        for codes in self._differ:
            fits &= (codes[others] != codes[own]) & (codes[own] >= 0) & (codes[others] >= 0)
        return others[fits], np.bincount(which[fits], minlength=len(samples))


def _codes(table: pd.DataFrame, columns: tuple[str, ...]) -> list[Samples]:
    """Number the values of columns, each (N,), a blank cell -1."""
    texts = [table[column].astype(str).str.strip() for column in columns]
    return [pd.factorize(text.where(text != ""))[0].astype(np.int64) for text in texts]
