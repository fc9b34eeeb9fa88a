from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from medmoco.config import load
from medmoco.data.manifest.manifest import load_manifest
from medmoco.data.quality.findings import Provenance
from medmoco.evaluation.leakage import shortcuts
from medmoco.evaluation.leakage.shortcuts import find_provenance, find_shortcuts


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


def made(folder: Path, patients: int, told: str | None = None, seed: int = 0) -> Provenance:
    """Two images for each patient of two sources, of which the first has most of the sick if something is `told`."""
    generator = np.random.default_rng(seed)
    source = np.repeat(generator.random(patients) < 0.5, 2)
    sick = np.repeat(generator.random(patients), 2) < (np.where(source, 0.9, 0.1) if told else 0.5)
    number = np.repeat(generator.permutation(patients), 2)
    if told == "numbers":
        number = number + np.where(source, 0, patients)
    name = [f"{'ab'[int(one)] if told == 'names' else 'a'}{at}.png" for at, one in enumerate(source)]
    site = (
        np.where(source, "north", "south") if told == "column" else generator.choice(["north", "south"], 2 * patients)
    )
    split = np.where(number % 3, "train", "test")
    table = {"Path": name, "PatientID": [f"{n:06d}" for n in number], "Sick": sick.astype(int), "Site": site}
    pd.DataFrame({**table, "Split": split}).to_csv(folder / "all.csv", index=False)
    settings = load(None, [f"data.manifest={folder / 'all.csv'}", f"data.root={folder}", "data.labels=[Sick]", "out=x"])
    splits = list(load_manifest(settings.data, ("train", "test")).values())
    order = np.argsort(split != "train", kind="stable")
    margins = generator.integers(60, 90, (2 * patients, 88)).astype(np.uint8)
    if told == "borders":
        margins[source[order], :5] = 0
    if told == "markings":
        margins[source[order], 70] = 200
    return find_provenance(splits, settings, margins, generator.random(2 * patients) < 0.95)


@pytest.mark.parametrize(
    ("told", "traits"),
    [
        ("names", {"the letters in file names", "the numbers or order of file names"}),
        ("numbers", {"the numbers or order of PatientID"}),
        ("column", {"column Site"}),
        ("borders", {"image borders"}),
        ("markings", {"bright markings near image borders"}),
    ],
)
def test_find_provenance__names_what_tells_the_sources(tmp_path: Path, told: str, traits: set[str]) -> None:
    found = made(tmp_path, 200, told)
    warned = [one for one in found.shortcuts if one.warns]
    assert {one.trait for one in warned} == traits
    for one in warned:
        assert 0.8 < one.auroc < 0.98
        assert one.low < one.auroc < one.high
        assert one.on_test == pytest.approx(one.auroc, abs=0.12)
        assert one.remedy
    assert found.tested == ("Path", "PatientID", "column Site", "image borders")
    assert not found.notes


def test_find_provenance__chance_and_few_patients_do_not_warn(tmp_path: Path) -> None:
    found = [made(tmp_path, 40, seed=seed) for seed in range(6)]
    assert not any(one.warns for each in found for one in each.shortcuts)
    assert max(each.shortcuts[0].auroc for each in found) > 0.6  # which only the bound keeps from a warning
    few = made(tmp_path, 12, "names")
    assert not few.shortcuts
    assert "fewer than 10 patients have or lack these labels" in few.notes[0]


def test_find_provenance__one_patient_with_many_images_is_one_case(tmp_path: Path) -> None:
    """A column that one patient of many images has to himself cannot tell a label."""
    at = np.arange(240)
    patient = np.where(at < 120, 0, at)
    table = {"Path": at.astype(str), "PatientID": patient, "Sick": np.where(at < 120, 1, at % 2), "Split": "train"}
    pd.DataFrame({**table, "Site": np.where(at < 120, "x", "y")}).to_csv(tmp_path / "all.csv", index=False)
    settings = load(None, [f"data.manifest={tmp_path / 'all.csv'}", "data.root=x", "data.labels=[Sick]", "out=x"])
    splits = list(load_manifest(settings.data, ("train",)).values())
    found = find_provenance(splits, settings, np.zeros((240, 88), np.uint8), np.zeros(240, bool))
    assert not any(one.warns for one in found.shortcuts)


def test_find_provenance__samples_large_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcuts, "_MOST", 60)
    found = made(tmp_path, 200, "names")
    assert [one.trait for one in found.shortcuts if one.warns][:1] == ["the letters in file names"]
    assert found.notes == ("sources were tested on a random sample of at most 60 rows of each class of a label",)
