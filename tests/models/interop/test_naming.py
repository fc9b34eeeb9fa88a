from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor

from medmoco.errors import CheckpointError
from medmoco.models.interop.naming import TABLES, kind_of, rename
from tests.helpers import foreign


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def monai_densenet() -> Any:
    from monai.networks import nets

    return nets.DenseNet121(spatial_dims=2, in_channels=3, out_channels=7)


def torchvision_model(name: str) -> Callable[[], Any]:
    return lambda: getattr(torchvision.models, name)(num_classes=7)


PAIRS = [
    ("resnet18", "torchvision", torchvision_model("resnet18")),
    ("resnet50", "torchvision", torchvision_model("resnet50")),
    ("resnext50_32x4d", "torchvision", torchvision_model("resnext50_32x4d")),
    ("wide_resnet50_2", "torchvision", torchvision_model("wide_resnet50_2")),
    ("densenet121", "torchvision", torchvision_model("densenet121")),
    ("vit_base_patch16_224", "torchvision", torchvision_model("vit_b_16")),
    ("convnext_tiny", "torchvision", torchvision_model("convnext_tiny")),
    ("densenet121", "monai", monai_densenet),
]


@pytest.mark.parametrize(("backbone", "library", "theirs"), PAIRS, ids=[f"{a}-{b}" for a, b, _ in PAIRS])
def test_rename__gives_the_names_and_shapes_that_the_library_has(
    backbone: str, library: str, theirs: Callable[[], Any]
) -> None:
    with torch.device("meta"):
        ours = timm.create_model(backbone, num_classes=7).state_dict()
        expected = theirs().state_dict()
    renamed = rename(ours, backbone, "timm", library)
    assert shapes(renamed) == shapes(expected)
    back = rename(expected, backbone, library, "timm")
    assert shapes(back) == shapes(ours)


@pytest.mark.parametrize(
    ("backbone", "naming"),
    [(backbone, naming) for backbone in ("resnet18", "densenet121") for naming in TABLES[kind_of(backbone) or ""]],
)
def test_rename__there_and_back_changes_nothing(backbone: str, naming: str) -> None:
    torch.manual_seed(0)
    state = timm.create_model(backbone, num_classes=0).state_dict()
    if naming == "tensorflow":
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    renamed = rename(state, backbone, "timm", naming)
    assert naming == "torchvision" or renamed.keys() != state.keys()
    back = rename(renamed, backbone, naming, "timm")
    assert list(back) == list(state)
    assert all(torch.equal(back[key], value) for key, value in state.items())


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])
def test_rename__efficientnets_are_those_of_lukemelas(backbone: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(backbone, num_classes=7)
    ours, theirs = net.state_dict(), foreign.lukemelas(net)
    assert {"_blocks.0._depthwise_conv.weight", "_blocks.15._bn2.running_var", "_fc.bias"} <= theirs.keys()
    assert ("_blocks.3._se_reduce.bias" in theirs) == (backbone == "tf_efficientnet_b0")
    assert shapes(rename(ours, backbone, "timm", "efficientnet")) == shapes(theirs)
    assert shapes(rename(theirs, backbone, "efficientnet", "timm")) == shapes(ours)


@pytest.mark.parametrize("library", ["dinov2", "transformers"])
@pytest.mark.parametrize("registers", [0, 4])
def test_rename__dinov2_there_and_back_changes_nothing(library: str, registers: int) -> None:
    net = foreign.dinov2_vit(registers)
    backbone = f"vit_small_patch14_{'reg4_' * bool(registers)}dinov2"
    theirs = foreign.dinov2(net) if library == "dinov2" else foreign.transformers_dinov2(net)
    theirs = {name: value for name, value in theirs.items() if not name.endswith("mask_token")}
    renamed = rename(net.state_dict(), backbone, "timm", library)
    assert shapes(renamed) == shapes(theirs)
    for state in (renamed, theirs):
        back = rename(state, backbone, library, "timm")
        assert back.keys() == net.state_dict().keys()
        assert all(torch.allclose(back[name], value, atol=1e-6) for name, value in net.state_dict().items())


def test_rename__detectron2_names_of_a_residual_block() -> None:
    with torch.device("meta"):
        state = timm.create_model("resnet50", num_classes=7).state_dict()
    names = list(rename(state, "resnet50", "timm", "detectron2"))
    assert names[:3] == ["stem.conv1.weight", "stem.conv1.norm.weight", "stem.conv1.norm.bias"]
    assert {"res2.0.conv1.weight", "res2.0.conv3.norm.running_var", "res5.2.conv2.norm.bias"} <= set(names)
    assert {"res2.0.shortcut.weight", "res5.0.shortcut.norm.running_mean", "linear.weight"} <= set(names)


@pytest.mark.parametrize("backbone", ["resnet10t", "resnet50d", "seresnet50", "vit_small_patch14_reg4_dinov2"])
def test_rename__another_network_is_refused(backbone: str) -> None:
    with torch.device("meta"):
        state = timm.create_model(backbone, num_classes=0).state_dict()
    with pytest.raises(CheckpointError, match=r"has no name"):
        rename(state, backbone, "timm", "torchvision")


def test_rename__unknown_naming() -> None:
    with pytest.raises(
        CheckpointError, match=r"vit_small_patch16_224 has no names of detectron2; available are: timm, tor"
    ):
        rename({}, "vit_small_patch16_224", "timm", "detectron2")
