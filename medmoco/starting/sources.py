"""What the user points at, a folder of images, a CSV or a manifest, as one table of images."""

from __future__ import annotations

import os.path
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medmoco.data.manifest.columns import PATIENT, STUDY, other_name
from medmoco.data.manifest.csv_file import CsvFile
from medmoco.data.manifest.manifest import SPLITS, TABLE_SUFFIXES, files_of, read_table
from medmoco.data.manifest.tables.paths import below_root, with_slashes
from medmoco.datasets.collections.image_folder import MOST_LABELS, label_columns, open_where_missing, read_folders
from medmoco.datasets.headers import years
from medmoco.datasets.source import Source, locate
from medmoco.errors import ManifestError, SettingsError
from medmoco.starting.labels import find_labels
from medmoco.utils.files import IMAGE_SUFFIXES

_RENAMED = ("Path", PATIENT, STUDY, "Frame", "ViewPosition", "Sex", "Age", "Laterality")
_SPLIT_NAMES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "": "",
}  # fmt: skip
_PATIENT_FOLDERS = re.compile(r"(?i)(pat(ient)?|sub(j(ect)?)?|p|case|participant|person|id)?[-_ ]?\d{2,}")
_PLAIN_IMAGES = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix not in {".dcm", ".dicom"})
_MOST_CLASSES = 20  # folders; more are patients or studies
_MATCHED = 0.5  # share of a column's cells that must name files for it to be the Path column
_TRIED_ROWS = 1000  # cells of each column of a CSV that are compared with file names


@dataclass(frozen=True)
class Images:
    """The images that a source lists, before their files are read.

    Attributes:
        root: Folder to which Path is relative, as the user named it; contains {split} if the manifest does.
        table: N rows of text: Path with /, metadata and labels.
        labels: Label columns of `table`.
        official: (N,) train, val, test or blank.
        faults: (N,) reason to leave a row out; blank to keep it.
        manifest: The user's own manifest, which is used as it is; None if one is to be written.
        columns: How the columns of a CSV are read, for the user to confirm.
        notes: What the user should know, one sentence each.
    """

    root: str
    table: pd.DataFrame
    labels: tuple[str, ...]
    official: pd.Series[str]
    faults: pd.Series[str]
    manifest: Path | None = None
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_source(
    source: Path, images: Path | None, chosen: Sequence[str] | None, ignored: Sequence[Path] = ()
) -> Images:
    """List the images of a source.

    Args:
        source: Folder of images, CSV, or manifest.
        images: Folder with the images of a CSV or manifest; by default they are searched next to it.
        chosen: Labels that the user chose; None for those that are found.
        ignored: Files and folders that medmoco writes, and that may lie inside the source.

    Raises:
        SettingsError: the source does not exist, or a chosen label is unknown.
        ManifestError: there are no images, or a table cannot be read.
    """
    if not source.exists():
        raise SettingsError(f"{source} does not exist; give a folder of images, a CSV file or a manifest")
    if images is not None and not images.is_dir():
        raise SettingsError(f"--images {images} is not a folder; give the folder that holds the images")
    if source.is_file():
        if not source.name.lower().endswith(TABLE_SUFFIXES):
            raise SettingsError(
                f"{source} is neither a folder nor a CSV file or JSON lines ({', '.join(TABLE_SUFFIXES)});\n"
                "give the folder that holds the images"
            )
        table = read_table(source)[0].reset_index(drop=True)
        if {"Path", "Split"} <= set(table.columns) and set(_splits(table["Split"])) <= set(SPLITS):
            return _manifest(source, table, images, chosen)
        return _from_table(source, table, images or source.parent, chosen, ignored)
    if files := [file for name in SPLITS for file in files_of(source, name)]:
        tables = [(file, read_table(file)[0].reset_index(drop=True)) for file in files]
        if all("Path" in table for _, table in tables):
            parts = [table.assign(Split=file.name.partition(".")[0]) for file, table in tables]
            return _manifest(source, pd.concat(parts, ignore_index=True).fillna(""), images, chosen)
    if images is not None:
        raise SettingsError("--images is for a CSV file or a manifest; of a folder of images, give only the folder")
    return _from_folder(source, chosen, ignored)


# Folders


def _from_folder(folder: Path, chosen: Sequence[str] | None, ignored: Sequence[Path]) -> Images:
    files = _files(folder, ignored)
    if not files:
        raise ManifestError(f"{folder} holds no files; give the folder that holds the images")
    table = pd.DataFrame({"Path": pd.Series(files, dtype=str)})
    images = [file for file in files if file.lower().endswith(IMAGE_SUFFIXES)] or files
    depth = _shared_depth(images)
    classes, official = (
        column.set_axis(images).reindex(files).fillna("").reset_index(drop=True)
        for column in read_folders(["/".join(file.split("/")[depth:]) for file in images])
    )
    labels, notes = _class_labels(classes), []
    if chosen is not None:
        known = label_columns(classes, sorted(set(classes) - {""}))
        if missing := [name for name in chosen if name not in known]:
            raise SettingsError(f"--labels: there is no folder {missing[0]!r}{_classes(labels, known, images)}")
        labels = known[list(chosen)]
    tables = [file for file in files if file.lower().endswith(TABLE_SUFFIXES) and "/" not in file]
    if tables:
        notes.append(
            f"The folder also holds {'a table' if len(tables) == 1 else f'{len(tables)} tables'}, which was not read:"
            f" `medmoco init {folder / tables[0]}` takes patients and labels from it."
        )
    cells = labels.map(lambda positive: "1" if positive else "0").where(classes != "", "")
    return Images(
        root=str(folder),
        table=table.join(cells.astype(str)),
        labels=tuple(cells.columns),
        official=open_where_missing(official),
        faults=pd.Series("", table.index),
        notes=tuple(notes),
    )


def _files(folder: Path, ignored: Sequence[Path]) -> list[str]:
    """Return the files below a folder, without those that medmoco wrote there."""
    inside = [
        path.resolve().relative_to(folder.resolve()).as_posix()
        for path in ignored
        if path.resolve().is_relative_to(folder.resolve()) and path.resolve() != folder.resolve()
    ]
    own = tuple(text for name in inside for text in (f"{name}/",))
    return [file for file in Source(folder, folder).files if file not in inside and not file.startswith(own)]


def _shared_depth(files: Sequence[str]) -> int:
    """Return the number of leading folders that all files share, except one that names a split."""
    first = files[0].split("/")[:-1]
    depth = 0
    for name in first:
        prefix = "/".join(first[: depth + 1]) + "/"
        if name.lower() in _SPLIT_NAMES or not all(file.startswith(prefix) for file in files):
            break
        depth += 1
    return depth


def _class_labels(classes: pd.Series[str]) -> pd.DataFrame:
    """Return label columns if the folders seem to be classes, not patients or studies."""
    counts = classes[classes != ""].value_counts()
    names = sorted(counts.index)
    few = 2 <= len(names) <= _MOST_CLASSES or (len(names) <= MOST_LABELS and len(classes) >= 20 * len(names))
    people = all(_PATIENT_FOLDERS.fullmatch(name) for name in names)
    if not few or people or len(classes) < 2 * len(names):
        names = []
    return label_columns(classes, names)


def _classes(labels: pd.DataFrame, known: pd.DataFrame, images: Sequence[str]) -> str:
    """Return what folders there are: their number if they may be patients, as of DICOM files, whose headers tell."""
    if labels.empty or any(not file.lower().endswith(_PLAIN_IMAGES) for file in images):
        return f" among the {known.shape[1]:,} folders"
    return f"; the folders are: {_few(labels)}"


# Tables


def _from_table(
    file: Path, table: pd.DataFrame, folder: Path, chosen: Sequence[str] | None, ignored: Sequence[Path]
) -> Images:
    if table.empty:
        raise ManifestError(f"{file}: there are no rows below the header")
    files = _files(folder, ignored)
    path_column = _path_column(file, table, files, folder)
    sources = {"Path": path_column} | {
        column: other
        for column in _RENAMED[1:]
        if column not in table
        and (other := other_name(column, [name for name in table.columns if name != path_column]))
    }
    notes = [f"{other!r} is read as {column}" for column, other in sources.items() if other != column]
    found = find_labels(table.drop(columns=list(sources.values())), chosen)
    notes += found.notes
    split_column = "Split" if "Split" in table else other_name("Split", table.columns)
    official = pd.Series("", table.index)
    if split_column and not (odd := set(_splits(table[split_column])) - {"train", "val", "test", ""}):
        official = _splits(table[split_column])
        notes.append(f"{split_column!r} is read as Split")
    elif split_column == "Split":
        raise ManifestError(f"{file}: the column Split must hold train, val, test or blank; {len(odd)} values differ")
    renamed = table.rename(columns={other: column for column, other in sources.items()})
    renamed = renamed.drop(columns=[split_column] if split_column else [])
    places = _locate(renamed["Path"], files)
    if "Age" in renamed:
        renamed["Age"] = renamed["Age"].map({text: years(text) for text in renamed["Age"].unique()})
    again = _is_repeated(renamed.assign(Path=places))
    if again.any():
        notes.append(f"{again.sum():,} rows repeat an image: a label of an image is 1 if any of its rows says so")
    cells = _combined(found.cells, places, renamed.get("Frame"), again)
    kept = renamed.assign(
        Path=places.where(places != "", renamed["Path"]), **{str(name): cells[name] for name in cells}
    )
    faults = again.map({True: "same image as in an earlier row", False: ""})
    return Images(
        root=str(folder),
        table=kept,
        labels=tuple(cells.columns),
        official=open_where_missing(official) if (official != "").any() else official,
        faults=faults.where(places != "", "image file not found"),
        columns=tuple(notes),
    )


def _path_column(file: Path, table: pd.DataFrame, files: Sequence[str], folder: Path) -> str:
    """Return the column that names image files: by its title if its cells do, else the one with most such cells.

    Raises:
        ManifestError: no column does.
    """
    sample = table.sample(min(len(table), _TRIED_ROWS), random_state=0)
    titled = "Path" if "Path" in table else other_name("Path", table.columns)
    varying = [name for name in table.columns if table[name].nunique() > 1 or len(table) == 1]
    shares: dict[str, float] = {}
    for name in sorted(varying, key=lambda name: name != titled):  # the titled one first: each takes seconds
        shares[name] = float((_locate(sample[name], files) != "").mean())
        if name == titled and shares[name] >= _MATCHED:
            return titled
    best = max(shares, key=lambda name: shares[name], default=None)
    if best is not None and shares[best] >= _MATCHED:
        return best
    if titled and shares.get(titled, 0) > 0:  # most images are missing, but the title says what is meant
        return titled
    about = f"the column {titled!r} names" if titled else "no column names"
    images = sum(name.lower().endswith(IMAGE_SUFFIXES) for name in files)
    raise ManifestError(
        f"{file}: {about}{' no' if titled else ''} files among the {images:,} images in {folder} and below;\n"
        "give the folder that holds the images with --images DIR"
    )


def _locate(paths: pd.Series[str], files: Sequence[str]) -> pd.Series[str]:
    """Return the file that each path means by its end; blank if there is none, or if several could be meant."""
    plain = paths.str.strip().str.replace("\\", "/").str.replace(r"^([A-Za-z]:)?/+|^\./", "", regex=True)
    distinct = pd.Series(plain.unique(), dtype=str)
    distinct = distinct[distinct != ""].reset_index(drop=True)
    # `locate` ignores the suffix, which an id such as 1.2.840.1 only seems to have.
    suffixed = distinct.where(distinct.str.lower().str.endswith(IMAGE_SUFFIXES), distinct + ".png")
    exact = distinct.where(distinct.isin(files), "")
    images = [file for file in files if file.lower().endswith(IMAGE_SUFFIXES) or not Path(file).suffix]
    found = exact.where(exact != "", locate(suffixed, images))
    return plain.map(dict(zip(distinct, found, strict=True))).fillna("")


def _splits(cells: pd.Series[str]) -> pd.Series[str]:
    plain = cells.str.strip().str.lower()
    return plain.map(_SPLIT_NAMES).fillna(plain)


def _is_repeated(table: pd.DataFrame) -> pd.Series[bool]:
    return table.duplicated([name for name in ("Path", "Frame") if name in table]) & (table["Path"] != "")


def _combined(
    labels: pd.DataFrame, places: pd.Series[str], frames: pd.Series[str] | None, again: pd.Series[bool]
) -> pd.DataFrame:
    """Return label cells in which the rows of one image agree: 1 if any of them is 1, else uncertain, 0 or blank."""
    if labels.empty or not again.any():
        return labels
    images = [places] if frames is None else [places, frames]
    order = {"": 0, "0": 1, "-1": 2, "1": 3}
    ranks = labels.apply(lambda cells: cells.map(order)).groupby(images).transform("max")
    texts = {rank: cell for cell, rank in order.items()}
    combined: pd.DataFrame = ranks.apply(lambda cells: cells.map(texts))
    return combined.where(places != "", labels)


# Manifests


def _manifest(source: Path, table: pd.DataFrame, images: Path | None, chosen: Sequence[str] | None) -> Images:
    official = _splits(table["Split"])
    if not (official == "train").any():
        raise ManifestError(f"{source} has no rows of the split train; use the CSV with the images instead")
    if chosen is None:
        binary = [
            name for name in table.columns if table[name].str.strip().isin(["0", "1", "-1", "", "0.0", "1.0"]).all()
        ]
        candidates = table[[name for name in binary if name not in {"Path", "Split", "Frame"}]]
        labels = tuple(find_labels(candidates).cells.columns)
    else:
        if missing := [name for name in chosen if name not in table]:
            raise SettingsError(f"--labels: the manifest has no column {missing[0]!r}; it has: {_few(table)}")
        labels = tuple(chosen)
    root = _root(source, table.assign(Split=official), images)
    table = table.assign(Path=_relative(table["Path"], official, root))
    return Images(root, table, labels, official, pd.Series("", table.index), manifest=source)


def _root(source: Path, table: pd.DataFrame, images: Path | None) -> str:
    """Return the folder, with or without {split}, in which the images of a manifest lie."""
    folder = source if source.is_dir() else source.parent
    near = [images] if images else [folder, folder.parent, *sorted(path for path in folder.iterdir() if path.is_dir())]
    places = [root for place in near for root in (f"{place}/{{split}}", str(place))]
    if not images and (absolute := [path for path in table["Path"].str.strip().unique() if os.path.isabs(path)]):
        places.append(os.path.commonpath([os.path.dirname(path) for path in absolute]))
    sample = table.sample(min(len(table), 50), random_state=0)
    for root in places:
        paths = _relative(sample["Path"], sample["Split"], root)
        files = (Path(root.replace("{split}", split), path) for path, split in zip(paths, sample["Split"], strict=True))
        if not any(map(os.path.isabs, paths)) and all(file.is_file() for file in files):
            return root
    raise ManifestError(
        f"{source}: its images are not where Path says, below {' or '.join(map(str, near[:2]))};\n"
        "give the folder to which Path is relative with --images DIR"
    )


def _relative(paths: pd.Series[str], splits: pd.Series[str], root: str) -> pd.Series[str]:
    """Return the Paths of a manifest relative to its root, as `load_manifest` does; absolute ones outside it stay."""
    table = pd.DataFrame({"Path": paths.str.strip()})
    file = with_slashes(CsvFile(Path(), table, np.arange(len(table)), sha256=""))
    return below_root(file, root, splits.tolist()).table["Path"]


def _few(table: pd.DataFrame) -> str:
    """Return the names of the first columns."""
    names = [str(name) for name in table.columns[:8]]
    return f"{', '.join(names)}{', ...' * (len(table.columns) > 8)}"
