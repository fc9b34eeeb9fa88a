from __future__ import annotations

import pandas as pd
import pytest

from medmoco.config import ModelSettings
from medmoco.errors import SettingsError
from medmoco.models import listing as module
from medmoco.models.backbones import create_backbone
from medmoco.models.listing import ADVICE, list_models, matching_names


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
