"""Read DICOM series: a folder of slices, or an enhanced multi-frame file.

Slices are ordered by their position along the normal, never by file name or InstanceNumber, and spacing is the distance
of these positions, never SliceThickness. Source: DICOM PS3.3 C.7.6.2.1.1.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medmoco.data.image_io.formats.dicom import NO_IMAGE_CLASSES
from medmoco.data.image_io.intensity import Floats, Unreadable
from medmoco.data.image_io.limits import Limits, check_file
from medmoco.data.volume_io.frames import (
    SERIES,
    DicomFile,
    Frame,
    frame_count,
    frame_values,
    frames_of,
    is_dicom,
    is_reflected,
    read_header,
    series_of,
)
from medmoco.data.volume_io.geometry import (
    LPS_TO_RAS,
    direction_faults,
    orientation_faults,
    position_faults,
)
from medmoco.data.volume_io.headers import SINGLE_SLICE, StoredVolume, VolumeFault, check_voxels
from medmoco.errors import ImageError

_SAME_PIXEL = 1e-3  # largest relative difference of pixel spacings within a series: rounding


def open_folder(folder: Path, series: str, limits: Limits) -> StoredVolume:
    """Read the headers of a series in a folder; its subfolders are not read.

    Raises:
        Unreadable: the folder has no series, or several and none is chosen; or a file cannot be read.
        ImageError: a file or the series exceeds the limits.
    """
    by_series: dict[str, list[DicomFile]] = {}
    listed = _listed(folder, folder.stat().st_mtime_ns, bool(series))
    others = len(listed.get(None, ()))
    for path in listed.get(series, ()):
        check_file(path, limits)
        file = read_header(path, limits)
        if "Rows" in file.header and str(file.header.get("SOPClassUID")) not in NO_IMAGE_CLASSES:
            by_series.setdefault(_uid(file), []).append(file)
        else:
            others += 1
    if not by_series:
        raise Unreadable(
            f"none of the {sum(map(len, listed.values())) - others} DICOM files in the folder is an image of the"
            f" series in {SERIES};\n"
            "correct that column or the Path"
            if series
            else "the folder contains no DICOM images; correct the Path"
        )
    if len(by_series) > 1:
        raise Unreadable(
            f"the folder contains {len(by_series)} DICOM series;\n"
            f"add a column {SERIES} to the manifest, which chooses one for each row"
        )
    warnings = []
    if others:
        text = f"{others} other files in the folder are not DICOM images; they are ignored"
        warnings.append(VolumeFault("other_files", text, "warning"))
    return _open(next(iter(by_series.values())), limits, warnings)


@lru_cache(maxsize=16)
def _listed(folder: Path, _changed: int, by_series: bool) -> dict[str | None, list[Path]]:
    """Return the DICOM files of a folder by their series if asked, else under "", and the other files under None.

    It is kept until the folder changes: with thousands of series in one folder, its files are opened only once for all.
    """
    listed: dict[str | None, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file():
            series = (series_of(path) if by_series else "") if is_dicom(path) else None
            listed.setdefault(series, []).append(path)
    return listed


def open_file(path: Path, series: str, limits: Limits) -> StoredVolume:
    """Read the header of a DICOM file, which is a volume only if it has several frames with positions.

    Raises:
        Unreadable: it cannot be read, or belongs to another series.
        ImageError: it exceeds the limits.
    """
    file = read_header(path, limits)
    if series and _uid(file) != series:
        raise Unreadable(f"the file does not belong to the series in {SERIES}; correct that column or the Path")
    if frame_count(file, limits) == 1 and "ImagePositionPatient" not in file.header:
        raise Unreadable(SINGLE_SLICE.text)  # a radiograph, which has no place in the patient
    return _open([file], limits, [])


def _uid(file: DicomFile) -> str:
    return str(file.header.get(SERIES) or "").strip()


def _open(files: list[DicomFile], limits: Limits, warnings: list[VolumeFault]) -> StoredVolume:
    frames = [frame for file in files for frame in frames_of(file, limits)]
    first = frames[0]
    rows, columns = first.size
    check_voxels((columns, rows, len(frames)), int(first.file.header.BitsAllocated) // 8 or 1, limits)
    size = sum(file.path.stat().st_size for file in files)
    if size > limits.max_bytes:
        raise ImageError(
            f"the {size} bytes of its {len(files)} files exceed data.max_bytes = {limits.max_bytes};\n"
            "raise the limit if the series is really that large"
        )
    row, column = first.cosines[:3], first.cosines[3:]
    normal = np.cross(row, column)
    # Equal positions are refused, so their order does not matter.
    frames.sort(key=lambda frame: float(frame.position @ normal))
    faults = _faults(frames, normal)
    positions = np.stack([frame.position for frame in frames])
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * first.pixel[1], column * first.pixel[0]
    affine[:3, 2], affine[:3, 3] = _step(positions, normal, float(first.pixel.min())), positions[0]
    if any(is_reflected(frame) for frame in frames):
        text = "MONOCHROME1: its values are reflected, so that brighter is larger"
        warnings.append(VolumeFault("reflected", text, "warning"))
    return StoredVolume(
        shape=(columns, rows, len(frames)),
        affine=LPS_TO_RAS @ affine,
        load=lambda: _load(frames, limits),
        slice_axis=2,
        modality=str(first.file.header.get("Modality") or "").strip().upper(),
        faults=(*faults, *warnings),
        files=tuple(file.path for file in files),
        frame_of_reference=str(first.file.header.get("FrameOfReferenceUID") or "").strip(),
    )


def _step(positions: Floats, normal: Floats, pixel: float) -> Floats:
    """Return the mean vector (3,) from a slice to the next, in mm; along the normal if it differs by rounding only."""
    if len(positions) < 2:
        return normal
    span = positions[-1] - positions[0]
    along = span @ normal
    if along < 1e-4 * len(positions):  # all slices have the same position, which is a fault
        return normal
    if np.linalg.norm(span - along * normal) <= pixel / 2:
        span = along * normal
    step: Floats = span / (len(positions) - 1)
    return step


def _faults(frames: list[Frame], normal: Floats) -> list[VolumeFault]:
    """Return what is wrong with slices sorted along a normal; what depends on sound slices only if they are."""
    if len(frames) == 1:
        return [SINGLE_SLICE]
    first = frames[0]
    faults = _kind_faults(frames)
    pixels = np.stack([frame.pixel for frame in frames])
    if len({frame.size for frame in frames}) > 1 or np.abs(pixels / first.pixel - 1).max() > _SAME_PIXEL:
        text = "its slices differ in rows, columns or PixelSpacing; keep only slices of one size in the series"
        faults.append(VolumeFault("mixed_sizes", text))
    faults += orientation_faults(np.stack([frame.cosines for frame in frames]))
    if not faults:
        positions = np.stack([frame.position for frame in frames])
        faults += position_faults(positions @ normal)
        faults += direction_faults(positions, normal, float(first.pixel.min()))
    return faults


def _kind_faults(frames: list[Frame]) -> list[VolumeFault]:
    """Return faults of slices that are localisers or tiles, according to ImageType. Source: PS3.3 C.8.2.1.1.1."""
    kinds = [{str(word).upper() for word in frame.file.header.get("ImageType") or ()} for frame in frames]
    faults = []
    if localisers := sum("LOCALIZER" in kind for kind in kinds):
        text = f"{localisers} of its {len(frames)} slices are localisers; remove them, or choose another series"
        faults.append(VolumeFault("localiser", text))
    if any("MOSAIC" in kind for kind in kinds):
        text = "its images are mosaics of slices; convert it to NIfTI first, with dcm2niix for example"
        faults.append(VolumeFault("mosaic", text))
    return faults


def _load(frames: list[Frame], limits: Limits) -> NDArray[np.float32]:
    """Decode slices to voxels (columns, rows, slices), in whose memory each slice is contiguous."""
    rows, columns = frames[0].size
    values = np.empty((len(frames), rows, columns), np.float32)
    for place, frame in zip(values, frames, strict=True):
        place[...] = frame_values(frame, limits)
    return values.transpose(2, 1, 0)
