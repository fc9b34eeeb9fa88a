"""detectron2: a ResNet with the names of its backbone, in a file that its checkpointer reads without unpickling code.

The head of a classifier is omitted: a detector has its own.

Source: detectron2's modeling/backbone/resnet.py for names and strides; checkpoint/detection_checkpoint.py for .pth
files, where names are matched from the end, so that they need no prefix backbone.bottom_up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from medmoco.exporting.subject import NETWORK_PRECISIONS, Subject
from medmoco.models.interop.naming import rename
from medmoco.models.interop.state_dicts import plain_tensors

# Network -> its settings in MODEL.RESNETS.
_NETWORKS: dict[str, dict[str, int]] = {
    "resnet18": {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
    "resnet34": {"DEPTH": 34, "RES2_OUT_CHANNELS": 64},
    "resnet50": {"DEPTH": 50},
    "resnet101": {"DEPTH": 101},
    "resnet152": {"DEPTH": 152},
    "resnext50_32x4d": {"DEPTH": 50, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4},
    "resnext101_32x8d": {"DEPTH": 101, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 8},
    "wide_resnet50_2": {"DEPTH": 50, "WIDTH_PER_GROUP": 128},
    "wide_resnet101_2": {"DEPTH": 101, "WIDTH_PER_GROUP": 128},
}
_FILE = "encoder.detectron2.pth"


def refusal(subject: Subject) -> str | None:
    """Detectron2 has ResNets only, and reads gray and RGB images only."""
    if subject.backbone.dimensions == 3:
        return "detectron2 has no networks for volumes"
    name = subject.backbone.name
    if isinstance(subject.preprocessing.channels, int):
        return "detectron2 reads gray and RGB images, not bands"
    return None if name in _NETWORKS else f"{name} is not among the ResNets of detectron2: {', '.join(_NETWORKS)}"


def write(subject: Subject, folder: Path) -> list[Path]:
    """Write tensors that torch.load reads with weights_only=True."""
    state = rename(subject.backbone.net.state_dict(), subject.backbone.name, "timm", "detectron2")
    torch.save({"model": plain_tensors(state), "__author__": "medmoco", "matching_heuristics": True}, folder / _FILE)
    return [folder / _FILE]


def describe(subject: Subject) -> dict[str, Any]:
    """Describe how to load it: with the settings that build this network for its channels."""
    prepared = subject.preprocessing
    white = 2**prepared.bit_depth - 1
    settings = {
        **{f"MODEL.RESNETS.{key}": value for key, value in _NETWORKS[subject.backbone.name].items()},
        "MODEL.RESNETS.STRIDE_IN_1X1": False,
        "MODEL.PIXEL_MEAN": [mean * white for mean in prepared.means],
        "MODEL.PIXEL_STD": [std * white for std in prepared.stds],
        "INPUT.FORMAT": "RGB" if prepared.channels == "rgb" else "L",
    }
    return {
        "library": "detectron2",
        "precisions": list(NETWORK_PRECISIONS),
        "settings": settings,
        "outputs": "features are the mean of res5 over its pixels",
        "load": [
            *(f"cfg.{key} = {value!r}" for key, value in settings.items()),
            f'DetectionCheckpointer(model).load("{_FILE}")',
        ],
    }
