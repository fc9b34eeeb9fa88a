"""Any folder of DICOM files: one pass over the headers, without reading pixels."""

from __future__ import annotations

import pandas as pd

from medmoco.data.volume_io.canvases import recommended_spacing
from medmoco.datasets.preparation import About, Prepared
from medmoco.datasets.series import GEOMETRY, volume_rows
from medmoco.datasets.source import Source

ABOUT = About(name="a DICOM tree")


def prepare(source: Source) -> Prepared:
    """Read the header of every file; a multi-frame file becomes a row for each frame, or a series a row."""
    if source.volumes:
        return _prepare_volumes(source)
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


def _prepare_volumes(source: Source) -> Prepared:
    table = volume_rows(source)
    notes = [
        "Each row is a volume: `Path` is the folder of a series, and `SeriesInstanceUID` chooses the series there; or"
        " `Path` is a multi-frame file. Set `data.dimensions: 3`.",
        "The headers hold no labels: join yours by `StudyID` or `SeriesInstanceUID`.",
        "`SpacingX`, `SpacingY` and `SpacingZ` are distances between voxels in mm: left to right, front to back and"
        " head to foot. They and `Slices` come from the positions of the slices, not from `SliceThickness`.",
    ]
    sound = table[table["Fault"] == ""]
    if modalities := sorted(set(sound["Modality"])):
        spacings = sound[GEOMETRY[1:]].to_numpy(dtype=float)
        spacing = ", ".join(f"{mm:g}" for mm in recommended_spacing(spacings))
        notes.append(f"Recommended for all rows: `data.spacing: [{spacing}]` (docs/check.md says how it is chosen).")
        if len(modalities) > 1:
            notes.append(
                f"There are several modalities ({', '.join(modalities)}): choose one with `data.where: 'Modality =="
                f' "{modalities[0]}"\'`.'
            )
    return Prepared(table=table.drop(columns="Fault"), faults=table["Fault"], scanned=True, notes=notes)


def one_row_per_frame(files: pd.DataFrame) -> pd.DataFrame:
    """Repeat the row of each file, with its columns Frames and Fault, for its frames; add Frame if any has several.

    The index still names the file.
    """
    frames = pd.to_numeric(files["Frames"]).where(files["Fault"] == "", 1).astype(int)
    table = files.loc[files.index.repeat(frames)]
    frame = table.groupby(level=0).cumcount() + 1
    return table.assign(Frame=frame.astype(str)) if frame.max() > 1 else table
