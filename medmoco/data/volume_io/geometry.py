"""Orientation of volumes, and faults of the positions of their slices.

Tolerances are those of established converters, where they have any:

- dicom2nifti compares cosines with a tolerance of 0.001 and gaps with 0.1 mm + 5 % (its common.py).
- The Imaging Data Commons allows 0.01 for the length of the cross product of the cosines
  (its table of volume geometry checks).
"""

from __future__ import annotations

from typing import cast

import numpy as np

from medmoco.data.image_io.intensity import DAMAGED, Floats, Pixels, Unreadable
from medmoco.data.volume_io.headers import SINGLE_SLICE, StoredVolume, VolumeFault, VolumeHeader, library

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From DICOM's and ITK's coordinates to those of NIfTI. Source: DICOM PS3.3 C.7.6.2.1.1."""

SAME_COSINES = 1e-3
"""Largest difference between the cosines of slices with the same orientation. Source: dicom2nifti."""
UNIT_COSINES = 0.01
"""Largest deviation of the cosines from perpendicular unit vectors. Source: Imaging Data Commons."""
GAP_MM, GAP_SHARE, GAP_MOST = 0.1, 0.05, 0.25
"""Largest deviation of a gap from the usual one: 0.1 mm + 5 %, but no more than a quarter of it, since 0.1 mm is a
whole slice in microscopic volumes. Source: dicom2nifti; the quarter is our choice."""
TILT_DEGREES = 0.5
"""Largest angle between the direction of the slices and their normal, and deviation of axes from a right angle.
Source: our choice; over 300 mm it shifts slices by 2.6 mm. dicom2nifti allows about 3 degrees."""
PLAUSIBLE_MM = (0.01, 20.0)
"""Spacings outside are probably in another unit. Source: our choice; micro-CT has 0.01 mm, localisers 10 to 20 mm."""
_FLAT = 1e-3  # smaller volumes of a unit cell: its axes lie in a plane


def header_of(stored: StoredVolume) -> VolumeHeader:
    """Return the geometry of a volume in the axes of RAS, with the faults of its axes added.

    Raises:
        Unreadable: see `check_affine`.
    """
    orientations = library("nibabel").orientations
    check_affine(stored.affine)
    axes = _axes(stored)
    shape = [0, 0, 0]
    for own, (ras, _) in enumerate(axes):
        shape[int(ras)] = stored.shape[own]
    affine = stored.affine @ orientations.inv_ornt_aff(axes, stored.shape)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if stored.slice_axis is None:
        # Of equal spacings the last axis; a spacing may differ by rounding.
        slice_axis = int(max(np.flatnonzero(spacing > spacing.max() * (1 - 1e-3))))
    else:
        slice_axis = int(axes[stored.slice_axis, 0])
    faults = {fault.kind: fault for fault in (*stored.faults, *_axis_faults(affine, tuple(shape)))}
    return VolumeHeader(
        shape=(shape[0], shape[1], shape[2]),
        affine=affine,
        slice_axis=slice_axis,
        modality=stored.modality,
        faults=tuple(sorted(faults.values(), key=lambda fault: fault.severity)),  # stable
        files=stored.files,
    )


def to_ras(stored: StoredVolume, values: Pixels) -> Pixels:
    """Return voxels (I, J, K) of a stored volume with the axes of RAS, (X, Y, Z), as a view without copying."""
    return cast(Pixels, library("nibabel").orientations.apply_orientation(values, _axes(stored)))


def check_affine(affine: Floats) -> None:
    """Refuse a matrix that does not map three axes to three directions.

    Raises:
        Unreadable: it does not.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not (
        np.isfinite(affine).all()
        and np.isfinite(lengths).all()
        and lengths.all()
        and abs(np.linalg.det(affine[:3, :3] / lengths)) > _FLAT
    ):
        raise Unreadable(f"its orientation matrix does not describe three axes; {DAMAGED}")


def _axes(stored: StoredVolume) -> Floats:
    """Return (3, 2): for each stored axis the closest axis of RAS, and 1 or -1 if it must be reversed."""
    return cast(Floats, library("nibabel").orientations.io_orientation(stored.affine))


def _axis_faults(affine: Floats, shape: tuple[int, ...]) -> list[VolumeFault]:
    """Return faults that any volume may have: a single slice, axes that are not perpendicular, odd spacings."""
    faults = []
    if min(shape) == 1:
        faults.append(SINGLE_SLICE)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = affine[:3, :3] / spacing
    cosines = np.abs(axes.T @ axes)[np.triu_indices(3, 1)]
    if np.degrees(np.arcsin(min(1.0, cosines.max()))) > TILT_DEGREES:
        faults.append(_tilt(float(np.degrees(np.arcsin(min(1.0, cosines.max()))))))
    low, high = PLAUSIBLE_MM
    if spacing.min() < low or spacing.max() > high:
        text = " x ".join(f"{mm:.4g}" for mm in spacing)
        faults.append(VolumeFault("odd_spacing", f"its spacing of {text} mm is implausible; check its unit", "warning"))
    return faults


def _tilt(degrees: float) -> VolumeFault:
    return VolumeFault(
        "gantry_tilt",
        f"its axes deviate by {degrees:.1f} degrees from right angles (gantry tilt; up to {TILT_DEGREES:g} are"
        " accepted);\ncorrect the tilt with a converter such as dcm2niix",
    )


# ---- positions of slices ----


def orientation_faults(cosines: Floats) -> list[VolumeFault]:
    """Return the fault of slices, (N, 6) cosines of rows and columns, that have several orientations."""
    if np.abs(cosines - cosines[0]).max() <= SAME_COSINES:
        return []
    normals = np.cross(cosines[:, :3], cosines[:, 3:])
    angle = float(np.degrees(np.arccos(np.clip(normals @ normals[0], -1, 1)).max()))
    if 45 < angle < 135:
        return [
            VolumeFault(
                "localiser",
                "its slices have orientations that are perpendicular to each other, as those of a localiser;\n"
                "remove the row, or choose another series",
            )
        ]
    differ = np.count_nonzero(np.abs(cosines - cosines[0]).max(axis=1) > SAME_COSINES)
    return [
        VolumeFault(
            "mixed_orientations",
            f"{differ} of its {len(cosines)} slices have another orientation than the first;\n"
            "keep only slices of one orientation in the series",
        )
    ]


def position_faults(along: Floats) -> list[VolumeFault]:
    """Return faults of the sorted positions (N,) of slices along their normal, in mm."""
    gaps = np.diff(along)
    usual = _usual(gaps[gaps > 1e-4])
    if not usual:
        return [_duplicates(len(gaps), len(along))]
    faults = []
    copies = gaps < GAP_SHARE * usual
    if copies.any():
        faults.append(_duplicates(int(copies.sum()), len(along)))
        along = along[np.concatenate([[True], ~copies])]
        gaps = np.diff(along)
    tolerance = min(GAP_MM + GAP_SHARE * usual, GAP_MOST * usual)
    multiples = np.rint(gaps / usual)
    differ = np.abs(gaps - usual) > tolerance
    missing = differ & (multiples > 1) & (np.abs(gaps - multiples * usual) <= tolerance)
    if count := np.count_nonzero(missing):
        faults.append(
            VolumeFault(
                "missing_slices",
                f"{int((multiples[missing] - 1).sum())} slices are missing: most gaps are {usual:.4g} mm, but"
                f" {count} {'is' if count == 1 else 'are'} larger, up to {gaps.max():.4g} mm;\nobtain the series again,"
                " or resample it if it was acquired with several spacings",
            )
        )
    uneven = differ & ~missing
    even = along[0] + np.arange(len(along)) * (along[-1] - along[0]) / (len(along) - 1)
    drifts = not differ.any() and np.abs(along - even).max() > usual / 2
    if uneven.any() or drifts:
        faults.append(
            VolumeFault(
                "uneven_spacing",
                f"its gaps between slices are uneven, {gaps.min():.4g} to {gaps.max():.4g} mm (up to {tolerance:.2g} mm"
                f" of difference to {usual:.4g} mm are accepted);\nresample it to even spacing, or remove the row",
            )
        )
    return faults


def _usual(gaps: Floats) -> float:
    """Return the median gap, of two middle ones the smaller, so that of a missing slice is not the usual one."""
    return float(np.sort(gaps)[(len(gaps) - 1) // 2]) if len(gaps) else 0.0


def _duplicates(count: int, slices: int) -> VolumeFault:
    return VolumeFault(
        "duplicate_slices",
        f"{count} of its {slices} slices have the position of another: copies, or several volumes (time points,\n"
        "echoes, directions) in one series; keep one slice for each position",
    )


def direction_faults(positions: Floats, normal: Floats, pixel: float) -> list[VolumeFault]:
    """Return faults of the sorted positions (N, 3) of slices across their normal.

    Shifts of less than half a pixel are ignored: they are due to rounding.

    Args:
        positions: Of the first pixels, in mm.
        normal: (3,), unit length.
        pixel: The smaller side of a pixel, in mm.
    """
    span = positions[-1] - positions[0]
    along = span @ normal
    across = float(np.linalg.norm(span - along * normal))
    degrees = float(np.degrees(np.arctan2(across, along)))
    if degrees > TILT_DEGREES and across > pixel / 2:
        return [_tilt(degrees)]
    relative = positions - positions[0]
    shares = (relative @ normal) / along if along else np.zeros(len(positions))
    rest = relative - shares[:, None] * span
    if (shifted := np.count_nonzero(np.linalg.norm(rest, axis=1) > pixel / 2)) == 0:
        return []
    return [
        VolumeFault(
            "shifted_slices",
            f"{shifted} of its {len(positions)} slices are shifted sideways by more than half a pixel;\n"
            "obtain the series again, or remove the row",
        )
    ]
