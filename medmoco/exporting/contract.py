"""What a stranger needs to know to feed the encoder right: the content of preprocessing.json.

The rules are those of data.images, data.views.whole and data.loading.to_float; a test follows the JSON alone, in NumPy,
and must arrive at the pixels of that code.
"""

from __future__ import annotations

import inspect
import platform
from pathlib import Path
from typing import Any

import cv2
import monai
import numpy as np
import onnx
import onnxruntime
import safetensors
import timm
import torch
from torch import nn

import medmoco
from medmoco.config import RunSettings
from medmoco.data.files import sha256_of
from medmoco.models.backbones import Backbone
from medmoco.models.naming import timm_model

INPUT, OUTPUT = "image", "features"

_POLARITY = (
    "bright is dense, as a radiograph is displayed: bone white, air black. MONOCHROME1, and TIFF whose zero is white, "
    "is inverted, once, after the window"
)
_WINDOWS = {
    "voi": "DICOM: modality LUT or rescale, then the file's first VOI LUT or window (PS3.3 C.11.1, C.11.2); without "
    "one, files of up to 8 bits stored keep their full range and deeper ones are spread from their smallest to their "
    "largest value, padding left out. PNG, JPEG and TIFF: full range, as displayed",
    "full": "DICOM: modality LUT or rescale, then the full range that the stored bits can hold. PNG, JPEG and TIFF: "
    "full range, as displayed",
    "explicit": "[centre, width] as a linear window (PS3.3 C.11.2.1.2.1) on DICOM values after modality LUT or rescale "
    "and on the stored values of 16-bit PNG and TIFF. PNG, JPEG and TIFF of 8 bits: full range, as displayed",
}
_HALVING = "halve both sides by the mean of 2 x 2 pixels, rounded with halves up, leaving out an odd last line"
_CANVAS = (
    "keep the aspect ratio: the longer side becomes longer_side, the other round(side * longer_side / longer side of "
    f"the file), at least 1. While the longer side is at least twice longer_side, {_HALVING}; then shrink by the area "
    "filter (OpenCV INTER_AREA), or enlarge bilinearly with half-pixel centres where the image is smaller. Scale so "
    "that the file's white becomes white, rounded to the nearest integer. In training, up to three of JPEG's first "
    "halvings are left to libjpeg's scaled decoding; on films that differs by 0.5 levels of 255 in the mean, at most"
)
_RESIZE = (
    "the whole image, without padding, to height x width. While its longer side is at least twice the target, "
    f"{_HALVING}; then bilinear with half-pixel centres, the border repeated, without antialiasing (OpenCV "
    "INTER_LINEAR); rounded to the nearest integer. OpenCV weighs in fixed point, so that a level of difference here "
    "and there is to be expected"
)


def preprocessing(settings: RunSettings, backbone: Backbone, files: list[Path]) -> dict[str, Any]:
    """Return the content of preprocessing.json.

    Args:
        settings: Of the run.
        backbone: Its encoder.
        files: The weight files, which are hashed.
    """
    data, size, width = settings.data, settings.views.size, backbone.feature_dim
    return {
        "steps": ["grayscale", "canvas", "resize", "normalise"],
        "grayscale": {
            "channels": 1,
            "polarity": _POLARITY,
            "colour": "reduced to luma, ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B",
            "orientation": "as displayed; EXIF orientation of PNG and JPEG is applied",
            "window": data.window,
            "window_rule": _WINDOWS[data.window if isinstance(data.window, str) else "explicit"],
            "bits": "8 for files of up to 8 bits, else 16; white is 2**bits - 1",
        },
        "canvas": {
            "longer_side": data.canvas_size,
            "bit_depth": data.bit_depth,
            "white": 2**data.bit_depth - 1,
            "rule": _CANVAS,
        },
        "resize": {"height": size, "width": size, "keep_aspect_ratio": False, "crop": None, "rule": _RESIZE},
        "normalise": {
            "mean": settings.views.mean,
            "std": settings.views.std,
            "rule": "(pixel / white - mean) / std",
        },
        "input": {"name": INPUT, "shape": ["batch", 1, size, size], "dtype": "float32", "layout": "NCHW"},
        "output": {
            "name": OUTPUT,
            "shape": ["batch", width],
            "dtype": "float32",
            "feature_dim": width,
            "meaning": "pooled features before any classifier, not normalised",
        },
        "model": model(backbone, size),
        "libraries": libraries(),
        "files": {file.name: {"sha256": sha256_of(file), "bytes": file.stat().st_size} for file in files},
    }


def model(backbone: Backbone, size: int) -> dict[str, Any]:
    """Say how to build the network that encoder.safetensors loads into with strict=True."""
    net = backbone.net
    if not backbone.name.startswith("monai/"):
        # Transformers with a fixed grid of patches must be told the size of their input.
        fixed = {"img_size": size} if getattr(net, "pretrained_cfg", {}).get("fixed_input_size") else {}
        name, other = timm_model(backbone.name)
        arguments = {"in_chans": 1, "num_classes": 0, **other, **fixed}
        return {"library": "timm", "name": name, "function": "timm.create_model", "arguments": arguments}
    kind = type(net)
    classes = "out_channels" if "out_channels" in inspect.signature(kind).parameters else "num_classes"
    return {
        "library": "monai",
        "name": kind.__name__,
        "function": f"monai.networks.nets.{kind.__name__}",
        "arguments": {"spatial_dims": 2, "in_channels": 1, classes: 1},
        "replaced_by_identity": [name for name, layer in net.named_modules() if isinstance(layer, nn.Identity)][-1],
    }


def libraries() -> dict[str, str]:
    """Return the versions that wrote the files."""
    modules = (medmoco, torch, timm, monai, np, cv2, safetensors, onnx, onnxruntime)
    return {"python": platform.python_version(), **{module.__name__: module.__version__ for module in modules}}
