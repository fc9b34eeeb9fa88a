"""torchvision's detectors on a feature pyramid of the encoder's stages."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from medmoco.config import DetectionSettings, RunSettings, ViewSettings
from medmoco.errors import SettingsError
from medmoco.models.backbones import Backbone
from medmoco.models.maps import freeze_unused
from medmoco.utils.rng import WEIGHTS, hashed

STRIDES = {"faster_rcnn": (4, 8, 16, 32), "retinanet": (8, 16, 32)}
"""Strides of the encoder's stages in the pyramid; RetinaNet adds two more levels, Faster R-CNN one.
Source: Lin et al. 2017 (arXiv:1612.03144), section 4; Lin et al. 2017 (arXiv:1708.02002), section 4."""

FIRST_LABEL = {"faster_rcnn": 1, "retinanet": 0}  # in Faster R-CNN, 0 is the background
_LEVELS = 5
_RATIOS = (0.5, 1.0, 2.0)
_LOWEST_SCORE = 0.001  # of a detection; torchvision's 0.05 would truncate the curves


class Pyramid(nn.Module):
    """An encoder with a feature pyramid, which torchvision's detectors call a backbone.

    Attributes:
        net: Plain network of the encoder, with its usual state dict.
        out_channels: Channels of every level.
    """

    def __init__(self, encoder: Backbone, detection: DetectionSettings) -> None:
        super().__init__()
        strides = STRIDES[detection.detector]
        stages = _stages(encoder)
        self.net = encoder.net
        self.channels = encoder.channels
        self._indices = [stages[stride]["index"] for stride in strides]
        channels = [stages[stride]["num_chs"] for stride in strides]
        self.c5_norm = nn.BatchNorm2d(channels[-1]) if detection.extra_norm == "c5" else nn.Identity()
        self.out_channels = detection.channels
        # P6 is computed from P5, which has the width of the pyramid. Source: torchvision's RetinaNet.
        top: ExtraFPNBlock = LastLevelMaxPool()
        if detection.detector == "retinanet":
            top = LastLevelP6P7(detection.channels, detection.channels)
        norm = nn.BatchNorm2d if detection.extra_norm == "pyramid" else None
        self.fpn = FeaturePyramidNetwork(channels, detection.channels, extra_blocks=top, norm_layer=norm)
        self._frozen = list(_frozen_modules(encoder, detection))
        for module in self._frozen:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        freeze_unused(self.net, self.features, torch.zeros(1, self.channels, 128, 128))  # large enough for any network

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the encoder's maps (B, C, H / stride, W / stride), finest first."""
        net: Any = self.net
        maps: list[Tensor] = net.forward_intermediates(images, indices=self._indices, intermediates_only=True)
        return maps

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return the pyramid's maps (B, out_channels, H / stride, W / stride), finest first."""
        *finer, coarsest = self.features(images)
        maps = enumerate([*finer, self.c5_norm(coarsest)])
        levels: OrderedDict[str, Tensor] = self.fpn(OrderedDict((str(level), each) for level, each in maps))
        return levels

    def train(self, mode: bool = True) -> Pyramid:
        """Set the mode of all modules except frozen ones, to keep their statistics."""
        super().train(mode)
        for module in self._frozen:
            module.training = False
        return self


def create_detector(encoder: Backbone, settings: RunSettings, labels: int) -> FasterRCNN | RetinaNet:
    """Build a detector whose initial weights, except the encoder's, depend on the seed only.

    Args:
        encoder: Used with its weights, not copied.
        settings: `detection`, the seed, and the normalisation of `views`.
        labels: Number of labels.

    Raises:
        SettingsError: the encoder lacks the feature maps of a pyramid.
    """
    chosen = settings.detection
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hashed(settings.seed, WEIGHTS, 3)[0] >> 1))
        pyramid = Pyramid(encoder, chosen)
        common: dict[str, Any] = {
            "num_classes": labels + FIRST_LABEL[chosen.detector],
            "min_size": chosen.size, "max_size": chosen.size, **_normalisation(settings.views),
        }  # fmt: skip
        if chosen.detector == "faster_rcnn":
            return FasterRCNN(
                pyramid, **common, rpn_anchor_generator=_anchors(chosen.smallest_anchor, 1),
                box_batch_size_per_image=chosen.proposals, box_score_thresh=_LOWEST_SCORE,
            )  # fmt: skip
        anchors = _anchors(chosen.smallest_anchor, 3)
        return RetinaNet(pyramid, **common, anchor_generator=anchors, score_thresh=_LOWEST_SCORE)


def _normalisation(views: ViewSettings) -> dict[str, list[float]]:
    mean, std = (list(value) if isinstance(value, tuple) else [value] for value in (views.mean, views.std))
    return {"image_mean": mean, "image_std": std}


def _anchors(smallest: float, scales: int) -> AnchorGenerator:
    """Return anchors in `scales` sizes per level, a third of an octave apart, with three aspect ratios."""
    sizes = tuple(
        tuple(smallest * 2 ** (level + scale / 3) for scale in range(scales)) for level in range(_LEVELS)
    )  # fmt: skip
    return AnchorGenerator(sizes, (_RATIOS,) * _LEVELS)


def _stages(encoder: Backbone) -> dict[int, dict[str, Any]]:
    """Return timm's description of the encoder's stages, by stride.

    Raises:
        SettingsError: it lacks the strides of a pyramid.
    """
    net: Any = encoder.net
    known = [dict(stage, index=index) for index, stage in enumerate(getattr(net, "feature_info", ()))]
    stages = {stage["reduction"]: stage for stage in known}
    needed = STRIDES["faster_rcnn"]
    if not hasattr(net, "forward_intermediates") or not known:
        reason = "does not support timm's forward_intermediates"
    elif missing := [stride for stride in needed if stride not in stages]:
        has = ", ".join(map(str, sorted(stages)))
        reason = f"has feature maps at a stride of {has}, not at {', '.join(map(str, missing))}"
    elif encoder.fixed_size:
        reason = f"takes only images of {encoder.fixed_size} x {encoder.fixed_size} pixels"
    else:
        return stages
    raise SettingsError(
        f"model.backbone {encoder.name} {reason}: a feature pyramid needs strides of 4, 8, 16 and 32,\n"
        "for images of any size. Use a convolutional network, such as resnet50, densenet121 or convnext_tiny."
    )


def _frozen_modules(encoder: Backbone, detection: DetectionSettings) -> Iterator[nn.Module]:
    """Yield the frozen modules, without their children."""
    modules = dict(encoder.net.named_modules())
    if detection.frozen_stages:
        yield from (modules[name] for name in _up_to(encoder, 2**detection.frozen_stages, list(modules)))
    if detection.norm == "frozen":
        yield from (module for module in modules.values() if isinstance(module, _BatchNorm))


def _up_to(encoder: Backbone, stride: int, names: Sequence[str]) -> list[str]:
    """Return the modules up to the end of the stage with a stride, in order of creation."""
    stages = _stages(encoder)
    if stride not in stages:
        steps = ", ".join(str(stage.bit_length() - 1) for stage in sorted(stages))
        raise SettingsError(f"detection.frozen_stages: {encoder.name} has stages {steps}, the log2 of their stride")
    stage = str(stages[stride]["module"])
    inside = [number for number, name in enumerate(names) if f"{name}.".startswith(f"{stage}.")]
    return [name for name in names[1 : inside[-1] + 1] if not stage.startswith(f"{name}.")]
