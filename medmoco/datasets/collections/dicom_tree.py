"""Any folder of DICOM files: one pass over the headers, without reading pixels."""

from __future__ import annotations

import pandas as pd

from medmoco.datasets.preparation import About, Prepared
from medmoco.datasets.source import Source

ABOUT = About(name="a DICOM tree")


def prepare(source: Source) -> Prepared:
    """Read the header of every file; a multi-frame file becomes a row for each frame."""
    headers = source.headers(source.files)
    frames = pd.to_numeric(headers["Frames"]).where(headers["Fault"] == "", 1).astype(int)
    table = headers.assign(Path=source.files).loc[headers.index.repeat(frames)]
    frame = table.groupby(level=0).cumcount() + 1
    if frame.max() > 1:
        table["Frame"] = frame.astype(str)
    return Prepared(
        table=table.drop(columns="Fault"),
        faults=table["Fault"],
        scanned=True,
        notes=[
            "The headers hold no labels: join yours by `StudyID` or `Path`; `medmoco split --labels` balances them.",
            "`StudyID` is the StudyInstanceUID; `Age` comes from the header, or from the dates of birth and study.",
        ],
    )
