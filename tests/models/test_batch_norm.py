from __future__ import annotations

import copy

import pytest
import timm
import torch
from torch import nn

from medmoco.models.batch_norm import split_batch_norm


def make_norm() -> nn.BatchNorm2d:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("splits", [2, 4])
def test_split_batch_norm__equals_separate_batches(splits: int) -> None:
    plain, split = make_norm(), make_norm()
    split_batch_norm(split, splits)
    x = torch.randn(8, 3, 5, 5) * 3 + 1
    expected = torch.cat([copy.deepcopy(plain)(group) for group in x.chunk(splits)])
    torch.testing.assert_close(split(x), expected)


def test_split_batch_norm__running_statistics_move_by_one_momentum_per_step() -> None:
    plain, split = make_norm(), make_norm()
    split_batch_norm(split, 4)
    x = torch.randn(64, 3, 9, 9) * 3 + 1
    plain(x)
    split(x)
    torch.testing.assert_close(split.running_mean, plain.running_mean, rtol=0.05, atol=0.01)
    torch.testing.assert_close(split.running_var, plain.running_var, rtol=0.05, atol=0.01)


def test_split_batch_norm__evaluation_and_names_are_unchanged() -> None:
    plain, split = make_norm(), make_norm()
    split_batch_norm(split, 4)
    x = torch.randn(3, 3, 5, 5)  # not divisible by 4: evaluation never splits
    torch.testing.assert_close(split.eval()(x), plain.eval()(x))
    assert split.state_dict().keys() == plain.state_dict().keys()


def test_split_batch_norm__one_group_changes_nothing() -> None:
    norm = make_norm()
    split_batch_norm(norm, 1)
    assert type(norm) is nn.BatchNorm2d


def test_split_batch_norm__keeps_fused_activations_and_survives_copying() -> None:
    torch.manual_seed(0)
    net = timm.create_model("densenet121", in_chans=1, num_classes=0)  # timm's BatchNormAct2d
    x = torch.randn(4, 1, 32, 32)
    expected = torch.cat([copy.deepcopy(net).train()(group) for group in x.chunk(2)])
    split_batch_norm(net, 2)
    torch.testing.assert_close(copy.deepcopy(net).train()(x), expected, rtol=1e-4, atol=1e-4)
