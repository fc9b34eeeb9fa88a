"""Draw patients for train, val and test and for label fractions, balanced by label.

A patient's position in a draw depends only on the seed and the text of the ID, so sorting or shuffling a table changes
nothing. scikit-learn's StratifiedGroupKFold was considered: it takes one label instead of many, cannot make splits of
unequal size, and its result depends on the order of the rows and, with `shuffle`, on the state of a generator.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.data.manifest.columns import other_name
from medmoco.data.manifest.tables.paths import slashed
from medmoco.errors import ManifestError, SettingsError
from medmoco.utils.rng import SPLIT, SUBSET, hashed, uniform

Integers = NDArray[np.int64]

DUPLICATES = "duplicates.csv"
"""File in the folder of `medmoco check` that lists rows with the same image, or nearly the same, by group."""


def text_keys(texts: Iterable[str]) -> Integers:
    """Return 63 bits of each text's BLAKE2 hash, as keys for counter-based randomness; the same on every machine."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.array([int.from_bytes(digest) >> 1 for digest in digests], np.int64)


def draw_splits(
    patients: pd.Series[str], labels: NDArray[np.floating], shares: Mapping[str, float], *, seed: int
) -> pd.Series[str]:
    """Return the split of every row, drawn by patient.

    Iterative stratification over patients: the stratum with the fewest unassigned patients comes first, and its
    patients are assigned so that each split receives its share of the stratum, as far as earlier strata allow. Strata
    are the positives of each label, the negatives of labels that have other values too, and finally all patients; a
    patient belongs to the strata of all of its rows. Fractional counts are rounded up or down at random, and are
    correct on average.

    Source: Sechidis, Tsoumakas and Vlahavas 2011 (doi:10.1007/978-3-642-23808-6_10), algorithm 1. Here the patients
    of a stratum are assigned together, not one by one.

    Args:
        patients: (N,) IDs; equal text is the same patient.
        labels: (N, L), 1, 0, -1 (uncertain) or nan (missing).
        shares: Fraction of the patients per split; the rest is "train".
        seed: Seed of the draw.

    Returns:
        (N,) split names, with the index of `patients`.
    """
    codes, ids = pd.factorize(patients)
    names = [*shares, "train"]
    fractions = np.array([*shares.values(), 1 - sum(shares.values())])
    splits = _assign_strata(_strata(codes, labels), _positions(text_keys(ids), seed, SPLIT), fractions, seed)
    return pd.Series(np.array(names, object)[splits[codes]], index=patients.index)


def merged_by_image(
    file: Path, table: pd.DataFrame, patients: pd.Series[str], listed: Path
) -> tuple[pd.Series[str], str]:
    """Return the patient of every row, as one for patients that share duplicates, and a note on how many were merged.

    Args:
        file: The table's file, for messages.
        table: N rows of text.
        patients: (N,) IDs.
        listed: Folder of `medmoco check`, or the list of duplicates in it.

    Raises:
        SettingsError: the list cannot be read.
        ManifestError: it has no Paths of the table, or some are absolute in the table and not found.
    """
    listed = listed / DUPLICATES if listed.is_dir() else listed
    try:
        duplicates = pd.read_csv(listed, dtype=str, keep_default_na=False)[["group", "Path"]]
        duplicates["Path"] = _plain_paths(duplicates["Path"])
    except (OSError, ValueError, KeyError):
        raise SettingsError(
            f"--merge-duplicates: {listed} cannot be read, or is not a list of duplicates;\n"
            f"give the folder that `medmoco check` writes, or the {DUPLICATES} in it"
        ) from None
    path = "Path" if "Path" in table else other_name("Path", table.columns)
    paths = _plain_paths(table[path]) if path else pd.Series("", table.index)
    known = duplicates["Path"].isin(paths)
    absolute = int(paths.str.startswith("/").sum())
    if absolute and not known.all():
        raise ManifestError(
            f"{file}: {absolute:,} of its Paths are absolute, so that they cannot be found in {listed.name};\n"
            "give --config FILE with the data.root that they lie below, as for `medmoco check`"
        )
    if len(known) and not known.any():
        raise ManifestError(
            f"{file}: it has none of the {len(known):,} Paths in {listed.name}; check a manifest that has the same\n"
            "Paths, such as the folder of an earlier split of this table"
        )
    together = merge_patients(patients, paths, duplicates)
    sizes = patients.groupby(together).nunique()
    several = sizes[sizes > 1]
    note = f"Duplicates: {int(paths.isin(duplicates['Path']).sum()):,} rows have a duplicate; "
    if len(several):
        note += f"{several.sum():,} patients that share some form {len(several):,} groups, each in one split; "
        note += f"the largest has {several.max():,} patients."
    else:
        note += "no two patients share one."
    if not known.all():
        note += f" {int((~known).sum()):,} Paths of {listed.name} are not in this table."
    return together, note


def _plain_paths(paths: pd.Series[str]) -> pd.Series[str]:
    """Return Paths in the spelling in which the table and the list of duplicates are compared."""
    return pd.Series(slashed(paths.str.strip().tolist()), paths.index, dtype=str)


def merge_patients(patients: pd.Series[str], paths: pd.Series[str], duplicates: pd.DataFrame) -> pd.Series[str]:
    """Return the patient of every row, as one for patients with images in the same group of duplicates.

    Such patients get the ID that comes first in alphabetical order, so that the result does not depend on the rows'.

    Args:
        patients: (N,) IDs.
        paths: (N,) Paths.
        duplicates: Columns `group` and `Path`.
    """
    from scipy.sparse import coo_array  # not at the top: few tables have duplicates to merge, and SciPy loads slowly
    from scipy.sparse.csgraph import connected_components

    codes, ids = pd.factorize(patients)
    members = pd.DataFrame({"patient": codes, "Path": paths}).merge(duplicates, on="Path")
    groups = pd.factorize(members["group"])[0] + len(ids)
    size = len(ids) + len(members)
    links = coo_array((np.ones(len(members), bool), (members["patient"], groups)), shape=(size, size))
    merged = connected_components(links, directed=False)[1][: len(ids)]
    first = pd.Series(ids).groupby(merged).transform("min")
    return pd.Series(first.to_numpy()[codes], patients.index)


def nested_places(keys: Integers, *, seed: int, draw: int = 0) -> Integers:
    """Return each patient's position in the order in which patients join growing label fractions.

    A fraction consists of the first patients in this order, so smaller fractions are subsets of larger ones.

    Args:
        keys: (P,) one number per patient.
        seed: Seed of the draws.
        draw: Number of the draw; different draws are independent.

    Returns:
        (P,) int64, counted from 0.
    """
    return _positions(keys, seed, SUBSET, draw)


def fraction_size(fraction: float, patients: int) -> int:
    """Return the number of patients in a label fraction, rounded and at least one."""
    return max(1, round(fraction * patients))


def _positions(keys: Integers, *purpose: int) -> Integers:
    order = np.argsort(hashed(*purpose, keys), kind="stable")
    positions = np.empty_like(order)
    positions[order] = np.arange(order.size)
    return positions


def _strata(codes: NDArray[np.intp], labels: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return the membership of patients in strata, (P, S)."""
    classes = [(label, value) for label in range(labels.shape[1]) for value in (1, 0)]
    members = np.zeros((codes.max() + 1, len(classes) + 1), bool)
    for stratum, (label, value) in enumerate(classes):
        column = labels[:, label]
        # If all values are 0 or 1, the negatives are the rest of the positives and need no stratum of their own.
        if value or not np.isin(column, (0, 1)).all():
            members[codes[column == value], stratum] = True
    members[:, -1] = True
    return members


def _assign_strata(members: NDArray[np.bool_], positions: Integers, shares: NDArray[np.float64], seed: int) -> Integers:
    """Return the index of each patient's split, (P,)."""
    splits = np.full(positions.size, -1)
    total = members.sum(axis=0)
    unassigned = total.copy()
    assigned = np.zeros((shares.size, total.size))
    while unassigned.any():
        stratum = int(np.where(unassigned, unassigned, positions.size + 1).argmin())  # the first of equals
        patients = np.flatnonzero(members[:, stratum] & (splits < 0))
        patients = patients[np.argsort(positions[patients])]
        due = np.maximum(shares * total[stratum] - assigned[:, stratum], 0)
        # Systematic sampling: each split's quota is an interval on a line, and patients are points one apart on it.
        ends = np.cumsum(due) / due.sum() * patients.size
        points = np.arange(patients.size) + uniform(seed, SPLIT, stratum)
        splits[patients] = np.minimum(np.searchsorted(ends, points, side="right"), shares.size - 1)
        for split in range(shares.size):
            assigned[split] += members[patients[splits[patients] == split]].sum(axis=0)
        unassigned -= members[patients].sum(axis=0)
    return splits
