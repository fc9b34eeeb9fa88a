"""Preprocess a volume into the network's input, as defined in preprocessing.json.

    import json, prepare
    contract = json.load(open("preprocessing.json"))
    views = prepare.volume("scan.nii.gz", contract)  # (W, 1, S, S, S) or (1, S, S, S) float32

Every export of a network for volumes contains this file, and any project may copy it (Apache-2.0). It needs NumPy,
SciPy, OpenCV, Pillow, pydicom and nibabel, and for NRRD and MetaImage SimpleITK. medmoco reads volumes with the same
code, so that a deployed network receives the same voxels as in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medmoco.data.augment.volume_views import whole_view, windows
from medmoco.data.image_io.limits import DEFAULT_LIMITS, Limits
from medmoco.data.image_io.preprocessing import normalised
from medmoco.data.volume_io.canvases import to_volume_canvas
from medmoco.data.volume_io.reading import read_volume


@dataclass(frozen=True)
class Rules:
    """How to make a canvas; the names are those in the settings of medmoco."""

    window: Literal["percentiles"] | tuple[float, float]
    spacing: tuple[float, float, float] | None
    bit_depth: Literal[8, 16]
    max_voxels: int


def volume(
    path: str | Path, contract: Mapping[str, Any], series: str = "", limits: Limits = DEFAULT_LIMITS
) -> NDArray[np.float32]:
    """Return the network's input for one volume.

    Args:
        path: NIfTI, NRRD, MetaImage or .npy file, detected by its content, an enhanced DICOM file, or the folder of a
            DICOM series.
        contract: Content of preprocessing.json.
        series: SeriesInstanceUID that chooses a series of a folder with several.
        limits: Larger files and volumes are refused.

    Returns:
        (W, 1, S, S, S), whose features are to be averaged, if the contract has "windows"; else (1, S, S, S).

    Raises:
        ImageError: the file cannot be read as a volume; gives the reason.
        SettingsError: nibabel or SimpleITK is not installed.
    """
    canvas = to_volume_canvas(read_volume(path, series=series, limits=limits), rules_of(contract, limits))
    if "windows" in contract:
        levels = windows(canvas, contract["windows"]["size"][0])[:, None]
    else:
        levels = whole_view(canvas, contract["resize"]["size"][0])[None]
    return normalised(levels, contract)


def rules_of(contract: Mapping[str, Any], limits: Limits) -> Rules:
    """Return how a contract says to make a canvas."""
    window, spacing = contract["grayscale"]["window"], contract["resample"]["spacing"]
    return Rules(
        window="percentiles" if window == "percentiles" else (float(window[0]), float(window[1])),
        spacing=spacing and (spacing[0], spacing[1], spacing[2]),
        bit_depth=contract["canvas"]["bit_depth"],
        max_voxels=limits.max_voxels,
    )
