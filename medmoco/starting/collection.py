"""The images of a source after their files have been read: what is kept, what is left out, patients and splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.config import DataSettings
from medmoco.data.manifest.columns import PATIENT
from medmoco.data.manifest.file_checks import FileFault, file_faults
from medmoco.data.manifest.manifest import SPLITS, names_patients
from medmoco.data.manifest.split_files import SHARES, patient_ids
from medmoco.data.manifest.splits import draw_splits
from medmoco.datasets.collections.dicom_tree import one_row_per_frame
from medmoco.datasets.headers import COLUMNS
from medmoco.errors import ManifestError
from medmoco.starting.files import NO_IMAGE, Sample, decode_sample, duplicate_groups, read_file_headers
from medmoco.starting.machine import Machine
from medmoco.starting.patients import extract_patients, suggest_pattern
from medmoco.starting.plan import Shape, choose_shape
from medmoco.starting.sources import Images

_DECODED = 10_000  # images that are decoded at most
_SAMPLED = 200  # images that are decoded even if that takes longer than `_SECONDS`
_SECONDS = 20.0
_LEAST_PATIENTS = 10  # for a validation split of a tenth of them
_FIRST = ["Path", "Frame", "PatientID", "StudyID", "SeriesID", "ViewPosition", "Sex", "Age", "Laterality"]


@dataclass(frozen=True)
class Collection:
    """The images of a manifest, and what reading their files has shown.

    Attributes:
        table: (N) rows that are kept, as in the manifest.
        headers: (N) rows with the columns of `files.read_file_headers`.
        splits: (N) train, val or test.
        labels: Label columns of `table`.
        shape: Sizes of canvas and views.
        sample: The images that were decoded.
        duplicates: Groups of positions of rows whose files have the same content.
        left_out: (M) rows with Path and Reason.
        ignored: Number of files that are not images.
        links: Number of files that symbolic links outside the root lead to.
        notes: What the user should know, one sentence each.
    """

    table: pd.DataFrame
    headers: pd.DataFrame
    splits: pd.Series[str]
    labels: tuple[str, ...]
    shape: Shape
    sample: Sample
    duplicates: Sequence[Sequence[int]]
    left_out: pd.DataFrame
    ignored: int
    links: int
    notes: tuple[str, ...]

    @property
    def typical_size(self) -> tuple[int, int]:
        """Width and height of the image closest to the median longer side and the median aspect ratio."""
        return _typical_size(self.headers)

    @property
    def is_decoded(self) -> bool:
        """Whether every image was decoded, so that none of those that are kept can fail."""
        return self.sample.readable == len(self.table)


@dataclass(frozen=True)
class _Rows:
    """Rows of a source, one per image."""

    table: pd.DataFrame
    headers: pd.DataFrame
    files: pd.Series[str]
    official: pd.Series[str]
    faults: pd.Series[str]  # blank for images that can be used, as far as is known

    def take(self, rows: NDArray[Any]) -> _Rows:
        """Return the rows at positions, or those that a mask selects."""
        at = np.flatnonzero(rows) if rows.dtype == bool else rows
        table, headers = (part.iloc[at].reset_index(drop=True) for part in (self.table, self.headers))
        files, official, faults = (
            part.iloc[at].reset_index(drop=True) for part in (self.files, self.official, self.faults)
        )
        return _Rows(table, headers, files, official, faults)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(N,) bool, whether an image can be used."""
        return (self.faults == "").to_numpy()


def collect(images: Images, machine: Machine, patient: str | None, seed: int, log: Callable[[str], None]) -> Collection:
    """Read the files of a source, leave out those that cannot be used, and divide the others into splits.

    Raises:
        ManifestError: no image can be used.
        SettingsError: the pattern for patients does not fit the file names.
    """
    log(f"reading the headers of {len(images.table):,} files")
    rows = _read_headers(images, machine)
    is_other = (rows.faults == NO_IMAGE).to_numpy()
    rows = rows.take(~is_other)
    if patient is not None:
        found = extract_patients(rows.table["Path"][rows.usable], patient)
        rows.table[PATIENT] = found.reindex(rows.table.index).fillna("")
    if not rows.usable.any():
        raise _none_usable(images.root, rows.faults, int(is_other.sum()))
    shape = choose_shape(*_typical_size(rows.headers[rows.usable]), machine)
    log("decoding a sample of the images")
    sample, in_pixels = _decode(rows, shape, machine.cores, seed)
    faults = rows.faults.copy()
    for at, reason in in_pixels.items():
        faults.iloc[at] = reason
    if not sample.readable:
        raise _none_usable(images.root, faults[faults != ""], int(is_other.sum()))
    if images.manifest is None:
        rows = replace(rows, faults=faults)
    left_out = pd.DataFrame({"Path": rows.table["Path"], "Reason": rows.faults.str.replace("\n", " ")})[~rows.usable]
    rows = rows.take(rows.usable)
    splits, labels, notes = _split(rows, () if _names_people(images, rows.table) else images.labels, seed)
    if images.manifest is None and patient is None:
        notes += _patient_notes(rows.table)
    first = np.flatnonzero(~rows.files.duplicated())
    groups = duplicate_groups(Path(), rows.files.iloc[first].tolist(), rows.headers["Size"].iloc[first].tolist())
    return Collection(
        rows.table, rows.headers, splits, labels, shape, sample,
        duplicates=[[int(first[at]) for at in group] for group in groups],
        left_out=left_out, ignored=int(is_other.sum()), links=_links(images.root, rows.files, splits),
        notes=tuple(notes),
    )  # fmt: skip


def _read_headers(images: Images, machine: Machine) -> _Rows:
    """Read the headers of the files; frames of DICOM files become rows."""
    table = images.table.copy()
    roots = [images.root.replace("{split}", split) for split in images.official]
    paths = table["Path"].str.strip().str.replace("\\", "/")
    files = pd.Series([f"{root}/{path}" for root, path in zip(roots, paths, strict=True)], table.index, dtype=str)
    listed = (images.faults == "") & ~files.duplicated()
    read = read_file_headers(Path(), files[listed].tolist(), machine.cores).set_index(files[listed].to_numpy())
    headers = read.reindex(files).set_axis(table.index)
    headers["Frames"] = headers["Frames"].fillna("1")
    for name in ("Width", "Height", "Bits", "Size"):
        headers[name] = headers[name].fillna(0).astype(int)
    headers = headers.fillna("")
    if images.manifest is not None:
        return _Rows(table, headers, files, images.official, pd.Series("", table.index, dtype=str))
    faults = images.faults.where(images.faults != "", headers["Fault"])
    rows = _Rows(table, headers, files, images.official, faults)
    if "Frame" not in table:
        by_frame = one_row_per_frame(headers.assign(Fault=faults))
        rows = rows.take(by_frame.index.to_numpy())
        if "Frame" in by_frame:
            rows.table["Frame"] = by_frame["Frame"].to_numpy()
    tags = rows.headers[COLUMNS].where(rows.headers["Kind"] == "DICOM", "")
    for name in (name for name in COLUMNS if name != "Frames" and (tags[name] != "").any()):
        own = rows.table[name].str.strip() if name in rows.table else pd.Series("", rows.table.index)
        rows.table[name] = own.where(own != "", tags[name])
    first = [name for name in _FIRST if name in rows.table]
    return replace(rows, table=rows.table[[*first, *(name for name in rows.table if name not in first)]])


def _none_usable(root: str, faults: pd.Series[str], others: int) -> ManifestError:
    """Return the error for a source in which every image that was read has a fault."""
    if faults.empty:
        return ManifestError(f"{root}: none of the {others:,} files is an image; give the folder that holds the images")
    reasons = faults.str.split("\n").str[0].value_counts()
    return ManifestError(
        f"{root}: none of the {len(faults):,} images can be used; for {reasons.iloc[0]:,} the reason is:\n"
        f"{reasons.index[0]}"
    )


def _typical_size(headers: pd.DataFrame) -> tuple[int, int]:
    """Return width and height of the image closest to the median longer side and the median aspect ratio."""
    known = headers[(headers["Width"] > 0) & (headers["Height"] > 0)]
    if known.empty:
        return 1, 1
    sizes = known[["Width", "Height"]].to_numpy(np.float64)
    logs = np.log(np.stack([sizes.max(1), sizes.max(1) / sizes.min(1)], axis=1))
    closest = np.abs(logs - np.median(logs, axis=0)).sum(1).argmin()
    return int(sizes[closest, 0]), int(sizes[closest, 1])


def _decode(rows: _Rows, shape: Shape, cores: int, seed: int) -> tuple[Sample, dict[int, str]]:
    """Decode images in random order; return the sample, and reason by row of those that cannot be used."""
    order = np.random.default_rng(seed).permutation(np.flatnonzero(rows.usable))
    texts = rows.table["Frame"].str.strip() if "Frame" in rows.table else pd.Series("", rows.table.index)
    frames = pd.to_numeric(texts, errors="coerce").fillna(1).astype(int)
    data = DataSettings(manifest=Path(), root=".", canvas_size=shape.canvas, workers=cores)
    files, numbers = rows.files.iloc[order].tolist(), frames.iloc[order].tolist()
    sample = decode_sample(files, numbers, data, most=_DECODED, least=_SAMPLED, seconds=_SECONDS)
    return sample, {int(order[at]): reason for at, reason in sample.faults.items()}


def _links(root: str, files: pd.Series[str], splits: pd.Series[str]) -> int:
    """Return the number of files outside the root, to which symbolic links lead."""
    return sum(
        fault is FileFault.OUTSIDE
        for split in SPLITS
        for fault in file_faults(files[splits == split], root.replace("{split}", split), allow_symlinks=False)
    )


# Splits and patients


def _split(rows: _Rows, labels: tuple[str, ...], seed: int) -> tuple[pd.Series[str], tuple[str, ...], list[str]]:
    """Return the split of every row, the labels that can be scored on val, and notes.

    Official splits are kept. Without labels, all other images are for training.
    """
    notes = []
    table, official = rows.table, rows.official
    patients, _ = patient_ids(table)
    splits, rest = official.copy(), official == ""
    if labels and rest.any() and (count := patients[rest].nunique()) < _LEAST_PATIENTS:
        notes.append(f"{count} patients are too few for a validation and a test split, so labels are not used.")
        labels = ()
    if labels and rest.any():
        cells = table.loc[rest, list(labels)].apply(pd.to_numeric, errors="coerce")
        shares = {name: share for name, share in SHARES.items() if not (official == name).any()}
        splits[rest] = draw_splits(patients[rest], cells.to_numpy(np.float64), shares, seed=seed)
    splits = splits.replace("", "train")
    if (divided := int((splits.groupby(patients).nunique() > 1).sum())) and names_patients(table):
        notes.append(
            f"{divided:,} patients are in two splits of the source, which were kept: scores will be too optimistic."
        )
    if not (splits == "train").any():
        raise ManifestError("no image is left for training; the source assigns all of them to val or test")
    if labels and not (splits == "val").any():
        notes.append(
            "there is no validation split, so features are not scored during training and labels are not used."
        )
        labels = ()
    return splits, labels, notes


def _names_people(images: Images, table: pd.DataFrame) -> bool:
    """Return whether the labels are folders with one patient each: such names must not be shown, and are no classes."""
    if images.columns or images.manifest is not None or not names_patients(table):
        return False
    counts = [table.loc[(table[name] == "1") & (table[PATIENT] != ""), PATIENT].nunique() for name in images.labels]
    return bool(counts) and max(counts) <= 1


def _patient_notes(table: pd.DataFrame) -> list[str]:
    if names_patients(table):
        unnamed = patient_ids(table)[1]
        who = "one image has" if unnamed == 1 else f"{unnamed:,} images have"
        return [f"{who} no PatientID: each such study, or else file, counts as a patient."] if unnamed else []
    text = "nothing identifies the patients, so each image counts as its own patient"
    if suggested := suggest_pattern(table["Path"]):
        pattern, count = suggested
        return [
            f"{text}. File names suggest {count:,} patients: if that is right, add --patient '{pattern}' to keep a"
            " patient's images in one split."
        ]
    return [f"{text}; if the file names do, give --patient with a regular expression such as '(\\d+)_'."]
