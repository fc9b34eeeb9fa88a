"""Splits and label fractions by patient, against a plain loop and against what they promise."""

import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medmoco.config import load
from medmoco.data.manifest.split_files import split
from medmoco.data.manifest.splits import draw_splits, fraction_size, nested_places, text_keys
from medmoco.errors import ManifestError
from medmoco.utils.rng import SPLIT, SUBSET, hashed, uniform

SHARES = {"val": 0.1, "test": 0.2}


def table(rows: int, patients: int, labels: int, seed: int = 0) -> tuple["pd.Series[str]", NDArray[np.float64]]:
    """Rows of patients with labels of very different prevalence, the last of them known for some rows only."""
    generator = np.random.default_rng(seed)
    ids = pd.Series([f"p{number:05d}" for number in generator.integers(patients, size=rows)])
    values = (generator.random((rows, labels)) < np.geomspace(0.005, 0.5, labels)).astype(float)
    values[:, -1] = np.where(generator.random(rows) < 0.7, np.nan, values[:, -1])
    values[:, -1] = np.where(generator.random(rows) < 0.1, -1, values[:, -1])
    return ids, values


def patients_in(ids: "pd.Series[str]", splits: "pd.Series[str]", mask: NDArray[np.bool_]) -> dict[str, int]:
    return {name: ids[(splits == name) & mask].nunique() for name in ("train", "val", "test")}


def splits_oracle(ids: list[str], labels: list[list[float]], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """The same, patient by patient in plain Python."""
    strata: dict[tuple[int, int], set[str]] = {}
    for label in range(len(labels[0])):
        column = [row[label] for row in labels]
        strata[label, 1] = {patient for patient, value in zip(ids, column, strict=True) if value == 1}
        if any(value not in (0, 1) for value in column):
            strata[label, 0] = {patient for patient, value in zip(ids, column, strict=True) if value == 0}
    numbers = {(label, value): 2 * label + (value == 0) for label, value in strata}
    strata[-1, -1], numbers[-1, -1] = set(ids), 2 * len(labels[0])
    key = {patient: int.from_bytes(hashlib.blake2b(patient.encode(), digest_size=8).digest()) >> 1 for patient in ids}
    place = {patient: int(hashed(seed, SPLIT, key[patient])[0]) for patient in key}
    wanted = {**shares, "train": 1 - sum(shares.values())}
    split: dict[str, str] = {}
    while len(split) < len(key):
        undecided = {name: members - split.keys() for name, members in strata.items()}
        chosen = min(
            (name for name in strata if undecided[name]), key=lambda name: (len(undecided[name]), numbers[name])
        )
        people = sorted(undecided[chosen], key=place.__getitem__)
        due = {}
        for name, share in wanted.items():
            there = sum(split.get(patient) == name for patient in strata[chosen])
            due[name] = max(share * len(strata[chosen]) - there, 0)
        count = len(people)
        point, end = float(uniform(seed, SPLIT, numbers[chosen])[0]), 0.0
        for name in wanted:
            end += due[name] / sum(due.values()) * count
            while people and point < end:
                split[people.pop(0)] = name
                point += 1
        split |= dict.fromkeys(people, "train")
    return split


@pytest.mark.parametrize("seed", range(4))
def test_draw_splits__equals_a_plain_loop(seed: int) -> None:
    ids, labels = table(300, 120, 4, seed)
    expected = splits_oracle(list(ids), labels.tolist(), SHARES, seed)
    assert draw_splits(ids, labels, SHARES, seed=seed).tolist() == [expected[patient] for patient in ids]


def test_draw_splits__balances_every_label_and_the_whole() -> None:
    ids, labels = table(30_000, 9_000, 8)
    splits = draw_splits(ids, labels, SHARES, seed=3)
    everything = [np.ones(len(ids), bool), *(labels[:, label] == 1 for label in range(8)), labels[:, -1] == 0]
    for mask in everything:
        found = patients_in(ids, splits, mask)
        total = sum(found.values())
        for name, share in (SHARES | {"train": 0.7}).items():
            assert abs(found[name] - share * total) <= 2 + 0.002 * total, (name, found)


def test_draw_splits__a_random_draw_is_not_as_balanced() -> None:
    ids, labels = table(30_000, 9_000, 8)
    splits = draw_splits(ids, np.empty((len(ids), 0)), SHARES, seed=3)
    gaps = []
    for label in range(8):
        found = patients_in(ids, splits, labels[:, label] == 1)
        gaps.append(abs(found["test"] - 0.2 * sum(found.values())) / (2 + 0.002 * sum(found.values())))
    assert max(gaps) > 1  # so the bound above means something


def test_draw_splits__rounds_fairly() -> None:
    ids = pd.Series([f"p{number}" for number in range(40)])
    labels = (np.arange(40)[:, None] < 3).astype(float)
    draws = [draw_splits(ids, labels, SHARES, seed=seed)[:3].value_counts() for seed in range(400)]
    mean = pd.DataFrame(draws).fillna(0).mean()
    assert mean["val"] == pytest.approx(0.3, abs=0.07)  # 3 standard errors
    assert mean["test"] == pytest.approx(0.6, abs=0.075)
    assert max(draw.get("test", 0) for draw in draws) == 1


@settings(max_examples=25)
@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_draw_splits__does_not_depend_on_row_order(random: Random, seed: int) -> None:
    ids, labels = table(60, 25, 3)
    order = list(range(60))
    random.shuffle(order)
    splits = draw_splits(ids, labels, SHARES, seed=seed)
    again = draw_splits(ids[order], labels[order], SHARES, seed=seed)
    pd.testing.assert_series_equal(again.sort_index(), splits)
    assert splits.groupby(ids).nunique().max() == 1


def test_draw_splits__seed_and_ids_decide() -> None:
    ids, labels = table(2000, 1000, 2)
    first, second = (draw_splits(ids, labels, SHARES, seed=seed) for seed in (0, 1))
    renamed = draw_splits("x" + ids, labels, SHARES, seed=0)
    assert 0.4 < (first == second).mean() < 0.65  # 0.7 squared + 0.1 squared + 0.2 squared = 0.54 for independent draws
    assert 0.4 < (first == renamed).mean() < 0.65


def test_draw_splits__shares_may_be_one_or_none() -> None:
    ids, labels = table(200, 100, 2)
    assert set(draw_splits(ids, labels, {}, seed=0)) == {"train"}
    assert set(draw_splits(ids, labels, {"val": 0.3}, seed=0)) == {"train", "val"}
    assert set(draw_splits(ids, labels, {"val": 0.0, "test": 0.3}, seed=0)) == {"train", "test"}


def test_text_keys__are_blake2() -> None:
    assert text_keys(["", "00123", "ß"]).tolist() == [
        int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) // 2 for text in ("", "00123", "ß")
    ]
    assert len(set(text_keys(map(str, range(10_000))).tolist())) == 10_000


def test_nested_places__are_an_order_by_counted_randomness() -> None:
    keys = text_keys(map(str, range(500)))
    places = nested_places(keys, seed=2, draw=1)
    assert keys[np.argsort(places)].tolist() == sorted(keys, key=lambda key: int(hashed(2, SUBSET, 1, int(key))[0]))
    assert sorted(places) == list(range(500))
    assert not np.array_equal(places, nested_places(keys, seed=2))


def test_nested_places__smaller_inside_larger_whoever_else_is_there() -> None:
    keys = text_keys(map(str, range(500)))
    places = nested_places(keys, seed=0)
    inside = [set(keys[places < fraction_size(fraction, 500)].tolist()) for fraction in (0.01, 0.05, 0.1, 0.5, 1)]
    assert [len(patients) for patients in inside] == [5, 25, 50, 250, 500]
    assert all(small < large for small, large in itertools.pairwise(inside))


def test_fraction_size__rounds_to_at_least_one() -> None:
    cases = [(0.01, 30), (0.01, 250), (0.1, 999), (0.5, 3), (1.0, 7)]
    assert [fraction_size(fraction, patients) for fraction, patients in cases] == [1, 2, 100, 2, 7]


@pytest.mark.parametrize("configured", [False, True])
def test_split__finds_duplicates_however_paths_are_spelled(tmp_path: Path, configured: bool) -> None:
    spelled = ["a\\{}.png", "a/{}.png ", " a/{}.png", f"{tmp_path}/a/{{}}.png" if configured else "a/{}.png"]
    rows = [(f'"{spelled[n % 4].format(n)}"', f"p{n}") for n in range(40)]
    text = "Path,PatientID\n" + "".join(f"{path},{person}\n" for path, person in rows)
    (tmp_path / "all.csv").write_text(text)
    listed = "".join(f"0,train,2,a{'/' if n % 2 else chr(92)}{n}.png \n" for n in range(8))
    (tmp_path / "duplicates.csv").write_text(f"group,split,row,Path\n{listed}")
    config = None
    if configured:
        config = load(None, [f"data.manifest={tmp_path}", f"data.root={tmp_path}", "data.labels={}", "out=x"])
    said = split(tmp_path / "all.csv", tmp_path / "out", merge_duplicates=tmp_path, config=config)
    assert "8 rows have a duplicate; 8 patients that share some form 1 groups" in said
    assert "are not in this table" not in said
    files = [(tmp_path / "out" / f"{name}.csv").read_text().splitlines() for name in ("train", "val", "test")]
    assert sum(any(line.endswith(",p0") for line in lines) for lines in files) == 1
    assert sorted(line.replace('"', "") for lines in files for line in lines[1:]) == sorted(
        line.replace('"', "") for line in text.splitlines()[1:]
    )


def test_split__absolute_paths_of_duplicates_need_the_root(tmp_path: Path) -> None:
    rows = "".join(f"{tmp_path if n % 2 else '.'}/{n}.png,p{n}\n".replace("./", "") for n in range(40))
    (tmp_path / "all.csv").write_text(f"Path,PatientID\n{rows}")
    (tmp_path / "duplicates.csv").write_text("group,split,row,Path\n0,train,2,0.png\n0,train,3,1.png\n")
    with pytest.raises(ManifestError, match=r"20 of its Paths are absolute.*\n.*--config FILE with the data\.root"):
        split(tmp_path / "all.csv", tmp_path / "out", merge_duplicates=tmp_path)
