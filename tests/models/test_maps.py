from __future__ import annotations

import pytest
import torch
from torch import nn

from medmoco.config import ModelSettings
from medmoco.errors import SettingsError
from medmoco.models.backbones import Backbone, create_backbone
from medmoco.models.maps import LastMap, blank_image, freeze_unused, levels_of, stage_maps


def make(name: str, dimensions: int = 2, size: int = 64) -> Backbone:
    return create_backbone(ModelSettings(backbone=name), seed=0, size=size, dimensions=dimensions).eval()


@pytest.mark.parametrize(
    ("name", "dimensions", "strides"),
    [
        ("resnet10t", 2, [2, 4, 8, 16, 32]),
        ("convnext_atto", 2, [4, 8, 16, 32]),
        ("monai/resnet10_quarter", 3, [2, 4, 8, 16, 32]),
        pytest.param("monai/swin_unetr", 3, [2, 4, 8, 16, 32], marks=pytest.mark.slow),
        ("nnunet/resenc_4stages_quarter", 3, [1, 2, 4, 8]),
    ],
)
def test_levels_of__are_those_of_the_maps(name: str, dimensions: int, strides: list[int]) -> None:
    encoder = make(name, dimensions)
    levels = levels_of(encoder)
    assert [level.stride for level in levels] == strides
    with torch.no_grad():
        maps = stage_maps(encoder, torch.rand(2, 1, *[64] * dimensions))
    assert [each.shape for each in maps] == [
        (2, level.width, *[64 // level.stride] * dimensions) for level in levels
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "dimensions"), [("resnet10t", 2), ("monai/resnet10_quarter", 3)])
def test_stage_maps__the_mean_of_the_last_is_the_features(name: str, dimensions: int) -> None:
    encoder, images = make(name, dimensions), torch.rand(2, 1, *[64] * dimensions)
    with torch.no_grad():
        last = LastMap(encoder)(images)
        torch.testing.assert_close(last.flatten(2).mean(2), encoder(images))


def test_levels_of__leaves_the_mode_and_the_statistics() -> None:
    encoder = make("resnet10t").train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    levels_of(encoder)
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize(
    ("name", "reason"),
    [("vit_tiny_patch16_224", "takes only images of 224 x 224"), ("monai/densenet121", "only its pooled features")],
)
def test_levels_of__refuses_networks_without_a_pyramid(name: str, reason: str) -> None:
    with pytest.raises(SettingsError, match=reason):
        levels_of(make(name, size=224))


def test_freeze_unused__finds_what_no_map_depends_on() -> None:
    encoder = make("convnext_atto")
    freeze_unused(encoder, lambda images: stage_maps(encoder, images), blank_image(encoder))
    frozen = {name for name, parameter in encoder.named_parameters() if not parameter.requires_grad}
    maps = stage_maps(encoder, torch.rand(1, 1, 64, 64))
    torch.stack([each.square().mean() for each in maps]).sum().backward()  # type: ignore[no-untyped-call]
    without = {name for name, parameter in encoder.named_parameters() if parameter.grad is None}
    assert frozen == without != set()


def test_freeze_unused__leaves_a_frozen_network_alone() -> None:
    net = nn.Linear(2, 2).requires_grad_(False)
    freeze_unused(net, lambda x: [net(x)], torch.zeros(1, 2))
    assert not net.weight.requires_grad
