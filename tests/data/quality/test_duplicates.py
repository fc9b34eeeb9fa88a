from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd

from medmoco.data.quality.duplicates import Groups


def partition(groups: Groups) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(groups.of == group).tolist()) for group in groups.of}


def test_groups__chains_of_pairs_are_one_group() -> None:
    groups = Groups(7)
    groups.join(np.array([0, 4]), np.array([1, 5]))
    groups.join(np.array([], np.int64), np.array([], np.int64))
    groups.join(np.array([5]), np.array([1]))
    groups.join_equal(np.array([9, 8, 7, 7, 6, -1, -1]), np.array([True] * 7))
    assert partition(groups) == {frozenset(group) for group in ([0, 1, 4, 5], [2, 3], [6])}


def test_groups__of_many_random_pairs_are_those_of_a_plain_loop() -> None:
    generator = np.random.default_rng(0)
    groups, expected = Groups(200), [{row} for row in range(200)]
    for _ in range(6):
        one, other = generator.integers(200, size=(2, 20))
        groups.join(one, other)
        for first, second in zip(one, other, strict=True):
            merged = expected[first] | expected[second]
            for row in merged:
                expected[row] = merged
    assert partition(groups) == {frozenset(group) for group in expected}


def test_groups__rows_outside_the_mask_are_not_joined() -> None:
    groups = Groups(3)
    groups.join_equal(np.array([1, 1, 1]), np.array([True, False, True]))
    assert partition(groups) == {frozenset([0, 2]), frozenset([1])}


def test_groups__table_lists_rows_of_groups_with_several() -> None:
    groups = Groups(5)  # the last row is of other data
    groups.join(np.array([0, 3]), np.array([2, 4]))
    splits: Any = [
        SimpleNamespace(name="train", rows=np.array([2, 3]), table=pd.DataFrame({"Path": ["a", "b"]})),
        SimpleNamespace(name="val", rows=np.array([2, 3]), table=pd.DataFrame({"Path": ["c", "d"]})),
    ]
    table = cast(pd.DataFrame, groups.table(splits))
    assert table.values.tolist() == [[0, "train", 2, "a"], [0, "val", 2, "c"]]
    assert table.columns.tolist() == ["group", "split", "row", "Path"]
