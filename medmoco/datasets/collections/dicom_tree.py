"""Any folder of DICOM files: one pass over the headers, without reading pixels."""

from __future__ import annotations

import pandas as pd

from medmoco.datasets.preparation import About, Prepared
from medmoco.datasets.source import Source

ABOUT = About(name="a DICOM tree")


def prepare(source: Source) -> Prepared:
    """Read the header of every file; a multi-frame file becomes a row for each frame."""
    table = one_row_per_frame(source.headers(source.files).assign(Path=source.files))
    return Prepared(
        table=table.drop(columns="Fault"),
        faults=table["Fault"],
        scanned=True,
        notes=[
            "The headers hold no labels: join yours by `StudyID` or `Path`; `medmoco split --labels` balances them.",
            "`StudyID` is the StudyInstanceUID; `Age` comes from the header, or from the dates of birth and study.",
        ],
    )


def one_row_per_frame(files: pd.DataFrame) -> pd.DataFrame:
    """Repeat the row of each file, with its columns Frames and Fault, for its frames; add Frame if any has several.

    The index still names the file.
    """
    frames = pd.to_numeric(files["Frames"]).where(files["Fault"] == "", 1).astype(int)
    table = files.loc[files.index.repeat(frames)]
    frame = table.groupby(level=0).cumcount() + 1
    return table.assign(Frame=frame.astype(str)) if frame.max() > 1 else table
