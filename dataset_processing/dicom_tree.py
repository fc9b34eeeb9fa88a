"""Any DICOM tree: one pass over the headers, pixels never read."""

from __future__ import annotations

import pandas as pd

from medmoco.datasets.preparation import About, Prepared, run
from medmoco.datasets.source import Source

ABOUT = About(
    name="a DICOM tree",
    dicom=True,
    source="folder with DICOM files at any depth, whatever their names",
)


def prepare(source: Source) -> Prepared:
    """Read every file's header; a multi-frame file gives a row for each frame."""
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
            "The headers have no labels: join yours by `StudyID` or `Path`; `medmoco split --labels` balances them.",
            "`StudyID` is the StudyInstanceUID; `Age` is the header's, or from the dates of birth and study.",
        ],
    )


if __name__ == "__main__":
    run(ABOUT, prepare)
