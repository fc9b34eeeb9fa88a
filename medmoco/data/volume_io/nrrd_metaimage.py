"""Read NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) files with SimpleITK.

Source: https://teem.sourceforge.net/nrrd/format.html and https://itk.org/Wiki/ITK/MetaIO/Documentation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medmoco.data.image_io.intensity import Unreadable
from medmoco.data.image_io.limits import Limits, check_file
from medmoco.data.volume_io.geometry import LPS_TO_RAS
from medmoco.data.volume_io.headers import (
    NO_ORIENTATION,
    StoredVolume,
    check_voxels,
    library,
    three_axes,
    without_header_values,
)

Kind = Literal["NRRD", "MetaImage"]
_READERS = {"NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}
_MOST_HEADER = 2**16  # bytes
# Spaces whose axes are those of the patient; others leave left and right open.
_PATIENT_SPACES = re.compile(r"(right|left)-(anterior|posterior)-(superior|inferior)|[rl][ap][si]", re.IGNORECASE)


def kind_of(start: bytes) -> Kind | None:
    """Return the type of a file according to its first bytes; None if it is neither."""
    if re.match(rb"NRRD000\d", start):
        return "NRRD"
    return "MetaImage" if re.match(rb"\s*(ObjectType|NDims|Comment)\s*=", start) else None


def open_itk(path: Path, kind: Kind, limits: Limits) -> StoredVolume:
    """Read the header of a NRRD or MetaImage file.

    Raises:
        Unreadable: it is damaged, contains several volumes, colours or complex numbers, or its voxels are in files that
            are not next to it.
        ImageError: it exceeds the limits.
    """
    fields = _fields(path, kind)
    files = (path, *_data_file(path, fields, limits))
    sitk = library("SimpleITK")
    with without_header_values(kind), _quiet(sitk):
        reader = sitk.ImageFileReader()
        reader.SetImageIO(_READERS[kind])
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        stated = tuple(reader.GetSize())
        is_scalar = reader.GetNumberOfComponents() == 1 and reader.GetPixelID() in _scalar_types(sitk)
        spacing, origin = np.array(reader.GetSpacing()), np.array(reader.GetOrigin())
        directions = np.array(reader.GetDirection()).reshape(len(stated), len(stated))
    if not is_scalar:
        raise Unreadable("its voxels are colours, vectors or complex numbers; convert it to integers or 32-bit floats")
    shape = three_axes(stated)
    check_voxels(shape, _scalar_types(sitk)[reader.GetPixelID()], limits)
    axes = min(3, len(stated))
    affine = np.eye(4)
    affine[:axes, :axes] = directions[:axes, :axes] * spacing[:axes]
    affine[:axes, 3] = origin[:axes]
    return StoredVolume(
        shape=shape,
        affine=LPS_TO_RAS @ affine,
        load=lambda: _load(reader, shape, kind),
        faults=() if _has_orientation(fields, kind) else (NO_ORIENTATION,),
        files=files,
    )


def _fields(path: Path, kind: Kind) -> dict[str, str]:
    """Return the fields of a header by their names in lower case, without spaces."""
    with path.open("rb") as stream:
        text = stream.read(_MOST_HEADER).decode("latin-1")
    fields: dict[str, str] = {}
    for line in text.splitlines():
        if kind == "NRRD" and not line.strip():
            break
        if not (field := re.match(r"([^=:]+)[=:]+(.*)", line)):
            continue
        name, value = field[1].lower().replace(" ", ""), field[2].strip()
        fields[name] = value
        if kind == "MetaImage" and name == "elementdatafile":
            break
    return fields


def _data_file(path: Path, fields: dict[str, str], limits: Limits) -> tuple[Path, ...]:
    """Return the file with the voxels if it is not the same one; a header must not name files of other folders."""
    name = fields.get("datafile", "") if "elementdatafile" not in fields else fields["elementdatafile"]
    if not name or name.upper() == "LOCAL":
        return ()
    if name.upper().startswith("LIST") or re.search(r"[%/\\\x00-\x1f]", name):
        raise Unreadable(
            "its voxels are in several files or in another folder, which is not supported;\n"
            "save it as a single .nrrd, .mha or .nii.gz file"
        )
    other = path.parent / name
    if not other.is_file():
        raise Unreadable("its voxels are in a second file, which is missing; copy it into the same folder")
    check_file(other, limits)
    return (other,)


def _has_orientation(fields: dict[str, str], kind: Kind) -> bool:
    if kind == "MetaImage":
        return bool({"transformmatrix", "rotation", "orientation"} & fields.keys())
    return bool(_PATIENT_SPACES.fullmatch(fields.get("space", "")))


def _scalar_types(sitk: Any) -> dict[int, int]:
    """Return the size in bytes of the supported types of voxels."""
    sizes = {
        1: ("sitkUInt8", "sitkInt8"), 2: ("sitkUInt16", "sitkInt16"), 4: ("sitkUInt32", "sitkInt32", "sitkFloat32"),
        8: ("sitkUInt64", "sitkInt64", "sitkFloat64"),
    }  # fmt: skip
    return {getattr(sitk, name): size for size, names in sizes.items() for name in names}


def _load(reader: Any, shape: tuple[int, ...], kind: Kind) -> NDArray[np.float32]:
    sitk = library("SimpleITK")
    with without_header_values(kind), _quiet(sitk), np.errstate(over="ignore"):
        image = reader.Execute()
        # SimpleITK's arrays have the first axis of the file last.
        values: NDArray[np.float32] = sitk.GetArrayViewFromImage(image).astype(np.float32).reshape(shape[::-1])
    return values.transpose(2, 1, 0)


@contextmanager
def _quiet(sitk: Any) -> Iterator[None]:
    """Suppress warnings of ITK, which quote paths."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
