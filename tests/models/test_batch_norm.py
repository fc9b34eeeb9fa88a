from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from medmoco.models.batch_norm import forget_statistics, settle_statistics, split_batch_norm, sync_batch_norm
from medmoco.training.distributed import ALONE, Group
from tests.helpers.together import run_together


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


@pytest.mark.parametrize("parts", [1, 2])
def test_settle_statistics__moves_once_towards_the_mean_of_all_groups(parts: int) -> None:
    split = make_norm()
    split_batch_norm(split, 4 // parts)
    x = torch.randn(64, 3, 9, 9) * 3 + 1
    for part in x.chunk(parts):
        split(part)
    assert torch.equal(split.running_mean, torch.zeros(3))  # until the step is complete
    settle_statistics(split)
    groups = x.chunk(4)
    mean = torch.stack([group.mean((0, 2, 3)) for group in groups]).mean(0)
    variance = torch.stack([group.var((0, 2, 3)) for group in groups]).mean(0)
    torch.testing.assert_close(split.running_mean, 0.1 * mean)
    torch.testing.assert_close(split.running_var, 0.9 + 0.1 * variance)
    assert int(split.num_batches_tracked) == 1


@pytest.mark.parametrize("momentum", [0.1, None])
def test_settle_statistics__of_one_group_are_those_of_plain_batch_norm(momentum: float | None) -> None:
    plain, split = make_norm(), make_norm()
    plain.momentum = split.momentum = momentum
    split_batch_norm(split, 1)
    for _ in range(3):
        x = torch.randn(8, 3, 5, 5) * 3 + 1
        torch.testing.assert_close(split(x), plain(x))
        settle_statistics(split)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(split.state_dict()[name], value)


def test_forget_statistics__leaves_no_trace_of_a_bad_step() -> None:
    split = make_norm()
    split_batch_norm(split, 2)
    split(torch.full((4, 3, 5, 5), float("nan")))
    forget_statistics(split)
    settle_statistics(split)
    assert torch.equal(split.running_var, torch.ones(3))


def test_split_batch_norm__evaluation_and_names_are_unchanged() -> None:
    plain, split = make_norm(), make_norm()
    split_batch_norm(split, 4)
    x = torch.randn(3, 3, 5, 5)  # not divisible by 4: evaluation never splits
    torch.testing.assert_close(split.eval()(x), plain.eval()(x))
    assert split.state_dict().keys() == plain.state_dict().keys()


def test_split_batch_norm__keeps_fused_activations_and_survives_copying() -> None:
    torch.manual_seed(0)
    net = timm.create_model("densenet121", in_chans=1, num_classes=0)  # timm's BatchNormAct2d
    x = torch.randn(4, 1, 32, 32)
    expected = torch.cat([copy.deepcopy(net).train()(group) for group in x.chunk(2)])
    split_batch_norm(net, 2)
    torch.testing.assert_close(copy.deepcopy(net).train()(x), expected, rtol=1e-4, atol=1e-4)


def _normalise(group: Group, shares: list[slice]) -> dict[str, Any]:
    """Return a layer's output, gradients and statistics, given shares of one batch; the layer has fused a ReLU."""
    torch.manual_seed(0)
    x = torch.randn(7, 3, 4, 5, dtype=torch.float64) * 3 + 100
    layer = timm.layers.BatchNormAct2d(3).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    sync_batch_norm(layer, lambda own: group.gather_trained(own, "statistics"))
    own = x[shares[group.rank]].requires_grad_()
    out = layer.train()(own)
    (out**3).sum().backward()  # of all processes together, the loss of the whole batch
    settle_statistics(layer)
    return {
        "out": out.tolist(), "input": own.grad.tolist(), "mean": layer.running_mean.tolist(),
        "variance": layer.running_var.tolist(), "weight": layer.weight.grad.tolist(),
        "count": int(layer.num_batches_tracked),
    }  # fmt: skip


def test_sync_batch_norm__of_unequal_processes_is_that_of_the_whole_batch() -> None:
    """Outputs, gradients and running statistics, of timm's layer that also applies an activation."""
    torch.manual_seed(0)
    x = torch.randn(7, 3, 4, 5, dtype=torch.float64) * 3 + 100
    layer = timm.layers.BatchNormAct2d(3).double().train()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x.requires_grad_()
    out = layer(x)
    (out**3).sum().backward()
    shares = [slice(0, 4), slice(4, 5), slice(5, 7)]
    for found in ([_normalise(ALONE, [slice(0, 7)])], run_together(3, _normalise, shares)):
        for name, expected in (("out", out.detach()), ("input", x.grad)):
            joined = torch.tensor([each for one in found for each in one[name]], dtype=torch.float64)
            torch.testing.assert_close(joined, expected)
        assert np.sum([one["weight"] for one in found], 0) == pytest.approx(layer.weight.grad.numpy())
        for one in found:
            assert one["mean"] == pytest.approx(layer.running_mean.tolist())
            assert one["variance"] == pytest.approx(layer.running_var.tolist())
            assert one["count"] == 1


def test_sync_batch_norm__evaluation_and_names_are_unchanged() -> None:
    plain, synced = make_norm(), make_norm()
    sync_batch_norm(synced, pytest.fail)
    x = torch.randn(3, 3, 5, 5)
    assert torch.equal(synced.eval()(x), plain.eval()(x))
    assert synced.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_split_batch_norm__of_volumes_is_that_of_groups_normalised_by_hand(dimensions: int) -> None:
    norm = nn.BatchNorm3d(3) if dimensions == 3 else nn.BatchNorm2d(3)
    split_batch_norm(norm, 4)
    x = torch.randn(8, 3, *[5] * dimensions).double() * 3 + 1
    found = norm.double()(x)
    space = tuple(range(2, x.ndim))
    for first in range(0, 8, 2):
        group = x[first : first + 2]
        mean = group.mean((0, *space), keepdim=True)
        variance = (group - mean).square().mean((0, *space), keepdim=True)
        torch.testing.assert_close(found[first : first + 2], (group - mean) / (variance + norm.eps).sqrt())
    settle_statistics(norm)
    means = torch.stack([group.mean((0, *space)) for group in x.chunk(4)]).mean(0)
    torch.testing.assert_close(norm.running_mean, 0.1 * means)


def test_split_batch_norm__leaves_instance_norm_alone() -> None:
    norms = nn.Sequential(nn.InstanceNorm3d(3, affine=True), nn.InstanceNorm3d(3, track_running_stats=False))
    split_batch_norm(norms, 4)
    assert {type(norm) for norm in norms} == {nn.InstanceNorm3d}


def test_sync_batch_norm__of_volumes_on_one_process_is_plain_batch_norm() -> None:
    plain, synced = nn.BatchNorm3d(3), nn.BatchNorm3d(3)
    sync_batch_norm(synced, lambda own: own)
    x = torch.randn(4, 3, 2, 3, 5) * 3 + 1
    torch.testing.assert_close(synced(x), plain(x))
    settle_statistics(synced)
    torch.testing.assert_close(synced.running_var, plain.running_var)
