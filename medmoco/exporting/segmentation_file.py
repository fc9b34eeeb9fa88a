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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from medmoco.data.augment.views import channels_first
from medmoco.data.image_io.images import to_canvas
from medmoco.data.image_io.intensity import quiet
from medmoco.data.image_io.limits import DEFAULT_LIMITS, Limits
from medmoco.data.image_io.preprocessing import normalised, read_by_contract
from medmoco.data.volume_io.canvases import canvas_and_box
from medmoco.data.volume_io.reading import read_volume
from medmoco.exporting.volume_file import rules_of
from medmoco.segmentation.annotated.grids import Grid, grid_of_canvas, onto_image
from medmoco.segmentation.masks.mask_files import stem_of, write_mask
from medmoco.segmentation.masks.masks import Classes, PredictedMask
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


def segment(
    path: str | Path,
    contract: Mapping[str, Any],
    network: Network,
    *,
    frame: int = 1,
    series: str = "",
    limits: Limits = DEFAULT_LIMITS,
) -> PredictedMask:
    """Return the class of each pixel of an image, or voxel of a volume; arguments as for `prepared`, and the network.

    Raises:
        ValueError: the file cannot be read; gives the reason.
    """
    own = prepared(path, contract, frame=frame, series=series, limits=limits)

    def predict(windows: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(network(windows.numpy()))

    shown = contract["windows"]
    found = blended(predict, torch.from_numpy(own.image[None]), shown["size"][0], shown["overlap"], _BATCH)
    return to_mask(found[0], own)


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
        with quiet():
            image = read_by_contract(path, contract, frame, whole=True)  # a mask has the size of its image
        shown = to_canvas(image, contract["canvas"]["longer_side"], int(contract["canvas"]["white"]).bit_length())
        levels, affine = channels_first([shown.pixels])[0], None
        grid = grid_of_canvas(image.pixels.shape, shown)
    views, inside = padded(levels[None], contract["windows"]["size"][0])
    return Prepared(normalised(views[0], contract), inside, grid, affine)


def to_mask(probabilities: NDArray[np.float32], own: Prepared) -> PredictedMask:
    """Return the most probable class at each place of an image, from the probabilities (1 + K, ...) on `own.image`."""
    return PredictedMask(onto_image(probabilities[(slice(None), *own.inside)], own.grid), own.affine)


def save(mask: PredictedMask, folder: str | Path, contract: Mapping[str, Any], like: str | Path) -> Path:
    """Write a mask with the values that the training masks had, named like its image, and return the file.

    Args:
        mask: The mask.
        folder: Folder for a PNG file of an image, or a NIfTI file (.nii.gz) of a volume.
        contract: Content of preprocessing.json.
        like: The image; the mask of a NIfTI file gets its axes and matrices exactly.
    """
    known, image = contract["segmenter"], Path(like)
    classes = Classes(tuple(known["classes"]), tuple(known["classes"].values()), known["ignore"])
    Path(folder).mkdir(parents=True, exist_ok=True)
    return write_mask(Path(folder, stem_of(image)), mask.numbers, mask.affine, classes, like=image)
