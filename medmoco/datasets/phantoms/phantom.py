"""Synthetic chest phantoms as files, so that the demo and the tests need no download: films here, CT in volumes.py.

Films are DICOM or PNG. thorax.py projects an analytic thorax; the Beer-Lambert law gives the photons that reach the
detector, followed by noise, blur, logarithm and 12 bits. The label Opacity is a patchy consolidation of a lung, drawn
for each study; Interstitial is a fine network in both lungs, drawn for each patient.

Phantoms carry no clinical evidence: a score on them shows that the code works and tells nothing about patients. The
model is simplified: a single photon energy, parallel rays, scatter as one broad blur, and AP views that differ from PA
views only by a higher diaphragm and a larger heart.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from pydicom.uid import ComputedRadiographyImageStorage

from medmoco.data.manifest.split_files import check_new_folder
from medmoco.datasets.phantoms.dicom import common_header, derived_uids
from medmoco.datasets.phantoms.solids import Array
from medmoco.datasets.phantoms.thorax import (
    FIELD,
    Person,
    Pose,
    Thorax,
    build_thorax,
    draw_lesions,
    draw_person,
    draw_pose,
    project_lesion,
    project_thorax,
)
from medmoco.datasets.phantoms.volumes import COLUMNS as COLUMNS_OF_VOLUMES
from medmoco.datasets.phantoms.volumes import KINDS, NODULE_COLUMNS, Row, import_nibabel, write_patient
from medmoco.errors import SettingsError
from medmoco.utils.files import PathLike
from medmoco.utils.tables import write_table

PHOTONS = 4e5  # per pixel without a patient: few, so that quantum noise shows
SCATTER = 0.25  # scattered photons per primary photon, averaged over the detector
FULL_SCALE = 8.0  # attenuation at the largest 12-bit value
BOX_FLOOR = 0.02  # a box encloses the pixels to which an opacity adds more than this attenuation
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}  # of the patients
FORMATS = {"dicom": ("MONOCHROME1", "MONOCHROME2"), "png": ("png16", "png8")}
PREFIX = "PHANTOM-"
"""Start of every PatientID, by which synthetic images are recognised later."""

COLUMNS = ["Path", "PatientID", "StudyID", "ViewPosition", "Sex", "Age", "Opacity", "Interstitial"]
BOX_COLUMNS = ["Split", "Path", "Label", "x_min", "y_min", "x_max", "y_max"]

Image = npt.NDArray[np.uint16]
Flags = npt.NDArray[np.bool_]


def expose(attenuation: Array, rng: np.random.Generator) -> Image:
    """Return the (H, W) 12-bit image, 0 to 4095, denser brighter: photons, noise, blur, logarithm."""
    primary = np.exp(-attenuation)
    coarse = cv2.resize(primary, (32, 32), interpolation=cv2.INTER_AREA)
    broad = cv2.resize(cv2.GaussianBlur(coarse, (0, 0), 5), primary.shape[::-1], interpolation=cv2.INTER_LINEAR)
    dose = PHOTONS * np.exp(rng.normal(0, 0.25))
    expected = dose * (primary + SCATTER * broad)  # at least hundreds, so Poisson is close to normal
    counts = expected + np.sqrt(expected) * rng.standard_normal(expected.shape)
    blurred = cv2.GaussianBlur(counts, (0, 0), 0.0025 * len(counts))
    signal = -np.log(np.maximum(blurred, 1) / PHOTONS)
    pixels: Image = np.rint(np.clip(signal / FULL_SCALE, 0, 1) * 4095).astype(np.uint16)
    return pixels


def phantom(
    out: PathLike,
    *,
    volumes: bool = False,
    patients: int = 160,
    image_size: int | None = None,
    seed: int = 0,
    formats: Sequence[str] | None = None,
    masks: bool = False,
    workers: int = 0,
) -> dict[str, int]:
    """Write phantoms of one to four images or CT volumes per patient, and their manifest.

    `out` gets train.csv, val.csv, test.csv, a table of the lesions, and the folders train, val and test; a Path is
    relative to the folder of its split. On one machine the same arguments give the same bytes, whatever the number of
    workers.

    The images are frontal chest films with the labels Opacity and Interstitial; boxes.csv has the boxes of the
    opacities, in pixels. Half of the DICOM files are MONOCHROME1, half of the PNG files have 8 bits.

    The volumes are chest CT in HU with the labels Nodule, Opacity and Effusion; nodules.csv has the centres of the
    nodules in RAS coordinates and their diameters, in mm. The Path of a DICOM series is its folder. Slices are 3 to 5
    mm apart; the order of half of the series has nothing to do with their position.

    Args:
        out: New or empty folder.
        volumes: Write volumes instead of images.
        patients: At least 3; 60 % train, 20 % val, 20 % test.
        image_size: Side of the images or slices in pixels, 256 or 128 (about 3 mm) by default.
        seed: Seed of all random draws.
        formats: "dicom", and "png" for images or "nifti" for volumes; both by default.
        masks: Write the pixels of the opacities in each image too, as PNG files that the column Mask names.
        workers: Number of processes; 0 draws in this one.

    Returns:
        Number of images or volumes per split.

    Raises:
        SettingsError: an argument is invalid, `out` is not an empty folder, or nibabel is not installed for NIfTI.

    Examples:
        >>> import medmoco
        >>> medmoco.phantom("more", patients=10, image_size=64)
        {'train': 12, 'val': 3, 'test': 7}
        >>> medmoco.phantom("ct", volumes=True, patients=3, image_size=32, formats=["dicom"])
        {'train': 2, 'val': 3, 'test': 2}
    """
    out = Path(out)
    known = KINDS if volumes else FORMATS
    size = image_size if image_size is not None else 128 if volumes else 256
    chosen = tuple(known) if formats is None else tuple(formats)
    if volumes and size > 512:
        raise SettingsError(f"image_size={size}: choose at most 512 for volumes")
    _check(out, patients, size, seed, workers)
    if masks and volumes:
        raise SettingsError("masks=True: only images have masks; leave it out")
    if not chosen or set(chosen) - set(known):
        raise SettingsError(f"formats={','.join(chosen)}: choose from {', '.join(known)}")
    if "nifti" in chosen:
        import_nibabel()
    chosen = tuple(name for name in known if name in chosen)  # in this order, whatever that of the argument
    val, test = (max(1, round(SHARES[name] * patients)) for name in ("val", "test"))
    splits = ["train"] * (patients - val - test) + ["val"] * val + ["test"] * test
    write = _write_volumes if volumes else partial(_write_patient, masks=masks)
    jobs = [(out / split, seed, number, size, chosen) for number, split in enumerate(splits, start=1)]
    try:
        if workers:
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                written = list(pool.map(write, *zip(*jobs, strict=True), chunksize=1 if volumes else 8))
        else:
            written = [write(*job) for job in jobs]
        if volumes:
            return _write_tables(out, splits, written, COLUMNS_OF_VOLUMES, "nodules.csv", NODULE_COLUMNS)
        columns = [*COLUMNS, "Mask"] if masks else COLUMNS
        return _write_tables(out, splits, written, columns, "boxes.csv", BOX_COLUMNS)
    except OSError as error:
        raise SettingsError(
            f"cannot write to {out}: {error.strerror}; free some space or choose another folder"
        ) from None


def _write_tables(
    out: Path,
    splits: Sequence[str],
    written: Sequence[tuple[list[Row], list[Row]]],
    columns: list[str],
    lesion_file: str,
    lesion_columns: list[str],
) -> dict[str, int]:
    counts, lesions = {}, []
    for name in SHARES:
        patients = [tables for split, tables in zip(splits, written, strict=True) if split == name]
        rows = [row for manifest_rows, _ in patients for row in manifest_rows]
        lesions += [[name, *lesion] for _, patient_lesions in patients for lesion in patient_lesions]
        write_table(out / f"{name}.csv", pd.DataFrame(rows, columns=columns))
        counts[name] = len(rows)
    write_table(out / lesion_file, pd.DataFrame(lesions, columns=lesion_columns))
    return counts


def _check(out: Path, patients: int, image_size: int, seed: int, workers: int) -> None:
    if patients < 3:
        raise SettingsError(f"patients={patients}: train, val and test need one patient each; choose 3 or more")
    if not 32 <= image_size <= 4096:
        raise SettingsError(f"image_size={image_size}: choose 32 to 4096 pixels")
    if seed < 0 or workers < 0:
        raise SettingsError(f"seed={seed}, workers={workers}: neither can be negative")
    check_new_folder(out)


def _write_volumes(
    folder: Path, seed: int, number: int, image_size: int, formats: Sequence[str]
) -> tuple[list[Row], list[Row]]:
    return write_patient(folder, draw_person(seed, number), f"{PREFIX}{number:04d}", image_size, formats)


def _write_patient(
    folder: Path, seed: int, number: int, image_size: int, formats: Sequence[str], *, masks: bool
) -> tuple[list[Row], list[Row]]:
    """Write the images of one patient; return the rows of the manifest and those of the boxes, without their split."""
    person, kinds = draw_person(seed, number), [kind for name in formats for kind in FORMATS[name]]
    rng = np.random.default_rng([seed, number, 4])
    patient = f"{PREFIX}{number:04d}"
    rows: list[Row] = []
    boxes: list[Row] = []
    (folder / patient).mkdir(parents=True)
    for study in range(1, int(rng.integers(1, 3)) + 1):
        lesions = draw_lesions(person, study)
        for image in range(1, int(rng.integers(1, 3)) + 1):
            kind = kinds[int(rng.integers(len(kinds)))]
            pose = draw_pose(person, study, image)
            thorax = build_thorax(person, pose, lesions)
            noise = np.random.default_rng([seed, number, 5, study, image])
            pixels = expose(project_thorax(thorax, image_size), noise)
            path = f"{patient}/study{study}_image{image}.{'png' if kind in FORMATS['png'] else 'dcm'}"
            if kind in FORMATS["png"]:
                write_png(folder / path, pixels, 8 if kind == "png8" else 16)
            else:
                write_dicom(folder / path, pixels, kind, person, pose, study, image)
            labels = [int(bool(lesions)), int(person.interstitial > 0)]
            rows.append([path, patient, f"{patient}-{study}", pose.view, person.sex, person.age, *labels])
            shown = lesion_pixels(thorax, image_size)
            if masks:
                mask = f"{patient}/study{study}_image{image}_mask.png"
                write_mask(folder / mask, shown)
                rows[-1].append(mask)
            found = lesion_boxes(shown)
            boxes += [[path, "Opacity", *box] for box in found] or [[path, "", "", "", "", ""]]
    return rows, boxes


def lesion_pixels(thorax: Thorax, image_size: int) -> Flags:
    """Return which pixels show each of L opacities, (L, H, W): those to which it adds more than `BOX_FLOOR`."""
    shown = np.zeros((len(thorax.lesions), image_size, image_size), bool)
    for number, lesion in enumerate(thorax.lesions):
        shown[number] = project_lesion(thorax, lesion, image_size) > BOX_FLOOR
    return shown


def lesion_boxes(shown: Flags) -> list[tuple[int, int, int, int]]:
    """Return x_min, y_min, x_max, y_max of each opacity (L, H, W), in pixels from the top left corner."""
    boxes = []
    for added in shown:
        if added.any():
            x, y, width, height = cv2.boundingRect(added.astype(np.uint8))
            boxes.append((int(x), int(y), int(x + width), int(y + height)))
    return boxes


def write_mask(file: Path, shown: Flags) -> None:
    """Write the pixels of all opacities (L, H, W) as PNG, with the values 0 and 1."""
    mask = np.asarray(shown.any(axis=0), np.uint8)
    file.write_bytes(cv2.imencode(".png", mask)[1].tobytes())


def display_window(pixels: Image) -> tuple[int, int]:
    """Return the centre and width of a DICOM window from the 2nd to the 97th percentile, which shows the body."""
    low, high = np.percentile(pixels, (2, 97))
    return round((low + high) / 2), max(round(high - low), 2)


def write_png(file: Path, pixels: Image, bits: int) -> None:
    """Write (H, W) 12-bit pixels through their display window, as public PNG data sets do."""
    centre, width = display_window(pixels)
    shown = np.clip((pixels - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) * (2**bits - 1)
    file.write_bytes(cv2.imencode(".png", np.rint(shown).astype(np.uint8 if bits == 8 else np.uint16))[1].tobytes())


def write_dicom(
    file: Path, pixels: Image, photometric: str, person: Person, pose: Pose, study: int, image: int
) -> None:
    """Write (H, W) 12-bit pixels as a computed radiograph without dates, with UIDs derived from the seed."""
    centre, width = display_window(pixels)
    if photometric == "MONOCHROME1":
        pixels, centre = 4095 - pixels, 4096 - centre  # DICOM windows are not symmetric: PS3.3 C.11.2.1.2.1
    patient = f"{PREFIX}{person.number:04d}"
    names = f"medmoco phantom/{person.seed}/{patient}/{study}", f"/{image}", f"/{len(pixels)}/{photometric}"
    ds = common_header(person, patient, study)
    ds.SOPClassUID = ComputedRadiographyImageStorage
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = derived_uids(*names)
    ds.SeriesNumber, ds.InstanceNumber = image, image
    ds.Modality, ds.ViewPosition, ds.PatientOrientation = "CR", pose.view, ["L", "F"]
    ds.ImagerPixelSpacing = [f"{10 * FIELD / len(pixels):.6f}"] * 2
    ds.WindowCenter, ds.WindowWidth = centre, width
    ds.set_pixel_data(pixels, photometric, 12, generate_instance_uid=False)
    ds.save_as(file, enforce_file_format=True)
