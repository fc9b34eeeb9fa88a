"""From DICOM headers to table columns, without reading pixels; a file that is not an image is a row with its fault."""

from __future__ import annotations

import io
import re
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pandas as pd
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from medmoco.data.image_io.formats.dicom import NO_IMAGE_CLASSES
from medmoco.data.image_io.intensity import DAMAGED
from medmoco.utils.progress import track

_PLAIN = {
    "PatientID": "PatientID",
    "StudyID": "StudyInstanceUID",
    "SeriesID": "SeriesInstanceUID",
    "ViewPosition": "ViewPosition",
    "Sex": "PatientSex",
    "Modality": "Modality",
    "BodyPart": "BodyPartExamined",
    "Manufacturer": "Manufacturer",
    "Rows": "Rows",
    "Columns": "Columns",
    "BitsStored": "BitsStored",
    "Photometric": "PhotometricInterpretation",
}
COLUMNS = [*_PLAIN, "Laterality", "Age", "Frames", "Syntax"]
"""Columns that `read_headers` returns, in addition to Fault."""

_TAGS = [
    *_PLAIN.values(), "ImageLaterality", "Laterality", "PatientAge", "PatientBirthDate", "StudyDate", "SOPClassUID",
    "NumberOfFrames",
]  # fmt: skip
_HEADER_BYTES = 2**24  # of a deflated file are inflated, which is enough for any header
_PIXELS = 0x7FE00008  # first element that holds pixels
_MOST_FRAMES = 100_000
_PER_YEAR = {"y": 1, "m": 12, "w": 365.25 / 7, "d": 365.25}
_OLDEST = 120


def read_headers(
    root: Path, paths: Sequence[str], workers: int, more: Mapping[str, str] = MappingProxyType({})
) -> pd.DataFrame:
    """Read the headers of files below a folder in several processes; with 1, in this one.

    Args:
        root: The folder.
        paths: N paths relative to it.
        workers: Number of processes.
        more: Further columns and the DICOM keywords of their cells.

    Returns:
        N rows in the order of `paths`, every cell text: `COLUMNS`, those of `more`, and Fault, the reason why a file is
        not an image.
    """
    read: Callable[[str], dict[str, str]] = partial(_read_header, root, dict(more))
    with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        found = pool.map(read, paths, chunksize=64) if pool else map(read, paths)
        records = list(track(found, len(paths), "headers"))
    return pd.DataFrame(records, columns=[*COLUMNS, *more, "Fault"], dtype=str).fillna("")


def years(age: str) -> str:
    """Return an age in completed years: "058Y" is 58, "011M" 0, "45yrs" 45, "7.5" 7.

    A number without a unit is in years. Ages above 120 and anything that is not an age become blank.
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([a-z]*)\.?", age.strip().lower())
    if not found or (found[2] and found[2][0] not in _PER_YEAR):
        return ""
    completed = int(float(found[1]) / _PER_YEAR[found[2][0] if found[2] else "y"])
    return str(completed) if completed <= _OLDEST else ""


def _read_header(root: Path, more: Mapping[str, str], path: str) -> dict[str, str]:
    try:
        # pydicom's warnings and error texts are not shown: both quote values that may identify a patient.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header, syntax = _open_header(root / path, [*_TAGS, *more.values()])
            return {**_record(header, syntax), **{column: _text(header, tag) for column, tag in more.items()}}
    except InvalidDicomError:
        return {"Fault": "the content is not DICOM"}
    except OSError as error:
        return {"Fault": f"the file cannot be opened: {error.strerror}"}
    except Exception as error:
        return {"Fault": f"the DICOM header cannot be read ({type(error).__name__}); {DAMAGED}"}


def _record(header: Dataset, syntax: UID) -> dict[str, str]:
    return {
        **{column: _text(header, tag) for column, tag in _PLAIN.items()},
        "Laterality": _text(header, "ImageLaterality") or _text(header, "Laterality"),
        "Age": years(_text(header, "PatientAge")) or _age_by_dates(header),
        "Frames": str(max(1, int(header.get("NumberOfFrames") or 1))),
        "Syntax": syntax.name,
        "Fault": _fault(header),
    }


def _open_header(file: Path, names: list[str]) -> tuple[Dataset, UID]:
    """Return some elements and the transfer syntax; a deflated dataset is inflated only at its start."""
    meta = read_file_meta_info(file)
    syntax = UID(meta.get("TransferSyntaxUID") or "")
    if syntax != DeflatedExplicitVRLittleEndian:
        return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=[*names]), syntax
    with file.open("rb") as stream:
        stream.seek(144 + int(meta.FileMetaInformationGroupLength))
        deflated = stream.read(_HEADER_BYTES)
    plain = io.BytesIO(zlib.decompressobj(-zlib.MAX_WBITS).decompress(deflated, _HEADER_BYTES))
    tags: list[BaseTag | int] = [Tag(name) for name in names]
    return read_dataset(plain, False, True, stop_when=lambda tag, *_: tag >= _PIXELS, specific_tags=tags), syntax


def _text(header: Dataset, tag: str) -> str:
    """Return an element as one line of text; of several values, the first."""
    value = header.get(tag)
    if value is None:
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = value[0] if value else ""
    text = str(value).encode(errors="replace").decode()  # lone surrogates cannot be written as UTF-8
    return " ".join(text.replace("\0", " ").split())


def _age_by_dates(header: Dataset) -> str:
    try:
        born, seen = (datetime.strptime(_text(header, tag), "%Y%m%d") for tag in ("PatientBirthDate", "StudyDate"))
    except ValueError:
        return ""
    age = seen.year - born.year - ((seen.month, seen.day) < (born.month, born.day))
    return str(age) if 0 <= age <= _OLDEST else ""


def _fault(header: Dataset) -> str:
    if kind := NO_IMAGE_CLASSES.get(_text(header, "SOPClassUID")):
        return f"{kind}, not an image"
    if not (_text(header, "Rows") and _text(header, "Columns")):
        return "no image inside (a report, a directory or a truncated file)"
    if int(header.get("NumberOfFrames") or 1) > _MOST_FRAMES:
        return f"the header claims more than {_MOST_FRAMES} frames"
    return ""
