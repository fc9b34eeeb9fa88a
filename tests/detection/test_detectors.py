"""Real detectors of torchvision on real encoders of timm, with small images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.models.densenet import DenseNet
from torch import nn

from medmoco.config import ModelSettings, RunSettings
from medmoco.detection.detectors import Pyramid, create_detector
from medmoco.errors import SettingsError
from medmoco.models.backbones import Backbone, create_backbone
from tests.helpers.rectangles import make_settings

DENSENET = pytest.param(
    "densenet121",
    marks=pytest.mark.skipif(
        not hasattr(DenseNet, "forward_intermediates"), reason="timm before 1.0.31 has no feature maps of DenseNets"
    ),
)
BOX = {"boxes": torch.tensor([[4.0, 6, 30, 40]]), "labels": torch.tensor([1])}
NONE = {"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.int64)}


def settings(*overrides: str) -> RunSettings:
    return make_settings(Path("unused"), *overrides)


def encoder(name: str = "test_resnet", size: int = 64) -> Backbone:
    return create_backbone(ModelSettings(backbone=name), seed=0, size=size)


@pytest.mark.parametrize("name", ["resnet10t", "resnet50", DENSENET, "test_convnext"])
def test_pyramid__features_are_those_of_the_plain_encoder(name: str) -> None:
    """The last map, pooled, is what the encoder gives; and nothing of it was copied or renamed."""
    own = encoder(name).eval()
    before = {key: value.clone() for key, value in own.net.state_dict().items()}
    pyramid = Pyramid(own, settings().detection).eval()
    images = torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps = pyramid.features(images)
        levels = pyramid(images)
        reference = own.net.forward_features(images)
    assert [96 // each.shape[3] for each in maps] == [8, 16, 32]
    if name != "test_convnext":  # whose last norm follows the pooling
        torch.testing.assert_close(maps[-1], reference, rtol=0, atol=0)
    assert [tuple(level.shape[1:]) for level in levels.values()][:2] == [(16, 8, 12), (16, 4, 6)]
    assert len(levels) == 5
    for key, value in pyramid.net.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("test_convnext", {"head.norm.weight", "head.norm.bias"}),
        ("test_efficientnet", {"conv_head.weight", "bn2.weight", "bn2.bias"}),
        ("test_resnet", set()),
    ],
)
def test_pyramid__trains_only_what_a_level_needs(name: str, left_out: set[str]) -> None:
    pyramid = Pyramid(encoder(name), settings().detection)
    assert {key for key, parameter in pyramid.net.named_parameters() if not parameter.requires_grad} == left_out
    assert all(module.training for module in pyramid.modules())
    assert all((value == 1).all() for key, value in pyramid.state_dict().items() if key.endswith("running_var"))


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_create_detector__learns_from_images_with_and_without_boxes(detector: str) -> None:
    chosen = settings(f"detection.detector={detector}", "detection.proposals=16")
    model = create_detector(encoder(), chosen, labels=1)
    targets = [{**BOX, "labels": BOX["labels"] - int(detector == "retinanet")}, NONE]
    losses = model.train()([torch.rand(1, 48, 64), torch.rand(1, 64, 40)], targets)
    sum(losses.values()).backward()
    assert all(torch.isfinite(loss) for loss in losses.values())
    grads = {name: p.grad is not None and bool(p.grad.any()) for name, p in model.backbone.net.named_parameters()}
    assert all(grads.values())
    only_negative = model([torch.rand(1, 48, 64)] * 2, [NONE, NONE])
    assert all(torch.isfinite(loss) for loss in only_negative.values())
    found = model.eval()([torch.rand(1, 48, 64)])[0]
    assert found["boxes"].shape[1] == 4


def test_create_detector__first_weights_depend_on_the_seed_alone() -> None:
    one, again, other = (
        create_detector(encoder(), settings(f"seed={seed}"), 1).state_dict() for seed in (1, 1, 2)
    )  # fmt: skip
    assert all(torch.equal(value, again[key]) for key, value in one.items())
    assert not torch.equal(
        one["head.classification_head.cls_logits.weight"], other["head.classification_head.cls_logits.weight"]
    )


def moved(model: nn.Module) -> set[str]:
    """Return which of the encoder's parameters and statistics a step of training changes."""
    net = model.backbone.net  # type: ignore[union-attr]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()
    generator = torch.Generator().manual_seed(0)
    sum(
        model(
            [torch.rand(1, 96, 96, generator=generator) for _ in range(2)], [{**BOX, "labels": torch.tensor([0])}] * 2
        ).values()
    ).backward()
    optimizer.step()
    return {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}


def test_detector__frozen_stages_and_norms_stay_as_they_are() -> None:
    every = set(encoder().net.state_dict())
    batch_norms = {key.rpartition(".")[0] for key in every if key.endswith("running_mean")}
    first = {key for key in every if key.startswith(("conv1", "bn1"))}
    layer1 = {key for key in every if key.startswith("layer1")}
    expected = {
        "detection.frozen_stages=0": every,
        "detection.frozen_stages=1": every - first,
        "detection.frozen_stages=2": every - first - layer1,
        "detection.norm=frozen": {key for key in every if key.rpartition(".")[0] not in batch_norms},
    }
    for override, free in expected.items():
        changed = moved(create_detector(encoder(), settings(override), 1))
        assert changed <= free, override
        assert len(changed) > 0.95 * len(free), override  # some slopes are 0 by chance
    with pytest.raises(SettingsError, match="test_convnext has stages 2, 3, 4, 5"):
        create_detector(encoder("test_convnext"), settings("detection.frozen_stages=1"), 1)


@pytest.mark.parametrize("name", [DENSENET])
def test_pyramid__frozen_stages_of_nested_names(name: str) -> None:
    pyramid = Pyramid(encoder(name), settings("detection.frozen_stages=2").detection)
    still = {name for name, p in pyramid.net.named_parameters() if not p.requires_grad}
    assert "features.denseblock1.denselayer1.conv1.weight" in still
    assert "features.conv0.weight" in still
    assert not any("transition1" in name or "denseblock2" in name for name in still)


def test_pyramid__extra_norm_is_where_it_is_asked_for() -> None:
    norms = {
        place: {name for name, module in Pyramid(encoder(), settings(f"detection.extra_norm={place}").detection)
                .named_modules() if isinstance(module, nn.BatchNorm2d) and not name.startswith("net.")}
        for place in ("none", "c5", "pyramid")
    }  # fmt: skip
    assert norms["none"] == set()
    assert norms["c5"] == {"c5_norm"}
    assert len(norms["pyramid"]) == 6
    assert all(name.startswith("fpn.") for name in norms["pyramid"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test_vit", "has feature maps at a stride of 16, not at 4, 8, 32"),
        ("swin_tiny_patch4_window7_224", "takes only images of 224 x 224 pixels"),
        ("monai/densenet121", "does not support timm's forward_intermediates"),
    ],
)
def test_create_detector__refuses_what_has_no_pyramid(name: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        create_detector(encoder(name, 224), settings(), 1)
    assert "resnet50" in str(refused.value)
