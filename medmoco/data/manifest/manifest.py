"""Read and check manifests, the tables that list the images; no row is dropped silently.

Rows are numbered as in a spreadsheet: the header is row 1 and the first record row 2. A record whose quoted cells
contain line breaks is one row. Messages and notices contain row numbers, never a Path or an ID.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.dtypes import StringDType
from numpy.typing import NDArray

from medmoco.config import DataSettings, LabelPolicy
from medmoco.data.manifest.columns import PATIENT, SERIES, other_name
from medmoco.data.manifest.csv_file import CsvFile, read_csv
from medmoco.data.manifest.ids import DOUBTS, doubts
from medmoco.data.manifest.row_filter import did_you_mean, matching_rows
from medmoco.data.manifest.tables.described import described, split_cells
from medmoco.data.manifest.tables.label_cells import check_classes, label_values
from medmoco.data.manifest.tables.naming import as_setting
from medmoco.data.manifest.tables.paths import below_root, path_fault
from medmoco.errors import ManifestError

SPLITS = ("train", "val", "test")
TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz")
_FILLS = {"ignore": np.nan, "zero": 0.0, "one": 1.0}
_PATH_ALARMS = ("..", ":", "\n/", "\n\n", "\n ", "\n\t")


@dataclass(frozen=True)
class Split:
    """The rows of train, val or test."""

    name: str  # train, val or test
    csv: Path  # the file with the rows
    rows: NDArray[np.int64]  # (N,) int64, the row of each record in that file
    # (N,) StringDType, root and Path joined. Not Python strings: reading one changes its reference count, so workers,
    # which initially share this memory, would gradually copy it
    files: NDArray[Any]
    frames: NDArray[np.int64]  # (N,) int64, counted from 1
    patients: NDArray[np.int64]  # (N,) int64, one code per patient, consistent across splits that were loaded together
    label_names: tuple[str, ...]  # L names in the order of the settings
    labels: NDArray[np.float32]  # (N, L) float32, 0, 1 or NaN, after the policy of each label
    raw_labels: NDArray[np.float32]  # (N, L) float32, 0, 1, -1 (uncertain) or NaN (blank), as in the file
    table: pd.DataFrame  # N records, with every column as text; label columns as pandas categories of text
    # SHA-256 of the file; combined with that of the joined table, and with the rows if data.where leaves some out
    sha256: str
    notices: tuple[str, ...]  # warnings about these rows for the user
    table_notices: tuple[str, ...] = ()  # those of them about rows that are left out or have no partner

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def names_frames(self) -> bool:
        """Whether the manifest has a Frame column, so that reading the first frame is intended."""
        return "Frame" in self.table.columns

    @property
    def series(self) -> list[str]:
        """N UIDs that choose one of the DICOM series in a folder; blank where the manifest names none."""
        return [uid.strip() for uid in self.table[SERIES]] if SERIES in self.table.columns else [""] * len(self)

    def spread(self, count: int) -> NDArray[np.int64]:
        """Return the positions of up to `count` rows, evenly spread over the split, ascending."""
        return np.unique(np.linspace(0, len(self) - 1, count).astype(np.int64))

    def select(self, which: NDArray[np.bool_] | NDArray[np.integer[Any]]) -> Split:
        """Return the rows selected by a mask (N,) or by positions (M,), in that order."""
        arrays = ("rows", "files", "frames", "patients", "labels", "raw_labels")
        selected: dict[str, Any] = {name: getattr(self, name)[which] for name in arrays}
        table = self.table[which] if which.dtype == bool else self.table.iloc[which]
        return replace(self, table=table, **selected)


def load_manifest(
    data: DataSettings, names: Sequence[str] = SPLITS, *, patients_matter: bool = True, if_there: bool = False
) -> dict[str, Split]:
    """Read and check splits of a manifest; the image files are checked by `medmoco.data.manifest.file_checks`.

    Args:
        data: Data settings: manifest, root and labels.
        names: Splits to load, from train, val and test.
        patients_matter: Refuse a manifest whose PatientID seems to have another name, instead of warning.
        if_there: Accept a manifest without columns that `data.columns` names; they may have our names.

    Raises:
        ManifestError: a file, split, column or cell is missing or invalid; names the file and the row.
    """
    files = _split_files(data, names, if_there)
    check_classes([*files.values()], data.labels, lambda: _other_files(data, names))
    for file in files.values():
        other = patient_column_meant(file.table, data.labels)
        if other and patients_matter:
            raise ManifestError(f"{file.path}: {_no_patients(other, file.table, data.labels)}")
    patients = _patient_codes([files[name].table for name in names])
    return {name: _make_split(name, files[name], own, data) for name, own in zip(names, patients, strict=True)}


def names_patients(table: pd.DataFrame) -> bool:
    """Return whether any row has a PatientID."""
    return PATIENT in table and bool((table[PATIENT] != "").any())


def patient_column_meant(table: pd.DataFrame, labels: Collection[str] = ()) -> str | None:
    """Return the column that seems to identify the patient if PatientID is missing or blank, or None."""
    if names_patients(table):
        return None
    return other_name(PATIENT, (name for name in table.columns if name != PATIENT), labels)


def _no_patients(other: str, table: pd.DataFrame, labels: Collection[str]) -> str:
    """Return the error message for a manifest where `other` seems to be the patient column."""
    return (
        f"no row has a PatientID, but the column {other!r} seems to identify the patient;\n"
        f"set {as_setting(PATIENT, table.columns, labels)}.\n"
        "Otherwise every image counts as its own patient, and patients in two splits go undetected.\n"
        "If the column means something else, give it a clearer name"
    )


def present_splits(data: DataSettings) -> tuple[str, ...]:
    """Return the splits that the manifest has; all three if it has none, so that `load_manifest` refuses it."""
    if data.manifest.is_file():
        named = [*split_cells(described([data.manifest], data)[0].table)]
    else:
        named = [name for name in SPLITS if files_of(data.manifest, name)]
        if data.where:  # which may leave out all rows of a split
            files = described([_split_file(data, name) for name in named], data)
            named = [name for name, file in zip(named, files, strict=True) if len(file.rows)]
    return tuple(name for name in SPLITS if name in set(named)) or SPLITS


def read_table(path: Path, labels: Sequence[str] | Mapping[str, LabelPolicy] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a CSV as text, and its labels as numbers; the index of both is the row in the file.

    Returns:
        The N records with every column as text, and (N, L) labels: 1, 0, -1 (uncertain) or nan (missing).

    Raises:
        ManifestError: the file, a row or a label cell is invalid; names the file and the row.
    """
    return _with_labels(read_csv(path), labels)


def read_described(path: Path, data: DataSettings) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Return a table as the settings describe it: as `read_table` does, and notices about rows that are left out."""
    file = described([path], data)[0]
    if "Path" in file.table:
        file = below_root(file, data.root, split_cells(file.table).tolist())
    check_classes([file], data.labels, tuple)
    return *_with_labels(file, data.labels), [*file.notices, *_left_out_notices(path.name, file)]


def _with_labels(file: CsvFile, labels: Sequence[str] | Mapping[str, LabelPolicy]) -> tuple[pd.DataFrame, pd.DataFrame]:
    policies = labels if isinstance(labels, Mapping) else {label: LabelPolicy() for label in labels}
    values = {label: label_values(file, label, policy) for label, policy in policies.items()}
    return file.table.set_axis(file.rows), pd.DataFrame(values, index=file.rows, dtype=float)


def select_where(split: Split, expression: str) -> Split:
    """Return the rows that meet an expression such as "Pneumonia == 1" (grammar in `row_filter`).

    Raises:
        SettingsError: the expression cannot be parsed, or names a missing column.
        ManifestError: no row meets it, or a cell cannot be compared.
    """
    selected = split.select(matching_rows(split.table, split.rows, expression))
    if not len(selected):
        raise ManifestError(
            f"{split.csv}: none of the {len(split)} {split.name} rows meets 'where'; relax the condition"
        )
    return selected


# Reading


def _split_files(data: DataSettings, names: Sequence[str], if_there: bool) -> dict[str, CsvFile]:
    """Return the records of each split, after checking their Paths."""
    if data.manifest.is_dir():
        read = described([_split_file(data, name) for name in names], data, if_there=if_there)
        files = dict(zip(names, read, strict=True))
        for name, file in files.items():
            files[name] = _with_checked_paths(file, _key_columns(data), data, name)
            if not len(file.rows):
                empty = "add rows or leave the split out"
                if file.left_out:
                    empty = "that data.where keeps; relax the condition"
                raise ManifestError(
                    f"{file.path}: there are no rows below the header{' ' if file.left_out else '; '}{empty}"
                )
        return files
    if not data.manifest.is_file():
        raise ManifestError(
            f"data.manifest: {data.manifest} does not exist; give a folder with train.csv, val.csv and test.csv,\n"
            "or one CSV with a Split column; `medmoco init FOLDER` writes them for a folder of images"
        )
    file = described([data.manifest], data, if_there=if_there)[0]
    file = _with_checked_paths(file, [*_key_columns(data), *["Split"] * ("{split}" in data.root)], data)
    return _by_split(file, names, data)


def _key_columns(data: DataSettings) -> list[str]:
    """Return the columns that together identify an image."""
    return ["Path", SERIES if data.dimensions == 3 else "Frame"]


def files_of(manifest: Path, name: str) -> list[Path]:
    """Return the files that may hold a split."""
    return [file for suffix in TABLE_SUFFIXES if (file := manifest / f"{name}{suffix}").is_file()]


def _split_file(data: DataSettings, name: str) -> Path:
    """Return the file of a split, such as NAME.csv or NAME.csv.gz."""
    manifest = data.manifest
    existing = files_of(manifest, name)
    if len(existing) == 1:
        return existing[0]
    if existing:
        raise ManifestError(f"data.manifest: {manifest} has both {existing[0].name} and {existing[1].name}; remove one")
    others = sorted(path.name for path in manifest.iterdir() if path.name.lower().endswith((*TABLE_SUFFIXES, ".zip")))
    if not others:
        remedy = f"`medmoco init {shlex.quote(str(manifest))}` writes a manifest for a folder of images"
    elif len(others) == 1:
        remedy = f"`medmoco split --csv {shlex.quote(str(manifest / others[0]))} --out NEW` draws splits by patient"
    else:
        remedy = "`medmoco split` draws splits by patient"
    listed = f"; it contains: {', '.join(others[:6])}{', ...' * (len(others) > 6)}" if others else " and no other table"
    raise ManifestError(f"data.manifest: {manifest} has no {name}.csv{listed}\n{remedy}{_on_val(name, data)}")


def _on_val(name: str, data: DataSettings) -> str:
    """Return why val is needed, if it is for the labels."""
    if name != "val" or not data.labels:
        return ""
    return ";\nlabels are scored on val; to pretrain without labels, set data.labels={}"


def whole_tables(data: DataSettings) -> list[CsvFile]:
    """Return the records of all splits, unchecked, including those that data.where leaves out; all have a Split."""
    everything = data.model_copy(update={"where": None})
    if not data.manifest.is_dir():
        return described([data.manifest], everything)
    names = [name for name in SPLITS if files_of(data.manifest, name)]
    files = described([_split_file(data, name) for name in names], everything)
    return [replace(file, table=file.table.assign(Split=name)) for name, file in zip(names, files, strict=True)]


def _other_files(data: DataSettings, names: Sequence[str]) -> list[CsvFile]:
    """Return the tables of a folder other than those of some splits."""
    others = [name for name in SPLITS if name not in names and files_of(data.manifest, name)]
    return described([_split_file(data, name) for name in others], data) if others else []


def _by_split(file: CsvFile, names: Sequence[str], data: DataSettings) -> dict[str, CsvFile]:
    file.require(
        "Split",
        f"to draw train, val and test by patient, run `medmoco split --csv {file.path.name} --out FOLDER` and set"
        " data.manifest=FOLDER",
    )
    values = split_cells(file.table)
    file.refuse(~values.isin(SPLITS).to_numpy(), "Split must be train, val or test ('valid' is not read as val)")
    parts = {name: file.select((values == name).to_numpy()) for name in names}
    for name, part in parts.items():
        if not len(part.rows):
            kept = " that data.where keeps" if file.left_out.get(name) else ""
            raise ManifestError(
                f"{file.path}: no row{kept} has the Split {name}; add some or leave the split out{_on_val(name, data)}"
            )
        notices = file.notices if name == names[0] else ()
        parts[name] = replace(part, left_out={name: file.left_out.get(name, 0)}, notices=notices)
    return parts


# Checking


def _with_checked_paths(file: CsvFile, key: list[str], data: DataSettings, name: str = "") -> CsvFile:
    """Return the records with Paths relative to data.root; refuse Paths that are not, or occur twice."""
    file.require("Path", "it must contain each image's path below data.root")
    file.refuse_other_name("Frame", "with frames counted from 1", data.labels)
    splits = name or split_cells(file.table).tolist()
    file = below_root(file, data.root, splits)
    paths = file.table["Path"].tolist()
    joined = "\n".join(["", *paths, ""])  # one search of the whole column is ten times faster than one for each row
    if any(alarm in joined for alarm in _PATH_ALARMS):
        reasons = np.array([path_fault(path) for path in paths], dtype=object)
        for reason in dict.fromkeys(reasons[reasons != ""]):
            file.refuse(reasons == reason, reason)
    columns = file.table[[name for name in key if name in file.table.columns]]
    repeated = columns.duplicated().to_numpy()
    if repeated.any():
        first = (columns == columns[repeated].iloc[0]).all(axis=1).to_numpy().argmax()
        file.refuse(repeated, f"the same {' and '.join(columns.columns)} as row {file.rows[first]}; remove one")
    return file


def require_column(split: Split, column: str, reason: str) -> None:
    """Raise ManifestError if the manifest lacks a column, "which" `reason`, such as "decoder.mask names"."""
    columns = list(split.table.columns)
    if column not in columns:
        raise ManifestError(
            f"{split.csv.name} has no column {column}, which {reason}; it has: {', '.join(columns[:12])}"
            f"{did_you_mean(column, columns)}"
        )


def _frames(file: CsvFile) -> NDArray[np.int64]:
    if "Frame" not in file.table.columns:
        return np.ones(len(file.rows), np.int64)
    codes, texts = pd.factorize(file.table["Frame"])
    cells = [text.strip().removesuffix(".0") if text.strip() else "1" for text in texts.tolist()]
    bad = np.array([not cell.isdecimal() or int(cell) < 1 for cell in cells], dtype=bool)
    file.refuse(bad[codes], "Frame must be a whole number from 1", ["Frame"])
    return np.array([int(cell) for cell in cells], np.int64)[codes]


def _apply_policy(raw: NDArray[np.float64], policy: LabelPolicy) -> NDArray[np.float64]:
    values = np.where(raw == -1, _FILLS[policy.uncertain], raw)
    return np.where(np.isnan(raw), _FILLS[policy.missing], values)


class _Patients(NamedTuple):
    """The patients of one split."""

    codes: NDArray[np.int64]  # (N,) int64, one code per patient
    unnamed: int  # number of rows without a PatientID
    doubts: NDArray[np.object_]  # (N,) kinds of doubt about the IDs, blank if there is none


def _patient_notices(name: str, table: pd.DataFrame, patients: _Patients, labels: Collection[str]) -> Iterator[str]:
    if other := patient_column_meant(table, labels):
        yield f"{name}: {other!r} is not read as PatientID; every row counts as its own patient"
    elif PATIENT not in table:
        yield f"{name}: no PatientID column; every row counts as its own patient"
    elif patients.unnamed:
        yield f"{name}: {patients.unnamed} rows have a blank PatientID; each counts as its own patient"
    for kind, description in DOUBTS.items():
        if count := int((patients.doubts == kind).sum()):
            yield f"{name}: {count} rows have a PatientID {description}"


def _left_out_notices(name: str, file: CsvFile) -> list[str]:
    left_out = sum(file.left_out.values())
    return [f"{name}: {left_out:,} of {left_out + len(file.rows):,} rows are left out by data.where"] * bool(left_out)


def _make_split(name: str, file: CsvFile, patients: _Patients, data: DataSettings) -> Split:
    raw, labels = np.empty((2, len(file.rows), len(data.labels)), np.float32)
    for position, (label, policy) in enumerate(data.labels.items()):
        values = label_values(file, label, policy)
        raw[:, position], labels[:, position] = values, _apply_policy(values, policy)
    root = os.path.join(data.root.replace("{split}", name), "")
    sha256, left_out = file.sha256, _left_out_notices(name, file)
    if left_out:
        sha256 = hashlib.sha256(f"{sha256} {file.rows.tolist()}".encode()).hexdigest()
    table_notices = (*file.notices, *left_out)
    return Split(
        name=name,
        csv=file.path,
        rows=file.rows,
        files=np.strings.add(root, file.table["Path"].to_numpy(object).astype(StringDType())),
        frames=_frames(file),
        patients=patients.codes,
        label_names=tuple(data.labels),
        labels=labels,
        raw_labels=raw,
        table=file.table,
        sha256=sha256,
        notices=(*_patient_notices(name, file.table, patients, data.labels), *table_notices),
        table_notices=table_notices,
    )


def _patient_codes(tables: Sequence[pd.DataFrame]) -> list[_Patients]:
    """Return codes of the patients, numbered consistently over all tables."""
    blanks = [pd.Series([""] * len(table), dtype=object) for table in tables]
    ids = pd.concat([table.get(PATIENT, blank) for table, blank in zip(tables, blanks, strict=True)])
    codes, texts = pd.factorize(ids)
    unnamed = (texts == "")[codes]
    codes[unnamed] = len(texts) + np.arange(unnamed.sum())
    codes = pd.factorize(codes)[0]  # dense again
    ends = np.cumsum([len(table) for table in tables])[:-1]
    parts = (np.split(each, ends) for each in (codes, unnamed, doubts(ids)))
    return [_Patients(code, int(blank.sum()), doubt) for code, blank, doubt in zip(*parts, strict=True)]
