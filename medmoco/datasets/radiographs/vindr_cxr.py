"""VinDr-CXR: three readers for each training image, boxes; from the table of Kaggle or those of PhysioNet.

Consensus: a finding is 1 if more than half of the readers of an image marked it, else 0. Their number is kept.
"""

from __future__ import annotations

import pandas as pd

from medmoco.datasets.preparation import BOXES, About, Prepared, add_header_columns
from medmoco.datasets.source import Source, numbers

ABOUT = About(
    name="VinDr-CXR",
    url="https://physionet.org/content/vindr-cxr/ or "
    "https://www.kaggle.com/competitions/vinbigdata-chest-xray-abnormalities-detection",
    licence="PhysioNet Credentialed Health Data License, non-commercial",
)
_SPELLINGS = {"Other disease": "Other diseases"}  # the two tables differ
_DRAWN = ["image_id", "class_name", *BOXES[2:]]


def prepare(source: Source) -> Prepared:
    """Read image_labels_*.csv and annotations_*.csv (PhysioNet), or train.csv (Kaggle)."""
    marks = source.table_if_there("image_labels_train.csv", columns=["image_id", "rad_id"])
    if marks is None:
        drawn = {"train": source.table("train.csv", columns=[*_DRAWN, "rad_id"])}
        marks = pd.crosstab([drawn["train"]["image_id"], drawn["train"]["rad_id"]], drawn["train"]["class_name"])
        parts = {"train": _consensus(marks.clip(upper=1).reset_index())}
    else:
        drawn = {name: source.table(f"annotations_{name}.csv", columns=_DRAWN) for name in ("train", "test")}
        read = source.table("image_labels_test.csv", columns=["image_id"]).rename(columns=_SPELLINGS)
        parts = {"train": _consensus(marks.rename(columns=_SPELLINGS)), "test": read}
    rows = pd.concat([part.assign(OfficialSplit=name) for name, part in parts.items()], ignore_index=True).fillna("")
    counts = [name for name in rows.columns if name.endswith(" readers")]
    labels = [name.removesuffix(" readers") for name in counts]
    rows.insert(0, "Path", rows["OfficialSplit"] + "/" + rows["image_id"] + ".dicom")
    boxes = pd.concat([_boxes(table, name) for name, table in drawn.items()])
    return Prepared(
        table=add_header_columns(rows[["Path", "OfficialSplit", *counts, *labels]], source),
        labels=labels,
        official=rows["OfficialSplit"].map({"train": "", "test": "test"}),
        boxes=boxes,
        examined=True,
        notes=[
            "Consensus: a finding is 1 if more than half of the readers of an image (2 of 3) marked it, else 0; "
            "'... readers' gives their number. Five readers agreed on PhysioNet's test images.",
            "'No finding' is 1 if more than half of the readers found nothing, so a few images have no positive label.",
            "`boxes.csv` holds the boxes of every reader, not a consensus; `Reader` identifies the reader.",
        ],
    )


def _consensus(marks: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each image, from a row for each image and reader with findings of 0 and 1."""
    findings = [name for name in marks.columns if name not in ("image_id", "rad_id")]
    by_image = marks[findings].apply(numbers).groupby(marks["image_id"])
    votes: pd.DataFrame = by_image.sum().astype(int)
    majority: pd.DataFrame = votes.mul(2).gt(by_image.size(), axis=0).astype(int)
    return votes.add_suffix(" readers").join(majority).astype(str).reset_index()


def _boxes(drawn: pd.DataFrame, split: str) -> pd.DataFrame:
    drawn = drawn[drawn["x_min"] != ""]
    corners = drawn[BOXES[2:]].apply(numbers)
    named = {"Path": split + "/" + drawn["image_id"] + ".dicom", "Label": drawn["class_name"].replace(_SPELLINGS)}
    return pd.DataFrame({**named, **corners, "Reader": drawn.get("rad_id", "consensus")})
