"""Masks: which pixels or voxels of an image belong to which class.

Files store a value for each class, of the user's choice. Here, classes are numbered from 1 in the order of the
settings, 0 is background, and `IGNORED` marks pixels that count neither in training nor in scores.

Messages contain neither paths nor header values; the caller adds the row, see `mask_rows`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medmoco.config import DataSettings
from medmoco.data.image_io.images import reading
from medmoco.data.image_io.limits import as_image_errors, check_file, limits_of
from medmoco.data.volume_io.reading import read_volume
from medmoco.errors import ImageError, SettingsError
from medmoco.segmentation.masks.dicom_seg import is_segmentation, read_segmentation, segments_in
from medmoco.segmentation.masks.image_grid import SAME_PLACE, ImageGrid, reference_of
from medmoco.segmentation.masks.mask_values import stored_numbers
from medmoco.segmentation.masks.run_lengths import Runs, decode_runs

Numbers = NDArray[np.uint8]  # (H, W) or (X, Y, Z): 0 background, 1 to C classes, IGNORED
Values = NDArray[Any]

IGNORED = 255
"""Number of pixels that count neither in training nor in scores."""
_UNKNOWN = 254  # number of a value without a class, before it is refused
MOST_CLASSES = 253

_LIKE, _LIKE_DEGREES = 1e-3, 0.1  # differences of spacing (a share) and of direction that a message does not mention

VALUES = (-(2**15), 2**16 - 1)
"""Smallest and largest value of a class: those of 16-bit files."""
_LARGEST = 2.0**53  # values beyond are of no class whatever they are, and some would not fit an integer


@dataclass(frozen=True)
class Classes:
    """The classes of masks; class numbers are 1 to C in this order, and 0 is background.

    Attributes:
        names: C names.
        values: C values in the files, other than 0.
        ignore: Value in the files of pixels that do not count; None if there are none.

    Raises:
        SettingsError: two classes share a name or a value, or a value cannot be that of a class.
    """

    names: tuple[str, ...]
    values: tuple[int, ...]
    ignore: int | None = None

    def __post_init__(self) -> None:
        stored = [*self.values, *([] if self.ignore is None else [self.ignore])]
        low, high = VALUES
        if not 1 <= len(self.names) <= MOST_CLASSES:
            raise SettingsError(f"segmentation.classes: {len(self.names)} classes; give 1 to {MOST_CLASSES}")
        if len(set(self.names)) < len(self.names) or not all(name.strip() for name in self.names):
            raise SettingsError("segmentation.classes: give each class a name of its own")
        if not len(self.names) == len(self.values) == len(set(self.values)):
            raise SettingsError("segmentation.classes: give each class a value of its own")
        if 0 in self.values:
            raise SettingsError("segmentation.classes: the value 0 is background; leave it out")
        if self.ignore in (0, *self.values):
            raise SettingsError(f"segmentation.ignore: {self.ignore} is the value of background or of a class")
        if not all(low <= value <= high for value in stored):
            raise SettingsError(f"segmentation.classes, segmentation.ignore: values must be from {low} to {high}")

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Mask:
    """The class of each pixel or voxel of an image.

    Attributes:
        numbers: (H, W) or (X, Y, Z) uint8, 0 to C, or `IGNORED`; volumes have the axes of RAS, as in `Volume`.
        affine: (4, 4) float64, from voxel indices to RAS coordinates in mm; None for an image.
    """

    numbers: Numbers
    affine: NDArray[np.float64] | None = None


class PredictedMask(NamedTuple):
    """The predicted mask of an image.

    Attributes:
        numbers: (H, W) or (X, Y, Z) uint8 class numbers, 0 for background; volumes have the axes of RAS.
        affine: (4, 4), from voxel indices to RAS coordinates in mm; None for an image.
    """

    numbers: Numbers
    affine: NDArray[np.float64] | None


def unnamed_classes(values: Iterable[int], ignore: int | None = None) -> Classes:
    """Return a class for each value, named by it, such as "class 1"."""
    values = tuple(values)
    return Classes(tuple(f"class {value}" for value in values), values, ignore)


# Masks


def read_mask(
    source: str,
    classes: Classes,
    *,
    data: DataSettings,
    grid: ImageGrid | None = None,
    runs: Runs | None = None,
) -> Mask:
    """Read a mask.

    Args:
        source: A file: PNG, TIFF (grey or palette, of which the stored numbers count, not the colours) or .npy (H, W)
            of an image; any file of `read_volume` of a volume; a DICOM segmentation of either, whose values are the
            numbers of its segments. Or run lengths, see `decode_runs`, whose pixels have value 1.
        classes: What the values mean.
        data: Data settings: dimensions and limits.
        grid: That of the image, for run lengths and DICOM segmentations.
        runs: How run lengths count; None if `source` is a file.

    Raises:
        ImageError: the mask cannot be read, or has a value that is neither 0, nor of a class, nor ignored; a DICOM
            segmentation is not on the grid of the image.
        SettingsError: a library is not installed.
    """
    if runs:
        assert grid is not None
        height, width = grid.shape
        return Mask(_numbered(decode_runs(source, (height, width), runs), classes))
    if _is_dicom_seg(source, data):
        assert grid is not None
        with as_image_errors():
            values = read_segmentation(Path(source), grid, limits_of(data))
        return Mask(_numbered(values, classes), grid.affine if data.dimensions == 3 else None)
    values, affine = _values(source, data)
    return Mask(_numbered(values, classes), affine)


def check_mask(mask: Mask, shape: tuple[int, ...], affine: NDArray[np.float64] | None = None) -> None:
    """Refuse a mask that is not on the grid of its image.

    Args:
        mask: The mask.
        shape: (H, W) or (X, Y, Z) of the image, in the axes of RAS.
        affine: That of a volume, see `Volume`.

    Raises:
        ImageError: the shapes differ, or a voxel lies more than `SAME_PLACE` voxels from the image's.
    """
    if mask.numbers.shape != shape:
        raise ImageError(
            f"the mask has {size_words(mask.numbers.shape)}, but its image has {size_words(shape)};\n"
            "draw it on this image, or resample it to the image's grid by nearest neighbours"
        )
    if affine is None or mask.affine is None:
        return
    corners = np.array([(*corner, 1.0) for corner in product(*((0, side - 1) for side in shape))])
    moved = corners @ (mask.affine - affine)[:3].T  # (8, 3) mm
    if np.abs(np.linalg.solve(affine[:3, :3], moved.T)).max() > SAME_PLACE:
        raise ImageError(
            f"the mask lies elsewhere than its image: voxels are up to {np.linalg.norm(moved, axis=1).max():.3g} mm"
            f" apart{_difference(mask.affine, affine)};\n"
            "resample it to the image's grid by nearest neighbours, or correct its header if it was drawn on this image"
        )


def size_words(shape: tuple[int, ...]) -> str:
    """Return a shape as messages state it: width before height for images."""
    sides, unit = (shape[::-1], "pixels") if len(shape) == 2 else (shape, "voxels")
    return f"{' x '.join(map(str, sides))} {unit}"


def _difference(mask: NDArray[np.float64], image: NDArray[np.float64]) -> str:
    """Return in which of spacing and direction two matrices differ; blank if only their origins do."""
    (own, axes), (theirs, others) = (
        (spacing := np.linalg.norm(affine[:3, :3], axis=0), affine[:3, :3] / spacing) for affine in (mask, image)
    )
    words = ""
    if np.abs(own / theirs - 1).max() > _LIKE:
        shown = (" x ".join(f"{mm:.4g}" for mm in spacing) for spacing in (own, theirs))
        words += ", with a spacing of {} instead of {} mm".format(*shown)
    degrees = float(np.degrees(np.arccos(np.clip((axes * others).sum(axis=0).min(), -1, 1))))
    return words + f", and turned by {degrees:.2g} degrees" * (degrees > _LIKE_DEGREES)


def stored_values(numbers: Numbers, classes: Classes) -> NDArray[np.integer[Any]]:
    """Return the values that files store for class numbers, in the smallest type of integers that has all of them."""
    stored = {0: 0, **dict(enumerate(classes.values, 1))}
    if classes.ignore is not None:
        stored[IGNORED] = classes.ignore
    assert set(np.flatnonzero(np.bincount(numbers.ravel(order="K"), minlength=256)).tolist()) <= stored.keys()
    low, high = min(stored.values()), max(stored.values())
    dtype = next(kind for kind in (np.uint8, np.uint16, np.int16, np.int32) if _holds(kind, low, high))
    table = np.zeros(256, dtype)
    table[[*stored]] = [*stored.values()]
    return cast(NDArray[np.integer[Any]], table[numbers])


def _holds(dtype: type[np.integer[Any]], low: int, high: int) -> bool:
    return bool(np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max)


# Values


def _numbered(values: Values, classes: Classes) -> Numbers:
    """Return the numbers of the classes that values stand for; plane by plane, as volumes are large."""
    known = {0: 0, **{value: number for number, value in enumerate(classes.values, 1)}}
    if classes.ignore is not None:
        known[classes.ignore] = IGNORED
    low, high = min(known) - 1, max(known) + 1  # the ends stand for all values beyond
    table = np.full(high - low + 1, _UNKNOWN, np.uint8)
    table[np.array([*known]) - low] = [*known.values()]
    numbers = np.empty(values.shape, np.uint8)
    for plane, own in zip(_planes(values), _planes(numbers), strict=True):
        whole = _whole(plane)
        own[...] = table[np.clip(whole, low, high) - low]
        if (strange := own == _UNKNOWN).any():
            raise _no_class(int(whole[strange][0]), classes)
    return numbers


def _no_class(value: int, classes: Classes) -> ImageError:
    some = ", ".join(f"{name}: {own}" for name, own in zip(classes.names[:6], classes.values, strict=False))
    return ImageError(
        f"the mask has the value {value}, which is that of no class ({some}{', ...' * (len(classes) > 6)});\n"
        f"add it to segmentation.classes, or set segmentation.ignore={value} to leave such pixels out"
    )


def distinct_values(source: str, data: DataSettings, image: tuple[str, int] | None = None) -> set[int]:
    """Return the values in the file of a mask; errors are those of `read_mask`, except that any value is accepted.

    Args:
        source: The file.
        data: Data settings: dimensions and limits.
        image: File and frame of an image, for a DICOM segmentation that is also of others.
    """
    if _is_dicom_seg(source, data):
        limits = limits_of(data)
        reference = reference_of(Path(image[0]), image[1], limits) if image and data.dimensions == 2 else None
        with as_image_errors():
            return segments_in(Path(source), reference, limits)
    found: set[int] = set()
    for plane in _planes(_values(source, data)[0]):
        found.update(pd.unique(_whole(plane).ravel()).tolist())
    return found


def _planes(values: Values) -> Values:
    return values if values.ndim == 3 else values[None]


def _whole(plane: Values) -> NDArray[np.int64]:
    """Return a plane as integers.

    Raises:
        ImageError: a value is not a whole number.
    """
    if plane.dtype.kind != "f":
        return plane.astype(np.int64)
    if (odd := np.rint(plane) != plane).any():
        raise ImageError(
            f"the mask has the value {plane[odd][0]:.6g}, but a class is a whole number;\n"
            "give the mask instead of the image or a probability, and resample masks by nearest neighbours only"
        )
    return np.clip(plane, -_LARGEST, _LARGEST).astype(np.int64)


def _is_dicom_seg(source: str, data: DataSettings) -> bool:
    if not Path(source).is_dir():
        check_file(Path(source), limits_of(data))
    with as_image_errors():
        return is_segmentation(Path(source))


def _values(source: str, data: DataSettings) -> tuple[Values, NDArray[np.float64] | None]:
    """Return what a file stores, (H, W) or (X, Y, Z), and the matrix of a volume."""
    limits = limits_of(data)
    if data.dimensions == 3:
        volume = read_volume(source, limits=limits)
        return volume.values, volume.affine
    with reading(Path(source), limits):
        return stored_numbers(Path(source), limits), None
