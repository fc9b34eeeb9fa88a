"""ImageFolder: any tree of class/file, or of train, val and test with classes below, ImageNet among them."""

from __future__ import annotations

import pandas as pd

from medmoco.datasets.preparation import About, Prepared, run
from medmoco.datasets.source import Source

ABOUT = About(
    name="a folder of classes",
    source="folder with one folder per class, or with train, val and test that hold them",
)
_SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
_RESERVED = {"Path", "Frame", "Split", "PatientID", "StudyID", "ViewPosition", "Sex", "Age", "Laterality", "Class"}
MOST_LABELS = 100
"""More classes than this are one text column alone: a column for each of ImageNet's would be gigabytes of zeros."""


def prepare(source: Source) -> Prepared:
    """Read the names of the files."""
    parts = [image.split("/") for image in source.images]
    has_splits = all(path[0].lower() in _SPLITS and len(path) > 1 for path in parts)
    depth = 1 if has_splits else 0
    inside = [len(path) > depth + 1 for path in parts]
    classes = pd.Series([path[depth] if deep else "" for path, deep in zip(parts, inside, strict=True)], dtype=str)
    table = pd.DataFrame({"Path": pd.Series(source.images, dtype=str), "Class": classes})
    names = sorted(set(classes) - {""})
    notes = ["If file names or a table of yours name the patients, add a column `PatientID` and use `medmoco split`."]
    if len(names) > MOST_LABELS:
        notes.append(f"{len(names):,} classes are too many for a label column each; `Class` names them.")
        names = []
    labels = {name: classes.eq(name) for name in names}
    if clash := _RESERVED & set(labels):
        labels = {f"Class {name}" if name in clash else name: cells for name, cells in labels.items()}
    official = pd.Series([_SPLITS[path[0].lower()] if has_splits else "" for path in parts], dtype=str)
    others = len(source.files) - len(source.images)
    return Prepared(
        table=table.join(pd.DataFrame(labels)),
        labels=list(labels),
        official=_open_where_missing(official),
        faults=pd.Series(["" if deep else "not in the folder of a class" for deep in inside], dtype=str),
        scanned=True,
        notes=[*notes, f"{others:,} other files are not images by their names and were passed over."],
    )


def _open_where_missing(official: pd.Series[str]) -> pd.Series[str]:
    """Open the training rows to a draw of val or test where the folders lack one."""
    return official if {"val", "test"} <= set(official) else official.replace("train", "")


if __name__ == "__main__":
    run(ABOUT, prepare)
