"""What the scripts in dataset_processing/ share: a public data set's own tables in, manifests with a README.md out."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medmoco.config.paths import to_path
from medmoco.data.manifest.manifest import SPLITS
from medmoco.data.manifest.split_files import (
    SHARES,
    assign,
    check_new_folder,
    counts_page,
    patient_ids,
    summary,
    write_folder,
)
from medmoco.datasets.headers import years
from medmoco.datasets.source import Source, numbers
from medmoco.errors import ManifestError, MedmocoError, SettingsError

BOXES = ["Path", "Label", "x_min", "y_min", "x_max", "y_max"]
"""Columns of boxes.csv, described in manifests/README.md; `Reader` may follow."""

CHEXPERT_LABELS = [
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
]  # fmt: skip
"""What the CheXpert labeller finds in reports, in CheXpert and in MIMIC-CXR-JPG."""

_FIRST = ["Path", "Frame", "PatientID", "StudyID", "ViewPosition", "Sex", "Age", "Laterality"]
_CELLS: dict[str, Any] = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "-1": -1, "-1.0": -1, "": pd.NA}
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}


@dataclass(frozen=True)
class About:
    """Where a data set comes from.

    Attributes:
        name: As its makers call it.
        url: Where to get it; blank where it is the user's own.
        licence: Its terms, in a few words.
        images: How many its makers published; None where that varies.
        dicom: Whether the script reads DICOM headers.
        source: What `--source` is.
    """

    name: str
    url: str = ""
    licence: str = ""
    images: int | None = None
    dicom: bool = False
    source: str = "folder with the tables, and the images if they are there already"


@dataclass(frozen=True)
class Prepared:
    """A data set in the project's terms, before its rows are given to splits.

    Attributes:
        table: N rows of text: Path in the official layout, ids and metadata as the source has them, and labels.
        labels: Columns of `table`; their cells 1, 0, -1 (uncertain) or blank (missing), as text or as numbers.
        official: (N,) the split a row must be in, or blank where it is to be drawn; None draws all.
        shares: Of the patients of the blank rows, for val and test.
        faults: (N,) why a row is left out, or blank; None leaves out none.
        boxes: The columns of `BOXES`, in pixels of the image.
        examined: Whether boxes were looked for in every image: one without any then has a row that says so.
        scanned: Whether the Paths are those of files that are there, so that none needs to be looked for.
        notes: Sentences for README.md.
        root: What `data.root` is to be.
    """

    table: pd.DataFrame
    labels: Sequence[str] = ()
    official: pd.Series[str] | None = None
    shares: Mapping[str, float] = field(default_factory=lambda: SHARES)
    faults: pd.Series[str] | None = None
    boxes: pd.DataFrame | None = None
    examined: bool = False
    scanned: bool = False
    notes: Sequence[str] = ()
    root: str = "DIR   # where Paths start: the folder given as --source"


def corners(table: pd.DataFrame, names: Sequence[str]) -> dict[str, pd.Series[float]]:
    """Return the last four columns of `BOXES`, from those that give left, top, width and height in pixels.

    Raises:
        ManifestError: a cell is no number.
    """
    left, top, width, height = (numbers(table[name]) for name in names)
    return dict(zip(BOXES[2:], (left, top, left + width, top + height), strict=True))


def join(left: pd.DataFrame, right: pd.DataFrame, key: str) -> pd.DataFrame:
    """Add the columns of `right` to the rows of `left` with the same key; blank where there is none.

    Raises:
        ManifestError: `right` has a key twice.
    """
    if again := int(right[key].duplicated().sum()):
        raise ManifestError(f"a table of the source has {again} values of {key} twice; download it again")
    return left.merge(right, on=key, how="left").fillna("")


def add_header_columns(table: pd.DataFrame, source: Source) -> pd.DataFrame:
    """Add ViewPosition, Sex and Age from the DICOM headers of those images that are there."""
    if not source.images:
        return table
    places = source.locate(table["Path"])
    there = places[places != ""]
    headers = source.headers(list(there)).set_axis(there.index)
    return table.join(headers[["ViewPosition", "Sex", "Age"]]).fillna("")


def _path(text: str) -> Path:
    try:
        return to_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(about: About, prepare: Callable[[Source], Prepared], arguments: Sequence[str] | None = None) -> None:
    """Be the command line of a script; errors a user can cause end in their message and exit code."""
    origin = f" Get it from {about.url}" if about.url else ""
    parser = argparse.ArgumentParser(description=f"Write manifests of {about.name}.{origin}")
    parser.add_argument("--source", type=_path, required=True, help=about.source)
    parser.add_argument("--out", type=_path, required=True, help="new or empty folder for the manifests")
    parser.add_argument("--seed", type=int, default=0, help="of the split by patient (default: 0)")
    parser.add_argument("--gzip", action="store_true", help="write .csv.gz, which medmoco reads as well")
    if about.dicom:
        parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that read headers")
    given = parser.parse_args(arguments)
    os.environ["PYTHONSAFEPATH"] = "1"  # processes that read headers import nothing of the working folder
    try:
        check_new_folder(given.out)
        if not given.source.exists():
            raise SettingsError(f"--source: {given.source} does not exist")
        source = Source(given.source, given.out, getattr(given, "workers", 1))
        print(write(about, prepare(source), source, seed=given.seed, compressed=given.gzip))
    except MedmocoError as error:
        print(f"medmoco: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def write(about: About, prepared: Prepared, source: Source, *, seed: int, compressed: bool = False) -> str:
    """Draw the splits, look for the images, and write manifests, boxes.csv, left_out.csv and README.md.

    Splits are drawn before images are looked for, so they are the same with half of the images as with all.

    Returns:
        Lines that say what was done.

    Raises:
        ManifestError: a label cell cannot be used, a patient would be in two splits, or no listed image is there.
    """
    table, notes = _tidy(prepared) if len(prepared.table) else (prepared.table, [])
    faults = _faults(table, prepared.faults)
    kept = table[faults == ""]
    if kept.empty:
        raise ManifestError(f"{source.folder}: no usable row of {about.name} was found")
    labels = kept[list(prepared.labels)].astype("float32")
    patients, unnamed = patient_ids(kept)
    nobody = "The source names no patients: every image is its own, and one person may be in two splits."
    if "PatientID" not in kept:
        notes.append(nobody)
    elif unnamed:
        notes.append(f"{unnamed:,} rows name no patient: one study, or else one image, is taken as one.")
    official = _official(prepared, table)[kept.index]
    splits = assign(patients, labels, official, _open_shares(prepared.shares, official), seed=seed)
    places = kept["Path"] if prepared.scanned else _locate(kept["Path"], source, notes)
    faults[kept.index[places == ""]] = "image file not found below the source folder"
    kept = kept.assign(Path=places)[places != ""]
    files = {name: kept[splits[kept.index] == name] for name in SPLITS}
    left_out = pd.DataFrame({"Path": table["Path"], "Reason": faults})[faults != ""]
    extra = {"left_out": left_out}
    if prepared.boxes is not None:
        extra["boxes"] = _boxes(prepared, table, kept)
    page = _page(about, prepared, files, left_out, counts_page(files, patients, labels), notes, seed)
    suffix = ".csv.gz" if compressed else ".csv"
    write_folder(source.out, files | extra, page, suffix)
    result = [f"{about.name}: {summary(files, patients)}"]
    if len(left_out):
        result.append(f"{len(left_out):,} rows were left out; README.md says why, left_out{suffix} lists them")
    if nobody in notes:
        result.append(nobody)
    return "\n".join([*result, f"read {source.out / 'README.md'}"])


def _tidy(prepared: Prepared) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with its columns in order and the cells of Sex, Age and labels in the project's spelling."""
    table, notes = prepared.table.reset_index(drop=True), list(prepared.notes)
    if "Sex" in table:
        table["Sex"] = table["Sex"].str.strip().str.lower().map(_SEXES).fillna("")
    if "Age" in table:
        given = table["Age"]
        table["Age"] = given.map({text: years(text) for text in given.unique()})
        if odd := int(((table["Age"] == "") & ~given.str.strip().str.lower().isin(["", "nan"])).sum()):
            notes.append(f"{odd:,} ages are blank because the source's is no age or above 120.")
    table = table.assign(**{label: _label_cells(table[label]) for label in prepared.labels})
    first = [name for name in _FIRST if name in table]
    others = [name for name in table.columns if name not in {*first, *prepared.labels}]
    return table[[*first, *others, *prepared.labels]], notes


def _label_cells(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return 1, 0, -1 and blank as 8-bit integers, of text, whole numbers or truths."""
    codes, cells = pd.factorize(column)
    known = [_CELLS.get(str(cell).strip().lower()) for cell in cells]
    odd = np.isin(codes, [code for code, cell in enumerate(known) if cell is None])
    if odd.any():
        raise ManifestError(
            f"the label {column.name!r} has {odd.sum()} cells other than 1, 0, -1 and blank; download the table again"
        )
    values = pd.array([*known, pd.NA], "Int8")
    return pd.Series(values.take(codes), column.index)


def _faults(table: pd.DataFrame, given: pd.Series[str] | None) -> pd.Series[str]:
    faults = pd.Series("", table.index) if given is None else given.reset_index(drop=True).astype(str)
    key = [name for name in ("Path", "Frame") if name in table]
    again = table[faults == ""].duplicated(key)
    faults[again.index[again]] = "the same image as an earlier row"
    return faults


def _official(prepared: Prepared, table: pd.DataFrame) -> pd.Series[str]:
    if prepared.official is None:
        return pd.Series("", table.index)
    official = prepared.official.reset_index(drop=True)
    if odd := int((~official.isin([*SPLITS, ""])).sum()):
        raise ManifestError(f"{odd} rows have an official split of an unknown name; download the table again")
    return official


def _open_shares(shares: Mapping[str, float], official: pd.Series[str]) -> dict[str, float]:
    """Return the shares of those splits that the source does not fix."""
    return {name: share for name, share in shares.items() if not (official == name).any()}


def _locate(paths: pd.Series[str], source: Source, notes: list[str]) -> pd.Series[str]:
    """Return where each image lies: blank where it is missing, the official place where there is no image at all."""
    if not source.images:
        notes.append(
            "No image files were below the source folder, so none was looked for: Paths are those of the official "
            "layout, and medmoco will say which are missing."
        )
        return paths
    places = source.locate(paths)
    found = int((places != "").sum())
    if not found:
        raise ManifestError(
            f"{source.folder}: none of the {len(paths):,} listed images is among the {len(source.images):,} image\n"
            "files below it; give the folder that holds both, or one without any images"
        )
    notes.append(f"{found:,} of {len(paths):,} image files were found by name; none was opened.")
    return places


def _boxes(prepared: Prepared, table: pd.DataFrame, kept: pd.DataFrame) -> pd.DataFrame:
    """Return the boxes of the rows that are kept, with their Paths as written, and the images without any."""
    assert prepared.boxes is not None
    places = dict(zip(table.loc[kept.index, "Path"], kept["Path"], strict=True))
    inside = prepared.boxes[prepared.boxes["Path"].isin(places)]
    boxes = inside.assign(Path=inside["Path"].map(places))
    without = kept["Path"][~kept["Path"].isin(boxes["Path"])]
    return pd.concat([boxes, pd.DataFrame({"Path": without})]) if prepared.examined else boxes


def _page(
    about: About,
    prepared: Prepared,
    files: Mapping[str, pd.DataFrame],
    left_out: pd.DataFrame,
    counts: str,
    notes: Sequence[str],
    seed: int,
) -> str:
    labels = ", ".join(json.dumps(label) for label in prepared.labels[:20])
    more = f"   # and {len(prepared.labels) - 20} more" if len(prepared.labels) > 20 else ""
    origin = f"From {about.url} ({about.licence}). " if about.url else ""
    rows = sum(map(len, files.values()))
    lines = [
        f"# {about.name}", "", f"{origin}Written by a script of medmoco with seed {seed}.",
        "", "```yaml", "data:", "  manifest: DIR   # this folder", f"  root: {prepared.root}",
        *([f"  labels: [{labels}]{more}"] if labels else []), "```", "", "## Counts", "", counts, "", "## Left out", "",
    ]  # fmt: skip
    if len(left_out):
        lines += ["| why | rows |", "|---|---:|"]
        lines += [f"| {reason} | {count:,} |" for reason, count in left_out["Reason"].value_counts().items()]
        lines += ["", "`left_out.csv` lists them."]
    else:
        lines.append("Nothing.")
    total = rows + len(left_out)
    if about.images and total != about.images:
        lines += ["", f"The source has {total:,} images; its makers published {about.images:,}."]
    elif about.images:
        lines += ["", f"The source has {total:,} images, as its makers published."]
    if prepared.boxes is not None:
        notes = [*notes, "`boxes.csv` is in the format that `manifests/README.md` of medmoco describes.", (
            "Every image was examined: one without a box has a row in `boxes.csv` that names it alone."
            if prepared.examined
            else "An image that `boxes.csv` does not name was not examined for boxes: it may have the finding."
        )]  # fmt: skip
    return "\n".join([*lines, "", "## Notes", "", *(f"- {note}" for note in notes)])
