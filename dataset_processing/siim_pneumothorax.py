"""SIIM-ACR pneumothorax segmentation: one label per image, and a box around each mask."""

from __future__ import annotations

import numpy as np
import pandas as pd

from medmoco.datasets.preparation import BOXES, About, Prepared, add_header_columns, run
from medmoco.datasets.source import Source
from medmoco.errors import ManifestError

ABOUT = About(
    name="SIIM-ACR Pneumothorax",
    url="https://www.kaggle.com/competitions/siim-acr-pneumothorax-segmentation/data",
    licence="the competition's rules; images from NIH ChestX-ray14",
    images=12_047,
    dicom=True,
)
SIDE = 1024
"""All images are 1024 pixels high and wide."""


def prepare(source: Source) -> Prepared:
    """Read train-rle.csv, whose second column is named with a space in front."""
    given = source.table("train-rle.csv", "stage_2_train.csv", columns=["ImageId", "EncodedPixels"])
    codes = given["EncodedPixels"].str.strip()
    positive = (codes != "-1").groupby(given["ImageId"], sort=False).any()
    table = pd.DataFrame(
        {
            "Path": "dicom-images-train/" + positive.index + ".dcm",
            "Pneumothorax": positive.to_numpy(),
        }
    )
    masks = codes[codes != "-1"]
    corners = pd.DataFrame([mask_box(code) for code in masks], index=masks.index, columns=BOXES[2:])
    paths = "dicom-images-train/" + given["ImageId"] + ".dcm"
    return Prepared(
        table=add_header_columns(table, source),
        labels=["Pneumothorax"],
        boxes=corners.assign(Path=paths[masks.index], Label="Pneumothorax")[BOXES],
        examined=True,
        notes=[
            f"The table has {len(given):,} rows, one per mask; an image with several masks is one row here.",
            "`boxes.csv` has the smallest box around each mask.",
            "The images come from NIH ChestX-ray14, and the source does not say which: keep that in mind before "
            "pretraining on one and testing on the other.",
            "The official archive nests each file in folders of its own, whose names the table does not hold: run the "
            "script with the images in place, or gather them in one folder `dicom-images-train`.",
        ],
    )


def mask_box(code: str) -> tuple[int, int, int, int]:
    """Return x_min, y_min, x_max, y_max of a mask of run lengths, as on `medmoco.datasets.preparation.BOXES`.

    The code is pairs of a gap since the last run and a run, counted down the columns from the left.
    """
    try:
        numbers = np.array(code.split(), np.int64).reshape(-1, 2)
    except ValueError:
        raise ManifestError("train-rle.csv: an EncodedPixels cell is not pairs of whole numbers") from None
    ends = np.cumsum(numbers.sum(axis=1))
    runs = np.column_stack([ends - numbers[:, 1], ends - 1])[numbers[:, 1] > 0]
    if not len(runs) or runs.min() < 0 or runs.max() >= SIDE**2:
        raise ManifestError(f"train-rle.csv: an EncodedPixels cell leaves the image of {SIDE} x {SIDE} pixels")
    columns, lines = np.divmod(runs, SIDE)
    if (columns[:, 0] != columns[:, 1]).any():  # a run over a column's end touches bottom and top
        top, bottom = 0, SIDE
    else:
        top, bottom = int(lines.min()), int(lines.max()) + 1
    return int(columns.min()), top, int(columns.max()) + 1, bottom


if __name__ == "__main__":
    run(ABOUT, prepare)
