"""Write predicted class numbers to files that other tools open: NIfTI, PNG, and DICOM segmentations.

NIfTI and PNG store the values that the user's own masks have, see `Classes`. A DICOM segmentation has a segment for
each class, named like it, and refers to the image from which it was predicted.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from medmoco import __version__
from medmoco.data.image_io.intensity import quiet
from medmoco.data.image_io.limits import DEFAULT_LIMITS, Limits, as_image_errors
from medmoco.data.volume_io import nifti
from medmoco.data.volume_io.frames import frames_of, read_header
from medmoco.data.volume_io.headers import library, without_header_values
from medmoco.data.volume_io.series import open_file, open_folder
from medmoco.errors import ImageError, SettingsError
from medmoco.segmentation.masks.dicom_seg import highdicom_library, silent_highdicom
from medmoco.segmentation.masks.masks import Classes, Numbers, size_words, stored_values
from medmoco.utils.files import replacing

_SCANNER = 1  # code of a matrix: RAS coordinates of the scanner. Source: nifti1.h, NIFTI_XFORM_SCANNER_ANAT
_RAS = np.array([[0, 1], [1, 1], [2, 1]])  # axes, as nibabel.orientations describes them

_TEXT = 64  # most characters of a name in DICOM (LO). Source: DICOM PS3.5 table 6.2-1
_SERIES_NUMBER = 1000  # our choice: above those that scanners assign
# What a segmentation must copy to belong to the patient and the study, PS3.3 tables C.7-1, C.7-3 and C.7-5; blank if
# the images have none.
_IDENTITY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber",
    "StudyID", "ReferringPhysicianName",
)  # fmt: skip
_REFERENCES = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_GEOMETRY = (
    "FrameOfReferenceUID", "PositionReferenceIndicator", "Rows", "Columns", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "NumberOfFrames",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "Modality",
)  # fmt: skip


# NIfTI and PNG


def write_nifti(
    file: Path, numbers: Numbers, affine: NDArray[np.float64], classes: Classes, *, like: Path | None = None
) -> None:
    """Write the class of each voxel as NIfTI, compressed if the name ends in .gz.

    Args:
        file: File to write or replace, .nii or .nii.gz.
        numbers: (X, Y, Z), 0 to C, in the axes of RAS.
        affine: (4, 4), from voxel indices to RAS coordinates in mm.
        classes: The classes, whose values are written.
        like: The image. If it is a NIfTI file, the mask gets its order of axes, shape and matrices exactly, and
            `affine` is not used; nothing else of its header is copied that may describe the patient.

    Raises:
        ImageError: the image has another shape than the mask, or its header cannot be read.
        SettingsError: nibabel is not installed.
    """
    nibabel = library("nibabel")
    values = stored_values(numbers, classes)
    version = _nifti_version(like)
    if like is not None and version:
        image = _like_nifti(nibabel, values, like, version)
    else:
        image = nibabel.Nifti1Image(values, affine, dtype=values.dtype)
        image.set_qform(affine, code=_SCANNER)
        image.set_sform(affine, code=_SCANNER)
        image.header.set_xyzt_units("mm")
    with replacing(file) as temporary, temporary.open("wb") as stream:
        if file.name.endswith(".gz"):
            with gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as packed:  # without name and time
                image.to_stream(packed)
        else:
            image.to_stream(stream)


def _nifti_version(like: Path | None) -> int:
    if like is None or like.is_dir():
        return 0
    with as_image_errors():
        return nifti.nifti_version(like)


def _like_nifti(nibabel: Any, values: NDArray[Any], like: Path, version: int) -> Any:
    """Return an image in memory on the grid of a NIfTI file, whose qform and sform it keeps bit by bit."""
    with as_image_errors(), without_header_values("NIfTI"):
        header = nifti.raw_header(like, version)
    affine = header.get_best_affine()
    own = _on_grid(values, affine)
    shape = header.get_data_shape()
    _refuse_other_shape(own.shape, (*shape, 1, 1, 1)[: max(3, len(shape))][:3])
    for text in ("descrip", "aux_file", "intent_name", *(["db_name"] if version == 1 else [])):
        header[text] = b""
    header["cal_min"] = header["cal_max"] = 0  # how to display the image
    header.set_intent("none")
    header.set_data_dtype(values.dtype)
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    return kind(own.reshape(shape), None, header)  # without a matrix it keeps those of the header


def _on_grid(values: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """Return voxels (X, Y, Z) with the order and direction of axes of a file with this matrix, as a view."""
    orientations = library("nibabel").orientations
    turn = orientations.ornt_transform(_RAS, orientations.io_orientation(affine))
    return cast(NDArray[Any], orientations.apply_orientation(values, turn))


def _refuse_other_shape(mask: tuple[int, ...], image: tuple[int, ...]) -> None:
    if tuple(mask) != tuple(image):
        raise ImageError(
            f"the mask has {size_words(mask)}, but its image has {size_words(image)};\n"
            "write it with the image from which it was predicted"
        )


def write_png(file: Path, numbers: Numbers, classes: Classes) -> None:
    """Write the class of each pixel as a grayscale PNG file: 8 bits, or 16 if a class has a value above 255.

    Args:
        file: File to write or replace.
        numbers: (H, W), 0 to C.
        classes: The classes, whose values are written.

    Raises:
        SettingsError: a class has a negative value, which PNG cannot store.
    """
    values = stored_values(numbers, classes)
    if values.dtype.kind != "u":
        raise SettingsError("segmentation.classes: PNG stores no negative values; give each class a positive one")
    content = cv2.imencode(".png", values)[1].tobytes()
    with replacing(file) as temporary:
        temporary.write_bytes(content)


def write_mask(
    out: Path, numbers: Numbers, affine: NDArray[np.float64] | None, classes: Classes, *, like: Path
) -> Path:
    """Write the mask of an image as PNG, or of a volume as compressed NIfTI, and return the file.

    Args:
        out: The file without its suffix.
        numbers: (H, W) or (X, Y, Z), 0 to C.
        affine: That of a volume, see `write_nifti`; None for an image.
        classes: The classes, whose values are written.
        like: The image.

    Raises:
        ImageError, SettingsError: see `write_nifti` and `write_png`.
    """
    file = out.with_name(out.name + (".png" if affine is None else ".nii.gz"))
    if affine is None:
        write_png(file, numbers, classes)
    else:
        write_nifti(file, numbers, affine, classes, like=like)
    return file


def stem_of(file: Path) -> str:
    """Return the name of a file without its suffixes; of a folder, as it is."""
    if file.is_dir():
        return file.name
    return Path(file.name.removesuffix(".gz")).stem


# DICOM segmentations


def write_dicom_seg(
    file: Path,
    numbers: Numbers,
    source: Path,
    classes: Classes,
    *,
    series: str = "",
    limits: Limits = DEFAULT_LIMITS,
) -> None:
    """Write the class of each voxel as a DICOM segmentation of the image, with a binary segment for each class.

    Of the patient and the study, only what the standard requires is copied from the image. What a class is cannot be
    known from its name, so it gets a private code (99MEDMOCO) and the category "Spatial and Relational Concept".
    Source: DICOM PS3.3 A.51 and C.8.20.

    Args:
        file: File to write or replace.
        numbers: (X, Y, Z) in the axes of RAS, of a volume; (H, W) of an image; 0 to C.
        source: The folder of a series, an enhanced multi-frame file, or the file of an image.
        classes: The classes.
        series: SeriesInstanceUID that chooses a series of the folder.
        limits: Larger files are refused.

    Raises:
        ImageError: the image cannot be read, has another shape than the mask, or lacks what a segmentation must copy.
        SettingsError: highdicom is not installed.
    """
    highdicom = highdicom_library()
    with as_image_errors():
        if numbers.ndim == 3:
            headers, planes = _series(numbers, source, series, limits)
        else:
            headers, planes = _single(numbers, source, limits)
    with _as_refusals():
        segmentation = highdicom.seg.Segmentation(
            source_images=headers,
            pixel_array=planes,
            segmentation_type="BINARY",
            segment_descriptions=_descriptions(highdicom, classes),
            series_instance_uid=highdicom.UID(),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="medmoco",
            manufacturer_model_name="medmoco",
            software_versions=__version__,
            device_serial_number=__version__,
            content_label="SEGMENTATION",
            content_description="Predicted by medmoco",
            series_description="Segmentation by medmoco",
            specific_character_set="ISO_IR 192",  # names of classes may have any letters
        )
    with replacing(file) as temporary, quiet():
        segmentation.save_as(temporary, enforce_file_format=True)


@contextmanager
def _as_refusals() -> Iterator[None]:
    """Silence highdicom and replace its exceptions, as both quote the header."""
    try:
        with silent_highdicom():
            yield
    except (MemoryError, SettingsError):
        raise
    except Exception as error:
        raise ImageError(
            f"no DICOM segmentation can be made for the image ({type(error).__name__}), as its header is incomplete or"
            " unusual;\nwrite NIfTI or PNG instead"
        ) from None


def _descriptions(highdicom: Any, classes: Classes) -> list[Any]:
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="medmoco", family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:_TEXT],
            segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
            segmented_property_type=highdicom.sr.CodedConcept(f"class-{number}", "99MEDMOCO", name[:_TEXT]),
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(classes.names, 1)
    ]


def _series(numbers: Numbers, source: Path, series: str, limits: Limits) -> tuple[Sequence[Dataset], NDArray[np.uint8]]:
    """Return the headers of the files of a series, and the mask of each of their frames (F, H, W), in their order."""
    stored = (open_folder if source.is_dir() else open_file)(source, series, limits)
    own = _on_grid(numbers, stored.affine)  # (columns, rows, slices), with slices sorted along their normal
    _refuse_other_shape(own.shape, stored.shape)
    frames = [frame for path in stored.files for frame in frames_of(read_header(path, limits), limits)]
    normal = np.cross(frames[0].cosines[:3], frames[0].cosines[3:])
    places = np.argsort(np.argsort([float(frame.position @ normal) for frame in frames]))
    spacing = float(np.linalg.norm(stored.affine[:3, 2]))
    headers = [_header(path) for path in stored.files]
    for header in headers:
        if "PerFrameFunctionalGroupsSequence" not in header and not header.get("SliceThickness"):
            header.SliceThickness = spacing  # which a segmentation of a volume must state
    return headers, np.ascontiguousarray(own.transpose(2, 1, 0)[places])


def _single(numbers: Numbers, source: Path, limits: Limits) -> tuple[Sequence[Dataset], NDArray[np.uint8]]:
    """Return the header of the file of an image, and its mask (1, H, W)."""
    read_header(source, limits)  # refuses what cannot be read
    header = _header(source)
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise ImageError("the image has several frames, but the mask is of one; write PNG instead")
    _refuse_other_shape(numbers.shape, (int(header.Rows), int(header.Columns)))
    if "ImagePositionPatient" not in header:  # a radiograph, whose pixels have no place in the patient
        for name in ("FrameOfReferenceUID", "PositionReferenceIndicator", "PixelSpacing"):
            if name in header:
                delattr(header, name)
    return [header], numbers[None]


def _header(path: Path) -> Dataset:
    """Return what a segmentation copies from a file.

    Raises:
        ImageError: it lacks something that cannot be blank.
    """
    with without_header_values("DICOM"):
        full = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[*_IDENTITY, *_REFERENCES, *_GEOMETRY])
        header = Dataset()
        header.update({element.tag: element for element in full if element.value not in (None, "")})
    required = [*_REFERENCES, *(["FrameOfReferenceUID"] if "ImagePositionPatient" in header else [])]
    if missing := [name for name in required if name not in header]:
        raise ImageError(
            f"the image's header has no {missing[0]}, to which a DICOM segmentation must refer;\n"
            "export the image again without removing it, or write NIfTI or PNG instead"
        )
    for name in _IDENTITY:
        if name not in header:
            setattr(header, name, "")
    if header.PatientSex not in ("M", "F", "O"):
        header.PatientSex = ""
    return header
