from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest
import torch
from monai.networks import nets
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from medmoco.config import ModelSettings
from medmoco.errors import SettingsError
from medmoco.models.backbones import Backbone, create_backbone, named_as_exported
from medmoco.models.networks.volumes import NETWORKS, TO_IMPORT, build_volume_network, pooled

SMALLEST = {"monai/densenet121": 32, "nnunet/resenc": 48, "nnunet/resenc_5stages": 32}
LARGE = ("monai/resnet34", "monai/resnet50", "monai/swin_unetr_48", "nnunet/resenc", "nnunet/resenc_5stages")
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in NETWORKS]


def create(name: str, seed: int = 0, **options: Any) -> Backbone:
    return create_backbone(ModelSettings(backbone=name), seed=seed, size=32, dimensions=3, **options)


@pytest.mark.parametrize("name", NAMES)
def test_build_volume_network__features_come_out_and_gradients_reach_every_weight(name: str) -> None:
    backbone = create(name)
    side = SMALLEST.get(name, 16)
    features = backbone.train()(torch.randn(2, 1, side, side, side))
    assert features.shape == (2, NETWORKS[name].widths[-1])
    assert backbone.feature_dim == NETWORKS[name].widths[-1]
    features.square().sum().backward()
    weights = dict(backbone.named_parameters())
    if side < 32 and name.startswith("monai/swin"):  # attention within a single voxel has no bias to learn
        weights = {key: weight for key, weight in weights.items() if "relative_position_bias" not in key}
    assert [key for key, weight in weights.items() if weight.grad is None] == []


@pytest.mark.parametrize("name", ["monai/resnet10_quarter", "monai/swin_unetr", "nnunet/resenc_4stages"])
def test_build_volume_network__weights_depend_on_the_seed_alone(name: str) -> None:
    first, again, other = create(name).state_dict(), create(name).state_dict(), create(name, seed=1).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert any(not torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.parametrize("name", ["monai/resnet10", "monai/densenet121", "monai/swin_unetr", "nnunet/resenc_4stages"])
def test_build_volume_network__no_residual_branch_starts_silent(name: str) -> None:
    norms = [layer for layer in create(name).modules() if isinstance(layer, _NormBase | nn.LayerNorm)]
    assert norms
    assert all(norm.weight.any() for norm in norms)


def unet(name: str) -> Any:
    """Build nnU-Net's network from the part of a plan that an encoder's arguments are in."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    plan = json.loads(json.dumps(NETWORKS[name].arguments))
    arguments = {
        key: getattr(importlib.import_module(value.rpartition(".")[0]), value.rpartition(".")[2])
        if key in TO_IMPORT and value
        else value
        for key, value in plan.items()
    }
    blocks = [1] * (plan["n_stages"] - 1)
    return ResidualEncoderUNet(input_channels=1, num_classes=2, n_conv_per_stage_decoder=blocks, **arguments)


def test_build_volume_network__nnunet_loads_its_encoder() -> None:
    backbone, network = create("nnunet/resenc_4stages").eval(), unet("nnunet/resenc_4stages").eval()
    state = {f"encoder.{key}": value for key, value in backbone.net.state_dict().items()}
    loaded = network.load_state_dict(state, strict=False)
    assert loaded.unexpected_keys == []
    assert all(key.startswith("decoder.") for key in loaded.missing_keys)
    images = torch.randn(1, 1, 16, 16, 16)
    with torch.inference_mode():
        assert torch.equal(backbone(images), network.encoder(images)[-1].mean((2, 3, 4)))
        assert network(images).shape == (1, 2, 16, 16, 16)


def test_build_volume_network__nnunet_starts_as_in_nnunet_but_for_the_branches() -> None:
    torch.manual_seed(0)
    ours, _ = build_volume_network("nnunet/resenc_4stages", 1)
    theirs = unet("nnunet/resenc_4stages")
    theirs.apply(theirs.initialize)
    for key, value in theirs.encoder.state_dict().items():
        own = ours.state_dict()[key]
        if value.ndim == 5:
            assert float(own.std()) == pytest.approx(float(value.std()), rel=0.1), key
        elif key.endswith("bias") or value.any():
            assert torch.equal(own, value), key
        else:  # nnU-Net's last norm of a branch
            assert torch.equal(own, torch.ones_like(own)), key


@pytest.mark.parametrize(("name", "size"), [("monai/swin_unetr", 24), pytest.param("monai/swin_unetr_48", 48)])
def test_build_volume_network__swin_unetr_loads_its_encoder(name: str, size: int) -> None:
    backbone = create(name).eval()
    network = nets.SwinUNETR(in_channels=1, out_channels=2, feature_size=size).eval()
    network.swinViT.load_state_dict(backbone.net.state_dict(), strict=True)
    images = torch.randn(1, 1, 32, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(backbone(images), network.swinViT(images)[-1].mean((2, 3, 4)))


@pytest.mark.parametrize("depth", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_build_volume_network__resnets_have_the_tensors_of_medicalnet(depth: int) -> None:
    theirs = nets.ResNetFeatures(f"resnet{depth}", pretrained=False, spatial_dims=3, in_channels=1).state_dict()
    ours = create(f"monai/resnet{depth}").net.state_dict()
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


def test_build_volume_network__resnet_is_its_layers_by_hand() -> None:
    backbone = create("monai/resnet10_quarter").eval()
    net: Any = backbone.net
    images = torch.randn(2, 1, 20, 20, 20)
    with torch.inference_mode():
        maps = net.layer4(net.layer3(net.layer2(net.layer1(net.maxpool(net.act(net.bn1(net.conv1(images))))))))
        torch.testing.assert_close(backbone(images), maps.mean((2, 3, 4)))


def test_pooled__is_the_mean_of_the_deepest_map() -> None:
    maps = [torch.randn(2, 3, 4, 4, 4), torch.randn(2, 6, 2, 2, 2)]
    expected = torch.stack([maps[1][:, :, x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]).mean(0)
    torch.testing.assert_close(pooled(maps), expected)
    torch.testing.assert_close(pooled(maps[1]), expected)
    features = torch.randn(2, 6)
    assert pooled(features) is features


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", ["monai/resnet10_quarter", "monai/swin_unetr", "nnunet/resenc_4stages"])
def test_build_volume_network__takes_several_channels(name: str, channels: int) -> None:
    backbone = create(name, channels=channels).eval()
    with torch.inference_mode():
        assert backbone(torch.zeros(1, channels, 16, 16, 16)).shape == (1, backbone.feature_dim)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet50", "did you mean monai/resnet50"),
        ("monai/seresnet50", "volumes"),
        ("nnunet/resenc_l", "ResEncXL have the same network, nnunet/resenc\n"),
        ("vit_small_patch16_224", "monai/swin_unetr_48, nnunet/resenc"),
    ],
)
def test_build_volume_network__refuses_networks_for_images(name: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        create(name)
    assert f"model.backbone '{name}' is not a network for volumes (data.dimensions 3)" in str(caught.value)
    assert all(known in str(caught.value) for known in NETWORKS)


@pytest.mark.parametrize(
    ("name", "library"),
    [("nnunet/resenc", "dynamic-network-architectures"), ("monai/swin_unetr", "einops")],
)
def test_build_volume_network__says_what_to_install(monkeypatch: pytest.MonkeyPatch, name: str, library: str) -> None:
    find = importlib.util.find_spec
    missing = library.replace("-", "_")
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == missing else find(wanted))
    with pytest.raises(SettingsError, match=rf"{name} needs {library}; pip install medmoco\[volumes\]"):
        create(name)


@pytest.mark.parametrize("name", NETWORKS)
def test_named_as_built__finds_the_name_of_what_an_export_describes(name: str) -> None:
    network = NETWORKS[name]
    arguments = {**network.arguments, network.channels: 1}
    if "feed_forward" in arguments:
        arguments |= {"feed_forward": True, "num_classes": 3}
    model = {"library": network.library, "function": network.function, "name": "x", "arguments": arguments}
    assert named_as_exported(json.loads(json.dumps(model))) == name


def test_named_as_built__an_image_network_keeps_its_name() -> None:
    model = {
        "library": "monai", "name": "DenseNet121", "function": "monai.networks.nets.DenseNet121",
        "arguments": {"spatial_dims": 2, "in_channels": 1, "out_channels": 1},
    }  # fmt: skip
    assert named_as_exported(model) == "monai/densenet121"


@pytest.mark.parametrize("name", ["monai/resnet18", pytest.param("monai/resnet34", marks=pytest.mark.slow)])
def test_build_volume_network__shortcuts_pass_gradients(name: str) -> None:
    net: Any = create(name).net  # with the shortcuts of MedicalNet's, there would be none
    for block in (net.layer2[0], net.layer3[0], net.layer4[0]):
        nn.init.zeros_(block.bn2.weight)
        maps = torch.randn(2, block.conv1.in_channels, 4, 4, 4, requires_grad=True)
        (gradient,) = torch.autograd.grad(block(maps).square().sum(), maps)
        assert gradient.any()
