"""train.csv, val.csv and test.csv with a page of their counts: the `split` command, and what preparation ends in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from medmoco.data.manifest import SPLITS, read_table
from medmoco.data.splits import draw_splits, fraction_size, nested_places, text_keys
from medmoco.data.tables import write_table
from medmoco.data.where import did_you_mean
from medmoco.errors import ManifestError, SettingsError

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
        group: Column that names the patient; None is PatientID, or every row for itself where there is no such column.
        keep: Column with an official split: its val and test rows stay, and only the rest is split.
        shares: Of the rest's patients for val and test; None is 0.1 and 0.2.
        fractions: Percentages of the training patients that get files of their own, a smaller inside a larger.
        seed: Of the draw.

    Returns:
        A line that says what was done.

    Raises:
        SettingsError: an argument cannot be used, or `out` is not an empty folder.
        ManifestError: the file, a column or a cell cannot be used, or the kept rows share patients with the rest.
    """
    check_new_folder(out)
    table, values = read_table(file, labels)
    if table.empty:
        raise ManifestError(f"{file}: no rows below the header")
    for column in (group, keep):
        if column and column not in table:
            raise SettingsError(f"{file}: no column {column!r}{did_you_mean(column, list(table.columns))}")
    patients, unnamed = patient_ids(table, group or "PatientID")
    official = _official(table, keep, file)
    splits = assign(patients, values, official, _wanted(shares or {}, official, keep), seed=seed)
    files = {name: table[splits == name] for name in SPLITS}
    files |= _fraction_files(files["train"], patients, fractions, seed)
    notes = [f"Seed {seed}. Shares are of patients; balanced by label: {', '.join(labels) or 'none was named'}."]
    if unnamed:
        notes.append(f"{unnamed:,} rows name no patient: one study, or else one image, is taken as one.")
    if keep:
        notes.append(f"The val and test rows of the column `{keep}` stayed; only the rest was split.")
    if fractions:
        notes.append("`train_NN.csv` holds the rows of NN % of the training patients, a smaller file inside a larger.")
    page = ["# Splits by patient", *notes, counts_page(files, patients, values)]
    write_folder(out, files, "\n\n".join(page))
    return f"{summary(files, patients)}; README.md in {out} counts the labels"


def check_new_folder(out: Path) -> None:
    """Raise SettingsError unless `out` is a new or empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out} is not an empty folder; name a new one, or delete it first")


def patient_ids(table: pd.DataFrame, column: str = "PatientID") -> tuple[pd.Series[str], int]:
    """Return each row's patient, and how many rows name none.

    Such rows count as one patient where they share a StudyID, or else a Path (frames of one file), or else all cells.
    """
    named = table[column] if column in table else pd.Series("", table.index)
    blank = named.str.strip() == ""
    if not blank.any():
        return named, 0
    own = table["Path"] if "Path" in table else table.agg(_MARK.join, axis=1)
    if "StudyID" in table:
        own = own.where(table["StudyID"].str.strip() == "", _MARK + table["StudyID"])
    return named.mask(blank, _MARK + own), int(blank.sum())


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
    cells = table[keep].str.strip().str.lower()
    odd = ~cells.isin([*SPLITS, ""])
    if odd.any():
        raise ManifestError(f"{file}: row {odd.idxmax()}: {keep!r} must be train, val, test or blank")
    return cells.where(cells.isin(["val", "test"]), "")


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
