"""Slices of DICOM files: one of a classic file, several of an enhanced multi-frame file.

They are decoded as images are (`medmoco.data.image_io.formats.dicom`), but their values keep the manufacturer's units.
Each header is read once; voxels are read later, from the place where the header ended.

Source: DICOM PS3.3 C.7.6.2 (image plane) and C.7.6.16 (functional groups of multi-frame files).
"""

from __future__ import annotations

from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.filereader import read_partial
from pydicom.uid import UID

from medmoco.data.image_io import windowing
from medmoco.data.image_io.formats import dicom
from medmoco.data.image_io.intensity import DAMAGED, Floats, Pixels, Unreadable
from medmoco.data.image_io.limits import Limits, within
from medmoco.data.volume_io.geometry import UNIT_COSINES
from medmoco.data.volume_io.headers import without_header_values

SERIES = "SeriesInstanceUID"
_SERIES_TAG = 0x0020000E
# Their values have a unit, whose sign the polarity of the display does not change. Source: DICOM PS3.3 C.11.1.1.2.
_UNIT_MODALITIES = ("CT", "PT", "NM")


@dataclass(frozen=True, eq=False)
class DicomFile:
    """A DICOM file whose header has been read."""

    path: Path
    header: Dataset
    syntax: UID
    pixels_at: int | None  # offset of the pixel data element; None in a deflated file, which must be inflated again


@dataclass(frozen=True, eq=False)
class Frame:
    """A slice: a frame of a file, and where it lies in the patient, in DICOM's coordinates (LPS, mm)."""

    file: DicomFile
    number: int  # counted from 1
    position: Floats  # (3,) of the centre of the first pixel
    cosines: Floats  # (6,) unit vectors: the direction in which columns are counted, then that of rows
    pixel: Floats  # (2,) distance between rows, then between columns

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(self.file.header.Rows), int(self.file.header.Columns)


def is_dicom(path: Path) -> bool:
    """Return whether a file has DICOM's prefix."""
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def series_of(path: Path) -> str:
    """Return the SeriesInstanceUID of a DICOM file, reading its header no further; blank if it has none."""
    with without_header_values("DICOM"), dicom.BoundedReader(FileIO(path)) as stream:
        start = read_partial(stream, stop_when=lambda tag, vr, length: tag > _SERIES_TAG)
        return str(start.get(SERIES) or "").strip()


def read_header(path: Path, limits: Limits) -> DicomFile:
    """Read a header up to the pixel data.

    Raises:
        Unreadable: it is damaged, or its transfer syntax is not supported.
    """
    with without_header_values("DICOM"), dicom.BoundedReader(FileIO(path)) as stream:
        header, source, syntax = dicom.parse_header(stream, limits.inflated_bytes)
        return DicomFile(path, header, syntax, stream.tell() if source is stream else None)


def frame_count(file: DicomFile, limits: Limits) -> int:
    """Return the number of frames of a file.

    Raises:
        Unreadable: it is not a gray image, or its header is inconsistent.
        ImageError: it exceeds the limits.
    """
    with without_header_values("DICOM"):
        width, height, count = dicom.check_header(file.header, file.syntax)
        within(limits)(width, height, count)
        if not str(file.header.PhotometricInterpretation).startswith("MONOCHROME"):
            raise Unreadable("its pixels are colours; volumes have one channel: convert it to MONOCHROME2")
    return count


def frames_of(file: DicomFile, limits: Limits) -> list[Frame]:
    """Return the slices of a file in the order in which it stores them.

    Raises:
        Unreadable: it does not state where its slices lie; and see `frame_count`.
        ImageError: see `frame_count`.
    """
    count = frame_count(file, limits)
    with without_header_values("DICOM"):
        groups = file.header.get("PerFrameFunctionalGroupsSequence") or []
        if count > 1 and len(groups) != count:
            raise Unreadable(
                f"its {count} frames have no positions, as in a film or an ultrasound loop; it is not a volume:\n"
                "remove the row, or set data.dimensions to 2"
                if not groups
                else f"its {count} frames have {len(groups)} descriptions; {DAMAGED}"
            )
        return [frame_at(file, number) for number in range(1, count + 1)]


def frame_at(file: DicomFile, number: int) -> Frame:
    """Return a slice, counted from 1.

    Raises:
        Unreadable: the header does not state where it lies.
    """

    def numbers(group: str, name: str, count: int) -> Floats:
        value = windowing.functional_group(file.header, number, group).get(name)
        values = np.array([] if value is None else value, np.float64).reshape(-1)
        if len(values) != count or not np.isfinite(values).all():
            raise Unreadable(
                f"its header lacks a valid {name}, so that its place in the patient is unknown;\n"
                "remove the row, or export the series again with it"
            )
        return values

    position = numbers("PlanePositionSequence", "ImagePositionPatient", 3)
    cosines = numbers("PlaneOrientationSequence", "ImageOrientationPatient", 6)
    pixel = numbers("PixelMeasuresSequence", "PixelSpacing", 2)
    row, column = cosines[:3], cosines[3:]
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(float(row @ column))) > UNIT_COSINES:
        raise Unreadable(f"its ImageOrientationPatient is not two perpendicular unit vectors; {DAMAGED}")
    if pixel.min() <= 0:
        raise Unreadable(f"its PixelSpacing is not positive; {DAMAGED}")
    return Frame(file, number, position, np.concatenate([row / lengths[0], column / lengths[1]]), pixel)


def is_reflected(frame: Frame) -> bool:
    """Return whether the values of a frame are reflected, so that brighter ones are larger, as for images.

    Those of MONOCHROME1 are, unless they have a unit. Source: DICOM PS3.3 C.7.6.3.1.2.
    """
    header = frame.file.header
    unit = str(
        windowing.functional_group(header, frame.number, "PixelValueTransformationSequence").get("RescaleType") or "US"
    )
    return (
        header.PhotometricInterpretation == "MONOCHROME1"
        and str(header.get("Modality")) not in _UNIT_MODALITIES
        and unit in ("US", "normalized")  # unspecified; the second is Philips's
    )


def frame_values(frame: Frame, limits: Limits) -> NDArray[Any]:
    """Decode a frame to values (H, W) after the modality transform; padding gets the smallest of the other values.

    Raises:
        Unreadable: the file is damaged or truncated, or has no free decoder.
    """
    header, syntax, at = frame.file.header, frame.file.syntax, frame.file.pixels_at
    with without_header_values("DICOM"), dicom.BoundedReader(FileIO(frame.file.path)) as stream:
        if at is None:
            _, source, _ = dicom.parse_header(stream, limits.inflated_bytes)
        else:
            stream.seek(at)
            source = stream
        frames = int(header.get("NumberOfFrames") or 1)
        cells = dicom.decode_frame(header, source, syntax, frame.number, frames, None)
        stored = dicom.sample_values(header, cells, syntax)
        bits = int(header.BitsStored)
        lowest = -(2 ** (bits - 1)) if int(header.PixelRepresentation) == 1 else 0
        first, last = windowing.padding_values(header, lowest, bits)
        padding = (stored >= first) & (stored <= last) if first <= last else None
        if is_reflected(frame):
            stored = 2 * lowest + 2**bits - 1 - stored.astype(np.int32)
        values: Pixels = windowing.modality_values(header, stored, frame.number)
        if padding is not None and 0 < np.count_nonzero(padding) < padding.size:
            values[padding] = values[~padding].min()
    return values
