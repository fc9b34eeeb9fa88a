"""The table of boxes, checked against the manifest and the images; nothing is dropped silently.

manifests/README.md describes it. A row has an image and a box; a row without label and box means that the image was
examined and has no box. Coordinates are pixels of the displayed image, x to the right and y down, from the outer edge
of the top left pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.config import RunSettings
from medmoco.data.manifest.csv_file import CsvFile, read_csv
from medmoco.data.manifest.manifest import SPLITS, Split, load_manifest, present_splits, whole_tables
from medmoco.data.manifest.row_filter import did_you_mean
from medmoco.data.manifest.tables.described import split_cells
from medmoco.data.manifest.tables.paths import below_root, with_slashes
from medmoco.detection.readers import agreed
from medmoco.detection.sizes import image_sizes
from medmoco.errors import ManifestError, SettingsError
from medmoco.evaluation.features.inputs import load_splits

CORNERS = ["x_min", "y_min", "x_max", "y_max"]
NO_BOX = ("", "no finding")  # labels of a row without a box

Corners = NDArray[np.float64]  # (M, 4): x_min, y_min, x_max, y_max
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Annotated:
    """The examined images of a split, and their boxes.

    Attributes:
        split: N rows.
        sizes: (N, 2) height and width of each image in its own pixels; 0 if it cannot be read.
        images: (M,) positions in the split of the image of each box, ascending.
        corners: (M, 4) in pixels of the image, inside it.
        labels: (M,) from 0.
        aspects: (N,) height of a pixel as a multiple of its width; None if pixels are square.
    """

    split: Split
    sizes: Integers
    images: Integers
    corners: Corners
    labels: Integers
    aspects: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def boxes_of(self, position: int) -> slice:
        """Return the slice of the M boxes that belong to an image."""
        first, last = np.searchsorted(self.images, [position, position + 1])
        return slice(int(first), int(last))


@dataclass(frozen=True)
class Annotations:
    """The boxes of all splits.

    Attributes:
        labels: L names.
        splits: Splits by name.
        sha256: SHA-256 of the table.
        notes: Messages for the user.
    """

    labels: tuple[str, ...]
    splits: dict[str, Annotated]
    sha256: str
    notes: list[str]


def load_annotations(settings: RunSettings, names: Sequence[str]) -> Annotations:
    """Read the boxes of some splits.

    Args:
        settings: `detection` defines the table and its labels; `evaluate.where` filters all rows.
        names: Names of splits, including train.

    Raises:
        ManifestError: the manifest or the table cannot be used; names the file and the row.
        SettingsError: no box of train has one of the labels.
        DataError: an image or the pack is missing, or a header cannot be read.
    """
    data = settings.data.model_copy(update={"labels": {}})
    settings = settings.model_copy(update={"data": data})
    splits = load_splits(settings, names)
    file = _read_table(settings)
    rows = _parse(file)
    rows["key"] = _keys(file, settings)
    everything = load_manifest(data, present_splits(data))
    known = rows["key"].isin(np.concatenate([_keys_of(split, settings) for split in everything.values()]))
    left_out = ~known
    if left_out.any():  # else the manifest need not be read again
        left_out &= rows["key"].isin(_keys_left_out(settings))
    file.refuse(
        (~known & ~left_out).to_numpy(), "no row of the manifest has its Path (and Frame); correct or remove it"
    )
    labels = _labels(file, rows, splits["train"], settings)
    notes = [f"{left_out.sum()} rows of images that data.where leaves out are not used"] * bool(left_out.any())
    annotated = {}
    for name, split in splits.items():
        annotated[name], found = _annotate(file, rows, split, labels, settings)
        notes += [*split.notices, *found]
    _refuse_nothing_to_learn(file, annotated, labels)
    return Annotations(labels, annotated, file.sha256, notes)


def _table_of(settings: RunSettings) -> Path:
    """Return the table of boxes: the one in the settings, or boxes.csv or boxes.csv.gz next to the manifest."""
    if settings.detection.boxes:
        return settings.detection.boxes
    manifest = settings.data.manifest
    folder = manifest if manifest.is_dir() else manifest.parent
    found = [folder / name for name in ("boxes.csv", "boxes.csv.gz") if (folder / name).is_file()]
    if not found:
        raise ManifestError(f"{folder} has no boxes.csv; set detection.boxes to the table of boxes")
    return found[0]


def _read_table(settings: RunSettings) -> CsvFile:
    """Return the table of boxes; its columns may have our names or those in the manifest's file."""
    data = settings.data
    file = with_slashes(read_csv(_table_of(settings), ["Label"], data.columns, if_there=True))
    return below_root(file, data.root, split_cells(file.table).tolist()) if "Path" in file.table else file


# Rows of the table


def _parse(file: CsvFile) -> pd.DataFrame:
    """Return position in the file, label, corners and reader of every row; label and corners blank without a box."""
    for column in ("Path", "Label", *CORNERS):
        file.require(column, "a table of boxes has Path, Label, x_min, y_min, x_max and y_max")
    cells = file.table[CORNERS].apply(lambda column: column.str.strip())
    values = cells.apply(pd.to_numeric, errors="coerce").to_numpy(float)
    label = file.table["Label"].astype(str).str.strip()
    empty = (cells == "").all(axis=1).to_numpy()
    none_found = label.str.lower().isin(NO_BOX).to_numpy()
    file.refuse(
        ~np.isfinite(values).all(axis=1) & ~(empty & none_found),
        f"{', '.join(CORNERS)} must be numbers; only rows without a Label leave them blank",
        CORNERS,
    )
    file.refuse(none_found & ~empty, "it has a box but no Label; add the Label, named like the manifest's column")
    file.refuse(
        (values[:, 2:] <= values[:, :2]).any(axis=1),
        "x_max must be above x_min and y_max above y_min: they are edges, not width and height",
    )
    reader = file.table["Reader"].str.strip() if "Reader" in file.table.columns else ""
    rows = pd.DataFrame({"at": np.arange(len(label)), "label": label.where(~empty, ""), "reader": reader})
    rows[CORNERS] = values
    return rows.set_axis(np.arange(len(label)))


def _keys(file: CsvFile, settings: RunSettings) -> NDArray[Any]:
    """Return a key for the image of each row."""
    split: pd.Series[str] | str = ""
    if "{split}" in settings.data.root:
        file.require("Split", "Paths are relative to the folder of a split, so each row must name its split")
        split = file.table["Split"].str.strip().str.lower()
        file.refuse(~split.isin(SPLITS).to_numpy(), "Split must be train, val or test ('valid' is not read as val)")
    file.refuse_other_name("Frame", "with frames counted from 1")
    frame = file.table["Frame"].str.strip() if "Frame" in file.table.columns else pd.Series("", file.table.index)
    frame = frame.str.removesuffix(".0").replace("", "1")
    keys: NDArray[Any] = (split + "\0" + file.table["Path"] + "\0" + frame).to_numpy(object)
    return keys


def _keys_of(split: Split, settings: RunSettings) -> NDArray[Any]:
    name = split.name if "{split}" in settings.data.root else ""
    frames = pd.Series(split.frames, split.table.index).astype(str)
    keys: NDArray[Any] = (name + "\0" + split.table["Path"] + "\0" + frames).to_numpy(object)
    return keys


def _keys_left_out(settings: RunSettings) -> NDArray[Any]:
    """Return keys of the images of the manifest, including those that data.where leaves out; none without it."""
    data = settings.data
    tables = whole_tables(data) if data.where else []
    below = [below_root(table, data.root, split_cells(table.table).tolist()) for table in tables]
    return np.concatenate([np.array([], object), *(_keys(table, settings) for table in below)])


def _labels(file: CsvFile, rows: pd.DataFrame, train: Split, settings: RunSettings) -> tuple[str, ...]:
    """Return the labels to detect; if the user names them, refuse rows whose label may be misspelt."""
    has_box = rows["label"] != ""
    chosen = settings.detection.labels
    if not chosen:
        return tuple(sorted(rows["label"][has_box & rows["key"].isin(_keys_of(train, settings))].unique()))
    there = sorted(rows["label"][has_box].unique())
    for label in chosen:
        if label not in there:
            raise SettingsError(f"detection.labels: no box is labelled {label!r}{did_you_mean(label, there)}")
    strange = has_box & ~rows["label"].isin([*chosen, *train.table.columns])
    if strange.any():
        close = did_you_mean(str(rows["label"][strange].iloc[0]), chosen)
        file.refuse(strange.to_numpy(), f"its Label is neither in detection.labels nor a column of the manifest{close}")
    return chosen


# Rows of the table, joined with a split


def _annotate(
    file: CsvFile, rows: pd.DataFrame, split: Split, labels: Sequence[str], settings: RunSettings
) -> tuple[Annotated, list[str]]:
    """Return a split's examined images with their boxes, and notes on what was excluded or changed."""
    chosen, notes = settings.detection, []
    position = pd.Series(np.arange(len(split)), _keys_of(split, settings))
    rows = rows[rows["key"].isin(position.index)]
    listed = np.isin(np.arange(len(split)), position[rows["key"]].to_numpy())
    if chosen.unlisted == "ignore" and not listed.all():
        notes.append(
            f"{split.name}: {(~listed).sum()} of {len(split)} images are excluded because they are not in the table of"
            " boxes; if they were examined and have no boxes, set detection.unlisted=negative"
        )
        split = split.select(listed)
        position = pd.Series(np.arange(len(split)), _keys_of(split, settings))
    sizes, aspects = image_sizes(split, settings.data)
    boxes = rows[rows["label"].isin(labels)]
    if others := int((rows["label"] != "").sum()) - len(boxes):
        notes.append(f"{split.name}: {others} boxes with other labels are excluded")
    boxes = boxes.assign(image=position[boxes["key"]].to_numpy())
    boxes, found = _inside(file, boxes, sizes)
    again = boxes.duplicated(["image", "label", "reader", *CORNERS])
    notes += [f"{split.name}: {note}" for note in found]
    if again.any():
        notes.append(f"{split.name}: {again.sum()} duplicate boxes are counted once")
    boxes = boxes[~again].sort_values(["image", "at"])
    boxes, found = agreed(boxes, chosen.agreement)
    notes += [f"{split.name}: {note}" for note in found]
    codes = {label: code for code, label in enumerate(labels)}
    return Annotated(
        split, sizes, boxes["image"].to_numpy(np.int64), boxes[CORNERS].to_numpy(float),
        np.array([codes[label] for label in boxes["label"]], np.int64), aspects,
    ), notes  # fmt: skip


def _inside(file: CsvFile, boxes: pd.DataFrame, sizes: Integers) -> tuple[pd.DataFrame, list[str]]:
    """Clip boxes that exceed their image by less than a pixel; refuse those that exceed it by more."""
    height, width = sizes[boxes["image"]].T
    readable = height > 0
    limits = np.stack([width, height, width, height], 1).astype(float)
    corners = boxes[CORNERS].to_numpy(float)
    clipped = np.clip(corners, 0, np.where(readable[:, None], limits, np.inf))
    outside = (np.abs(clipped - corners) >= 1).any(axis=1) | (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)
    if outside.any():
        bad = int(outside.argmax())
        mask = np.zeros(len(file.rows), bool)
        mask[boxes["at"].to_numpy()[outside]] = True
        file.refuse(
            mask,
            f"its box exceeds the image, which is {width[bad]} pixels wide and {height[bad]} high;\n"
            "boxes are in pixels of the files in the manifest: were the images resized after annotation?",
        )
    changed = int((clipped != corners).any(axis=1).sum())
    notes = [f"{changed} boxes exceeded their image by less than a pixel and were clipped"] if changed else []
    return boxes.assign(**dict(zip(CORNERS, clipped.T, strict=True))), notes


def _refuse_nothing_to_learn(file: CsvFile, splits: Mapping[str, Annotated], labels: Sequence[str]) -> None:
    for name in ("train", "val"):
        annotated = splits[name]
        counts = np.bincount(annotated.labels, minlength=len(labels))
        if name == "train" and labels and not counts.all():
            raise ManifestError(
                f"{file.path}: no box of train is labelled {labels[int(counts.argmin())]!r}; remove it from"
                " detection.labels"
            )
        if not counts.sum():
            raise ManifestError(
                f"{file.path}: no image of {name} has a box; train and val need boxes, as val chooses the epoch"
            )
