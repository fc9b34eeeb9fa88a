"""Patients drawn for train, val and test and for label fractions: balanced by label, whatever the order of rows.

A patient's place in a draw is a function of the seed and of the text of the id alone, so sorting or shuffling a table
changes nothing. scikit-learn's StratifiedGroupKFold was considered: it takes one label instead of many, has no splits
of unequal size, and its answer depends on the order of the rows, with `shuffle` on the state of a generator too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.utils.rng import SPLIT, SUBSET, hashed, uniform

Integers = NDArray[np.int64]


def text_keys(texts: Iterable[str]) -> Integers:
    """Return 63 bits of each text's BLAKE2 hash, as keys for counted randomness: the same on every machine."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.array([int.from_bytes(digest) >> 1 for digest in digests], np.int64)


def draw_splits(
    patients: pd.Series[str], labels: NDArray[np.floating], shares: Mapping[str, float], *, seed: int
) -> pd.Series[str]:
    """Give every row the split of its patient.

    Iterative stratification over patients: the stratum with the fewest undecided patients comes first, and they are
    dealt so that each split ends up with its share of all that stratum's patients, as far as earlier strata allow.
    Strata are the positives of each label, the negatives of labels that are not known everywhere, and last everybody;
    a patient belongs to those of any of its rows. Counts that are not whole are rounded up or down at random, and
    right on average.

    Source: Sechidis, Tsoumakas and Vlahavas 2011 (doi:10.1007/978-3-642-23808-6_10), algorithm 1. Here the patients
    of a stratum are dealt together, not one by one.

    Args:
        patients: (N,) ids; equal text is one patient.
        labels: (N, L), 1, 0, -1 (uncertain) or nan (missing).
        shares: Of the patients, per split; what is missing to 1 is "train".
        seed: Of the draw.

    Returns:
        (N,) names of splits, with the index of `patients`.
    """
    codes, ids = pd.factorize(patients)
    names = [*shares, "train"]
    wanted = np.array([*shares.values(), 1 - sum(shares.values())])
    splits = _deal(_strata(codes, labels), _places(text_keys(ids), seed, SPLIT), wanted, seed)
    return pd.Series(np.array(names, object)[splits[codes]], index=patients.index)


def nested_places(keys: Integers, *, seed: int, draw: int = 0) -> Integers:
    """Return each patient's place in the order in which growing label fractions take patients in.

    The first of the order are the smallest fraction, so a smaller one is always inside a larger one.

    Args:
        keys: (P,) one number per patient.
        seed: Of the draws.
        draw: Number of the draw; different draws are independent.

    Returns:
        (P,) from 0.
    """
    return _places(keys, seed, SUBSET, draw)


def fraction_size(fraction: float, patients: int) -> int:
    """Return how many patients a label fraction holds: rounded, at least one."""
    return max(1, round(fraction * patients))


def _places(keys: Integers, *purpose: int) -> Integers:
    order = np.argsort(hashed(*purpose, keys), kind="stable")
    places = np.empty_like(order)
    places[order] = np.arange(order.size)
    return places


def _strata(codes: NDArray[np.intp], labels: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which patient is in which stratum, (P, S)."""
    wanted = [(label, value) for label in range(labels.shape[1]) for value in (1, 0)]
    members = np.zeros((codes.max() + 1, len(wanted) + 1), bool)
    for stratum, (label, value) in enumerate(wanted):
        column = labels[:, label]
        # Where all values are known, the negatives are what the positives leave, and need no stratum of their own.
        if value or not np.isin(column, (0, 1)).all():
            members[codes[column == value], stratum] = True
    members[:, -1] = True
    return members


def _deal(members: NDArray[np.bool_], places: Integers, shares: NDArray[np.float64], seed: int) -> Integers:
    """Return the number of each patient's split, (P,)."""
    splits = np.full(places.size, -1)
    total = members.sum(axis=0)
    undecided = total.copy()
    dealt = np.zeros((shares.size, total.size))
    while undecided.any():
        stratum = int(np.where(undecided, undecided, places.size + 1).argmin())  # the first of equals
        patients = np.flatnonzero(members[:, stratum] & (splits < 0))
        patients = patients[np.argsort(places[patients])]
        due = np.maximum(shares * total[stratum] - dealt[:, stratum], 0)
        # Systematic sampling: the dues are stretches of a line, and the patients points on it, one apart.
        ends = np.cumsum(due) / due.sum() * patients.size
        points = np.arange(patients.size) + uniform(seed, SPLIT, stratum)
        splits[patients] = np.minimum(np.searchsorted(ends, points, side="right"), shares.size - 1)
        for split in range(shares.size):
            dealt[split] += members[patients[splits[patients] == split]].sum(axis=0)
        undecided -= members[patients].sum(axis=0)
    return splits
