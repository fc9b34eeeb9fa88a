"""Read volumes: NIfTI, NRRD, MetaImage, .npy, and DICOM series.

The file type is detected from the content, except that a folder is a DICOM series. Messages and notices contain neither
paths nor patient data; the caller adds the row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from medmoco.data.image_io.formats.bands import npy_header
from medmoco.data.image_io.intensity import CONSTANT, DAMAGED, Unreadable
from medmoco.data.image_io.limits import DEFAULT_LIMITS, Limits, as_image_errors, check_file
from medmoco.data.volume_io.geometry import header_of, to_ras
from medmoco.data.volume_io.headers import (
    NO_ORIENTATION,
    StoredVolume,
    VolumeHeader,
    check_finite,
    check_voxels,
    three_axes,
    without_header_values,
)
from medmoco.data.volume_io.nifti import nifti_version, open_nifti
from medmoco.data.volume_io.nrrd_metaimage import kind_of, open_itk
from medmoco.data.volume_io.series import open_file, open_folder
from medmoco.data.volume_io.volume import Volume
from medmoco.errors import ImageError


def read_volume(path: str | Path, *, series: str = "", limits: Limits = DEFAULT_LIMITS) -> Volume:
    """Read a volume with the axes of RAS.

    Args:
        path: NIfTI (.nii, .nii.gz), NRRD, MetaImage, a 3-D .npy array (X, Y, Z) with a spacing of 1 mm, an enhanced
            multi-frame DICOM file, or a folder with the files of a DICOM series.
        series: SeriesInstanceUID that chooses a series of a folder; other files than DICOM ignore it.
        limits: Larger files and volumes are refused.

    Returns:
        The volume. Its array need not be contiguous.

    Raises:
        ImageError: the volume is missing, damaged, too large, of unknown type, or has a fault (see `inspect_volume`).
        SettingsError: nibabel or SimpleITK is not installed.
    """
    opened = open_volume(path, series=series, limits=limits)
    for fault in opened.header.faults:
        if fault.severity == "fault":
            raise ImageError(fault.text)
    return opened.load()


def inspect_volume(path: str | Path, *, series: str = "", limits: Limits = DEFAULT_LIMITS) -> VolumeHeader:
    """Read the headers of a volume and find what is wrong with it, without reading its voxels.

    Arguments and errors are those of `read_volume`, except that faults are returned.

    Raises:
        ImageError: see `read_volume`.
        SettingsError: see `read_volume`.
    """
    return open_volume(path, series=series, limits=limits).header


@dataclass(frozen=True)
class OpenVolume:
    """A volume whose headers have been read.

    Attributes:
        header: Its geometry and faults.
        load: Reads its voxels, whatever its faults; raises as `read_volume`.
    """

    header: VolumeHeader
    load: Callable[[], Volume]


def open_volume(path: str | Path, *, series: str = "", limits: Limits = DEFAULT_LIMITS) -> OpenVolume:
    """Read the headers of a volume once, to inspect it first and then read it.

    Arguments and errors are those of `inspect_volume`.
    """
    with as_image_errors():
        stored = _open(Path(path), series, limits)
        header = header_of(stored)
    return OpenVolume(header, partial(_load, stored, header))


def _load(stored: StoredVolume, header: VolumeHeader) -> Volume:
    with as_image_errors():
        values = to_ras(stored, stored.load())
        check_finite(values)
    notices = [fault.text for fault in header.faults]
    if values.min() == values.max():
        notices.append(CONSTANT)
    return Volume(values, header.affine, header.slice_axis, header.modality, tuple(notices), stored.frame_of_reference)


def _open(path: Path, series: str, limits: Limits) -> StoredVolume:
    """Read the headers of a volume of any supported type."""
    if path.is_dir():
        with without_header_values("DICOM"):
            return open_folder(path, series, limits)
    check_file(path, limits)
    with path.open("rb") as stream:
        start = stream.read(512)
    if start[128:132] == b"DICM":
        with without_header_values("DICOM"):
            return open_file(path, series, limits)
    if start.startswith(b"\x93NUMPY"):
        return _open_npy(path, limits)
    if kind := kind_of(start):
        return open_itk(path, kind, limits)
    if version := nifti_version(path):
        return open_nifti(path, version, limits)
    raise Unreadable(
        "its content is not NIfTI, NRRD, MetaImage, DICOM or .npy; convert it to one of them,\n"
        "or set data.dimensions to 2 if it is an image"
        if start
        else f"the file is empty; {DAMAGED}"
    )


def _open_npy(path: Path, limits: Limits) -> StoredVolume:
    shape, dtype = npy_header(path)
    if len(shape) < 3:
        raise Unreadable(f"the array has {len(shape)} axes; a volume has three: X, Y and Z")
    sides = three_axes(shape)
    check_voxels(sides, dtype.itemsize, limits)
    return StoredVolume(
        shape=sides,
        affine=np.eye(4),
        load=lambda: np.load(path, mmap_mode="r", allow_pickle=False).reshape(sides).astype(np.float32),
        faults=(NO_ORIENTATION,),
        files=(path,),
    )
