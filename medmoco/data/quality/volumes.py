"""Read one volume as training would, and return what `medmoco check` needs, without its voxels."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmoco.config import DataSettings
from medmoco.data.image_io.fingerprints import CELLS, Patterns, pattern
from medmoco.data.image_io.intensity import CONSTANT
from medmoco.data.image_io.limits import limits_of
from medmoco.data.volume_io.canvases import canvas_of
from medmoco.data.volume_io.headers import SINGLE_SLICE
from medmoco.data.volume_io.nrrd_metaimage import kind_of
from medmoco.data.volume_io.reading import open_volume

VOLUME_FAULTS = (
    "single slice", "missing slices", "duplicate slices", "uneven spacing", "gantry tilt", "shifted slices",
    "mixed orientations", "mixed sizes", "localiser", "mosaic", "left and right in conflict",
    "several series in a folder", "several volumes in a file", "no positions", "voxels not finite",
)  # fmt: skip
"""Kinds of faults that only volumes have."""

_NAMES = {"left_right_conflict": "left and right in conflict", "other_files": "other files in the folder"}
"""Kinds of `VolumeFault` whose name is not simply their words."""

_KINDS = {
    "DICOM series;": "several series in a folder",
    SINGLE_SLICE.text: "single slice",
    "channels);": "several volumes in a file",
    "have no positions": "no positions",
    "its place in the patient is unknown": "no positions",
    "are not finite": "voxels not finite",
}
"""Words in the reader's message -> kind of fault; the first match counts."""


_BLANK = "blank canvas: all voxels become equal; data.window does not suit the values, or the volume is empty"


class VolumeFormat(NamedTuple):
    """How a volume is stored."""

    kind: str  # NIfTI, NRRD, MetaImage, NPY, DICOM series or multi-frame DICOM
    modality: str  # CT, MR or another DICOM modality; blank if the file does not tell


class VolumeSummary(NamedTuple):
    """The result of reading one volume, sent back by a worker; with faults, only these are known."""

    faults: tuple[tuple[str, str], ...] = ()  # kinds and texts
    digest: bytes = bytes(32)  # see `voxel_digest`
    # Of the canvas, the mean along the front-back axis: for a chest, what a radiograph shows
    pattern: Patterns = np.zeros(CELLS**2, np.uint8)
    size: tuple[int, int, int] = (0, 0, 0)  # X, Y and Z in voxels
    spacing: tuple[float, float, float] = (0.0, 0.0, 0.0)  # in mm
    canvas: tuple[int, int, int] = (0, 0, 0)  # size of the canvas: cropped to the body, at data.spacing
    slice_axis: int = 0
    format: VolumeFormat = VolumeFormat("", "")
    notices: tuple[str, ...] = ()  # a kind, a colon and a text; or a notice about the canvas


def summarise_volume(path: str, series: str, data: DataSettings) -> VolumeSummary:
    """Inspect a volume and, if it has no fault, read it and make its canvas.

    Args:
        path: A file, or the folder of a DICOM series.
        series: SeriesInstanceUID of the series to read; blank if none is needed.
        data: Data settings.

    Raises:
        ImageError: it cannot be read.
    """
    limits = limits_of(data)
    opened = open_volume(path, series=series, limits=limits)
    header = opened.header
    faults = tuple((fault_name(fault.kind), fault.text) for fault in header.faults if fault.severity == "fault")
    if faults:
        return VolumeSummary(faults)
    volume = opened.load()
    canvas, about_canvas = canvas_of(volume, data)
    notices = [f"{fault_name(fault.kind)}: {fault.text}" for fault in header.faults]
    if CONSTANT in volume.notices:
        notices.append(CONSTANT)
    else:
        notices += [_BLANK if notice == CONSTANT else notice for notice in about_canvas]
    return VolumeSummary(
        digest=voxel_digest(volume.values),
        pattern=pattern(canvas.pixels.mean(axis=1, dtype=np.float32)),
        size=header.shape,
        spacing=header.spacing,
        canvas=canvas.shape,
        slice_axis=header.slice_axis,
        format=VolumeFormat(_kind_of(Path(path)), header.modality),
        notices=tuple(notices),
    )


def fault_name(kind: str) -> str:
    """Return the words for a kind of `VolumeFault`."""
    return _NAMES.get(kind, kind.replace("_", " "))


def volume_fault_kind(reason: str) -> str:
    """Return the kind of fault that a message of the reader is about; blank if any file may have it."""
    return next((kind for words, kind in _KINDS.items() if words in reason), "")


def voxel_digest(values: NDArray[np.float32]) -> bytes:
    """Return the SHA-256 of the values (X, Y, Z) and their number along each axis.

    It depends neither on the file format nor on the order in which a file stores voxels or slices.
    """
    digest = hashlib.sha256(f"{values.shape}\n".encode())
    for plane in np.moveaxis(values, 2, 0):  # in the usual order of storage, so that few bytes are copied
        digest.update(np.ascontiguousarray(plane.T + np.float32(0), dtype="<f4").data)  # -0 becomes 0
    return digest.digest()


def _kind_of(path: Path) -> str:
    if path.is_dir():
        return "DICOM series"
    with path.open("rb") as stream:
        start = stream.read(512)
    if start[128:132] == b"DICM":
        return "multi-frame DICOM"
    return "NPY" if start.startswith(b"\x93NUMPY") else kind_of(start) or "NIfTI"
