"""Volumes made voxel by voxel, and the oracle of where each voxel belongs."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from medmoco.data.volume_io.reading import read_volume
from medmoco.data.volume_io.volume import Volume
from medmoco.errors import ImageError
from tests.helpers.dicom_files import save_dicom

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"


def random_pixels(slices: int = 5, rows: int = 6, columns: int = 7, seed: int = 0) -> NDArray[np.uint16]:
    """Return (K, H, W) values of 12 bits."""
    return np.random.default_rng(seed).integers(0, 4096, (slices, rows, columns)).astype(np.uint16)


def normal_of(cosines: Sequence[float]) -> NDArray[np.float64]:
    return np.cross(cosines[:3], cosines[3:])


def save_slice(path: Path, pixels: NDArray[Any], position: Sequence[float], **tags: Any) -> Path:
    """Write a classic CT slice."""
    usual = {
        "SOPClassUID": CT, "Modality": "CT", "SeriesInstanceUID": "1.2.3", "ImageOrientationPatient": list(AXIAL),
        "PixelSpacing": [0.8, 0.7], "SliceThickness": 9, "RescaleSlope": 1, "RescaleIntercept": -1024,
        "ImagePositionPatient": [float(number) for number in position],
    }  # fmt: skip
    return save_dicom(path, pixels, **{**usual, **tags})


def save_series(
    folder: Path,
    pixels: NDArray[Any],
    *,
    along: Sequence[float] | None = None,
    cosines: Sequence[float] = AXIAL,
    start: Sequence[float] = (-20.0, -30.0, 40.0),
    shifts: Sequence[Sequence[float]] | None = None,
    names: Sequence[str] | None = None,
    **tags: Any,
) -> list[Path]:
    """Write slices (K, H, W) at distances `along` their normal, 2.5 mm by default; return their files.

    `shifts` are added to their positions, and a tag that is a function receives the number of the slice.
    """
    folder.mkdir(exist_ok=True)
    files = []
    for k, plane in enumerate(pixels):
        position = np.array(start) + (2.5 * k if along is None else along[k]) * normal_of(cosines)
        position = position + (shifts[k] if shifts else 0)
        own = {name: value(k) if callable(value) else value for name, value in tags.items()}
        name = names[k] if names else f"{k:03d}.dcm"
        own = {"ImageOrientationPatient": list(cosines), "InstanceNumber": k + 1, **own}
        files.append(save_slice(folder / name, plane, position, **own))
    return files


def item(**tags: Any) -> list[Dataset]:
    """Return a sequence of one item."""
    dataset = Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return [dataset]


def save_enhanced(
    path: Path,
    pixels: NDArray[Any],
    positions: Sequence[Sequence[float]],
    *,
    cosines: Sequence[float] = AXIAL,
    slopes: Sequence[float] = (),
    intercepts: Sequence[float] = (),
    syntax: str = ExplicitVRLittleEndian,
    **tags: Any,
) -> Path:
    """Write an enhanced multi-frame MR file of frames (F, H, W)."""
    per_frame = []
    for frame in range(len(pixels)):
        groups = {"PlanePositionSequence": item(ImagePositionPatient=[float(x) for x in positions[frame]])}
        if slopes:
            groups["PixelValueTransformationSequence"] = item(
                RescaleSlope=slopes[frame], RescaleIntercept=intercepts[frame], RescaleType="US"
            )
        per_frame += item(**groups)
    shared = item(
        PlaneOrientationSequence=item(ImageOrientationPatient=list(cosines)),
        PixelMeasuresSequence=item(PixelSpacing=[0.8, 0.7], SliceThickness=9),
    )
    usual = {
        "SOPClassUID": ENHANCED_MR, "Modality": "MR", "SeriesInstanceUID": "1.2.3", "NumberOfFrames": len(pixels),
        "PerFrameFunctionalGroupsSequence": per_frame, "SharedFunctionalGroupsSequence": shared,
    }  # fmt: skip
    save_dicom(path, pixels, **{**usual, **tags})
    if syntax != ExplicitVRLittleEndian:
        compress(path, syntax)
    return path


def compress(path: Path, syntax: str) -> None:
    dataset = pydicom.dcmread(path)
    dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path)


def assert_voxels(volume: Volume, voxels: Iterable[tuple[Sequence[float], float]], count: int) -> None:
    """Compare voxels, given by their RAS coordinates and values, with those of a volume; there must be `count`.

    The axes of the volume must be those closest to RAS, in their order and direction.
    """
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    assert [int(np.abs(axes[:, axis]).argmax()) for axis in range(3)] == [0, 1, 2]
    assert all(axes[axis, axis] > 0.5 for axis in range(3))
    inverse, seen = np.linalg.inv(volume.affine), 0
    for point, value in voxels:
        index = inverse @ [*point, 1.0]
        x, y, z = (round(number) for number in index[:3])
        assert np.abs(index[:3] - [x, y, z]).max() < 0.01
        assert min(x, y, z) >= 0
        assert volume.values[x, y, z] == np.float32(value)
        seen += 1
    assert seen == count


def dicom_voxels(files: Iterable[Path], every: int = 1) -> Iterable[tuple[Sequence[float], float]]:
    """Yield every n-th voxel of classic slices in RAS, by equation C.7.6.2.1-1 of DICOM PS3.3, one at a time."""
    at = 0
    for file in files:
        dataset = pydicom.dcmread(file)
        stored = dataset.pixel_array
        position = [float(number) for number in dataset.ImagePositionPatient]
        cosines = [float(number) for number in dataset.ImageOrientationPatient]
        down, across = (float(number) for number in dataset.PixelSpacing)
        for row in range(dataset.Rows):
            for column in range(dataset.Columns):
                at += 1
                if at % every:
                    continue
                left, back, up = (
                    position[axis] + cosines[axis] * across * column + cosines[3 + axis] * down * row
                    for axis in range(3)
                )
                value = float(stored[row, column]) * float(dataset.get("RescaleSlope", 1))
                yield (-left, -back, up), value + float(dataset.get("RescaleIntercept", 0))


def volume_refusal(path: Path, **options: Any) -> str:
    """Return why a volume is refused, after checking that the message names neither file nor patient."""
    with pytest.raises(ImageError) as caught:
        read_volume(path, **options)
    message = str(caught.value)
    assert str(path) not in message
    assert "4711" not in message
    assert len(message.splitlines()) <= 4
    return message
