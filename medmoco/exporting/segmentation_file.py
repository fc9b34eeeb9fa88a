"""Segment an image or a volume as defined in preprocessing.json.

    import json, onnxruntime, prepare
    contract = json.load(open("preprocessing.json"))
    session = onnxruntime.InferenceSession("segmenter.onnx")
    network = lambda windows: session.run(None, {"image": windows})[0]
    mask = prepare.segment("scan.nii.gz", contract, network)
    prepare.save(mask, "masks", contract, like="scan.nii.gz")  # masks/scan.nii.gz

Every export of a segmentation network contains this file, and any project may copy it (Apache-2.0). It needs NumPy,
SciPy, OpenCV, Pillow, pydicom, PyTorch and MONAI (for the overlapping windows); for volumes also nibabel, and SimpleITK
for NRRD and MetaImage. medmoco segments with the same code, so that a deployed network finds the same masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from medmoco.data.image_io.intensity import on_canvas, quiet
from medmoco.data.image_io.limits import DEFAULT_LIMITS, Limits
from medmoco.data.image_io.preprocessing import read_by_contract
from medmoco.data.volume_io.canvases import canvas_and_box
from medmoco.data.volume_io.reading import read_volume
from medmoco.exporting.volume_file import rules_of
from medmoco.segmentation.annotated.grids import Grid, onto_image
from medmoco.segmentation.masks.mask_files import write_nifti, write_png
from medmoco.segmentation.masks.masks import Classes, Numbers
from medmoco.segmentation.windows import blended, padded

_BATCH = 4  # windows at a time

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Windows (N, C, S, S) or (N, 1, S, S, S), normalised, to probabilities of background and classes, (N, 1 + K, ...)."""


class Prepared(NamedTuple):
    """An image as the network sees it.

    Attributes:
        image: (C, H, W) or (1, X, Y, Z), normalised, at least as large as a window.
        inside: The part of it that is not a black margin.
        grid: Where that part lies in the image.
        affine: (4, 4), from voxel indices to RAS coordinates in mm; None for an image.
    """

    image: NDArray[np.float32]
    inside: tuple[slice, ...]
    grid: Grid
    affine: NDArray[np.float64] | None


class Mask(NamedTuple):
    """The mask of an image, on its own grid.

    Attributes:
        numbers: (H, W) or (X, Y, Z) class numbers in the order of the contract, 0 for background; volumes have the axes
            of RAS.
        affine: (4, 4), from voxel indices to RAS coordinates in mm; None for an image.
    """

    numbers: Numbers
    affine: NDArray[np.float64] | None


def segment(
    path: str | Path,
    contract: Mapping[str, Any],
    network: Network,
    *,
    frame: int = 1,
    series: str = "",
    limits: Limits = DEFAULT_LIMITS,
) -> Mask:
    """Return the class of each pixel of an image, or voxel of a volume; arguments as for `prepared`, and the network.

    Raises:
        ValueError: the file cannot be read; gives the reason.
    """
    own = prepared(path, contract, frame=frame, series=series, limits=limits)

    def predict(windows: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(network(windows.numpy()))

    shown = contract["windows"]
    return to_mask(blended(predict, torch.from_numpy(own.image[None]), shown["size"][0], shown["overlap"], _BATCH), own)


def prepared(
    path: str | Path,
    contract: Mapping[str, Any],
    *,
    frame: int = 1,
    series: str = "",
    limits: Limits = DEFAULT_LIMITS,
) -> Prepared:
    """Return an image or a volume from which windows can be cut.

    Args:
        path: An image: DICOM, PNG, JPEG or TIFF, or a NumPy array for a network of bands. A volume: NIfTI, NRRD,
            MetaImage or .npy, an enhanced DICOM file, or the folder of a DICOM series. Its content decides.
        contract: Content of preprocessing.json.
        frame: Frame of a DICOM file or page of a TIFF file, counted from 1, of an image.
        series: SeriesInstanceUID that chooses a series of a folder with several.
        limits: Larger volumes are refused.

    Raises:
        ValueError: the file cannot be read; gives the reason.
    """
    if "resample" in contract:
        volume = read_volume(path, series=series, limits=limits)
        canvas, _, box = canvas_and_box(volume, rules_of(contract, limits))
        levels, affine = canvas.pixels[None], volume.affine
        grid = Grid(volume.values.shape, box, canvas.shape)
    else:
        levels, grid = _image_canvas(path, contract, frame)
        affine = None
    views, inside = padded(levels[None], contract["windows"]["size"][0])
    return Prepared(_normalised(views[0], contract), inside, grid, affine)


def to_mask(probabilities: NDArray[np.float32], own: Prepared) -> Mask:
    """Return the most probable class at each place of an image, from the probabilities (1 + K, ...) on `own.image`."""
    return Mask(onto_image(probabilities[(slice(None), *own.inside)], own.grid), own.affine)


def save(mask: Mask, folder: str | Path, contract: Mapping[str, Any], like: str | Path) -> Path:
    """Write a mask with the values that the training masks had, named like its image, and return the file.

    Args:
        mask: The mask.
        folder: Folder for a PNG file of an image, or a NIfTI file (.nii.gz) of a volume.
        contract: Content of preprocessing.json.
        like: The image; the mask of a NIfTI file gets its axes and matrices exactly.
    """
    known, image = contract["segmenter"], Path(like)
    classes = Classes(tuple(known["classes"]), tuple(known["classes"].values()), known["ignore"])
    name = image.name if image.is_dir() else image.name.removesuffix(".gz").rsplit(".", 1)[0]
    Path(folder).mkdir(parents=True, exist_ok=True)
    if mask.affine is None:
        file = Path(folder, f"{name}.png")
        write_png(file, mask.numbers, classes)
    else:
        file = Path(folder, f"{name}.nii.gz")
        write_nifti(file, mask.numbers, mask.affine, classes, like=image)
    return file


def _image_canvas(path: str | Path, contract: Mapping[str, Any], frame: int) -> tuple[NDArray[Any], Grid]:
    """Return the square canvas (C, S, S) of an image, and where it lies in the image."""
    with quiet():
        decoded = read_by_contract(path, contract, frame)
    side, bits = contract["canvas"]["longer_side"], int(contract["canvas"]["white"]).bit_length()
    planes = [decoded.pixels] if decoded.pixels.ndim == 2 else cv2.split(decoded.pixels)
    scaled = np.stack([on_canvas(replace(decoded, pixels=plane), side, bits) for plane in planes])
    (height, width), size = decoded.pixels.shape[:2], scaled.shape[1:]
    levels = np.zeros((len(planes), side, side), scaled.dtype)
    levels[:, : size[0], : size[1]] = scaled
    return levels, Grid((height, width), (slice(0, height), slice(0, width)), size)


def _normalised(levels: NDArray[Any], contract: Mapping[str, Any]) -> NDArray[np.float32]:
    white, normalise = contract["canvas"]["white"], contract["normalise"]
    shape = (-1, *[1] * (levels.ndim - 1))
    mean, std = (np.reshape(np.asarray(normalise[name], np.float64), shape) for name in ("mean", "std"))
    factor, shift = ((1 / (white * std)).astype(np.float32), (mean / std).astype(np.float32))
    image: NDArray[np.float32] = levels.astype(np.float32) * factor - shift
    return image
