"""An encoder under a decoder that returns to the resolution of the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from medmoco.config import RunSettings
from medmoco.errors import SettingsError
from medmoco.models.backbones import Backbone
from medmoco.models.maps import Level, blank_image, freeze_unused, levels_of, stage_maps
from medmoco.utils.rng import WEIGHTS, hashed

_BLOCK: dict[str, Any] = {
    "act": ("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
    "norm": ("instance", {"affine": True}),  # batches of crops are too small for batch norm
    "bias": False,
}
"""Source: the blocks of nnU-Net, Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z)."""


class SegmentationNetwork(nn.Module):
    """An encoder with a decoder that scores every pixel or voxel.

    Attributes:
        backbone: The encoder, whose plain network keeps its usual state dict.
        decoder: Image and maps, finest first, to scores.
        frozen: Whether the encoder does not learn.
    """

    def __init__(self, backbone: Backbone, decoder: nn.Module, *, frozen: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.frozen = frozen
        if frozen:
            backbone.requires_grad_(False)
        freeze_unused(backbone, lambda images: stage_maps(backbone, images), blank_image(backbone))

    def forward(self, images: Tensor) -> Tensor:
        """Return the scores (log-odds up to a constant) of the background and C classes.

        (B, channels, H, W) -> (B, 1 + C, H, W), or the same with (X, Y, Z); sides are multiples of the largest stride.
        """
        scores: Tensor = self.decoder([images, *stage_maps(self.backbone, images)])
        return scores

    def train(self, mode: bool = True) -> SegmentationNetwork:
        """Set the mode; a frozen encoder keeps its statistics."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


class UNetDecoder(nn.Module):
    """The decoder of a U-Net, of MONAI's blocks, for maps whose strides are any powers of two.

    Source: Ronneberger et al. 2015 (arXiv:1505.04597).

    Attributes:
        levels: Those of the maps, finest first; the first is the image, with a stride of 1.
        finest: Channels at full resolution.
    """

    def __init__(self, levels: list[Level], dimensions: int, scores: int, finest: int) -> None:
        """Build it.

        Args:
            levels: See the class.
            dimensions: 2 or 3.
            scores: Number of scores of each pixel.
            finest: See the class.
        """
        from monai.networks.nets.basic_unet import UpCat  # not at the top, because importing MONAI takes seconds

        super().__init__()
        self.levels, self.finest = levels, finest
        number_at = {level.stride: number for number, level in enumerate(levels)}  # the deeper one of equals
        stride, width = levels[-1].stride, levels[-1].width
        blocks: list[nn.Module] = []
        self._skips: list[int | None] = []
        while stride > 1:
            stride //= 2
            number = number_at.get(stride)
            skip = 0 if number is None else levels[number].width
            out = finest if stride == 1 else max(finest, skip or width // 2)
            blocks.append(UpCat(dimensions, width, skip, out, **_BLOCK))
            self._skips.append(number)
            width = out
        self.blocks = nn.ModuleList(blocks)
        self.scores = (nn.Conv3d if dimensions == 3 else nn.Conv2d)(width, scores, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return scores (B, S, ...) for the image, which is the first of the maps."""
        x = maps[-1]
        for block, number in zip(self.blocks, self._skips, strict=True):
            x = block(x, None if number is None else maps[number])
        scores: Tensor = self.scores(x)
        return scores


class NnunetDecoder(nn.Module):
    """The decoder of nnU-Net's residual encoder U-Net, so that nnU-Net can take over all weights.

    Attributes:
        net: Its network.
    """

    def __init__(self, encoder: nn.Module, scores: int) -> None:
        from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder as Decoder
        from dynamic_network_architectures.initialization.weight_init import InitWeights_He

        super().__init__()
        self.net = Decoder(encoder, scores, 1, deep_supervision=False)
        del self.net.encoder  # only its widths were needed; otherwise every weight would have two names
        for layer in self.net.seg_layers[:-1]:  # for deep supervision, which is not used
            layer.requires_grad_(False)
        self.net.apply(InitWeights_He(1e-2))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return scores (B, S, ...) for the image, which is the first of the maps and not used."""
        scores: Tensor = self.net(maps[1:])
        return scores


def create_network(encoder: Backbone, settings: RunSettings, classes: int) -> SegmentationNetwork:
    """Put a decoder on an encoder; its initial weights depend on the seed only.

    Args:
        encoder: Used with its weights, not copied.
        settings: `segmentation` and the seed.
        classes: Number of classes C, without the background.

    Raises:
        SettingsError: the encoder has no maps that become coarser from stage to stage, or `views.size`, the side of its
            input, is not a multiple of their largest stride.
    """
    chosen, size = settings.segmentation, settings.views.size
    levels = [Level(1, encoder.channels), *levels_of(encoder)]
    stride = levels[-1].stride
    if size % stride:
        raise SettingsError(
            f"segmentation.size {size} is not a multiple of {stride}, the largest stride of {encoder.name}; set it to"
            f" {stride * max(1, round(size / stride))}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(hashed(settings.seed, WEIGHTS, 4)[0] >> 1))
        decoder: nn.Module
        if encoder.name.startswith("nnunet/"):
            decoder = NnunetDecoder(encoder.net, 1 + classes)
        else:
            decoder = UNetDecoder(levels, encoder.dimensions, 1 + classes, chosen.channels)
    return SegmentationNetwork(encoder, decoder, frozen=chosen.frozen)
