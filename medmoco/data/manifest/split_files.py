"""train.csv, val.csv and test.csv with a page of their counts: the `split` command, and what preparation ends in."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from medmoco.data.manifest.columns import PATIENT, STUDY, other_name
from medmoco.data.manifest.ids import BLANK, DOUBTS, POINT, ROUNDED, doubts
from medmoco.data.manifest.manifest import SPLITS, names_patients, patient_column_meant, read_table
from medmoco.data.manifest.row_filter import did_you_mean
from medmoco.data.manifest.splits import draw_splits, fraction_size, nested_places, text_keys
from medmoco.errors import ManifestError, SettingsError
from medmoco.utils.tables import write_table

_MARK = "\x1f"  # no id begins so; pandas takes texts that begin with NUL for equal

SHARES = {"val": 0.1, "test": 0.2}
"""Of the patients, unless told otherwise."""


def split_csv(
    file: Path,
    out: Path,
    *,
    labels: Sequence[str] = (),
    group: str | None = None,
    keep: str | None = None,
    shares: Mapping[str, float | None] | None = None,
    fractions: Sequence[float] = (),
    seed: int = 0,
) -> str:
    """Split a CSV by patient, balanced by label; write train.csv, val.csv, test.csv, train_NN.csv and README.md.

    Args:
        file: Any CSV with label cells of 1, 0, -1 and blank.
        out: New or empty folder.
        labels: Columns to balance.
        group: Column that names the patient; None is PatientID, or every row for itself where no column seems to.
            Where there is no PatientID, the files get one that is its copy, for the other commands to read.
        keep: Column with an official split: its val and test rows stay, and only the rest is split.
        shares: Of the rest's patients for val and test; None is 0.1 and 0.2.
        fractions: Percentages of the training patients that get files of their own, a smaller inside a larger.
        seed: Of the draw.

    Returns:
        Lines that say what was done, and what the user should know.

    Raises:
        SettingsError: an argument cannot be used, `out` is not an empty folder, or a column other than PatientID seems
            to name the patient.
        ManifestError: the file, a column or a cell cannot be used, the kept rows share patients with the rest, or the
            patients are too few for a split that is wanted.
    """
    check_new_folder(out)
    table, values = read_table(file, labels)
    _check_table(file, table, labels, group, keep)
    patients, unnamed = patient_ids(table, group or PATIENT)
    _refuse_two_spellings(file, patients, group or PATIENT)
    official = _official(table, keep, file)
    wanted = _wanted(shares or {}, official, keep)
    splits = assign(patients, values, official, wanted, seed=seed)
    _refuse_empty(splits, patients, wanted)
    notes = [*_notes(table, labels, group, keep, unnamed), *_doubt_notes(patients, group or PATIENT)]
    if names_patients(table):
        notes += _parted_notes(table[PATIENT], splits)
    elif group:
        table[PATIENT] = table[group].str.strip()
    files = {name: table[splits == name] for name in SPLITS}
    files |= _fraction_files(files["train"], patients, fractions, seed)
    about = f"Seed {seed}. Shares are of patients; balanced by label: {', '.join(labels) or 'none was named'}."
    page = ["# Splits by patient", about, *notes, counts_page(files, patients, values)]
    if fractions:
        page.insert(2, "`train_NN.csv` holds the rows of NN % of the training patients, smaller files inside larger.")
    write_folder(out, files, "\n\n".join(page))
    return "\n".join([f"{summary(files, patients)}; README.md in {out} counts the labels", *notes])


def check_new_folder(out: Path) -> None:
    """Raise SettingsError unless `out` is a new or empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out} is not an empty folder; name a new one, or delete it first")


def patient_ids(table: pd.DataFrame, column: str = PATIENT) -> tuple[pd.Series[str], int]:
    """Return each row's patient, and how many rows name none.

    Such rows count as one patient where they share a StudyID, or else a Path (frames of one file), whatever its column
    is called, or else all cells.
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
    """Refuse a table without rows or a column that is asked for, and one that seems to name patients elsewhere."""
    if table.empty:
        raise ManifestError(f"{file}: no rows below the header")
    for column in (group, keep):
        if column and column not in table:
            raise SettingsError(f"{file}: no column {column!r}{did_you_mean(column, list(table.columns))}")
    if group is None and (other := patient_column_meant(table, labels)):
        raise SettingsError(
            f"{file}: no row has a PatientID, but the column {other!r} seems to name the patient;\n"
            f"did you mean --group {shlex.quote(other)}? If it means something else, give it a name that says so"
        )


def _refuse_two_spellings(file: Path, patients: pd.Series[str], column: str) -> None:
    """Refuse ids with ".0", as pandas writes where a cell of the column is blank, that are there without it too."""
    odd = doubts(patients) == POINT
    if odd.any():
        more = f" (and {odd.sum() - 1} more rows)" if odd.sum() > 1 else ""
        raise ManifestError(
            f"{file}: row {patients.index[int(odd.argmax())]}{more}: {column} ends in .0 (12.0), and other rows"
            "\nhave the same number without (12): they would be two patients; write them alike"
        )


def _refuse_empty(splits: pd.Series[str], patients: pd.Series[str], shares: Mapping[str, float]) -> None:
    """Refuse to leave a split empty that has a share."""
    for name in [*(name for name, share in shares.items() if share), "train"]:
        if not (splits == name).any():
            count = patients[splits.isin([*shares, "train"])].nunique()
            given = ", ".join(f"--{split} {share:g}" for split, share in shares.items())
            if name != "train":
                remedy = f"raise --{name}, or give --{name} 0 to go without"
            else:
                remedy = "lower them" if shares else "leave out --keep, which gives every row to val or test"
            raise ManifestError(f"{count} patients with {given or 'no shares'}: {name} would be empty; {remedy}")


def _notes(table: pd.DataFrame, labels: Sequence[str], group: str | None, keep: str | None, unnamed: int) -> list[str]:
    """Say what a user should know of how the patients and the splits were told apart."""
    notes = []
    if group is None and PATIENT not in table:
        unit = "study (StudyID), or else each image," if STUDY in table else "image"
        notes.append(
            f"There is no PatientID column: each {unit} counts as its own patient, so one person may be in two splits; "
            "`--group` names the column of patients."
        )
    elif unnamed:
        notes.append(f"{unnamed:,} rows name no patient: one study, or else one image, is taken as one.")
    if unnamed and STUDY not in table and (study := other_name(STUDY, table.columns, labels)):
        notes.append(
            f"The column {study!r} is not read as StudyID: rename it, and the images of a study stay together."
        )
    if group and not names_patients(table):
        notes.append(f"The column PatientID is a copy of {group!r}, so that the other commands group by it too.")
    if "Path" not in table and (path := other_name("Path", table.columns, labels)):
        notes.append(f"The column {path!r} is to be renamed to Path before other commands can read the files.")
    if keep:
        notes.append(f"The val and test rows of the column `{keep}` stayed; only the rest was split.")
    elif (official := other_name("Split", table.columns, labels)) and (_spelled(table[official]) == "test").any():
        notes.append(
            f"The column {official!r} was not used; `--keep {shlex.quote(official)}` keeps its val and test rows."
        )
    return notes


def _doubt_notes(patients: pd.Series[str], column: str) -> list[str]:
    found = doubts(patients)
    counts = {kind: int((found == kind).sum()) for kind in (BLANK, ROUNDED)}
    return [f"{count:,} rows have a {column} {DOUBTS[kind]}." for kind, count in counts.items() if count]


def _parted_notes(patients: pd.Series[str], splits: pd.Series[str]) -> list[str]:
    """Say how many patients are in two splits after all, as another column was to be grouped by."""
    named = patients != ""
    parted = int((splits[named].groupby(patients[named]).nunique() > 1).sum())
    if not parted:
        return []
    return [f"{parted:,} patients (PatientID) are in two splits, as --group named another column."]


def assign(
    patients: pd.Series[str],
    labels: pd.DataFrame,
    official: pd.Series[str],
    shares: Mapping[str, float],
    *,
    seed: int,
) -> pd.Series[str]:
    """Return the split of every row: the official one, and where that is blank one drawn by patient.

    Args:
        patients: (N,) ids.
        labels: (N, L), 1, 0, -1 or nan.
        official: (N,) train, val, test or blank.
        shares: Of the patients of the blank rows; the others are train.
        seed: Of the draw.

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
            f"{several.sum()} patients of the official split's rows have rows elsewhere too, so they would be in two\n"
            "splits; split without it (the column stays in the files), by patient"
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


def _wanted(given: Mapping[str, float | None], official: pd.Series[str], keep: str | None) -> dict[str, float]:
    shares = {}
    for name, usual in SHARES.items():
        share = given.get(name)
        if (official == name).any():
            if share:
                raise SettingsError(f"--{name}: the column {keep!r} has {name} rows already; leave --{name} out")
            continue
        shares[name] = usual if share is None else share
    if min(shares.values(), default=0) < 0 or sum(shares.values()) >= 1:
        raise SettingsError("--val and --test: neither can be negative, and their sum must be below 1")
    return shares


def _fraction_files(
    train: pd.DataFrame, patients: pd.Series[str], fractions: Sequence[float], seed: int
) -> dict[str, pd.DataFrame]:
    if odd := [percent for percent in fractions if not 0 < percent < 100]:
        raise SettingsError(f"--fractions: {odd[0]:g} is not a percentage between 0 and 100 (train.csv is 100)")
    codes, ids = pd.factorize(patients[train.index])
    places = nested_places(text_keys(ids), seed=seed)[codes]
    return {
        f"train_{percent:02g}": train[places < fraction_size(percent / 100, len(ids))] for percent in sorted(fractions)
    }


# Counts


def summary(files: Mapping[str, pd.DataFrame], patients: pd.Series[str]) -> str:
    """Say in one line how large each split is."""
    sizes = {name: (len(table), patients[table.index].nunique()) for name, table in files.items()}
    return ", ".join(f"{name} {rows:,} rows of {people:,} patients" for name, (rows, people) in sizes.items())


def counts_page(files: Mapping[str, pd.DataFrame], patients: pd.Series[str], labels: pd.DataFrame) -> str:
    """Return Markdown: rows and patients of each file, and what its label cells say."""
    tables = files.values()
    header = [_line("", files), "|---|" + "---:|" * len(files)]
    lines = [*header, _line("rows", (f"{len(table):,}" for table in tables))]
    lines.append(_line("patients", (f"{patients[table.index].nunique():,}" for table in tables)))
    if labels.empty:
        return "\n".join(lines)
    lines += ["", "Label cells: positive (1) / negative (0) / uncertain (-1) / missing (blank).", "", *header]
    lines += [_line(label, (_cells(labels.loc[table.index, label]) for table in tables)) for label in labels.columns]
    for name, table in files.items():
        found = labels.loc[table.index]
        scored = (found == 1).any() & (found == 0).any()
        if not scored.all():
            lines += ["", f"Only one class in {name} as the cells stand: {', '.join(labels.columns[~scored])}."]
    return "\n".join(lines)


def _line(name: str, cells: Iterable[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


def _cells(values: pd.Series[float]) -> str:
    counts = [int((values == value).sum()) for value in (1, 0, -1)]
    return " / ".join(f"{count:,}" for count in [*counts, int(values.isna().sum())])


def write_folder(out: Path, files: Mapping[str, pd.DataFrame], page: str, suffix: str = ".csv") -> None:
    """Write each table that has rows, and README.md.

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
        raise SettingsError(f"cannot write to {out}: {error.strerror}; free some room or name another folder") from None
