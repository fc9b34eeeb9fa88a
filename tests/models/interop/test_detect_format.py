from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch

from medmoco.errors import CheckpointError, SettingsError
from medmoco.models.interop.detect_format import find, fixed_as_in_moco_v3, network_of, recognise
from medmoco.models.interop.naming import rename
from medmoco.models.interop.state_dicts import Contents
from tests.helpers import foreign


def state_of(name: str, **arguments: Any) -> Callable[[], foreign.State]:
    return lambda: timm.create_model(name, num_classes=3, **arguments).state_dict()


NETWORKS: dict[str, tuple[Callable[[], foreign.State], str]] = {
    **{name: (state_of(name), name) for name in (
        "resnet18", "resnet50", "resnet10t", "wide_resnet50_2", "densenet121", "vit_small_patch32_224", "convnext_tiny",
    )},
    "one channel": (state_of("resnet34", in_chans=1), "resnet34"),
    "transformer for larger images": (state_of("vit_tiny_patch16_224", img_size=384), "vit_tiny_patch16_224"),
    "MONAI": (lambda: rename(state_of("densenet121")(), "densenet121", "timm", "monai"), "monai/densenet121"),
    "moco-v3": (lambda: foreign.moco_v3_vit(width=384).state_dict(), "moco-v3/vit_small"),
}  # fmt: skip


@pytest.mark.parametrize("case", NETWORKS)
def test_recognise__by_names_and_shapes(case: str) -> None:
    make, name = NETWORKS[case]
    if case == "moco-v3":
        state = make()
    else:
        with torch.device("meta"):
            state = make()
        state = {key: torch.zeros(()).expand(value.shape) for key, value in state.items()}
    contents = Contents("w", state)
    assert recognise(contents, find(contents)) == name


def test_recognise__a_network_that_is_not_looked_for() -> None:
    for layers in ((1, 2, 1, 1), (3, 4, 6, 4)):
        assert (
            network_of(Contents("w", foreign.torchvision_resnet(layers=layers).state_dict()), "query", None, ()) is None
        )
    assert network_of(Contents("w", {"a": torch.zeros(3)}), "query", None, ()) is None


def test_find__the_scheme_that_is_asked_for() -> None:
    net = foreign.torchvision_resnet()
    contents = Contents("w", {f"state_dict/{key}": v for key, v in foreign.moco(net, net)["state_dict"].items()})
    assert find(contents).scheme.name == "moco"
    assert find(contents, scheme="moco-cxr").scheme.name == "moco-cxr"
    with pytest.raises(CheckpointError, match="no known encoder"):
        find(contents, scheme="bl0")
    with pytest.raises(SettingsError, match="scheme 'mocco' is unknown; known are: medmoco, moco, moco-cxr"):
        find(contents, scheme="mocco")


def test_fixed_as_in_moco_v3__its_positions_and_no_others() -> None:
    fixed = foreign.moco_v3_vit().pos_embed
    assert fixed_as_in_moco_v3(fixed)
    assert not fixed_as_in_moco_v3(fixed + 0.01)
    assert not fixed_as_in_moco_v3(fixed[:, 1:])
    assert not fixed_as_in_moco_v3(torch.zeros(5, 5))
    swapped = fixed[:, 1:].reshape(1, 4, 4, -1).transpose(1, 2).reshape(1, 16, -1)  # rows first, as others have it
    assert not fixed_as_in_moco_v3(torch.cat([fixed[:, :1], swapped], 1))
