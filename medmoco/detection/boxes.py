"""The table of boxes: read whole, checked against the manifest and the images, nothing dropped silently.

manifests/README.md describes it. A row names an image and a box; one without label and box says that the image was
examined and has none. Coordinates are in pixels of the image as it is displayed, x to the right and y down, from the
outer edge of the top left pixel.
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
from medmoco.data.manifest.manifest import SPLITS, Split, load_manifest, present_splits
from medmoco.data.manifest.row_filter import did_you_mean
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
        sizes: (N, 2) height and width of each image in its own pixels; 0 where it cannot be read.
        images: (M,) position in the split of the image of each box, in ascending order.
        corners: (M, 4) in pixels of the image, inside it.
        labels: (M,) from 0.
        aspects: (N,) height of a pixel as a multiple of its width; without it they are square.
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
        """Return which of the M boxes an image has."""
        first, last = np.searchsorted(self.images, [position, position + 1])
        return slice(int(first), int(last))


@dataclass(frozen=True)
class Annotations:
    """All that a detector learns from and is scored on.

    Attributes:
        labels: L names.
        splits: By name.
        sha256: Of the table.
        notes: What the user should know.
    """

    labels: tuple[str, ...]
    splits: dict[str, Annotated]
    sha256: str
    notes: list[str]


def load_annotations(settings: RunSettings, names: Sequence[str]) -> Annotations:
    """Read the boxes of some splits.

    Args:
        settings: `detection` names the table, the labels and how to read it; `evaluate.where` restricts all rows.
        names: Splits, train among them.

    Raises:
        ManifestError: the manifest or the table cannot be used; names the file and the row.
        SettingsError: a label that no box of train has.
        DataError: an image or the pack is not there, or a header cannot be read.
    """
    data = settings.data.model_copy(update={"labels": {}})
    settings = settings.model_copy(update={"data": data})
    splits = load_splits(settings, names)
    file = read_csv(_table_of(settings), ["Label"])
    rows = _parse(file)
    rows["key"] = _keys(file, settings)
    everything = load_manifest(data, present_splits(data))
    _refuse_unknown_images(file, rows["key"], everything, settings)
    labels = _labels(file, rows, splits["train"], settings)
    notes = []
    annotated = {}
    for name, split in splits.items():
        annotated[name], found = _annotate(file, rows, split, labels, settings)
        notes += [*split.notices, *found]
    _refuse_nothing_to_learn(file, annotated, labels)
    return Annotations(labels, annotated, file.sha256, notes)


def _table_of(settings: RunSettings) -> Path:
    """Return where the boxes are: boxes.csv or boxes.csv.gz beside the manifest, if no other table is named."""
    if settings.detection.boxes:
        return settings.detection.boxes
    manifest = settings.data.manifest
    folder = manifest if manifest.is_dir() else manifest.parent
    found = [folder / name for name in ("boxes.csv", "boxes.csv.gz") if (folder / name).is_file()]
    if not found:
        raise ManifestError(f"{folder}: no boxes.csv in it; name the table of boxes by detection.boxes")
    return found[0]


# Rows of the table, by themselves


def _parse(file: CsvFile) -> pd.DataFrame:
    """Return position in the file, label, corners and reader of every row; label and corners blank where no box is."""
    for column in ("Path", "Label", *CORNERS):
        file.require(column, "a table of boxes has Path, Label, x_min, y_min, x_max and y_max")
    cells = file.table[CORNERS].apply(lambda column: column.str.strip())
    values = cells.apply(pd.to_numeric, errors="coerce").to_numpy(float)
    label = file.table["Label"].astype(str).str.strip()
    empty = (cells == "").all(axis=1).to_numpy()
    none_found = label.str.lower().isin(NO_BOX).to_numpy()
    file.refuse(
        ~np.isfinite(values).all(axis=1) & ~(empty & none_found),
        f"{', '.join(CORNERS)} must be numbers; only a row without a Label has them blank",
        CORNERS,
    )
    file.refuse(none_found & ~empty, "it has a box but no Label; name what is inside, as the manifest's column does")
    file.refuse(
        (values[:, 2:] <= values[:, :2]).any(axis=1),
        "x_max must be above x_min and y_max above y_min: they are edges, not width and height",
    )
    reader = file.table["Reader"].str.strip() if "Reader" in file.table.columns else ""
    rows = pd.DataFrame({"at": np.arange(len(label)), "label": label.where(~empty, ""), "reader": reader})
    rows[CORNERS] = values
    return rows.set_axis(np.arange(len(label)))


def _keys(file: CsvFile, settings: RunSettings) -> NDArray[Any]:
    """Return which image each row names."""
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


def _refuse_unknown_images(
    file: CsvFile, keys: pd.Series[Any], everything: Mapping[str, Split], settings: RunSettings
) -> None:
    known = np.concatenate([_keys_of(split, settings) for split in everything.values()])
    file.refuse(
        ~keys.isin(known).to_numpy(),
        "no row of the manifest has its Path (and Frame); correct it, or take the row out",
    )


def _labels(file: CsvFile, rows: pd.DataFrame, train: Split, settings: RunSettings) -> tuple[str, ...]:
    """Return what is to be detected; refuse a label that looks like a slip where the user has named some."""
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


# Rows of the table, beside a split


def _annotate(
    file: CsvFile, rows: pd.DataFrame, split: Split, labels: Sequence[str], settings: RunSettings
) -> tuple[Annotated, list[str]]:
    """Return a split's examined images with their boxes, and what was left out or changed."""
    chosen, notes = settings.detection, []
    position = pd.Series(np.arange(len(split)), _keys_of(split, settings))
    rows = rows[rows["key"].isin(position.index)]
    listed = np.isin(np.arange(len(split)), position[rows["key"]].to_numpy())
    if chosen.unlisted == "ignore" and not listed.all():
        notes.append(
            f"{split.name}: {(~listed).sum()} of {len(split)} images are left out, the table of boxes does not name"
            " them; where they were examined and have none, set detection.unlisted=negative"
        )
        split = split.select(listed)
        position = pd.Series(np.arange(len(split)), _keys_of(split, settings))
    sizes, aspects = image_sizes(split, settings.data)
    boxes = rows[rows["label"].isin(labels)]
    if others := int((rows["label"] != "").sum()) - len(boxes):
        notes.append(f"{split.name}: {others} boxes with other labels are left out")
    boxes = boxes.assign(image=position[boxes["key"]].to_numpy())
    boxes, found = _inside(file, boxes, sizes)
    again = boxes.duplicated(["image", "label", "reader", *CORNERS])
    notes += [f"{split.name}: {note}" for note in found]
    if again.any():
        notes.append(f"{split.name}: {again.sum()} boxes that are in the table twice count once")
    boxes = boxes[~again].sort_values(["image", "at"])
    boxes, found = agreed(boxes, chosen.agreement)
    notes += [f"{split.name}: {note}" for note in found]
    codes = {label: code for code, label in enumerate(labels)}
    return Annotated(
        split, sizes, boxes["image"].to_numpy(np.int64), boxes[CORNERS].to_numpy(float),
        np.array([codes[label] for label in boxes["label"]], np.int64), aspects,
    ), notes  # fmt: skip


def _inside(file: CsvFile, boxes: pd.DataFrame, sizes: Integers) -> tuple[pd.DataFrame, list[str]]:
    """Clip boxes that lead out of their image by less than a pixel; refuse those that lead out by more."""
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
            f"its box leads out of the image, which is {width[bad]} pixels wide and {height[bad]} high;\n"
            "boxes are in pixels of the files that the manifest names: were the images scaled since?",
        )
    changed = int((clipped != corners).any(axis=1).sum())
    notes = [f"{changed} boxes led out of their image by less than a pixel and were clipped"] if changed else []
    return boxes.assign(**dict(zip(CORNERS, clipped.T, strict=True))), notes


def _refuse_nothing_to_learn(file: CsvFile, splits: Mapping[str, Annotated], labels: Sequence[str]) -> None:
    for name in ("train", "val"):
        annotated = splits[name]
        counts = np.bincount(annotated.labels, minlength=len(labels))
        if name == "train" and labels and not counts.all():
            raise ManifestError(
                f"{file.path}: no box of train is labelled {labels[int(counts.argmin())]!r}; take it out of"
                " detection.labels"
            )
        if not counts.sum():
            raise ManifestError(
                f"{file.path}: no image of {name} has a box; train and val need some, as val chooses the epoch"
            )
