"""SIIM-ACR pneumothorax segmentation: a label and the masks of each image, and a box around each mask."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medmoco.datasets.preparation import BOXES, About, Prepared, add_header_columns
from medmoco.datasets.source import Source
from medmoco.errors import ManifestError

ABOUT = About(
    name="SIIM-ACR Pneumothorax",
    url="https://www.kaggle.com/competitions/siim-acr-pneumothorax-segmentation/data",
    licence="the competition's rules; images from NIH ChestX-ray14",
    images=12_047,
)
SIDE = 1024
"""All images are 1024 pixels high and wide."""


def prepare(source: Source) -> Prepared:
    """Read train-rle.csv; the name of its second column starts with a space."""
    given = source.table("train-rle.csv", "stage_2_train.csv", columns=["ImageId", "EncodedPixels"])
    codes = given["EncodedPixels"].str.strip()
    by_image = codes.groupby(given["ImageId"], sort=False)
    joined = by_image.agg("|".join)
    table = pd.DataFrame({
        "Path": "dicom-images-train/" + joined.index + ".dcm",
        "Pneumothorax": (joined != "-1").to_numpy(),
        "Mask": joined.to_numpy(),
    })  # fmt: skip
    masks = codes[codes != "-1"]
    corners = pd.DataFrame([mask_box(code) for code in masks], index=masks.index, columns=BOXES[2:])
    paths = "dicom-images-train/" + given["ImageId"] + ".dcm"
    return Prepared(
        table=add_header_columns(table, source),
        labels=["Pneumothorax"],
        boxes=corners.assign(Path=paths[masks.index], Label="Pneumothorax")[BOXES],
        examined=True,
        notes=[
            f"The table has {len(given):,} rows, one for each mask; an image with several masks is one row here.",
            "`boxes.csv` holds the smallest box around each mask.",
            "`Mask` holds the run lengths of the masks; for `medmoco segment`, set `segmentation.runs=relative`.",
            "The images come from NIH ChestX-ray14, but the source does not say which ones: do not pretrain on one "
            "data set and test on the other.",
            "The official archive puts each file into nested folders, whose names are not in the table: run `medmoco "
            "prepare` with the images in place, or move them into one folder `dicom-images-train`.",
        ],
    )


def mask_box(code: str) -> tuple[int, int, int, int]:
    """Return x_min, y_min, x_max, y_max in pixels of a run-length encoded mask.

    The code is a sequence of pairs: the gap since the last run, and the run, both down the columns from the left.
    """
    try:
        numbers = np.array(code.split(), np.int64).reshape(-1, 2)
    except ValueError:
        raise ManifestError("train-rle.csv: an EncodedPixels cell is not pairs of whole numbers") from None
    ends = np.cumsum(numbers.sum(axis=1))
    runs = np.column_stack([ends - numbers[:, 1], ends - 1])[numbers[:, 1] > 0]
    if not len(runs) or runs.min() < 0 or runs.max() >= SIDE**2:
        raise ManifestError(f"train-rle.csv: an EncodedPixels cell exceeds the image of {SIDE} x {SIDE} pixels")
    columns, lines = np.divmod(runs, SIDE)
    if (columns[:, 0] != columns[:, 1]).any():  # a run across the end of a column touches bottom and top
        top, bottom = 0, SIDE
    else:
        top, bottom = int(lines.min()), int(lines.max()) + 1
    return int(columns.min()), top, int(columns.max()) + 1, bottom
