"""How to prepare images for the exported network: the content of preprocessing.json.

The rules are those of data.image_io, data.augment.views and data.loading.to_float; a test that follows the JSON alone,
in NumPy, must produce the same pixels.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors
import timm
import torch

import medmoco
from medmoco.data.loading.preprocessing import Preprocessing
from medmoco.data.volume_io.volume import AXES
from medmoco.exporting.subject import INPUT, Subject
from medmoco.exporting.volume_contract import steps_of_volumes
from medmoco.utils.files import sha256_of

_POLARITY = (
    "bright is dense, as a radiograph is displayed: bone white, air black. MONOCHROME1, and TIFF whose zero is white, "
    "is inverted, once, after the window"
)
_WINDOWS = {
    "voi": "DICOM: modality LUT or rescale, then the file's first VOI LUT or window (PS3.3 C.11.1, C.11.2); without "
    "one, files of up to 8 bits stored keep their full range and deeper ones are spread from their smallest to their "
    "largest value, padding left out. Padding is black. PNG, JPEG and TIFF: full range, as displayed",
    "full": "DICOM: modality LUT or rescale, then the full range that the stored bits can hold. PNG, JPEG and TIFF: "
    "full range, as displayed",
    "explicit": "[centre, width] as a linear window (PS3.3 C.11.2.1.2.1) on DICOM values after modality LUT or rescale "
    "and on the stored values of 16-bit PNG and TIFF. PNG, JPEG and TIFF of 8 bits: full range, as displayed",
}
_COLOURS = (
    "PNG, JPEG and TIFF as displayed, without colour management; DICOM palettes through their tables and YBR to RGB "
    "(PS3.3 C.7.6.3.1.2). Gray files by the window, bright is dense, then the same plane three times"
)
_ARRAYS = "NumPy array (C, H, W) or (H, W, C); of one band also (H, W). All values are finite"
_BANDS = (
    "of each band: low and high are its pair of ranges, or the one pair of all. scale log: low and high are above 0; "
    "v = log10(max(v, low)), low and high by log10 too. Then (v - low) / (high - low), cut to 0..1, times 65535, to "
    "the nearest integer. Where ranges is null: 8-bit arrays on a linear scale stay as they are, of white 255; else "
    "low and high are the band's own smallest and largest value, on a log scale of its positive ones"
)
_HALVING = "halve both sides by the mean of 2 x 2 pixels, rounded with halves up, leaving out an odd last line"
_CANVAS = (
    "keep the aspect ratio: the longer side becomes longer_side, the other round(side * longer_side / longer side of "
    "the file), at least 1, sides being in their true proportions where a DICOM file says that pixels are not square. "
    f"While the longer side is at least twice longer_side, {_HALVING}; then shrink by the area "
    "filter (OpenCV INTER_AREA), or enlarge bilinearly with half-pixel centres where the image is smaller. Scale so "
    "that the file's white becomes white, rounded to the nearest integer. In training, up to three of JPEG's first "
    "halvings are left to libjpeg's scaled decoding; on films that differs by 0.5 levels of 255 in the mean, at most"
)
_RESIZE = (
    "the whole image, without padding, to height x width. While its longer side is at least twice the target, "
    f"{_HALVING}; then bilinear with half-pixel centres, the border repeated, without antialiasing (OpenCV "
    "INTER_LINEAR); rounded to the nearest integer. OpenCV computes in fixed point, so expect occasional "
    "differences of one level"
)
_MASK = (
    "the canvas of an image is padded to a square with black, at the right and at the bottom. One that is smaller than "
    "a window is padded to its size, with half of the black, rounded down, before it. Windows of size with overlap "
    "cover the canvas; their probabilities are averaged, weighted by a Gaussian about their centres (MONAI's "
    "sliding_window_inference, mode gaussian). The mean is resampled to the grid of the file, linearly where that is "
    "finer and by averaging where it is coarser, and the most probable class counts; outside of the canvas, background"
)


def preprocessing(subject: Subject, formats: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the content of preprocessing.json.

    Args:
        subject: Network to export.
        formats: For each format, its path in the folder and what its `describe` returns.
        folder: Folder of the export, with the files of the formats only.
    """
    prepared, width = subject.preprocessing, subject.backbone.feature_dim
    is_volume, facts = prepared.dimensions == 3, subject.segmenter
    steps = steps_of_volumes(prepared) if is_volume else _steps_of_images(prepared)
    if facts is not None:
        steps.pop("resize", None)
        steps["windows"] = {"size": [prepared.size] * prepared.dimensions, "overlap": facts["overlap"], "rule": _MASK}
    return {
        "steps": [*steps, "normalise", "mirror"],
        **steps,
        "normalise": {"mean": prepared.mean, "std": prepared.std, "rule": "(pixel / white - mean) / std"},
        "mirror": {
            "average": prepared.mirror,
            **({"axis": AXES[0]} if is_volume else {}),
            "rule": _mirror_rule(subject),
        },
        "scored_stages": subject.scored_stages,
        "input": {
            "name": INPUT,
            "shape": ["batch", subject.backbone.channels, *[prepared.size] * prepared.dimensions],
            "dtype": "float32",
            "layout": "NCXYZ" if is_volume else "NCHW",
        },
        "outputs": [
            {"name": name, "shape": ["batch", *shape], "dtype": "float32", "meaning": meaning}
            for name, shape, meaning in _outputs(subject, width)
        ],
        "classifier": _classifier(subject),
        **({"segmenter": {key: facts[key] for key in ("classes", "ignore", "val_dice")}} if facts else {}),
        "model": {**subject.build, "feature_dim": width},
        "formats": dict(formats),
        "licence": subject.licence,
        "libraries": libraries(),
        "files": {
            name: {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
            for name in files_in(folder)
        },
    }


def _steps_of_images(prepared: Preprocessing) -> dict[str, dict[str, Any]]:
    """Return the steps from an image file to pixels, in order."""
    size = prepared.size
    return {
        **first_step(prepared),
        "canvas": {
            "longer_side": prepared.canvas_size,
            "bit_depth": prepared.bit_depth,
            "white": 2**prepared.bit_depth - 1,
            "rule": _CANVAS,
        },
        "resize": {"height": size, "width": size, "keep_aspect_ratio": False, "crop": None, "rule": _RESIZE},
    }


def first_step(prepared: Preprocessing) -> dict[str, dict[str, Any]]:
    """Return the step from a file to gray levels by its name: grayscale, colour or bands."""
    window, channels = prepared.window, prepared.channels
    if isinstance(channels, int):
        ranges = prepared.band_ranges and [list(pair) for pair in prepared.band_ranges]
        bands = {"channels": channels, "files": _ARRAYS, "scale": prepared.scale, "ranges": ranges}
        return {"bands": {**bands, "rule": _BANDS, "bits": "16; white is 65535"}}
    of_gray = {
        "orientation": "as displayed; the orientation that PNG, JPEG and TIFF files name is applied",
        "window": window,
        "window_rule": _WINDOWS[window if isinstance(window, str) else "explicit"],
        "bits": "8 for files of up to 8 bits, else 16; white is 2**bits - 1",
    }
    if channels == "rgb":
        return {"colour": {"channels": 3, "order": "red, green, blue", "rule": _COLOURS, **of_gray}}
    luma = "reduced to luma, ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B"
    return {"grayscale": {"channels": 1, "polarity": _POLARITY, "colour": luma, **of_gray}}


def files_in(folder: Path) -> list[str]:
    """Return the names of all files in a folder and below, relative to it."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())


def _mirror_rule(subject: Subject) -> str:
    image = "volume" if subject.preprocessing.dimensions == 3 else "image"
    if not subject.preprocessing.mirror:
        return f"none: outputs are those of the {image} itself"
    if subject.head is None:
        return (
            f"scores in the card were measured on the mean features of the {image} and its left-right mirror image; no "
            "file computes this mean itself"
        )
    return (
        f"logits are those of the {image} and its left-right mirror image: average the network's outputs over both "
        "first. Files that contain the computation (ONNX, program) do this themselves"
    )


def _outputs(subject: Subject, width: int) -> list[tuple[str, list[int | str], str]]:
    if subject.segmenter:
        classes, prepared = ["background", *subject.segmenter["classes"]], subject.preprocessing
        shape: list[int | str] = [len(classes), *[prepared.size] * prepared.dimensions]
        return [("probabilities", shape, f"of {', '.join(classes)} at each place of a window; their sum is 1")]
    if subject.head is None:
        return [("features", [width], f"pooled features before any classifier, not normalised{_of_windows(subject)}")]
    labels = subject.head.out_features
    outputs: list[tuple[str, list[int | str], str]] = [
        ("logits", [labels], "log-odds of each label, to which the thresholds of the operating points apply"),
        ("probabilities", [labels], "of each label, calibrated on validation"),
    ]
    if subject.top_patches is not None:
        outputs.append(("patch_scores", [labels, "height", "width"], "by label, rows of patches from the top"))
    return outputs


def _of_windows(subject: Subject) -> str:
    prepared = subject.preprocessing
    in_windows = prepared.dimensions == 3 and prepared.volumes == "sliding"
    return ", of one window; those of a volume are the mean over its windows" if in_windows else ""


def _classifier(subject: Subject) -> dict[str, Any] | None:
    facts = subject.classifier
    if facts is None:
        return None
    outputs = "the network's outputs"
    if subject.top_patches is not None:
        outputs = f"the mean of each label's {subject.top_patches} highest patch scores"
    exclusive = f"log(p / (1 - p)) of p = softmax({outputs})" if facts["exclusive"] else outputs
    head = {"head": "patches", "top_patches": subject.top_patches} if subject.top_patches is not None else {}
    return {
        **{key: facts[key] for key in ("labels", "exclusive", "label_policies", "trained")},
        **head,
        "logits_rule": f"{exclusive}, after the mirror rule",
        "calibration": facts["calibration"],
        "probabilities_rule": "1 / (1 + exp(-(slope * logit + intercept))), by label",
        "operating_points": facts["operating_points"],
        "decision_rule": "positive where the logit is at least the threshold",
    }


def libraries() -> dict[str, str]:
    """Return the versions of the libraries that wrote the files."""
    loaded = {module.__name__: module.__version__ for module in (medmoco, torch, timm, np, cv2, safetensors)}
    others = {name: version(name) for name in ("monai", "onnx", "onnxruntime")}  # not imported, which takes seconds
    return {"python": platform.python_version(), **loaded, **others}
