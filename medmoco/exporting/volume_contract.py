"""How to prepare volumes: their part of preprocessing.json.

The rules are those of data.volume_io and data.augment.volume_views; a test that follows the JSON alone, in NumPy and
SciPy, must produce the same voxels.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from medmoco.data.augment import volume_views
from medmoco.data.loading.preprocessing import Preprocessing
from medmoco.data.volume_io import canvases
from medmoco.models.networks.volumes import NETWORKS

_ORIENTATION = (
    "the first index grows to the patient's right, the second to the front, the third to the head: axes are permuted "
    "and reversed to the closest ones, without resampling. NIfTI by its sform, else its qform. DICOM's coordinates "
    "grow to the left and to the back (LPS), so two signs change; slices are ordered by ImagePositionPatient along the "
    "normal of ImageOrientationPatient, never by file name or InstanceNumber, and their distance is that of the "
    "positions, never SliceThickness (PS3.3 C.7.6.2.1.1). NRRD and MetaImage by their directions. .npy as it is, with "
    "1 mm"
)
_VALUES = (
    "after the rescale of the file (RescaleSlope and Intercept, scl_slope and scl_inter), as float32: HU for CT. "
    "DICOM's padding is the smallest other value; MONOCHROME1 without a unit is reflected"
)
_BODY = (
    "the volume is cropped to the body. It is sought in every nth voxel from the first, n = ceil(side / coarse) along "
    "each axis: the voxels above the threshold, of their regions (connected by faces) those of at least `part` times "
    "the largest, with enclosed holes filled. The threshold is threshold_hu for CT (Modality, or a window in HU if the "
    "file states none); else low + share * (high - low), low being the 1st percentile of all these voxels, and high "
    "the 99th of those above low. The crop is from (first - margin) * n up to (last + margin + 1) * n. A body of less "
    "than `smallest` of the voxels is none, and the volume remains whole"
)
_RESAMPLE = (
    "each axis in turn, first the one that is reduced most, to round(side * distance / spacing) voxels, at least 1, "
    "which keeps the extent. An axis that becomes coarser is averaged over the extent of each new voxel (OpenCV "
    "INTER_AREA); one that becomes finer is interpolated linearly between voxel centres, the border repeated (OpenCV "
    "INTER_LINEAR)"
)
_NOT_RESAMPLED = "none: voxels keep the distances of the file"
_EXPLICIT = (
    "[centre, width]: values from centre - width / 2, black, to centre + width / 2, white, on a linear scale "
    "(LINEAR_EXACT, PS3.3 C.11.2.1.3.2)"
)
_PERCENTILES = (
    "black and white are the percentiles of the voxels of the body, before resampling, in the same every nth voxel "
    "(of all of them if there is no body; if both are equal, the smallest and the largest of these); linear in between"
)
_WINDOWS = (
    "windows of size voxels cover the canvas. Along each axis: where it is longer than a window, "
    "steps = ceil((side - size) / (size * (1 - overlap))) and windows start at rint(linspace(0, side - size, steps + "
    "1)), halves to even; else there is one, from floor((side - size) / 2), with black where the canvas ends. The "
    "first axis varies slowest. The features of a volume are the mean of those of its windows"
)
_RESIZE = (
    "the whole canvas, whatever its aspect ratio. An axis of at least twice `size` is first averaged over blocks of "
    "2**n voxels, n = floor(log2(side / size)), leaving out voxels at both ends that fill no block, the odd one at the "
    "far end, and rounded. Then linearly with voxel centres, the border repeated, without antialiasing: the second and "
    "third axis, rounded, then the first, rounded. OpenCV computes in fixed point, so expect occasional differences of "
    "one or two levels of 255"
)


def steps_of_volumes(prepared: Preprocessing) -> dict[str, dict[str, Any]]:
    """Return the steps from a file to voxels, in order."""
    explicit = isinstance(prepared.window, tuple)
    size = [prepared.size] * 3
    if prepared.volumes == "sliding":
        shown = {"windows": {"size": size, "overlap": volume_views._WINDOW_OVERLAP, "rule": _WINDOWS}}
    else:
        shown = {"resize": {"size": size, "keep_aspect_ratio": False, "crop": None, "rule": _RESIZE}}
    return {
        "orientation": {"axes": "RAS", "rule": _ORIENTATION, "values": _VALUES},
        "body": {
            "coarse": canvases._COARSE,
            "threshold_hu": canvases.BODY_HU,
            "share": canvases._BODY_SHARE,
            "part": canvases._PART,
            "margin": canvases._MARGIN,
            "smallest": canvases._TINY,
            "rule": _BODY,
        },
        "resample": {
            "spacing": prepared.spacing and list(prepared.spacing),
            "unit": "mm",
            "rule": _RESAMPLE if prepared.spacing else _NOT_RESAMPLED,
        },
        "grayscale": {
            "channels": 1,
            "window": prepared.window,
            **({} if explicit else {"percentiles": list(canvases.PERCENTILES)}),
            "window_rule": _EXPLICIT if explicit else _PERCENTILES,
        },
        "canvas": {
            "bit_depth": prepared.bit_depth,
            "white": 2**prepared.bit_depth - 1,
            "rule": "share of white times white, to the nearest integer, halves to even",
        },
        **shown,
    }


def steps_read(prepared: Preprocessing) -> dict[str, dict[str, Any]]:
    """Return the part of the steps that prepare.py reads."""
    read = {
        "resample": ("spacing",), "grayscale": ("window",), "canvas": ("bit_depth", "white"), "windows": ("size",),
        "resize": ("size",),
    }  # fmt: skip
    steps = steps_of_volumes(prepared)
    return {name: {key: steps[name][key] for key in keys} for name, keys in read.items() if name in steps}


def packages_of_volumes(backbone: str) -> dict[str, str]:
    """Return the versions of what a network and prepare.py import, besides MONAI, PyTorch and NumPy."""
    network = NETWORKS[backbone]
    own = [name.replace("_", "-") for name in (network.library, network.also) if name and name != "monai"]
    read = ["pydicom", "opencv-python-headless", "nibabel", "SimpleITK", "scipy", "pillow"]
    return {name: version(name) for name in (*own, *read)}
