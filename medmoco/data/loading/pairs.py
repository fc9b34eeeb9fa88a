"""The pairs of images, and the views of them, that a training step compares.

A pair is the image of a query and that of its key: the same image, or another one of the patient, its partner. View 0
is of the first, view 1 of the second.
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


class ViewSpec(NamedTuple):
    """One view that a process makes of its share of a batch."""

    view: int  # 0 or 1
    shuffled: bool  # whether the share is taken in the order of the key encoder's batch instead of that of the queries


@dataclass(frozen=True)
class Plan:
    """The views of a step and their roles."""

    views: tuple[ViewSpec, ...]
    queries: tuple[int, ...]  # positions of the views that are queries, one for each direction of the loss
    keys: tuple[int, ...]  # positions of the views that are their keys

    @property
    def shuffled(self) -> bool:
        """Whether the key encoder receives the batch in an order of its own."""
        return any(view.shuffled for view in self.views)


ONE_VIEW = Plan((ViewSpec(0, False),), (0,), ())
"""A single view per image, for fine-tuning, detection and autoencoders."""

TWO_VIEWS = Plan((ViewSpec(0, False), ViewSpec(1, False)), (0,), (1,))
"""A query and its key in the same place, for training loops other than medmoco's own."""


def plan_of(method: MethodSettings, decoder: DecoderSettings | None = None) -> Plan:
    """Return the views that a method compares; one view if only a decoder is trained.

    Shuffled keys have views made for them, so that only embeddings need to be exchanged between processes. Without
    groups of batch norm nothing is shuffled, and a view serves both as query and as key.
    """
    if decoder and not decoder.contrast:
        return ONE_VIEW
    shuffled = method.batch_norm == "split"
    first, second = ViewSpec(0, False), ViewSpec(1, False)
    if not method.symmetric:
        return Plan((first, ViewSpec(1, shuffled)), (0,), (1,))
    if not shuffled:
        return Plan((first, second), (0, 1), (1, 0))
    return Plan((first, ViewSpec(1, True), second, ViewSpec(0, True)), (0, 2), (1, 3))


def partner_notices(split: Split, positives: PositiveSettings) -> tuple[str, ...]:
    """Return a notice with the number of rows without a partner, if keys are of partners.

    Raises:
        ManifestError: no row has a partner, or a column is missing.
    """
    if positives.image == "same":
        return ()
    alone = Partners(split, positives, 0).alone()
    if alone == len(split):
        raise ManifestError(
            f"{split.csv.name}: no {split.name} row has another image of its patient that meets positives.agree and"
            " differ;\ngive other columns, or set positives.image=same"
        )
    return (
        f"{split.name}: {alone} of {len(split)} rows have no other suitable image of their patient; their key is of"
        " their own image",
    )


class Partners:
    """Finds another image of the same patient for each of a split's N rows.

    The memory and time for a batch depend only on the number of images of its patients.
    """

    def __init__(self, split: Split, positives: PositiveSettings, seed: int) -> None:
        """Index the patients and the values of the columns.

        Raises:
            ManifestError: PatientID or a named column is missing.
        """
        required = {"PatientID": "image=patient", **dict.fromkeys(positives.agree, "agree")}
        for column, setting in (required | dict.fromkeys(positives.differ, "differ")).items():
            require_column(split, column, f"positives.{setting} needs")
        self._seed, self._probability = seed, positives.probability
        self._agree = _codes(split.table, positives.agree)
        self._differ = _codes(split.table, positives.differ)
        self._by_patient = np.argsort(split.patients, kind="stable")
        _, dense, counts = np.unique(split.patients, return_inverse=True, return_counts=True)
        starts = np.cumsum(counts) - counts
        self._starts, self._counts = starts[dense], counts[dense]

    def of(self, samples: Samples, epoch: int) -> Samples:
        """Return each sample's partner in an epoch, (B,), drawn uniformly from the suitable images.

        It is the sample itself if no image is suitable, or by chance if positives.probability is below 1.
        """
        others, numbers = self._candidates(samples)
        share = uniform(self._seed, PARTNER, epoch, samples) / self._probability  # uniform again where below 1
        paired = (numbers > 0) & (share < 1)
        position = np.cumsum(numbers) - numbers + np.floor(share * numbers).astype(np.int64)
        partners = samples.copy()
        partners[paired] = others[position[paired]]
        return partners

    def alone(self) -> int:
        """Return the number of rows without a partner."""
        ends = np.searchsorted(np.cumsum(self._counts), np.arange(0, self._counts.sum(), _PAIRS_AT_A_TIME), "right")
        chunks = np.split(np.arange(len(self._counts)), np.unique(ends[ends > 0]))
        return sum(int((self._candidates(chunk)[1] == 0).sum()) for chunk in chunks)

    def _candidates(self, samples: Samples) -> tuple[Samples, Samples]:
        """Return the suitable images of each sample, concatenated, and their number per sample, (B,)."""
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
    """Return integer codes of the columns' values, each (N,); -1 for blank cells."""
    texts = [table[column].astype(str).str.strip() for column in columns]
    return [pd.factorize(text.where(text != ""))[0].astype(np.int64) for text in texts]
