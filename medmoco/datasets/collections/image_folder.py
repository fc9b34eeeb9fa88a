"""Any tree of class/file, or of train, val and test folders with such trees, such as ImageNet."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from medmoco.datasets.preparation import About, Prepared
from medmoco.datasets.source import Source

ABOUT = About(name="a folder of classes")
_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
_RESERVED = {"Path", "Frame", "Split", "PatientID", "StudyID", "ViewPosition", "Sex", "Age", "Laterality", "Class"}
MOST_LABELS = 100
"""With more classes than this, only a text column is written: one column for each class of ImageNet would take GBs."""


def prepare(source: Source) -> Prepared:
    """Read the file names."""
    classes, splits = read_folders(source.images)
    table = pd.DataFrame({"Path": pd.Series(source.images, dtype=str), "Class": classes})
    names = sorted(set(classes) - {""})
    notes = ["If you know the patients, from file names or a table, add a column `PatientID` and use `medmoco split`."]
    if len(names) > MOST_LABELS:
        notes.append(
            f"{len(names):,} classes are too many for a label column each; the column `Class` names the class."
        )
        names = []
    labels = label_columns(classes, names)
    others = len(source.files) - len(source.images)
    return Prepared(
        table=table.join(labels),
        labels=[str(name) for name in labels],
        official=open_where_missing(splits),
        faults=classes.eq("").map({True: "not in a class folder", False: ""}).astype(str),
        scanned=True,
        notes=[*notes, f"{others:,} files without the suffix of an image were ignored."],
    )


def read_folders(images: Sequence[str]) -> tuple[pd.Series[str], pd.Series[str]]:
    """Return the class and the split, train, val or test, of each image according to its folders; blank without one.

    Folders name splits if every image is in one that does.
    """
    parts = [image.split("/") for image in images]
    has_splits = all(path[0].lower() in _SPLITS and len(path) > 1 for path in parts)
    depth = 1 if has_splits else 0
    classes = [path[depth] if len(path) > depth + 1 else "" for path in parts]
    splits = [_SPLITS[path[0].lower()] if has_splits else "" for path in parts]
    return pd.Series(classes, dtype=str), pd.Series(splits, dtype=str)


def label_columns(classes: pd.Series[str], names: Sequence[str]) -> pd.DataFrame:
    """Return a label column for each class; a class with the name of a reserved column gets a longer one."""
    labels = {name: classes.eq(name) for name in names}
    if clash := _RESERVED & set(labels):
        labels = {f"Class {name}" if name in clash else name: cells for name, cells in labels.items()}
    return pd.DataFrame(labels, index=classes.index)


def open_where_missing(official: pd.Series[str]) -> pd.Series[str]:
    """Release the training rows, so that val or test can be drawn from them if the folders lack one."""
    return official if {"val", "test"} <= set(official) else official.replace("train", "")
