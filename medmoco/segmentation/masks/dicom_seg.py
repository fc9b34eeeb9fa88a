"""Read DICOM segmentations onto the grid of their image. A pixel's value is the number of its segment.

Frames are placed by their position in the patient, so neither their order nor the direction of their axes matters, and
slices without a frame are background. Radiographs have no position: there, a frame belongs to the image that it refers
to. Types: BINARY, LABELMAP, and FRACTIONAL if it has only 0 and its largest value, because what lies between is a
probability, as in NIfTI files.

Source: DICOM PS3.3 A.51 and C.8.20 (segmentation) and C.7.6.16 (functional groups).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info

from medmoco.data.image_io.intensity import DAMAGED, Unreadable, quiet
from medmoco.data.image_io.limits import Limits, within
from medmoco.data.image_io.windowing import functional_group
from medmoco.data.volume_io.frames import DicomFile, Frame, frame_at, is_dicom, read_header
from medmoco.data.volume_io.geometry import LPS_TO_RAS
from medmoco.data.volume_io.headers import without_header_values
from medmoco.errors import SettingsError
from medmoco.segmentation.masks.image_grid import SAME_PLACE, DicomReference, ImageGrid

Values = NDArray[np.uint16]
Sources = set[tuple[str, int]]  # SOPInstanceUID and frame of images; frame 0 if it is not stated

_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # segmentations and label maps
_RT_STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"
_RESAMPLE = (
    "name the segmentation that was made for this image, or resample it to the image's grid by nearest neighbours"
)


def highdicom_library() -> Any:
    """Return highdicom.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        return importlib.import_module("highdicom")
    except ImportError:
        raise SettingsError(
            "DICOM segmentations need highdicom: pip install medmoco[segmentation]; or use another format"
        ) from None


@contextmanager
def silent_highdicom() -> Iterator[None]:
    """Suppress what highdicom logs, as it quotes the header."""
    logger = logging.getLogger("highdicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with quiet():
            yield
    finally:
        logger.setLevel(level)


def is_segmentation(path: Path) -> bool:
    """Return whether a file is a DICOM segmentation.

    Raises:
        Unreadable: it is an RT structure set, or a DICOM file whose header is damaged.
    """
    if path.is_dir() or not is_dicom(path):
        return False
    with without_header_values("DICOM"):
        kind = str(read_file_meta_info(path).get("MediaStorageSOPClassUID") or "")
    if kind == _RT_STRUCTURES:
        raise Unreadable(
            "the mask is an RT structure set, which has contours; convert it to a DICOM segmentation or NIfTI first,\n"
            "with 3D Slicer or Plastimatch for example"
        )
    return kind in _CLASSES


def read_segmentation(path: Path, grid: ImageGrid, limits: Limits) -> Values:
    """Return the segment of each pixel or voxel of an image, 0 where there is none.

    Args:
        path: The DICOM segmentation.
        grid: That of the image.
        limits: Larger files are refused.

    Raises:
        Unreadable: it is damaged, lies on another grid or belongs to another image, or segments overlap.
        ImageError: it exceeds the limits.
        SettingsError: highdicom is not installed.
    """
    values = np.zeros(grid.shape, np.uint16)
    with _opened(path, limits) as segments:
        if values.ndim == 3:
            _check_frame_of_reference(segments.file.header, grid)
        for number in segments.frames() if values.ndim == 3 else segments.frames_of_image(grid.reference):
            _insert(values, segments.plane(number), _placement(segments.file, number, grid))
    return values


def segments_in(path: Path, reference: DicomReference | None, limits: Limits) -> set[int]:
    """Return the segments that have pixels, in the frames of an image if there is a reference; errors as above."""
    found: set[int] = set()
    with _opened(path, limits) as segments:
        for number in segments.frames_of_image(reference) if reference else segments.frames():
            found |= set(np.unique(segments.plane(number)).tolist())
    return found


@dataclass(frozen=True)
class _Segments:
    """An open segmentation."""

    file: DicomFile
    content: Any  # highdicom.seg.Segmentation

    def frames(self) -> range:
        return range(1, int(self.content.number_of_frames) + 1)

    def frames_of_image(self, reference: DicomReference | None) -> list[int]:
        """Return the frames of an image; of one that is not a DICOM file, all frames if they are of a single image."""
        sources = {number: _sources(self.file.header, number) for number in self.frames()}
        known = _referenced(self.file.header).union(*(own for own in sources.values()))
        instances = {instance for instance, _ in known}
        if reference is None:
            if len(instances) > 1 or len(set().union(*sources.values())) > 1:
                raise Unreadable(
                    "the DICOM segmentation is of several images, and which of them this one is, only a DICOM file"
                    " states;\ngive the DICOM image as Path, or the mask of this image as PNG"
                )
            return [*sources]
        if reference.instance not in instances:
            raise Unreadable(
                "the DICOM segmentation does not refer to this image (by its SOPInstanceUID);\n"
                "name the one that does, or save the mask as PNG if de-identification has changed these numbers"
            )
        alone = len(instances) == reference.frames == 1
        own = {(reference.instance, 0), (reference.instance, reference.frame)}
        return [number for number, found in sources.items() if found & own or (alone and not found)]

    def plane(self, number: int) -> Values:
        """Return the segment of each pixel of a frame, (H, W)."""
        stored = np.asarray(self.content.get_stored_frame(number))
        kind = str(self.content.SegmentationType)
        if kind == "LABELMAP":
            outside = self.content.get("PixelPaddingValue", 0)
            return np.where(stored == outside, 0, stored).astype(np.uint16)
        most = int(self.content.MaximumFractionalValue) if kind == "FRACTIONAL" else 1
        if ((stored != 0) & (stored != most)).any():
            raise Unreadable(
                "the DICOM segmentation is FRACTIONAL and has probabilities between 0 and 1;\n"
                "threshold them, and save it as BINARY"
            )
        segment = functional_group(self.file.header, number, "SegmentIdentificationSequence").ReferencedSegmentNumber
        return np.where(stored == most, int(segment), 0).astype(np.uint16)


@contextmanager
def _opened(path: Path, limits: Limits) -> Iterator[_Segments]:
    """Open a segmentation, after checking what its header claims."""
    library = highdicom_library()
    file = read_header(path, limits)
    with without_header_values("DICOM"), silent_highdicom():
        header = file.header
        count = int(header.NumberOfFrames)
        within(limits)(int(header.Columns), int(header.Rows), count)
        if len(header.get("PerFrameFunctionalGroupsSequence") or []) != count:
            raise Unreadable(f"its {count} frames are not all described; {DAMAGED}")
        yield _Segments(file, library.seg.segread(path))


# References


def _sources(header: Dataset, number: int) -> Sources:
    """Return the images from which a frame was derived."""
    found: Sources = set()
    shared = header.get("SharedFunctionalGroupsSequence") or []
    groups = [header.PerFrameFunctionalGroupsSequence[number - 1], *shared]
    for derivation in (item for group in groups for item in group.get("DerivationImageSequence") or []):
        for source in derivation.get("SourceImageSequence") or []:
            found |= _named(source)
    return found


def _referenced(header: Dataset) -> Sources:
    """Return the images to which a segmentation refers as a whole."""
    series = list(header.get("ReferencedSeriesSequence") or [])
    for study in header.get("StudiesContainingOtherReferencedInstancesSequence") or []:
        series += study.get("ReferencedSeriesSequence") or []
    items = [item for each in series for item in each.get("ReferencedInstanceSequence") or []]
    return set().union(*map(_named, [*items, *(header.get("SourceImageSequence") or [])]))


def _named(item: Dataset) -> Sources:
    frames = np.atleast_1d(item.get("ReferencedFrameNumber") or 0).tolist()
    return {(str(item.ReferencedSOPInstanceUID), int(frame)) for frame in frames}


# Positions


class _Placement(NamedTuple):
    """Voxel indices of the first pixel of a frame, and steps from a row and from a column to the next, each (3,)."""

    start: NDArray[np.int64]
    down: NDArray[np.int64]
    across: NDArray[np.int64]


_AS_STORED = _Placement(*np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0]]))


def _check_frame_of_reference(header: Dataset, grid: ImageGrid) -> None:
    own = str(header.get("FrameOfReferenceUID") or "").strip()
    if own and grid.frame_of_reference and own != grid.frame_of_reference:
        raise Unreadable(
            "the DICOM segmentation has another frame of reference than its image, so that their positions cannot be\n"
            f"compared; {_RESAMPLE}"
        )


def _placement(file: DicomFile, number: int, grid: ImageGrid) -> _Placement:
    """Return where a frame lies in the grid of its image.

    Raises:
        Unreadable: its pixels are not pixels or voxels of the image.
    """
    has_position = "ImagePositionPatient" in functional_group(file.header, number, "PlanePositionSequence")
    if len(grid.shape) == 3 or (has_position and grid.affine is not None):
        return _by_position(frame_at(file, number), grid)
    size = int(file.header.Rows), int(file.header.Columns)
    if size != grid.shape:
        (height, width), (rows, columns) = grid.shape, size
        raise Unreadable(
            f"the DICOM segmentation has {columns} x {rows} pixels, but its image has {width} x {height};\n{_RESAMPLE}"
        )
    return _AS_STORED


def _by_position(frame: Frame, grid: ImageGrid) -> _Placement:
    """Return where a frame lies according to its position. Source: DICOM PS3.3 C.7.6.2.1.1, equation 1."""
    assert grid.affine is not None
    to_voxels = np.linalg.inv(grid.affine) @ LPS_TO_RAS
    start = (to_voxels @ [*frame.position, 1.0])[:3]
    down, across = (
        to_voxels[:3, :3] @ step for step in (frame.cosines[3:] * frame.pixel[0], frame.cosines[:3] * frame.pixel[1])
    )
    whole = _Placement(*(np.rint(vector).astype(np.int64) for vector in (start, down, across)))
    rows, columns = frame.size
    ends = [(row, column) for row in (0, rows - 1) for column in (0, columns - 1)]
    off = max(
        float(np.abs(start - whole.start + row * (down - whole.down) + column * (across - whole.across)).max())
        for row, column in ends
    )
    steps = np.abs([whole.down, whole.across])
    if off > SAME_PLACE or (steps.sum(axis=1) != 1).any() or steps.sum(axis=0).max() > 1:
        raise Unreadable(
            "the DICOM segmentation lies on another grid than its image: pixels are off by"
            f" up to {off:.2g} voxels, or differ in spacing or direction;\n{_RESAMPLE}"
        )
    corners = np.array([whole.start + row * whole.down + column * whole.across for row, column in ends])
    if corners.min() < 0 or (corners.max(axis=0) >= _three(grid.shape)).any():
        raise Unreadable(f"the DICOM segmentation reaches beyond its image;\n{_RESAMPLE}")
    return whole


def _three(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape, 1)[:3]


def _insert(values: Values, plane: Values, place: _Placement) -> None:
    """Write the segments of a frame into those of the image.

    Raises:
        Unreadable: they overlap another segment.
    """
    voxels = values.reshape(_three(values.shape))  # a view
    row, column = np.nonzero(plane)
    index = tuple(place.start[:, None] + place.down[:, None] * row + place.across[:, None] * column)
    before, own = voxels[index], plane[row, column]
    if (both := (before != 0) & (before != own)).any():
        first, second = sorted((int(before[both][0]), int(own[both][0])))
        raise Unreadable(
            f"its segments {first} and {second} overlap, in {np.count_nonzero(both)} pixels of one frame, but a pixel"
            " has one class;\nremove one of them, or save the segmentation without overlap"
        )
    voxels[index] = own
