"""The grid of an image: where its pixels or voxels lie, how far apart they are, and how DICOM files refer to it."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from medmoco.data.image_io.intensity import Floats
from medmoco.data.image_io.limits import Limits, as_image_errors
from medmoco.data.image_io.windowing import MOST_OBLONG, functional_group
from medmoco.data.volume_io.frames import DicomFile, frames_of, is_dicom, read_header
from medmoco.data.volume_io.geometry import LPS_TO_RAS
from medmoco.data.volume_io.headers import without_header_values
from medmoco.data.volume_io.volume import Volume
from medmoco.errors import ImageError

SAME_PLACE = 0.1
"""Largest distance between a voxel of a mask and the same one of its image, in voxels. Source: our choice; rounding in
headers moves voxels by less than 0.01, and an origin at the corner of a voxel instead of its centre by 0.5."""


@dataclass(frozen=True, repr=False)
class DicomReference:
    """What other DICOM files call an image; never for messages.

    Attributes:
        instance: SOPInstanceUID.
        frame: Frame, from 1.
        frames: Number of frames of the file.
    """

    instance: str
    frame: int = 1
    frames: int = 1


@dataclass(frozen=True)
class ImageGrid:
    """The grid of an image or a volume.

    Attributes:
        shape: (H, W) or (X, Y, Z).
        affine: (4, 4) float64, from voxel indices to RAS coordinates in mm; of an image from (row, column, 0), and None
            if its file does not state its place in the patient.
        spacing: Distances between pixels along each axis, in mm; None if the file does not state them.
        frame_of_reference: That of a volume, see `Volume`.
        reference: Of a DICOM image; None for volumes and other files.
    """

    shape: tuple[int, ...]
    affine: Floats | None = None
    spacing: tuple[float, ...] | None = None
    frame_of_reference: str = field(default="", repr=False)
    reference: DicomReference | None = field(default=None, repr=False)


def grid_of_volume(volume: Volume) -> ImageGrid:
    """Return the grid of a volume."""
    return ImageGrid(volume.values.shape, volume.affine, volume.spacing, volume.frame_of_reference)


def grid_of_image(file: Path, frame: int, shape: tuple[int, int], limits: Limits) -> ImageGrid:
    """Return the grid of an image, from its header if it is a DICOM file.

    Args:
        file: The file.
        frame: Its frame, from 1.
        shape: Height and width.
        limits: Larger files are refused.

    Raises:
        ImageError: the header cannot be read.
    """
    with as_image_errors():
        if not is_dicom(file):
            return ImageGrid(shape)
        header = read_header(file, limits)
        with without_header_values("DICOM"):
            spacing, reference = pixel_spacing(header.header, frame), _reference(header.header, frame)
        return ImageGrid(shape, _affine(header, frame, limits), spacing, reference=reference)


def reference_of(file: Path, frame: int, limits: Limits) -> DicomReference | None:
    """Return how DICOM files refer to a frame of an image; None if it is not a DICOM file. Errors: `grid_of_image`."""
    return grid_of_image(file, frame, (0, 0), limits).reference


def _reference(header: Dataset, frame: int) -> DicomReference | None:
    instance = str(header.get("SOPInstanceUID") or "").strip()
    return DicomReference(instance, frame, int(header.get("NumberOfFrames") or 1)) if instance else None


def pixel_spacing(header: Dataset, frame: int) -> tuple[float, float] | None:
    """Return the distances between rows and between columns of a DICOM image, in mm; None if it states none.

    Pixel Spacing is the distance in the patient, and decides: of a radiograph, it is corrected for magnification if it
    differs from the spacing at the detector. Without it, Imager Pixel Spacing is the distance at the front of the
    detector, where the patient appears magnified, and Nominal Scanned Pixel Spacing that on a digitised film.

    Source: DICOM PS3.3 10.7.1.1 (which decides) and 10.7.1.3 (their order).
    """
    stated = functional_group(header, frame, "PixelMeasuresSequence").get("PixelSpacing")
    for pair in (stated, header.get("ImagerPixelSpacing"), header.get("NominalScannedPixelSpacing")):
        with suppress(TypeError, ValueError):
            down, across = (float(number) for number in pair or ())
            if 0 < down < math.inf and 0 < across < math.inf:
                # As for the aspect ratio of the image, others are not believed.
                return (down, across) if 1 / MOST_OBLONG <= down / across <= MOST_OBLONG else None
    return None


def _affine(file: DicomFile, frame: int, limits: Limits) -> Floats | None:
    """Return the matrix of an image, from (row, column, 0); None if it has no place in the patient."""
    try:
        slice_ = frames_of(file, limits)[frame - 1]
    except (ImageError, IndexError, ValueError):
        return None
    across, down = slice_.cosines[:3], slice_.cosines[3:]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = (
        down * slice_.pixel[0],
        across * slice_.pixel[1],
        np.cross(across, down),
    )
    affine[:3, 3] = slice_.position
    matrix: Floats = LPS_TO_RAS @ affine
    return matrix
