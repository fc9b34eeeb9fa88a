from __future__ import annotations

import pytest
import torch

from medmoco.config import RunSettings, load
from medmoco.errors import SettingsError
from medmoco.models.backbones import create_backbone
from medmoco.segmentation.networks import SegmentationNetwork, create_network


def make_settings(name: str, dimensions: int, *overrides: str) -> RunSettings:
    volumes = ["data.dimensions=3", "data.window=percentiles", "views.recipe=mr"] if dimensions == 3 else []
    given = ["out=run", "data.manifest=m", "data.root=r", "views.size=32", f"model.backbone={name}"]
    return load(None, [*given, *volumes, *overrides])


def make(name: str, dimensions: int, *overrides: str) -> SegmentationNetwork:
    settings = make_settings(name, dimensions, *overrides)
    encoder = create_backbone(settings.model, seed=settings.seed, size=32, dimensions=dimensions)
    return create_network(encoder, settings, 2)


@pytest.mark.parametrize(
    ("name", "dimensions"),
    [
        ("resnet10t", 2),
        ("convnext_atto", 2),
        ("monai/resnet10_quarter", 3),
        pytest.param("monai/densenet121", 3, marks=pytest.mark.slow),
        ("nnunet/resenc_4stages_quarter", 3),
    ],
)
def test_create_network__scores_every_pixel_and_all_of_it_learns(name: str, dimensions: int) -> None:
    network = make(name, dimensions)
    scores = network(torch.rand(2, 1, *[32] * dimensions))
    assert scores.shape == (2, 3, *[32] * dimensions)
    scores.square().mean().backward()
    without = [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []  # distributed training would wait for them


def test_create_network__the_encoder_keeps_its_weights_and_names() -> None:
    encoder = create_backbone(make_settings("resnet10t", 2).model, seed=0, size=32)
    before = {name: value.clone() for name, value in encoder.net.state_dict().items()}
    network = create_network(encoder, make_settings("resnet10t", 2), 2)
    after = network.backbone.net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    "name", ["monai/resnet10_quarter", pytest.param("nnunet/resenc_4stages_quarter", marks=pytest.mark.slow)]
)
def test_create_network__weights_depend_on_the_seed_only(name: str) -> None:
    torch.manual_seed(1)
    one = make(name, 3).state_dict()
    torch.manual_seed(2)
    same, other = make(name, 3).state_dict(), make(name, 3, "seed=1").state_dict()
    assert all(torch.equal(value, same[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items() if key.startswith("decoder."))


def test_create_network__nnunet_has_the_names_of_its_own_network() -> None:
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    from medmoco.models.networks.volumes import NETWORKS, TO_IMPORT, _imported

    network = make("nnunet/resenc_4stages_quarter", 3)
    arguments = dict(NETWORKS["nnunet/resenc_4stages_quarter"].arguments)
    for key in TO_IMPORT:
        arguments[key] = _imported(arguments[key]) if arguments[key] else None
    theirs = ResidualEncoderUNet(1, num_classes=3, n_conv_per_stage_decoder=1, deep_supervision=False, **arguments)
    state = {f"encoder.{name}": value for name, value in network.backbone.net.state_dict().items()}
    state |= {f"decoder.{name}": value for name, value in network.decoder.net.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert unexpected == []
    assert all(name.startswith("decoder.encoder.") for name in missing)  # the encoder under its second name
    images = torch.rand(1, 1, 32, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(images), network.eval()(images))


def test_create_network__a_frozen_encoder_neither_learns_nor_counts_statistics() -> None:
    network = make("resnet10t", 2, "segmentation.frozen=true").train()
    before = {name: value.clone() for name, value in network.backbone.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 1.0)
    network(torch.rand(4, 1, 32, 32)).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in network.backbone.state_dict().items())
    assert not any(p.requires_grad for p in network.backbone.parameters())


def test_create_network__refuses_a_size_that_does_not_fit() -> None:
    with pytest.raises(SettingsError, match=r"segmentation.size 48 is not a multiple of 32, .*; set it to 64"):
        make("resnet10t", 2, "views.size=48")
