"""What is known of a volume before its voxels are read: geometry, and what is wrong with it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medmoco.data.image_io.intensity import DAMAGED, Floats, Unreadable
from medmoco.data.image_io.limits import Limits, within
from medmoco.errors import ImageError, SettingsError


@dataclass(frozen=True)
class VolumeFault:
    """What is wrong with a volume.

    Attributes:
        kind: A word for counting, such as "missing_slices".
        text: What was found, and what to do; without paths and patient data.
        severity: A "fault" makes `read_volume` refuse the volume; a "warning" becomes one of its notices.
    """

    kind: str
    text: str
    severity: Literal["fault", "warning"] = "fault"


@dataclass(frozen=True)
class VolumeHeader:
    """A volume's geometry, in the axes of RAS as in `Volume`, and what is wrong with it.

    Attributes:
        shape: X, Y and Z.
        affine: (4, 4) float64, from voxel indices to RAS coordinates in mm; with faults, as far as it is known.
        slice_axis: 0, 1 or 2, the axis along which slices were acquired.
        modality: "CT", "MR" or another DICOM modality; blank if the file does not tell.
        faults: What is wrong with it; faults first, then warnings.
        files: The files it is read from, for fingerprints and checks of links; never for messages.
    """

    shape: tuple[int, int, int]
    affine: Floats
    slice_axis: int
    modality: str
    faults: tuple[VolumeFault, ...]
    files: tuple[Path, ...]

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distances between voxels along the three axes, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    @property
    def slices(self) -> int:
        """Number of slices."""
        return self.shape[self.slice_axis]


@dataclass(frozen=True)
class StoredVolume:
    """A volume in the order in which its file stores it.

    Attributes:
        shape: Lengths I, J and K of the axes.
        affine: (4, 4) float64, from indices to RAS coordinates in mm.
        load: Reads the voxels, (I, J, K) float32 after the rescale; not called if there are faults.
        slice_axis: 0, 1 or 2; None if the file does not tell.
        modality: As for `VolumeHeader`.
        faults: What is wrong with it.
        files: The files it is read from.
        frame_of_reference: As for `Volume`.
    """

    shape: tuple[int, int, int]
    affine: Floats
    load: Callable[[], NDArray[np.float32]]
    slice_axis: int | None = None
    modality: str = ""
    faults: tuple[VolumeFault, ...] = ()
    files: tuple[Path, ...] = ()
    frame_of_reference: str = ""


NO_ORIENTATION = VolumeFault(
    "no_orientation",
    "the file does not state its orientation: left and right may be exchanged",
    "warning",
)
SINGLE_SLICE = VolumeFault(
    "single_slice",
    "it is a single slice, not a volume; give the folder of a DICOM series as Path, or set data.dimensions to 2",
)


def library(name: Literal["nibabel", "SimpleITK"]) -> Any:
    """Return an optional library.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise SettingsError(f"reading volumes needs {name}; install it with: pip install medmoco[volumes]") from None


@contextmanager
def without_header_values(kind: str) -> Iterator[None]:
    """Replace exceptions of libraries, whose messages quote paths and header values.

    Raises:
        Unreadable: a library raised an exception.
    """
    try:
        yield
    except (Unreadable, ImageError, SettingsError, MemoryError, PermissionError):
        raise
    except Exception as error:
        raise Unreadable(f"the {kind} file cannot be decoded ({type(error).__name__}); {DAMAGED}") from None


def check_voxels(shape: tuple[int, ...], voxel_bytes: int, limits: Limits) -> None:
    """Refuse a volume that would exceed the limits when it is uncompressed.

    `data.max_pixels` applies to its slices, `data.max_frames` to their number and `data.max_voxels` to all of its
    voxels; so does `data.max_bytes`, because a small compressed file may state any size.

    Raises:
        ImageError: it exceeds them, or is empty.
    """
    width, height, slices = shape
    if slices < 1:
        raise ImageError(f"the header states {slices} slices; {DAMAGED}")
    within(limits)(width, height, slices)
    if math.prod(shape) > limits.max_voxels:
        raise ImageError(
            f"it has {width} x {height} x {slices} voxels, more than data.max_voxels = {limits.max_voxels};\nraise the"
            " limit if the volume is really that large"
        )
    size = math.prod(shape) * voxel_bytes
    if size > limits.max_bytes:
        raise ImageError(
            f"its {width} x {height} x {slices} voxels take {size} bytes, which exceeds data.max_bytes ="
            f" {limits.max_bytes};\nraise the limit if the volume is really that large"
        )


def three_axes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return the lengths of the first three axes; the others must have length 1, and missing ones have.

    Raises:
        Unreadable: there are several volumes in the file.
    """
    x, y, z, *others = (*shape, 1, 1, 1)[: max(3, len(shape))]
    if any(length != 1 for length in others):
        raise Unreadable(
            f"the file has {math.prod(others)} volumes (shape {' x '.join(map(str, shape))}: time points, directions or"
            " channels);\nsave the one to use as a file of its own"
        )
    return x, y, z


def check_finite(values: NDArray[np.float32]) -> None:
    """Refuse values that are not finite.

    Raises:
        Unreadable: there are some; gives their number.
    """
    # A sum is not finite if one of its terms is not, and needs no array of flags.
    if not np.isfinite(values.sum(dtype=np.float64)) and (bad := values.size - np.count_nonzero(np.isfinite(values))):
        raise Unreadable(f"{bad} of {values.size} voxels are not finite; replace them when creating the file")
