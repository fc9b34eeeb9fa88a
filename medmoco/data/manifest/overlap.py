"""Patients, studies and files that two sets of rows share, even if they come from different manifests.

IDs are compared as text ("007" is not "7") after surrounding spaces have been stripped on reading. Two data sets may
use the same numbers for different patients, so a shared ID is weaker evidence than shared pixels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.data.manifest.columns import PATIENT, SERIES, STUDY
from medmoco.data.manifest.manifest import Split, names_patients


def patient_ids(split: Split) -> pd.Series[str] | None:
    """Return the patient ID of every row, blank if missing; None if no row has one."""
    return split.table[PATIENT] if names_patients(split.table) else None


def counted(split: Split) -> str:
    """Return the size of a split in words: "600 images of 240 patients", or "600 images (patients unknown)"."""
    if patient_ids(split) is None:
        return f"{len(split)} images (patients unknown)"
    return f"{len(split)} images of {np.unique(split.patients).size} patients"


def study_ids(split: Split) -> pd.Series[str] | None:
    """Return the study of every row, combined with its patient, since many data sets number studies per patient."""
    if STUDY not in split.table.columns:
        return None
    studies, patients = split.table[STUDY], patient_ids(split)
    return (studies if patients is None else patients + "\0" + studies).where(studies != "", "")


def image_keys(split: Split) -> pd.Series[str]:
    """Return file and frame of every row; the same file has the same key whatever its root and Path.

    Of a folder with DICOM files, the key includes the series that the row names.
    """
    files = [os.path.abspath(file) for file in split.files]
    keys = pd.Series(files, dtype=object) + "\0" + pd.Series(split.frames).astype(str)
    if SERIES not in split.table.columns:
        return keys
    # A file has one series, which need not be named, so the same file in another manifest must match.
    chosen = [f"\0{uid}" if uid and os.path.isdir(file) else "" for file, uid in zip(files, split.series, strict=True)]
    return keys + pd.Series(chosen, dtype=object)


def also_in(one: pd.Series[str], other: pd.Series[str]) -> NDArray[np.bool_]:
    """Return the mask (N,) of the entries of `one` that are also in `other`; blank entries never match."""
    return (one.isin(other) & (one != "")).to_numpy()


def overlap_notices(splits: Mapping[str, Split]) -> list[str]:
    """Return warnings about patients and images that are in two splits."""
    notices = []
    for one, other in combinations(splits.values(), 2):
        patients = np.intersect1d(one.patients, other.patients).size
        images = int(also_in(image_keys(one), image_keys(other)).sum())
        for count, what in ((patients, "patients"), (images, "images")):
            if count:
                notices.append(f"{count} {what} are in both {one.name} and {other.name}: scores will be too optimistic")
    return notices
