from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from medmoco.config import TrainSettings
from medmoco.training.optim import create_optimizer, learning_rate


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
