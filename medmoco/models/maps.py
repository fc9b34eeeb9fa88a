"""The feature maps of an encoder's stages, for networks that predict something at every place of an image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from medmoco.errors import SettingsError
from medmoco.models.backbones import Backbone
from medmoco.models.networks.volumes import maps_of_stages

_SIDE = 64  # of the images on which strides are measured; no network has a larger stride


@dataclass(frozen=True)
class Level:
    """A stage of an encoder.

    Attributes:
        stride: Pixels or voxels of the input per cell of its map, along each axis.
        width: Channels of its map.
    """

    stride: int
    width: int


def stage_maps(encoder: Backbone, images: Tensor) -> list[Tensor]:
    """Return the maps of all stages, finest first, (B, C, H, W) or (B, C, X, Y, Z) -> (B, F_i, H / s_i, W / s_i).

    Raises:
        SettingsError: its library does not give them.
    """
    net: Any = encoder.net
    if encoder.dimensions == 3:
        return maps_of_stages(net, encoder.name, images)
    if not hasattr(net, "forward_intermediates"):
        raise SettingsError(
            f"model.backbone {encoder.name} gives only its pooled features, not their maps; choose a network of timm"
        )
    maps: list[Tensor] = net.forward_intermediates(images, norm=True, intermediates_only=True)
    return maps


def levels_of(encoder: Backbone) -> list[Level]:
    """Return the stages of an encoder, finest first, as measured on a blank image.

    Raises:
        SettingsError: its maps do not become coarser by powers of two, as those of plain transformers.
    """
    if encoder.fixed_size:
        raise SettingsError(_refusal(encoder, f"takes only images of {encoder.fixed_size} x {encoder.fixed_size}"))
    training = encoder.training
    try:
        with torch.no_grad():
            maps = stage_maps(encoder.eval(), blank_image(encoder))
    finally:
        encoder.train(training)
    levels = [Level(round(_SIDE / each.shape[-1]), each.shape[1]) for each in maps]
    strides = [level.stride for level in levels]
    ratios = [after / before for before, after in zip([1, *strides], strides, strict=False)]
    if len(levels) < 2 or min(ratios[1:]) < 2 or any(ratio not in (1, 2, 4, 8) for ratio in ratios):
        raise SettingsError(_refusal(encoder, f"has maps at a stride of {', '.join(map(str, strides))}"))
    return levels


class LastMap(nn.Module):
    """The last map of an encoder instead of its pooled features, (B, C, H, W) -> (B, F, h, w)."""

    def __init__(self, encoder: Backbone) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """Return the map."""
        return stage_maps(self.encoder, images)[-1]


def freeze_unused(net: nn.Module, maps: Callable[[Tensor], Sequence[Tensor]], example: Tensor) -> None:
    """Freeze the parameters on which no map depends; distributed training would wait for their gradients."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if not trained:
        return
    modes = {module: module.training for module in net.modules()}
    net.eval()  # to keep the statistics of norms
    made = maps(example)
    gradients = torch.autograd.grad(made, trained, [torch.ones_like(each) for each in made], allow_unused=True)
    for module, mode in modes.items():
        module.training = mode
    for parameter, gradient in zip(trained, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def blank_image(encoder: Backbone) -> Tensor:
    """Return a small image (1, C, S, S) or volume (1, C, S, S, S) of zeros."""
    return torch.zeros(1, encoder.channels, *[_SIDE] * encoder.dimensions)


def _refusal(encoder: Backbone, reason: str) -> str:
    return (
        f"model.backbone {encoder.name} {reason}: segmentation needs maps that become coarser from stage to stage, for"
        " images of\nany size. Use a convolutional network, such as resnet50 or convnext_tiny; for volumes,"
        " monai/resnet18 or\nnnunet/resenc."
    )
