from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from medmoco.config import ModelSettings
from medmoco.models.backbones import create_backbone
from medmoco.models.networks.conv_stem import conv_stem


def test_conv_stem__halves_the_image_to_the_grid_of_patches() -> None:
    stem = conv_stem(96, 16, 1, 192, bias=True)
    convolutions = [layer for layer in stem.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [24, 48, 96, 192, 192]
    assert [layer.stride[0] for layer in convolutions] == [2, 2, 2, 2, 1]
    assert [layer.kernel_size[0] for layer in convolutions] == [3, 3, 3, 3, 1]
    assert sum(isinstance(layer, nn.BatchNorm2d) for layer in stem.modules()) == 4
    assert stem(torch.randn(2, 1, 96, 96)).shape == (2, 36, 192)


@pytest.mark.parametrize("seed", [1, 2])
def test_create_backbone__with_the_stem_is_a_block_shorter(seed: int) -> None:
    backbone = create_backbone(ModelSettings(backbone="moco-v3/vit_conv_tiny"), seed=seed, size=64)
    assert (backbone.feature_dim, backbone.fixed_size) == (192, 64)
    assert len(backbone.net.get_submodule("blocks")) == 11  # type: ignore[arg-type]
    assert backbone(torch.randn(2, 1, 64, 64)).shape == (2, 192)
    plain = timm.create_model("vit_tiny_patch16_224", in_chans=1, num_classes=0, img_size=64)
    count = sum(p.numel() for p in backbone.parameters()) / sum(p.numel() for p in plain.parameters())
    assert 0.9 < count < 1.1
