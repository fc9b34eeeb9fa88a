"""DICOM files made tag by tag, and what the tests of reading images share."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid

from medmoco.data.image_io.images import read_image
from medmoco.errors import ImageError

RAMP12 = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def save_dicom(
    path: Path, pixels: NDArray[Any], stored: int = 12, syntax: str = ExplicitVRLittleEndian, **tags: Any
) -> Path:
    """Write pixels (H, W), (F, H, W) or with `SamplesPerPixel=3` (H, W, 3)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientID = "secret-4711"
    height, width = pixels.shape[:2] if tags.get("SamplesPerPixel") == 3 else pixels.shape[-2:]
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = height, width, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.dtype.itemsize, stored, stored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for name, value in tags.items():
        setattr(dataset, name, value)
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(path, enforce_file_format=True)
    return path


def table(entries: int, first: int, bits: int, data: list[int] | bytes) -> list[Dataset]:
    item = Dataset()
    item.LUTDescriptor = [entries % 2**16, first, bits]
    item.LUTData = data
    item["LUTDescriptor"].VR = "SS" if first < 0 else "US"
    item["LUTData"].VR = "OW" if isinstance(data, bytes) else "US"
    return [item]


def window_oracle(values: NDArray[Any], centre: float, width: float) -> NDArray[np.int64]:
    """DICOM PS3.3 C.11.2.1.2.1, one value at a time, to white 65535."""
    out = []
    for x in values.astype(float).ravel():
        if x <= centre - 0.5 - (width - 1) / 2:
            out.append(0)
        elif x > centre - 0.5 + (width - 1) / 2:
            out.append(65535)
        else:
            out.append(round(((x - (centre - 0.5)) / (width - 1) + 0.5) * 65535))
    return np.array(out).reshape(values.shape)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert str(path) not in message
    assert "4711" not in message
    assert len(message.splitlines()) <= 4
    return message


def with_uids(folder: Path, target: Path) -> Path:
    """Copy a series whose UIDs were removed, with new ones."""
    study, series = generate_uid(), generate_uid()
    target.mkdir()
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID
        dataset.save_as(target / file.name)
    return target
