"""Sizes of images in pixels, the unit of boxes, from their headers."""

from __future__ import annotations

from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.uid import DeflatedExplicitVRLittleEndian

from medmoco.config import DataSettings
from medmoco.data.image_io.file_format import kind_of_file
from medmoco.data.image_io.formats.dicom import read_dicom
from medmoco.data.image_io.formats.png_jpeg import jpeg_header, png_header
from medmoco.data.image_io.formats.tiff import tiff_size
from medmoco.data.image_io.images import reading
from medmoco.data.image_io.limits import Limits, check_size, limits_of, within
from medmoco.data.image_io.windowing import pixel_aspect
from medmoco.data.loading.quarantine import where
from medmoco.data.manifest.manifest import Split
from medmoco.errors import ImageError


class ImageSize(NamedTuple):
    """The upright size to which `read_image` decodes a file.

    Attributes:
        height: In pixels.
        width: In pixels.
        aspect: Height of a pixel as a multiple of its width.
    """

    height: int
    width: int
    aspect: float = 1.0


def image_sizes(split: Split, data: DataSettings) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the displayed height and width (N, 2) of every image of a split, and the aspect of its pixels (N,).

    If `data.bad_images` is quarantine, an image whose header cannot be read has size 0; training reports the reason.

    Raises:
        ImageError: a header cannot be read; names the manifest and the row.
    """
    sizes, aspects = np.zeros((len(split), 2), np.int64), np.ones(len(split))
    limits = limits_of(data)
    for position, (file, frame) in enumerate(zip(split.files, split.frames.tolist(), strict=True)):
        try:
            *sizes[position], aspects[position] = image_size(file, frame, limits)
        except ImageError as error:
            if data.bad_images == "refuse":
                raise ImageError(f"{where(split, position)}: {error}") from None
    return sizes, aspects


def image_size(file: str | Path, frame: int, limits: Limits) -> ImageSize:
    """Return the size of an image without decoding it.

    Raises:
        ImageError: it is missing, too large or of an unknown type, or its header is damaged.
    """
    path = Path(file)
    with reading(path, limits):
        kind = kind_of_file(path)
        if kind == "DICOM":
            size = _dicom_size(path, frame, limits)
        elif kind == "TIFF":
            size = ImageSize(*tiff_size(path, frame))
        elif kind == "NPY":
            raise ImageError("boxes in NumPy arrays are not supported; save the images as TIFF")
        else:  # memory-mapped, so that the pixels are not read
            with path.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as content:
                header = png_header(content) if kind == "PNG" else jpeg_header(content)
            size = ImageSize(*header.upright_size)
    check_size(size.width, size.height, limits)
    return size


def _dicom_size(path: Path, frame: int, limits: Limits) -> ImageSize:
    tags = [
        "Rows", "Columns", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio",
        "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    ]  # fmt: skip
    try:
        meta = pydicom.filereader.read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
            return ImageSize(int(header.Rows), int(header.Columns), pixel_aspect(header, frame)[0])
    except Exception as error:  # its text may quote the header, which may name a patient
        raise ImageError(f"the DICOM header cannot be read ({type(error).__name__})") from None
    # Deflated: only this limits the inflated size.
    image = read_dicom(path, frame, "full", rgb=False, admit=within(limits), inflate_to=limits.inflated_bytes)
    height, width = image.pixels.shape
    return ImageSize(height, width, image.full_size[0] / height if image.full_size else 1.0)
