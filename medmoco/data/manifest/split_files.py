"""Write train.csv, val.csv and test.csv with a README of counts, for `medmoco split` and `medmoco prepare`."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from medmoco.config import ConfigSource, DataSettings, LabelPolicy, load
from medmoco.data.manifest.columns import PATIENT, STUDY, other_name
from medmoco.data.manifest.ids import BLANK, DOUBTS, POINT, ROUNDED, doubts
from medmoco.data.manifest.manifest import SPLITS, names_patients, patient_column_meant, read_described, read_table
from medmoco.data.manifest.row_filter import did_you_mean
from medmoco.data.manifest.splits import draw_splits, fraction_size, merged_by_image, nested_places, text_keys
from medmoco.data.manifest.tables.naming import as_setting
from medmoco.errors import ManifestError, SettingsError
from medmoco.utils.files import PathLike
from medmoco.utils.tables import write_table

_MARK = "\x1f"  # no ID starts with it; not NUL, as pandas treats texts that start with NUL as equal

SHARES = {"val": 0.1, "test": 0.2}
"""Default fractions of the patients."""


def split(
    table: PathLike,
    out: PathLike,
    *,
    labels: Sequence[str] = (),
    group: str | None = None,
    keep: str | None = None,
    val: float | None = None,
    test: float | None = None,
    fractions: Sequence[float] = (),
    merge_duplicates: PathLike | None = None,
    seed: int = 0,
    config: ConfigSource | None = None,
) -> str:
    """Split a CSV by patient, balanced by label; write train.csv, val.csv, test.csv, train_NN.csv and README.md.

    Args:
        table: Any CSV with label cells of 1, 0, -1 or blank, or JSON lines; may be compressed (.csv.gz).
        out: New or empty folder.
        labels: Columns to balance.
        group: Column that identifies the patient. None means PatientID, or one patient per row if no column seems to
            identify patients. If there is no PatientID, it is added as a copy of this column for the other commands.
        keep: Column with an official split; its val and test rows are kept, and only the rest is split.
        val: Fraction of the remaining patients in val; None means 0.1.
        test: Fraction of the remaining patients in test; None means 0.2.
        fractions: Percentages of the training patients to write as separate files, smaller ones nested in larger ones.
        merge_duplicates: Folder of `check`, or the duplicates.csv in it: patients with the same image, or nearly the
            same, come into one split.
        seed: Seed of the draw.
        config: Settings that describe the table, see `load_config`: its columns, labels, joined table and condition.
            Rows that `data.where` leaves out are not written; the others are written as they are in the table, so that
            the same settings describe the new files. Without `labels`, all labels of the settings are balanced.

    Returns:
        Lines of text with the sizes of the splits and notes for the user.

    Raises:
        SettingsError: an argument is invalid, `out` is not an empty folder, or a column other than PatientID seems to
            identify the patient.
        ManifestError: the file, a column or a cell is invalid, the kept rows share patients with the rest, or there are
            too few patients for a requested split.

    Examples:
        >>> import medmoco
        >>> print(medmoco.split("phantoms/train.csv", "splits", labels=["Opacity"]).splitlines()[0])
        train 31 rows of 13 patients, val 3 rows of 2 patients, test 5 rows of 3 patients; ...
    """
    file, out = Path(table), Path(out)
    check_new_folder(out)
    written, values = read_table(file, () if config else labels)
    rows, notices = written, list[str]()
    if config:
        rows, values, notices = _read_described(file, labels, load(config).data)
        written, labels = written.loc[rows.index], [*values.columns]
    _check_table(file, rows, labels, group, keep)
    patients, unnamed = patient_ids(rows, group or PATIENT)
    _refuse_ids_with_and_without_point(file, patients, group or PATIENT)
    official = _official(rows, keep, file)
    fractions_of_rest = _shares({"val": val, "test": test}, official, keep)
    notes = [*notices, *_notes(rows, labels, group, keep, unnamed), *_doubt_notes(patients, group or PATIENT)]
    together = patients
    if merge_duplicates is not None:
        together, note = merged_by_image(file, rows, patients, Path(merge_duplicates))
        notes.append(note)
    try:
        splits = assign(together, values, official, fractions_of_rest, seed=seed)
    except ManifestError as error:
        hint = "" if together is patients else "\nPatients that share duplicates count as one (--merge-duplicates)"
        raise ManifestError(f"{error}{hint}") from None
    _refuse_empty(splits, patients, fractions_of_rest)
    if names_patients(rows):
        notes += _divided_notes(rows[PATIENT], splits)
    elif group:
        ids = {PATIENT: rows[group].str.strip()}
        rows, written = rows.assign(**ids), written.assign(**ids)
    files = {name: written[splits == name] for name in SPLITS}
    files |= _fraction_files(files["train"], patients, fractions, seed)
    counted = {name: rows.loc[table.index] for name, table in files.items()}
    unit, units = _unit(counted)
    about = f"Seed {seed}. Fractions are of {units}, balanced by label: {', '.join(labels) or 'none'}."
    page = [f"# Splits by {unit}", about, *notes, counts_page(counted, patients, values)]
    if fractions:
        page.insert(
            2,
            f"`train_NN.csv` contains the rows of NN % of the training {units}; smaller files are part of larger ones.",
        )
    write_folder(out, files, "\n\n".join(page))
    return "\n".join([f"{summary(counted, patients)}; {out / 'README.md'} lists the label counts", *notes])


def _read_described(
    file: Path, labels: Sequence[str], data: DataSettings
) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Return a table as the settings describe it, its label values, of all labels if none are named, and notices."""
    if labels:
        data = data.model_copy(update={"labels": {name: data.labels.get(name, LabelPolicy()) for name in labels}})
    return read_described(file, data)


def check_new_folder(out: Path) -> None:
    """Raise SettingsError unless `out` is a new or empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out} is not an empty folder; give a new folder, or delete this one first")


def patient_ids(table: pd.DataFrame, column: str = PATIENT) -> tuple[pd.Series[str], int]:
    """Return each row's patient, and the number of rows without a patient ID.

    Rows without one count as the same patient if they share a StudyID, or else a Path (frames of one file; synonyms of
    Path are recognised), or else all cells.
    """
    named = table[column].str.strip() if column in table else pd.Series("", table.index)
    blank = named == ""
    if not blank.any():
        return named, 0
    path = "Path" if "Path" in table else other_name("Path", table.columns)
    own = table[path].str.strip() if path else table.agg(_MARK.join, axis=1)
    if STUDY in table:
        studies = table[STUDY].str.strip()
        own = own.where(studies == "", _MARK + studies)
    return named.mask(blank, _MARK + own), int(blank.sum())


def _check_table(file: Path, table: pd.DataFrame, labels: Sequence[str], group: str | None, keep: str | None) -> None:
    """Refuse a table without rows or without a requested column, or with a patient column of another name."""
    if table.empty:
        raise ManifestError(f"{file}: there are no rows below the header")
    for column in (group, keep):
        if column and column not in table:
            raise SettingsError(f"{file}: no column {column!r}{did_you_mean(column, list(table.columns))}")
    if group is None and (other := patient_column_meant(table, labels)):
        raise SettingsError(
            f"{file}: no row has a PatientID, but the column {other!r} seems to identify the patient;\n"
            f"did you mean --group {shlex.quote(other)}? If it means something else, give it a clearer name"
        )


def _refuse_ids_with_and_without_point(file: Path, patients: pd.Series[str], column: str) -> None:
    """Refuse IDs that occur both with ".0", as pandas writes if a cell of the column is blank, and without it."""
    odd = doubts(patients) == POINT
    if odd.any():
        more = f" (and {odd.sum() - 1} more rows)" if odd.sum() > 1 else ""
        raise ManifestError(
            f"{file}: row {patients.index[int(odd.argmax())]}{more}: {column} ends in .0 (12.0), but other rows"
            "\nhave the same number without it (12): they would count as two patients; use one form"
        )


def _refuse_empty(splits: pd.Series[str], patients: pd.Series[str], shares: Mapping[str, float]) -> None:
    """Refuse splits that would be empty although a share was requested."""
    for name in [*(name for name, share in shares.items() if share), "train"]:
        if not (splits == name).any():
            count = patients[splits.isin([*shares, "train"])].nunique()
            given = ", ".join(f"--{split} {share:g}" for split, share in shares.items())
            if name != "train":
                remedy = f"raise --{name}, or give --{name} 0 to leave it out"
            else:
                remedy = "lower them" if shares else "drop --keep, which assigns every row to val or test"
            raise ManifestError(f"{count} patients with {given or 'no shares'}: {name} would be empty; {remedy}")


def _notes(table: pd.DataFrame, labels: Sequence[str], group: str | None, keep: str | None, unnamed: int) -> list[str]:
    """Return notes for the user about how patients and splits were identified."""
    notes = []
    if group is None and PATIENT not in table:
        unit = "study (StudyID), or else each image," if STUDY in table else "image"
        notes.append(
            f"There is no PatientID column: each {unit} counts as its own patient, so a patient may be in two splits; "
            "give the patient column with `--group`."
        )
    elif unnamed:
        notes.append(f"{unnamed:,} rows have no patient ID: each study, or else each image, counts as one patient.")
    if unnamed and STUDY not in table and (study := other_name(STUDY, table.columns, labels)):
        setting = as_setting(STUDY, [study])
        notes.append(f"The column {study!r} is not read as StudyID: {setting} keeps the images of a study together.")
    if group and not names_patients(table):
        notes.append(
            f"The column PatientID was added as a copy of {group!r}, so that the other commands group by it too."
        )
    if "Path" not in table and (path := other_name("Path", table.columns, labels)):
        notes.append(f"Other commands read the files with {as_setting('Path', [path])}.")
    if keep:
        notes.append(f"The val and test rows of the column `{keep}` were kept; only the rest was split.")
    elif (official := other_name("Split", table.columns, labels)) and (_spelled(table[official]) == "test").any():
        notes.append(
            f"The column {official!r} was not used; `--keep {shlex.quote(official)}` keeps its val and test rows."
        )
    return notes


def _doubt_notes(patients: pd.Series[str], column: str) -> list[str]:
    found = doubts(patients)
    counts = {kind: int((found == kind).sum()) for kind in (BLANK, ROUNDED)}
    return [f"{count:,} rows have a {column} {DOUBTS[kind]}." for kind, count in counts.items() if count]


def _divided_notes(patients: pd.Series[str], splits: pd.Series[str]) -> list[str]:
    """Return a note on how many patients are in two splits because another column was grouped by."""
    named = patients != ""
    divided = int((splits[named].groupby(patients[named]).nunique() > 1).sum())
    if not divided:
        return []
    return [f"{divided:,} patients (PatientID) are in two splits, since --group names another column."]


def assign(
    patients: pd.Series[str], labels: pd.DataFrame, official: pd.Series[str], shares: Mapping[str, float], *, seed: int
) -> pd.Series[str]:
    """Return the split of every row: the official one, or if that is blank one drawn by patient.

    Args:
        patients: (N,) IDs.
        labels: (N, L), 1, 0, -1 or nan.
        official: (N,) train, val, test or blank.
        shares: Fractions of the patients of the blank rows; the rest is train.
        seed: Seed of the draw.

    Raises:
        ManifestError: a patient would be in two splits.
    """
    splits = official.copy()
    rest = official == ""
    if rest.any():
        splits[rest] = draw_splits(patients[rest], labels[rest].to_numpy(), shares, seed=seed)
    several = splits.groupby(patients).nunique() > 1
    if several.any():
        raise ManifestError(
            f"{several.sum()} patients have rows both inside and outside the official split, so they would be in two\n"
            "splits; split by patient without --keep (the column is preserved in the files)"
        )
    return splits


def _official(table: pd.DataFrame, keep: str | None, file: Path) -> pd.Series[str]:
    if keep is None:
        return pd.Series("", table.index)
    cells = _spelled(table[keep])
    odd = ~cells.isin([*SPLITS, ""])
    if odd.any():
        raise ManifestError(f"{file}: row {odd.idxmax()}: {keep!r} must be train, val, test or blank")
    return cells.where(cells.isin(["val", "test"]), "")


def _spelled(cells: pd.Series[str]) -> pd.Series[str]:
    return cells.astype(str).str.strip().str.lower()


def _shares(given: Mapping[str, float | None], official: pd.Series[str], keep: str | None) -> dict[str, float]:
    shares = {}
    for name, default in SHARES.items():
        share = given.get(name)
        if (official == name).any():
            if share:
                raise SettingsError(f"--{name}: the column {keep!r} already has {name} rows; drop --{name}")
            continue
        shares[name] = default if share is None else share
    if min(shares.values(), default=0) < 0 or sum(shares.values()) >= 1:
        raise SettingsError("--val and --test: neither can be negative, and their sum must be below 1")
    return shares


def _fraction_files(
    train: pd.DataFrame, patients: pd.Series[str], fractions: Sequence[float], seed: int
) -> dict[str, pd.DataFrame]:
    if odd := [percent for percent in fractions if not 0 < percent < 100]:
        raise SettingsError(f"--fractions: {odd[0]:g} is not a percentage between 0 and 100 (train.csv is 100)")
    codes, ids = pd.factorize(patients[train.index])
    positions = nested_places(text_keys(ids), seed=seed)[codes]
    return {
        f"train_{percent:02g}": train[positions < fraction_size(percent / 100, len(ids))]
        for percent in sorted(fractions)
    }


# Counts


def summary(files: Mapping[str, pd.DataFrame], patients: pd.Series[str]) -> str:
    """Return a line with the size of each split; patients are counted only if the tables name them."""
    _, units = _unit(files)
    sizes = []
    for name, table in files.items():
        rows, count = len(table), patients[table.index].nunique()
        is_same = units == "images" and rows == count
        sizes.append(f"{name} {rows:,} images" if is_same else f"{name} {rows:,} rows of {count:,} {units}")
    return ", ".join(sizes) + ("" if units == "patients" else " (patients unknown)")


def _unit(files: Mapping[str, pd.DataFrame]) -> tuple[str, str]:
    """Return what a split keeps together, singular and plural: patients, or else studies, or else images."""
    if any(names_patients(table) for table in files.values()):
        return "patient", "patients"
    return ("study", "studies") if any(STUDY in table for table in files.values()) else ("image", "images")


def counts_page(files: Mapping[str, pd.DataFrame], patients: pd.Series[str], labels: pd.DataFrame) -> str:
    """Return a Markdown table with the rows, patients and label counts of each file."""
    tables = files.values()
    header = [_line("", files), "|---|" + "---:|" * len(files)]
    lines = [*header, _line("rows", (f"{len(table):,}" for table in tables))]
    lines.append(_line(_unit(files)[1], (f"{patients[table.index].nunique():,}" for table in tables)))
    if labels.empty:
        return "\n".join(lines)
    lines += ["", "Label cells: positive (1) / negative (0) / uncertain (-1) / missing (blank).", "", *header]
    lines += [_line(label, (_cells(labels.loc[table.index, label]) for table in tables)) for label in labels.columns]
    for name, table in files.items():
        cells = labels.loc[table.index]
        scored = (cells == 1).any() & (cells == 0).any()
        if not scored.all():
            lines += ["", f"Labels with only one class in {name}: {', '.join(labels.columns[~scored])}."]
    return "\n".join(lines)


def _line(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _cells(values: pd.Series[float]) -> str:
    counts = [int((values == value).sum()) for value in (1, 0, -1)]
    return " / ".join(f"{count:,}" for count in [*counts, int(values.isna().sum())])


def write_folder(out: Path, files: Mapping[str, pd.DataFrame], page: str, suffix: str = ".csv") -> None:
    """Write the tables that have rows, and README.md.

    Raises:
        SettingsError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, table in files.items():
            if len(table):
                write_table(out / f"{name}{suffix}", table)
        (out / "README.md").write_text(page.rstrip() + "\n", encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"cannot write to {out}: {error.strerror}; free some space or give another folder"
        ) from None
