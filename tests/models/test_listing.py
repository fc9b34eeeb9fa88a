from __future__ import annotations

import pandas as pd
import pytest

from medmoco.config import ModelSettings
from medmoco.errors import SettingsError
from medmoco.models import listing as module
from medmoco.models.backbones import create_backbone
from medmoco.models.listing import ADVICE, VOLUME_ADVICE, list_models, matching_names
from medmoco.models.networks.volumes import NETWORKS


def test_matching_names__parts_and_patterns() -> None:
    assert matching_names("moco-v3/vit_conv") == [
        "moco-v3/vit_conv_tiny",
        "moco-v3/vit_conv_small",
        "moco-v3/vit_conv_base",
    ]
    assert matching_names("MONAI/dense*") == ["monai/densenet121"]
    assert {"resnet50", "wide_resnet50_2"} <= set(matching_names("resnet50"))
    assert all(name.endswith("_224") for name in matching_names("vit_tiny*_224"))


def test_matching_names__none() -> None:
    with pytest.raises(SettingsError, match="no network matches 'resnt50'; did you mean resnet50 or"):
        matching_names("resnt50")


def test_list_models__without_a_pattern_says_where_to_start() -> None:
    table = list_models()
    assert dict(zip(table["name"], table["advice"], strict=True)) == ADVICE
    assert table["parameters"].between(1, 100).all()


@pytest.mark.parametrize("name", ["resnet10t", "monai/densenet121", "moco-v3/vit_conv_tiny", "mobilenetv3_small_050"])
def test_list_models__numbers_are_those_of_the_network(name: str) -> None:
    row = list_models(name).set_index("name").loc[name]
    backbone = create_backbone(ModelSettings(backbone=name), seed=0, size=224)
    assert row["features"] == backbone.feature_dim
    assert row["parameters"] == round(sum(weights.numel() for weights in backbone.parameters()) / 1e6, 1)


def test_list_models__lists_what_it_cannot_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise NotImplementedError("meta")

    monkeypatch.setattr(module, "build_network", fail)
    table = list_models("resnet", limit=2)
    assert len(table) == 2
    assert table[["parameters", "features"]].isna().all(axis=None)
    assert isinstance(table, pd.DataFrame)


def test_list_models__for_volumes() -> None:
    assert matching_names("resenc_4", 3) == ["nnunet/resenc_4stages", "nnunet/resenc_4stages_quarter"]
    table = list_models("resnet1", dimensions=3).set_index("name")
    assert table["features"].to_dict() == {"monai/resnet10_quarter": 128, "monai/resnet10": 512, "monai/resnet18": 512}
    for name in table.index:
        backbone = create_backbone(ModelSettings(backbone=name), seed=0, size=32, dimensions=3)
        assert table["parameters"][name] == round(sum(w.numel() for w in backbone.parameters()) / 1e6, 1)
    assert set(VOLUME_ADVICE) <= set(NETWORKS)


@pytest.mark.slow  # creates the largest, too
def test_list_models__for_volumes_lists_all_without_a_pattern() -> None:
    table = list_models(dimensions=3)
    assert list(table["name"]) == list(NETWORKS)
    assert table["parameters"].between(0.5, 100).all()


@pytest.mark.parametrize(("pattern", "dimensions", "needed"), [("nnunet", 2, 3), ("vit_small", 3, 2)])
def test_matching_names__says_where_a_pattern_does_match(pattern: str, dimensions: int, needed: int) -> None:
    with pytest.raises(SettingsError, match=f"matches '{pattern}', but some for .* set dimensions to {needed}"):
        matching_names(pattern, dimensions)
