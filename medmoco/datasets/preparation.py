"""The steps that all data sets share, from tables in common terms to a manifest with a README.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medmoco.data.manifest.manifest import SPLITS
from medmoco.data.manifest.split_files import SHARES, assign, counts_page, patient_ids, summary, write_folder
from medmoco.datasets.headers import years
from medmoco.datasets.source import Source, numbers
from medmoco.errors import ManifestError

BOXES = ["Path", "Label", "x_min", "y_min", "x_max", "y_max"]
"""Columns of boxes.csv, see manifests/README.md; `Reader` is optional."""

CHEXPERT_LABELS = [
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema",
    "Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture",
    "Support Devices",
]  # fmt: skip
"""Labels of the CheXpert labeller, which CheXpert and MIMIC-CXR-JPG use."""

_FIRST = ["Path", "Frame", "PatientID", "StudyID", "SeriesInstanceUID", "ViewPosition", "Sex", "Age", "Laterality"]
_CELLS: dict[str, Any] = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "-1": -1, "-1.0": -1, "": pd.NA}
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}


@dataclass(frozen=True)
class About:
    """Origin of a data set."""

    name: str  # as its makers call it
    url: str = ""  # download page; blank if the data are the user's own
    licence: str = ""  # its terms in a few words
    images: int | None = None  # number of images that its makers published; None if that varies


@dataclass(frozen=True)
class Prepared:
    """A data set in medmoco's terms, before its rows are assigned to splits.

    Attributes:
        table: N rows of text: Path in the official layout, ids and metadata as in the source, and labels.
        labels: Label columns of `table`; their cells are 1, 0, -1 (uncertain) or blank (missing), text or numbers.
        official: (N,) official split of each row; blank rows are assigned at random, as are all rows if None.
        shares: Fractions for val and test of the patients of blank rows.
        faults: (N,) reason to leave a row out, blank to keep it; None keeps all rows.
        boxes: Table with the columns `BOXES`, in pixels of the image.
        examined: Whether readers looked for boxes in every image; one without a box then gets a row that says so.
        scanned: Whether Paths come from files that exist, so that they need not be located.
        notes: Sentences for README.md.
        root: Value of `data.root` in README.md.
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


@dataclass(frozen=True)
class PreparedManifest:
    """The manifest that `medmoco prepare` has written.

    Attributes:
        folder: Contains train.csv, val.csv, test.csv and README.md.
        counts: Split -> number of images.
        left_out: Number of images in no split; left_out.csv gives the reason for each.
        text: Summary for the screen.
    """

    folder: Path
    counts: Mapping[str, int]
    left_out: int
    text: str


def corners(table: pd.DataFrame, names: Sequence[str]) -> dict[str, pd.Series[float]]:
    """Return the last four columns of `BOXES`, from columns with left, top, width and height in pixels.

    Raises:
        ManifestError: a cell is not a number.
    """
    left, top, width, height = (numbers(table[name]) for name in names)
    return dict(zip(BOXES[2:], (left, top, left + width, top + height), strict=True))


def join(left: pd.DataFrame, right: pd.DataFrame, key: str) -> pd.DataFrame:
    """Add the columns of `right` to the rows of `left` with the same key; blank without a match.

    Raises:
        ManifestError: a key occurs more than once in `right`.
    """
    if again := int(right[key].duplicated().sum()):
        raise ManifestError(f"in a table of the source, {again} rows repeat a {key}; download it again")
    return left.merge(right, on=key, how="left").fillna("")


def add_header_columns(table: pd.DataFrame, source: Source) -> pd.DataFrame:
    """Add ViewPosition, Sex and Age from the DICOM headers of the images that exist."""
    if not source.images:
        return table
    places = source.locate(table["Path"])
    there = places[places != ""]
    headers = source.headers(list(there)).set_axis(there.index)
    return table.join(headers[["ViewPosition", "Sex", "Age"]]).fillna("")


def write(about: About, prepared: Prepared, source: Source, *, seed: int, compressed: bool = False) -> PreparedManifest:
    """Split the rows by patient, locate the images, and write the manifest, boxes.csv, left_out.csv and README.md.

    The split is made before the images are located, so a partial download gets the same split as a complete one.

    Raises:
        ManifestError: a label cell is invalid, a patient would be in two splits, or none of the listed images exists.
    """
    table, notes = _tidy(prepared) if len(prepared.table) else (prepared.table, [])
    faults = _faults(table, prepared.faults)
    kept = table[faults == ""]
    if kept.empty:
        why = f"; the most frequent reason: {faults.value_counts().index[0]}" if len(faults) else ""
        raise ManifestError(f"{source.folder}: found no usable row of {about.name}{why}")
    labels = kept[list(prepared.labels)].astype("float32")
    patients, unnamed = patient_ids(kept)
    nobody = "The source does not identify patients: each image counts as a patient, so a person may be in two splits."
    if "PatientID" not in kept:
        notes.append(nobody)
    elif unnamed:
        notes.append(
            f"{unnamed:,} rows have no PatientID: each of their studies, or else each image, counts as a patient."
        )
    official = _official(prepared, table)[kept.index]
    shares = {name: share for name, share in prepared.shares.items() if not (official == name).any()}
    splits = assign(patients, labels, official, shares, seed=seed)
    places = kept["Path"] if prepared.scanned else _locate(kept["Path"], source, notes)
    faults[kept.index[places == ""]] = "image file not found in the source folder"
    kept = kept.assign(Path=places)[places != ""]
    files = {name: kept[splits[kept.index] == name] for name in SPLITS}
    identity = [name for name in ("Path", "SeriesInstanceUID") if name in table]
    left_out = table[identity].assign(Reason=faults)[faults != ""]
    extra = {"left_out": left_out}
    if prepared.boxes is not None:
        extra["boxes"] = _boxes(prepared, table, kept)
    page = _page(about, prepared, files, left_out, counts_page(files, patients, labels), notes, seed)
    suffix = ".csv.gz" if compressed else ".csv"
    write_folder(source.out, files | extra, page, suffix)
    lines = [f"{about.name}: {summary(files, patients)}"]
    if len(left_out):
        lines.append(f"{len(left_out):,} rows were left out: left_out{suffix} gives the reason for each")
    if nobody in notes:
        lines.append(nobody)
    lines.append(f"see {source.out / 'README.md'} for details")
    counts = {name: len(rows) for name, rows in files.items()}
    return PreparedManifest(source.out, counts, len(left_out), "\n".join(lines))


def _tidy(prepared: Prepared) -> tuple[pd.DataFrame, list[str]]:
    """Return the table with its columns in order and uniform cells of Sex, Age and labels, and the notes."""
    table, notes = prepared.table.reset_index(drop=True), list(prepared.notes)
    if "Sex" in table:
        table["Sex"] = table["Sex"].str.strip().str.lower().map(_SEXES).fillna("")
    if "Age" in table:
        given = table["Age"]
        table["Age"] = given.map({text: years(text) for text in given.unique()})
        if odd := int(((table["Age"] == "") & ~given.str.strip().str.lower().isin(["", "nan"])).sum()):
            notes.append(f"{odd:,} ages are blank: the value in the source is not an age, or above 120.")
    table = table.assign(**{label: _label_cells(table[label]) for label in prepared.labels})
    first = [name for name in _FIRST if name in table]
    others = [name for name in table.columns if name not in {*first, *prepared.labels}]
    return table[[*first, *others, *prepared.labels]], notes


def _label_cells(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return 1, 0, -1 and blank as 8-bit integers, from text, whole numbers or booleans."""
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
    key = [name for name in ("Path", "Frame", "SeriesInstanceUID") if name in table]
    again = table[faults == ""].duplicated(key)
    faults[again.index[again]] = "same image as in an earlier row"
    return faults


def _official(prepared: Prepared, table: pd.DataFrame) -> pd.Series[str]:
    if prepared.official is None:
        return pd.Series("", table.index)
    official = prepared.official.reset_index(drop=True)
    if odd := int((~official.isin([*SPLITS, ""])).sum()):
        raise ManifestError(f"the official split of {odd} rows is unknown; download the table again")
    return official


def _locate(paths: pd.Series[str], source: Source, notes: list[str]) -> pd.Series[str]:
    """Return the path of each image, blank if it is missing; the official path if there are no images at all."""
    if not source.images:
        notes.append(
            "The source folder contained no images, so Paths follow the official layout; `medmoco check` lists those "
            "that are missing."
        )
        return paths
    places = source.locate(paths)
    found = int((places != "").sum())
    if not found:
        raise ManifestError(
            f"{source.folder}: none of the {len(paths):,} listed images is among the {len(source.images):,} images\n"
            "in this folder; give the folder that holds both tables and images, or one with the tables alone"
        )
    notes.append(f"{found:,} of {len(paths):,} image files were found, by name; none was opened.")
    return places


def _boxes(prepared: Prepared, table: pd.DataFrame, kept: pd.DataFrame) -> pd.DataFrame:
    """Return the boxes of the rows that are kept, with the Paths of the manifest, and rows for images without any."""
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
        f"# {about.name}", "", f"{origin}Written by `medmoco prepare` with seed {seed}.",
        "", "```yaml", "data:", "  manifest: DIR   # this folder", f"  root: {prepared.root}",
        *([f"  labels: [{labels}]{more}"] if labels else []), "```", "", "## Counts", "", counts, "", "## Left out", "",
    ]  # fmt: skip
    if len(left_out):
        lines += ["| reason | rows |", "|---|---:|"]
        kinds = left_out["Reason"].str.split(": ").str[0]  # what follows a colon may differ from row to row
        lines += [f"| {kind} | {count:,} |" for kind, count in kinds.value_counts().items()]
        lines += ["", "`left_out.csv` lists these rows."]
    else:
        lines.append("Nothing.")
    total = rows + len(left_out)
    if about.images and total != about.images:
        lines += ["", f"The source has {total:,} images; its makers published {about.images:,}."]
    elif about.images:
        lines += ["", f"The source has {total:,} images, as its makers published."]
    if prepared.boxes is not None:
        notes = [*notes, "`manifests/README.md` of medmoco describes the format of `boxes.csv`.", (
            "Every image was examined: an image without boxes has a row in `boxes.csv` with its Path alone."
            if prepared.examined
            else "Images that are not in `boxes.csv` were not examined for boxes: they may show the finding."
        )]  # fmt: skip
    return "\n".join([*lines, "", "## Notes", "", *(f"- {note}" for note in notes)])
