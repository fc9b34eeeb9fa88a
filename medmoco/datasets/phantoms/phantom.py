"""Synthetic chest phantoms as DICOM and PNG files, so that the demo and the tests need no download.

thorax.py projects an analytic thorax. The Beer-Lambert law gives the photons that reach the detector, followed by
noise, blur, logarithm and 12 bits. The label Opacity is a patchy consolidation of a lung, drawn for each study;
Interstitial is a fine network in both lungs, drawn for each patient.

Phantoms carry no clinical evidence: a score on them shows that the code works and tells nothing about patients. The
model is simplified: a single photon energy, parallel rays, scatter as one broad blur, and AP views that differ from PA
views only by a higher diaphragm and a larger heart.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

from medmoco.data.manifest.split_files import check_new_folder
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
Row = list[str | int]


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
    patients: int = 160,
    image_size: int = 256,
    seed: int = 0,
    formats: Sequence[str] = ("dicom", "png"),
    workers: int = 0,
) -> dict[str, int]:
    """Write phantoms of one to four images per patient, their manifest and the boxes of the opacities.

    `out` gets train.csv, val.csv, test.csv, boxes.csv and the folders train, val and test; a Path is relative to the
    folder of its split. Half of the DICOM files are MONOCHROME1, half of the PNG files have 8 bits. On one machine the
    same arguments give the same bytes, whatever the number of workers; of the tables only the boxes depend on
    `image_size`.

    Args:
        out: New or empty folder.
        patients: At least 3; 60 % train, 20 % val, 20 % test.
        image_size: Side of the images in pixels.
        seed: Seed of all random draws.
        formats: "dicom", "png" or both.
        workers: Number of processes; 0 draws in this one.

    Returns:
        Number of images per split.

    Raises:
        SettingsError: an argument is invalid, or `out` is not an empty folder.

    Examples:
        >>> import medmoco
        >>> medmoco.phantom("more", patients=10, image_size=64)
        {'train': 12, 'val': 3, 'test': 7}
    """
    out = Path(out)
    _check(out, patients, image_size, seed, formats, workers)
    kinds = [kind for name in FORMATS if name in formats for kind in FORMATS[name]]
    val, test = (max(1, round(SHARES[name] * patients)) for name in ("val", "test"))
    splits = ["train"] * (patients - val - test) + ["val"] * val + ["test"] * test
    jobs = [(out / split, seed, number, image_size, kinds) for number, split in enumerate(splits, start=1)]
    try:
        if workers:
            with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
                written = list(pool.map(_write_patient, *zip(*jobs, strict=True), chunksize=8))
        else:
            written = [_write_patient(*job) for job in jobs]
        return _write_tables(out, splits, written)
    except OSError as error:
        raise SettingsError(
            f"cannot write to {out}: {error.strerror}; free some space or choose another folder"
        ) from None


def _write_tables(out: Path, splits: Sequence[str], written: Sequence[tuple[list[Row], list[Row]]]) -> dict[str, int]:
    counts, boxes = {}, []
    for name in SHARES:
        patients = [tables for split, tables in zip(splits, written, strict=True) if split == name]
        rows = [row for manifest_rows, _ in patients for row in manifest_rows]
        boxes += [[name, *box] for _, patient_boxes in patients for box in patient_boxes]
        write_table(out / f"{name}.csv", pd.DataFrame(rows, columns=COLUMNS))
        counts[name] = len(rows)
    write_table(out / "boxes.csv", pd.DataFrame(boxes, columns=BOX_COLUMNS))
    return counts


def _check(out: Path, patients: int, image_size: int, seed: int, formats: Sequence[str], workers: int) -> None:
    if patients < 3:
        raise SettingsError(f"patients={patients}: train, val and test need one patient each; choose 3 or more")
    if not 32 <= image_size <= 4096:
        raise SettingsError(f"image_size={image_size}: choose 32 to 4096 pixels")
    if seed < 0 or workers < 0:
        raise SettingsError(f"seed={seed}, workers={workers}: neither can be negative")
    if not formats or set(formats) - set(FORMATS):
        raise SettingsError(f"formats={','.join(formats)}: choose from {', '.join(FORMATS)}")
    check_new_folder(out)


def _write_patient(
    folder: Path, seed: int, number: int, image_size: int, kinds: Sequence[str]
) -> tuple[list[Row], list[Row]]:
    """Write the images of one patient; return the rows of the manifest and those of the boxes, without their split."""
    person = draw_person(seed, number)
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
            found = lesion_boxes(thorax, image_size)
            boxes += [[path, "Opacity", *box] for box in found] or [[path, "", "", "", "", ""]]
    return rows, boxes


def lesion_boxes(thorax: Thorax, image_size: int) -> list[tuple[int, int, int, int]]:
    """Return x_min, y_min, x_max, y_max of each opacity, in pixels from the top left corner."""
    boxes = []
    for lesion in thorax.lesions:
        added = project_lesion(thorax, lesion, image_size) > BOX_FLOOR
        if added.any():
            x, y, width, height = cv2.boundingRect(added.astype(np.uint8))
            boxes.append((int(x), int(y), int(x + width), int(y + height)))
    return boxes


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
    ds = Dataset()
    ds.SOPClassUID = ComputedRadiographyImageStorage
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = (
        generate_uid(entropy_srcs=["".join(names[:depth])]) for depth in (1, 2, 3)
    )
    ds.PatientName, ds.PatientID = patient.replace("-", "^"), patient
    ds.PatientSex, ds.PatientAge, ds.PatientBirthDate = person.sex, f"{person.age:03d}Y", ""
    ds.StudyDate = ds.StudyTime = ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = f"{patient}-{study}", image, image
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition, ds.Laterality = "CR", "CHEST", pose.view, ""
    ds.PatientOrientation = ["L", "F"]
    ds.Manufacturer, ds.ImageComments = "medmoco phantom", "Synthetic image of no person; not for clinical use"
    ds.ImageType, ds.BurnedInAnnotation = ["ORIGINAL", "PRIMARY"], "NO"
    ds.ImagerPixelSpacing = [f"{10 * FIELD / len(pixels):.6f}"] * 2
    ds.WindowCenter, ds.WindowWidth = centre, width
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.set_pixel_data(pixels, photometric, 12, generate_instance_uid=False)
    ds.save_as(file, enforce_file_format=True)
