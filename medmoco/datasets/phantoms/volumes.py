"""Files of the CT phantoms: DICOM series and NIfTI, several for each patient.

All series of a study are reconstructions of one scan, with other slices and another kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.uid import UID, CTImageStorage

from medmoco.datasets.phantoms.ct import Kernel, Scan, acquire, draw_scan, render, scan_grid
from medmoco.datasets.phantoms.dicom import common_header, derived_uids
from medmoco.datasets.phantoms.solids import Array
from medmoco.datasets.phantoms.thorax import Person, build_thorax
from medmoco.datasets.phantoms.voxels import Grid
from medmoco.errors import SettingsError

KINDS = {"dicom": ("int16", "int16_offset", "uint12"), "nifti": ("nifti",)}
"""Kinds of files of each format."""

STORED = {"int16": (1, 16, 0), "int16_offset": (1, 16, -1024), "uint12": (0, 12, -1024)}
"""PixelRepresentation, BitsStored and RescaleIntercept of a kind of DICOM series."""

LABELS = ["Nodule", "Opacity", "Effusion"]
COLUMNS = ["Path", "PatientID", "StudyID", "SeriesInstanceUID", "Sex", "Age", "Modality", *LABELS]
NODULE_COLUMNS = ["Split", "Path", "x_mm", "y_mm", "z_mm", "diameter_mm"]

HU = npt.NDArray[np.int16]
Row = list[str | int | float]


@dataclass(frozen=True)
class Series:
    """How a scan is reconstructed, and where the file places it."""

    study: int
    number: int
    kind: str
    distance: float  # mm between slices
    thickness: float  # mm
    kernel: Kernel
    order: str  # of the files: "up" from foot to head, "down", or "mixed"
    affine: Array  # (4, 4), from voxel indices to RAS coordinates in mm


def write_patient(
    folder: Path, person: Person, patient: str, image_size: int, formats: Sequence[str]
) -> tuple[list[Row], list[Row]]:
    """Write the series of a patient; return the rows of the manifest and those of the nodules, without their split."""
    rng = np.random.default_rng([person.seed, person.number, 9])
    rows: list[Row] = []
    nodules: list[Row] = []
    (folder / patient).mkdir(parents=True)
    for study in range(1, int(rng.integers(1, 3)) + 1):
        scan = draw_scan(person, study)
        origin = np.round(rng.normal((0, 0, -600), (3, 8, 300)), 1)  # that of the scanner, in mm
        for number in range(1, int(rng.integers(1, 3)) + 1):
            series, grid = _draw_series(scan, number, image_size, origin, formats, rng)
            noise = np.random.default_rng([person.seed, person.number, 10, study, number])
            values = acquire(render(scan, grid), grid, series.kernel, noise)
            path, uid = f"{patient}/study{study}_series{number}", ""
            if series.kind == "nifti":
                path += ".nii.gz"
                write_nifti(folder / path, values, series.affine)
            else:
                uid = write_series(folder / path, values, person, patient, series)
            labels = [int(bool(lesions)) for lesions in (scan.nodules, scan.opacities, scan.effusions)]
            rows.append([path, patient, f"{patient}-{study}", uid, person.sex, person.age, "CT", *labels])
            found = nodule_positions(scan, origin)
            nodules += [[path, *nodule] for nodule in found] or [[path, "", "", "", ""]]
    return rows, nodules


def _draw_series(
    scan: Scan, number: int, image_size: int, origin: Array, formats: Sequence[str], rng: np.random.Generator
) -> tuple[Series, Grid]:
    distance = float(rng.choice([3.0, 4.0, 5.0]))
    thickness = distance + float(rng.choice([0.0, 0.0, 1.0]))  # some slices overlap
    kernel: Kernel = "soft" if rng.random() < 0.5 else "sharp"
    grid = scan_grid(scan, image_size, distance / 10, thickness / 10)
    affine: Array = np.eye(4)
    affine[[0, 1, 2], [0, 1, 2]] = np.round((10 * grid.size[0], 10 * grid.size[1], distance), 4)
    first = -10 * float(grid.x[0]), 10 * float(grid.y[0]), 10 * float(grid.z[0])  # x of the thorax grows to the left
    affine[:3, 3] = np.round(origin + np.array(first), 4)
    order = str(rng.choice(["up", "down", "mixed", "mixed"]))
    kinds = KINDS[formats[int(rng.integers(len(formats)))]]
    kind = kinds[int(rng.integers(len(kinds)))]
    return Series(scan.study, number, kind, distance, thickness, kernel, order, affine), grid


def nodule_positions(scan: Scan, origin: Array) -> list[tuple[float, float, float, float]]:
    """Return the centre of each nodule in RAS coordinates and its diameter, in mm."""
    found = []
    for _, blobs in build_thorax(scan.person, scan.pose, scan.nodules).lesions:
        x, y, z = (10 * blobs.centre[0] * (-1, 1, 1) + origin).round(1).tolist()
        found.append((x, y, z, round(20 * float(np.cbrt(np.prod(blobs.box[0]))), 1)))
    return found


def write_nifti(file: Path, values: HU, affine: Array) -> None:
    """Write (X, Y, Z) voxels in RAS order, compressed without a time."""
    nibabel = import_nibabel()
    image = nibabel.Nifti1Image(values, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, file)


def import_nibabel() -> Any:
    """Return the module nibabel.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        import nibabel
    except ImportError:
        raise SettingsError(
            "NIfTI files need nibabel: pip install medmoco[volumes]. Or choose formats=['dicom']"
        ) from None
    return nibabel


def write_series(folder: Path, values: HU, person: Person, patient: str, series: Series) -> UID:
    """Write (X, Y, Z) voxels in RAS order as one axial DICOM file per slice; return the SeriesInstanceUID."""
    signed, bits, intercept = STORED[series.kind]
    study, name = f"medmoco phantom/volume/{person.seed}/{patient}/{series.study}", f"/{series.number}"
    ds = common_header(person, patient, series.study)
    ds.SOPClassUID = CTImageStorage
    ds.StudyInstanceUID, ds.SeriesInstanceUID = derived_uids(study, name)
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = derived_uids(f"{study}/frame")[0], ""
    ds.Modality, ds.PatientPosition, ds.SeriesNumber = "CT", "HFS", series.number
    ds.SeriesDescription, ds.ConvolutionKernel = f"CHEST {series.thickness:g} {series.kernel}", series.kernel.upper()
    ds.KVP, ds.SliceThickness, ds.SpacingBetweenSlices = "120", f"{series.thickness:g}", f"{series.distance:g}"
    ds.PixelSpacing = [f"{series.affine[1, 1]:.4f}", f"{series.affine[0, 0]:.4f}"]
    ds.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]  # rows to the left, columns to the back
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = str(intercept), "1", "HU"
    ds.WindowCenter, ds.WindowWidth = ["40", "-600"], ["400", "1500"]
    # DICOM counts to the left and to the back (LPS, PS3.3 C.7.6.2.1.1), so that the first pixel is the last voxel.
    corner = series.affine @ (values.shape[0] - 1, values.shape[1] - 1, 0, 1)
    stored = (values.astype(np.int32) - intercept).astype(np.int16 if signed else np.uint16)
    rng = np.random.default_rng([person.seed, person.number, 11, series.study, series.number])
    files, instances = _numbers(series.order, values.shape[2], rng)
    folder.mkdir()
    for k, (file, instance) in enumerate(zip(files, instances, strict=True)):
        height = corner[2] + k * series.affine[2, 2]
        ds.ImagePositionPatient = [f"{value:.4f}" for value in (-corner[0], -corner[1], height)]
        ds.SliceLocation, ds.InstanceNumber = f"{height:.4f}", instance
        ds.SOPInstanceUID = derived_uids(f"{study}{name}/{values.shape[0]}/{series.kind}/{k}")[0]
        pixels = np.ascontiguousarray(stored[::-1, ::-1, k].T)
        ds.set_pixel_data(pixels, "MONOCHROME2", bits, generate_instance_uid=False)
        ds.save_as(folder / f"IM{file:04d}.dcm", enforce_file_format=True)
    return UID(ds.SeriesInstanceUID)


def _numbers(order: str, slices: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """Return the numbers of the files and of the instances, from 1, of the slices from foot to head."""
    up = np.arange(1, slices + 1)
    if order == "mixed":
        return rng.permutation(up).tolist(), rng.permutation(up).tolist()
    numbers = (up if order == "up" else up[::-1]).tolist()
    return numbers, numbers
