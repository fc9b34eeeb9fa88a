from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from medmoco.evaluation.leakage.shortcuts import find_shortcuts


@dataclass(frozen=True)
class Split:
    """As much of a split as short cuts need."""

    name: str
    labels: NDArray[np.float32]
    patients: NDArray[np.int64]
    label_names: tuple[str, ...] = ("Told", "Chance", "Constant")

    def __len__(self) -> int:
        return len(self.labels)


@pytest.fixture
def splits() -> list[Split]:
    generator = np.random.default_rng(0)
    made = []
    for name, size in {"train": 400, "test": 200}.items():
        labels = (generator.random((size, 3)) < 0.4).astype(np.float32)
        labels[:, 2] = 1
        labels[generator.random(size) < 0.2, 0] = np.nan
        made.append(Split(name, labels, generator.integers(size // 2, size=size)))
    return made


def traits_of(splits: list[Split]) -> dict[str, NDArray[np.float64]]:
    told = np.nan_to_num(np.concatenate([split.labels[:, 0] for split in splits])).astype(np.float64)
    generator = np.random.default_rng(1)
    narrow = generator.normal(size=told.size) - 1.5 * told
    narrow[:7] = np.nan  # unreadable files
    return {"height": generator.normal(size=told.size), "width": narrow, "DICOM": (told > 2).astype(np.float64)}


def test_find_shortcuts__the_strongest_trait_of_each_label_turned_the_right_way(splits: list[Split]) -> None:
    traits = traits_of(splits)
    found = find_shortcuts(splits, traits)
    assert [one.label for one in found] == ["Told", "Chance"]  # a label of one class has none; strongest first
    told, chance = found
    column = np.concatenate([split.labels[:, 0] for split in splits])
    known = ~np.isnan(column) & ~np.isnan(traits["width"])
    is_test = np.arange(600) >= 400
    assert told.trait == "width"
    assert told.auroc == pytest.approx(roc_auc_score(column[known], -traits["width"][known]))
    assert told.on_test == pytest.approx(roc_auc_score(column[known & is_test], -traits["width"][known & is_test]))
    assert 0.75 < told.low < told.auroc < told.high < 0.95
    assert told.warns
    assert 0.5 <= chance.auroc < 0.58
    assert chance.low < 0.55
    assert not chance.warns


def test_find_shortcuts__no_test_split(splits: list[Split]) -> None:
    alone = find_shortcuts(splits[:1], {name: values[:400] for name, values in traits_of(splits).items()})
    assert alone[0].on_test is None


def test_find_shortcuts__chance_does_not_warn(splits: list[Split]) -> None:
    """Of 60 labels by chance, none is told by shape: the bar is not one that the largest of many passes."""
    generator = np.random.default_rng(2)
    labels = (generator.random((600, 60)) < 0.2).astype(np.float32)
    split = Split("test", labels, np.arange(600), tuple(map(str, range(60))))
    traits = {name: generator.normal(size=600) for name in ("width", "height", "width / height")}
    found = find_shortcuts([split], traits)  # type: ignore[list-item]
    assert len(found) == 60
    assert not any(one.warns for one in found)
    assert found[0].auroc > 0.55
