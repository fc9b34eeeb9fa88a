from __future__ import annotations

import pytest
import torch
from torch import nn

from medmoco.config import METHODS, MethodSettings
from medmoco.models.projectors import predictor, projector


def kinds(layers: nn.Module | None) -> list[tuple[str, int]]:
    """Name each layer and its width."""
    assert layers is not None
    leaves = [layer for layer in layers.modules() if not list(layer.children())]
    return [
        (type(layer).__name__, getattr(layer, "out_features", getattr(layer, "num_features", 0))) for layer in leaves
    ]


def test_projector__of_v1_v2_and_with_a_normalised_hidden_layer() -> None:
    assert kinds(projector(MethodSettings(projector="linear"), 512)) == [("Linear", 128)]
    assert kinds(projector(MethodSettings(projector="mlp"), 512)) == [("Linear", 512), ("ReLU", 0), ("Linear", 128)]
    hidden = projector(MethodSettings(projector="mlp_bn", hidden_dim=64), 512)
    assert kinds(hidden) == [("Linear", 64), ("BatchNorm1d", 64), ("ReLU", 0), ("Linear", 128)]


@pytest.mark.parametrize(("kind", "hidden", "ends_normalised"), [("mlp_2", 1, False), ("mlp_3", 2, True)])
def test_projector__and_predictor_of_v3(kind: str, hidden: int, ends_normalised: bool) -> None:
    method = MethodSettings(**{**METHODS["moco_v3"], "projector": kind})
    block = [("Linear", 4096), ("BatchNorm1d", 4096), ("ReLU", 0)]
    end = [("Linear", 256), ("BatchNorm1d", 256)]
    assert kinds(projector(method, 384)) == [*(block * hidden), *end]
    assert kinds(predictor(method, 384)) == [*block, *(end if ends_normalised else end[:1])]
    last = list(projector(method, 384).modules())[-1]
    assert isinstance(last, nn.BatchNorm1d)
    assert not last.affine
    assert all(layer.bias is None for layer in projector(method, 384).modules() if isinstance(layer, nn.Linear))


def test_predictor__only_where_the_method_has_one() -> None:
    assert predictor(MethodSettings(), 32) is None
    made = predictor(MethodSettings(predictor=True, embedding_dim=8, projector="mlp_2"), 32)
    assert made is not None
    assert made(torch.randn(4, 8)).shape == (4, 8)
