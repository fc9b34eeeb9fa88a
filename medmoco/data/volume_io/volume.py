"""What a volume is: voxels in the patient's orientation.

Every array has the axes of RAS: its first index grows to the patient's right, the second to the front (anterior), the
third to the head (superior). Source: NIfTI and MONAI use the same; DICOM's coordinates grow to the left and to the back
(LPS, PS3.3 C.7.6.2.1.1), so two signs change when a series is read.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

AXES: tuple[Literal["left_right", "front_back", "head_foot"], ...] = ("left_right", "front_back", "head_foot")
"""The axes of an array, in order, as in `views.flip_axes`."""


@dataclass(frozen=True)
class Volume:
    """A decoded volume.

    Attributes:
        values: (X, Y, Z) float32, after the rescale: HU for CT, arbitrary units for MR.
        affine: (4, 4) float64, from voxel indices to RAS coordinates in mm. The axes are those closest to the
            patient's; an oblique acquisition stays oblique.
        slice_axis: 0, 1 or 2, the axis along which slices were acquired; where the file does not tell, the one with the
            largest spacing, and among equals the last.
        modality: "CT", "MR" or another DICOM modality; blank if the file does not tell.
        notices: Remarks of the reader, without paths or patient data.
        frame_of_reference: DICOM's FrameOfReferenceUID, for comparison only; blank if the file does not tell.
    """

    values: NDArray[np.float32]
    affine: NDArray[np.float64]
    slice_axis: int = 2
    modality: str = ""
    notices: tuple[str, ...] = ()
    frame_of_reference: str = field(default="", repr=False)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distances between voxels along the three axes, in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z


@dataclass(frozen=True)
class VolumeCanvas:
    """A volume resampled to `data.spacing`, cropped to the body, and windowed to 8 or 16 bits.

    Attributes:
        pixels: (X, Y, Z) uint8 or uint16 with black 0; an array, or what reads a part of one from a pack when it is
            indexed by three slices.
        spacing: Distances between its voxels, in mm.
        slice_axis: As for `Volume`.
        rgb: False, as for the canvases of gray images.
    """

    pixels: Any
    spacing: tuple[float, float, float]
    slice_axis: int = 2
    rgb: bool = False

    def in_memory(self) -> VolumeCanvas:
        """Return the same canvas with all its voxels read."""
        return replace(self, pixels=self.pixels[:, :, :])

    @property
    def shape(self) -> tuple[int, int, int]:
        """X, Y and Z."""
        x, y, z = self.pixels.shape
        return x, y, z
