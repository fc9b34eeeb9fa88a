"""How many pixels images have, from their headers alone: what boxes are measured in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medmoco.config import DataSettings
from medmoco.data.dicom import read_dicom
from medmoco.data.images import kind_of, quiet, read_header
from medmoco.data.limits import Limits, check_file, check_size, limits_of
from medmoco.data.manifest import Split
from medmoco.data.quarantine import where
from medmoco.errors import ImageError


def image_sizes(split: Split, data: DataSettings) -> NDArray[np.int64]:
    """Look up the height and width (N, 2) of every image of a split as it is displayed.

    Where `data.bad_images` is quarantine, an image whose header cannot be read has a size of 0; training will say why.

    Raises:
        ImageError: a header cannot be read; names the manifest and the row.
    """
    sizes = np.zeros((len(split), 2), np.int64)
    limits = limits_of(data)
    for position, (file, frame) in enumerate(zip(split.files, split.frames.tolist(), strict=True)):
        try:
            sizes[position] = image_size(file, frame, limits)
        except ImageError as error:
            if data.bad_images == "refuse":
                raise ImageError(f"{where(split, position)}: {error}") from None
    return sizes


def image_size(file: str | Path, frame: int, limits: Limits) -> tuple[int, int]:
    """Look up the height and width that `read_image` decodes a file to.

    Raises:
        ImageError: missing, of an unknown type, too large, or its header is damaged.
    """
    path = Path(file)
    check_file(path, limits)
    with quiet(), path.open("rb") as stream:
        kind = kind_of(stream.read(132))
        if kind == "DICOM":
            height, width = _dicom_size(path, frame, limits)
        elif kind == "TIFF":
            height, width = _tiff_size(path, frame)
        elif kind == "NPY":
            raise ImageError("boxes in NumPy arrays are not supported; save the images as TIFF")
        else:
            header = read_header(path, kind, limits)
            lying = header.orientation >= 5
            height, width = (header.width, header.height) if lying else (header.height, header.width)
    check_size(width, height, limits)
    return height, width


def _dicom_size(path: Path, frame: int, limits: Limits) -> tuple[int, int]:
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
            return int(header.Rows), int(header.Columns)
    except Exception as error:  # its text may quote the header, which may name a patient
        raise ImageError(f"the DICOM header cannot be read ({type(error).__name__})") from None
    height, width = read_dicom(path, frame, "full", limits).pixels.shape  # deflated: only this inflates within bounds
    return height, width


def _tiff_size(path: Path, frame: int) -> tuple[int, int]:
    try:
        with Image.open(path, formats=["TIFF"]) as image:
            image.seek(frame - 1)
            return image.height, image.width
    except Exception as error:
        raise ImageError(f"the TIFF header cannot be read ({type(error).__name__})") from None
