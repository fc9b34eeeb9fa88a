from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medmoco.config import METHODS, MethodSettings, ModelSettings, TrainSettings
from medmoco.models.backbones import create_backbone
from medmoco.training.optim import (
    create_layered_optimizer,
    create_optimizer,
    key_momentum,
    layer_depths,
    learning_rate,
)


def test_learning_rate__cosine_falls_from_lr_to_zero() -> None:
    train = TrainSettings(epochs=10, lr=0.4)
    assert learning_rate(train, 0) == 0.4
    assert learning_rate(train, 5) == pytest.approx(0.2)
    assert learning_rate(train, 2.5) == pytest.approx(0.2 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(train, 10) == pytest.approx(0)


def test_learning_rate__warmup_rises_linearly_then_meets_the_cosine() -> None:
    train = TrainSettings(epochs=10, lr=0.4, warmup_epochs=2)
    assert learning_rate(train, 0) == 0
    assert learning_rate(train, 0.5) == pytest.approx(0.1)
    assert learning_rate(train, 2) == pytest.approx(0.4)
    assert learning_rate(train, 6) == pytest.approx(0.2)


def test_learning_rate__steps_of_a_tenth() -> None:
    train = TrainSettings(schedule="step", lr=1.0)
    found = [learning_rate(train, epoch) for epoch in (0, 119.99, 120, 159, 160, 199)]
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_key_momentum__rises_along_a_half_cosine_or_stays() -> None:
    v3 = MethodSettings(**METHODS["moco_v3"])
    assert [key_momentum(v3, progress) for progress in (0, 0.5, 1)] == pytest.approx([0.99, 0.995, 1])
    assert key_momentum(v3, 0.25) == pytest.approx(1 - 0.01 * (1 + math.cos(math.pi / 4)) / 2)
    assert [key_momentum(MethodSettings(), progress) for progress in (0, 1)] == [0.999, 0.999]


def test_create_optimizer__lars_steps_equal_formula() -> None:
    """Two steps by the paper's algorithm 1; a vector is neither decayed nor adapted."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    train = TrainSettings(optimizer="lars", lr=0.5, weight_decay=0.1)
    optimizer = create_optimizer(train, layer)
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    speed, drift = torch.zeros_like(weight), torch.zeros_like(bias)
    for _ in range(2):
        gradient = torch.randn(2, 3), torch.randn(2)
        layer.weight.grad, layer.bias.grad = gradient[0].clone(), gradient[1].clone()
        optimizer.step()
        trust = 0.001 * weight.norm() / (gradient[0].double().norm() + 0.1 * weight.norm())
        speed = 0.9 * speed + trust * (gradient[0] + 0.1 * weight)
        drift = 0.9 * drift + gradient[1]
        weight, bias = weight - 0.5 * speed, bias - 0.5 * drift
    torch.testing.assert_close(layer.weight.detach().double(), weight, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(layer.bias.detach().double(), bias, rtol=1e-5, atol=1e-6)


def test_create_optimizer__adamw_spares_norms_and_biases() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    decayed, spared = create_optimizer(TrainSettings(optimizer="adamw", weight_decay=0.1), module).param_groups
    assert [p.ndim for p in decayed["params"]] == [4]
    assert [p.ndim for p in spared["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)


def test_create_optimizer__sgd_step_equals_formula() -> None:
    layer = nn.Linear(1, 1, bias=False)
    optimizer = create_optimizer(TrainSettings(lr=0.1, sgd_momentum=0.9, weight_decay=0.01), layer)
    weight, velocity = layer.weight.item(), 0.0
    for _ in range(3):
        optimizer.zero_grad()
        (layer.weight * 2).sum().backward()
        optimizer.step()
        velocity = 0.9 * velocity + 2 + 0.01 * weight
        weight -= 0.1 * velocity
    assert layer.weight.item() == pytest.approx(weight, rel=1e-5)
    assert isinstance(optimizer, torch.optim.SGD)


@pytest.mark.parametrize(
    "backbone",
    ["resnet18", "vit_tiny_patch16_224", pytest.param("monai/densenet121", marks=pytest.mark.slow), "monai/seresnet50"],
)
def test_layer_depths__rise_from_input_to_output(backbone: str) -> None:
    net = create_backbone(ModelSettings(backbone=backbone), seed=0, size=32).net
    depths = layer_depths(net)
    assert depths.keys() == {name for name, _ in net.named_parameters()}
    values = [depths[name] for name in depths if "pos_embed" not in name and "cls_token" not in name]
    assert values == sorted(values)
    assert set(values) == set(range(max(values) + 1))
    assert max(values) >= 8


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_create_layered_optimizer__every_weight_once_at_its_rate_and_decay(kind: str) -> None:
    net = create_backbone(ModelSettings(backbone="vit_tiny_patch16_224"), seed=0, size=32).net
    head = nn.Linear(4, 2)
    train = TrainSettings(optimizer=kind, lr=0.1, weight_decay=0.3)
    optimizer = create_layered_optimizer(train, net, head, layer_decay=0.5, head_lr=0.7)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(of) == sum(len(group["params"]) for group in optimizer.param_groups)
    assert of.keys() == {id(p) for module in (net, head) for p in module.parameters()}
    for name, parameter in net.named_parameters():
        depth = 0 if name.startswith(("cls", "pos", "patch")) else 12 if name.startswith("norm") else None
        depth = int(name.split(".")[1]) + 1 if depth is None else depth
        group = of[id(parameter)]
        assert group["lr_scale"] == pytest.approx(0.5 ** (12 - depth)), name
        decays = parameter.ndim > 1 and name not in ("pos_embed", "cls_token")
        assert group["weight_decay"] == (0.3 if decays else 0.0), name
    assert of[id(head.weight)]["lr_scale"] == pytest.approx(7)
    assert (of[id(head.weight)]["weight_decay"], of[id(head.bias)]["weight_decay"]) == (0.3, 0.0)


def test_create_layered_optimizer__leaves_out_what_is_frozen() -> None:
    net, head = nn.Linear(3, 4).requires_grad_(False), nn.Linear(4, 2)
    optimizer = create_layered_optimizer(TrainSettings(lr=30), net, head, layer_decay=1, head_lr=30)
    assert [p for group in optimizer.param_groups for p in group["params"]] == [head.weight, head.bias]
