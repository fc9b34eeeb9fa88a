"""From the DICOM files of a folder to one row for each volume: a series of slices, or a multi-frame file.

A row has the columns of a manifest, and its geometry as `medmoco check` and training read it.
"""

from __future__ import annotations

import os
from typing import NamedTuple

import pandas as pd

from medmoco.data.manifest.columns import PATIENT, SERIES, STUDY
from medmoco.data.quality.volumes import fault_name
from medmoco.data.volume_io.reading import inspect_volume
from medmoco.datasets.source import Source
from medmoco.utils.guarded import Failure, map_guarded
from medmoco.utils.progress import track

MODALITIES = ("CT", "MR", "PT")
"""Modalities whose slices form volumes; others, such as tomosynthesis and ultrasound, need other geometry."""

GEOMETRY = ["Slices", "SpacingX", "SpacingY", "SpacingZ"]
"""Columns with the number of slices, and the distances between voxels in mm along the axes of `data.spacing`."""

_FROM_HEADERS = {"SeriesDescription": "SeriesDescription", "SliceThickness": "SliceThickness"}
_COLUMNS = [
    "Path", PATIENT, STUDY, SERIES, "Sex", "Age", "Modality", "BodyPart", "SeriesDescription", *GEOMETRY,
    "SliceThickness", "Manufacturer",
]  # fmt: skip
_SECONDS, _MEGABYTES = 60.0, 4096  # Source: data.decode_seconds and data.decode_megabytes


class _Job(NamedTuple):
    path: str
    series: str


class _Geometry(NamedTuple):
    cells: tuple[str, ...]  # of GEOMETRY
    fault: str


def volume_rows(source: Source) -> pd.DataFrame:
    """Return one row for each series of slices in a folder, each multi-frame file, and each file that is neither.

    Returns:
        N rows of text with the columns of a manifest, and Fault, the reason why a row cannot be used.
    """
    files = source.headers(source.files, _FROM_HEADERS).assign(Path=source.files).rename(columns={"SeriesID": SERIES})
    usable = files["Fault"] == ""
    others = usable & ~files["Modality"].isin(MODALITIES)
    named = files["Modality"].where(files["Modality"] != "", "unknown")
    reason = (
        "not part of a volume: its modality is "
        + named
        + ", not "
        + ", ".join(MODALITIES[:-1])
        + f" or {MODALITIES[-1]}"
    )
    files["Fault"] = files["Fault"].mask(others, reason)
    usable &= ~others
    several = usable & (files["Frames"] != "1")
    table = pd.concat([_series(files[usable & ~several]), files[several], files[~usable]])
    table = table.sort_values(["Path", SERIES], kind="stable", ignore_index=True)
    return _with_geometry(table.reindex(columns=[*_COLUMNS, "Fault"], fill_value=""), source)


def _series(slices: pd.DataFrame) -> pd.DataFrame:
    """Return the first row of each series in each folder, with the folder as Path, and faults of the grouping."""
    slices = slices.assign(Path=[os.path.dirname(path) or "." for path in slices["Path"]])
    groups = slices.groupby(["Path", SERIES], sort=False)
    patients = groups[PATIENT].transform("nunique")
    folders = slices.groupby(SERIES)["Path"].transform("nunique").where(slices[SERIES] != "", 1)
    faults = slices["Fault"].mask(patients > 1, "its slices have several PatientIDs")
    faults = faults.mask(
        folders > 1, "its slices are in " + folders.astype(str) + " folders: move them into one, or remove copies"
    )
    return slices.assign(Fault=faults).drop_duplicates(["Path", SERIES])


def _with_geometry(table: pd.DataFrame, source: Source) -> pd.DataFrame:
    """Inspect the rows without a fault, within limits of time and memory; add their geometry, or their faults."""
    sound = table.index[table["Fault"] == ""]
    jobs = [_Job(str(source.folder / path), uid) for path, uid in table.loc[sound, ["Path", SERIES]].to_numpy()]
    results = map_guarded(_inspect, jobs, workers=source.workers, seconds=_SECONDS, megabytes=_MEGABYTES)
    for position, found in track(results, len(jobs), "volumes"):
        at = sound[position]
        if isinstance(found, Failure):
            table.loc[at, "Fault"] = " ".join(found.reason.split())
        else:
            table.loc[at, GEOMETRY] = found.cells
            table.loc[at, "Fault"] = found.fault
    return table


def _inspect(job: _Job) -> _Geometry:
    header = inspect_volume(job.path, series=job.series)
    faults = [f"{fault_name(fault.kind)}: {fault.text}" for fault in header.faults if fault.severity == "fault"]
    cells = (str(header.slices), *(f"{spacing:.6g}" for spacing in header.spacing))
    return _Geometry(cells, " ".join("; ".join(faults).split()))
