from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from medmoco.detection.readers import agreed, overlap

COLUMNS = ["image", "label", "reader", "at", "x_min", "y_min", "x_max", "y_max"]
DRAWN = [
    (0, "A", "R1", 0, 0, 0, 10, 10), (0, "A", "R2", 1, 1, 1, 11, 11), (0, "A", "R1", 2, 50, 50, 60, 60),
    (0, "B", "R3", 3, 0, 0, 10, 10), (1, "A", "R1", 4, 0, 0, 10, 10), (1, "A", "R1", 5, 1, 0, 11, 10),
    (2, "A", "consensus", 6, 5, 5, 9, 9),
]  # fmt: skip


def boxes() -> pd.DataFrame:
    return pd.DataFrame(DRAWN, columns=COLUMNS)


def test_agreed__overlapping_boxes_of_different_readers_are_one() -> None:
    result, notes = agreed(boxes(), 1)
    assert len(result) == 6  # one reader's two boxes stay two, whatever they overlap
    assert result.iloc[0][["x_min", "y_min", "x_max", "y_max"]].tolist() == [0.5, 0.5, 10.5, 10.5]
    assert notes == ["7 boxes by several readers were merged into 6 findings"]


def test_agreed__only_what_enough_readers_drew_is_kept() -> None:
    result, notes = agreed(boxes(), 2)
    assert result[["image", "label"]].to_numpy().tolist() == [[0, "A"], [2, "A"]]
    assert notes[0].endswith("of which 2 have boxes by 2 readers or by consensus")
    assert not len(agreed(boxes().iloc[3:6], 2)[0])


def test_agreed__does_not_depend_on_the_order_of_rows() -> None:
    corners = COLUMNS[4:]
    shuffled = boxes().sample(frac=1, random_state=1)
    one, other = (agreed(each, 1)[0][["image", "label", *corners]] for each in (boxes(), shuffled))
    assert one.sort_values(["image", "label", *corners]).to_numpy().tolist() == (
        other.sort_values(["image", "label", *corners]).to_numpy().tolist()
    )


def test_agreed__one_reader_is_left_alone() -> None:
    alone = boxes().assign(reader="R1")
    assert agreed(alone, 3) == (alone, []) or agreed(alone, 3)[0] is alone


def test_overlap__of_squares() -> None:
    one = np.array([0.0, 0, 2, 2])
    assert overlap(one, one) == 1
    assert overlap(one, np.array([1.0, 0, 3, 2])) == pytest.approx(1 / 3)
    assert overlap(one, np.array([2.0, 0, 3, 2])) == 0
