from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from medmoco.config import MethodSettings
from medmoco.data.image_io.images import Canvas
from medmoco.data.loading.pairs import plan_of
from medmoco.data.loading.quarantine import (
    QUARANTINE,
    Found,
    Quarantine,
    Replacement,
    check_pairs,
    read_replacing,
    where,
)
from medmoco.data.loading.sampler import substitute
from medmoco.data.manifest.manifest import Split
from medmoco.errors import DataError, ImageError

COUNT = 12


@pytest.fixture
def split() -> Split:
    rows, nothing = np.arange(2, 2 + COUNT), np.zeros((COUNT, 0), np.float32)
    return Split(
        "train", Path("train.csv"), rows, rows.astype(str), rows, rows, (), nothing, nothing, pd.DataFrame(), "", ()
    )


def reader(split: Split, bad: set[int], asked: list[int] | None = None) -> Any:
    """Return what reads canvases that show their sample's number, but for some that are bad."""

    def read(samples: NDArray[np.int64]) -> tuple[list[Canvas], tuple[str, ...]]:
        for sample in samples.tolist():
            if asked is not None:
                asked.append(sample)
            if sample in bad:
                raise ImageError(f"{where(split, sample)}: the file\nis broken")
        return [Canvas(np.full((2, 2), sample, np.uint8), 2, 2) for sample in samples], ("seen",) * len(samples)

    return read


def chain(sample: int, bad: set[int], epoch: int = 3) -> list[int]:
    """The plain loop: a sample, and what takes its place, to the first that is not bad."""
    tried = [sample]
    while tried[-1] in bad:
        tried.append(substitute(7, epoch, sample, len(tried), COUNT))
    return tried


@pytest.mark.parametrize("bad", [set(), {4}, {4, 1, 9, 10, 11}])
def test_read_replacing__reads_the_first_that_can_be_used(split: Split, bad: set[int]) -> None:
    wanted, asked = np.arange(COUNT), []
    found = read_replacing(reader(split, bad, asked), split, wanted, seed=7, epoch=3)
    chains = [chain(sample, bad) for sample in range(COUNT)]
    assert found.used.tolist() == [tried[-1] for tried in chains]
    assert [canvas.pixels[0, 0] for canvas in found.canvases] == found.used.tolist()
    assert asked == [sample for tried in chains for sample in tried]
    assert found.notices == ("seen",) * COUNT
    assert found.bad == {
        tried[0]: tuple((sample + 2, "the file is broken") for sample in tried[:-1]) for tried in chains if tried[1:]
    }
    assert wanted.tolist() == list(range(COUNT))


def test_read_replacing__another_epoch_takes_another(split: Split) -> None:
    used = [
        int(read_replacing(reader(split, {4}), split, np.array([4]), seed=7, epoch=epoch).used[0])
        for epoch in range(20)
    ]
    assert len(set(used)) > 5
    assert used == [chain(4, {4}, epoch)[-1] for epoch in range(20)]


def test_read_replacing__gives_up_in_the_end(split: Split) -> None:
    with pytest.raises(DataError, match=r"^train\.csv row 6: its image cannot be used, and neither can 8") as caught:
        read_replacing(reader(split, set(range(COUNT))), split, np.array([4]), seed=7, epoch=3)
    assert not isinstance(caught.value, ImageError)
    assert "The first reason: the file is broken\n" in str(caught.value)


def test_read_replacing__other_errors_are_no_matter_of_images(split: Split) -> None:
    def read(_: NDArray[np.int64]) -> Any:
        raise DataError("the pack is cut off")

    with pytest.raises(DataError, match="cut off"):
        read_replacing(read, split, np.array([4]), seed=7, epoch=3)


def test_found__lists_the_places_of_each_view() -> None:
    found = Found(np.array([1, 4]), np.array([1, 5]), [], (), {4: ((6, "broken"),)})
    views = [np.array([4, 1]), np.array([1, 1])]
    assert found.replacements(views, views) == (Replacement(0, 4, 4, ((6, "broken"),)),)
    assert [one.view for one in found.replacements([np.array([4])] * 2, [np.array([4])] * 2)] == [0, 1]


def test_found__where_one_of_two_partners_is_bad_the_pair_is_of_one_image() -> None:
    found = Found(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 9]), [], (), {4: ((6, "broken"),)})
    pairs, images = np.array([1, 2, 4]), np.array([4, 3, 1])
    assert found.shown(pairs, images).tolist() == [1, 3, 4]
    told = found.replacements([pairs, pairs], [pairs, images])
    assert [(one.view, one.pair, one.sample) for one in told] == [(0, 4, 4), (1, 1, 4), (1, 4, 4)]


def test_check_pairs__refuses_what_only_one_process_could_read(split: Split) -> None:
    one, two = ((6, "broken"),), ((6, "broken"), (8, "cut off"))
    plan = plan_of(MethodSettings())
    check_pairs([], split, plan)
    alike = [(0, 4, one), (1, 5, two), (1, 4, one), (0, 5, two)]
    check_pairs([Replacement(view, sample, sample, bad) for view, sample, bad in alike], split, plan)
    check_pairs([Replacement(1, 5, 4, one)], split, plan)  # a partner, whom the makers of queries do not read
    for pair in ([Replacement(1, 4, 4, one)], [Replacement(0, 4, 4, one), Replacement(1, 4, 4, two)]):
        with pytest.raises(DataError, match=r"^train\.csv row 6: one process could read an image and another"):
            check_pairs(pair, split, plan)
    both_ways = plan_of(MethodSettings(symmetric=True, negatives="other_images"))
    check_pairs([Replacement(place, 4, 4, one) for place in range(4)], split, both_ways)
    check_pairs([Replacement(place, 5, 4, one) for place in (1, 2)], split, both_ways)
    with pytest.raises(DataError, match="another could not"):
        check_pairs([Replacement(place, 4, 4, one) for place in range(3)], split, both_ways)


def test_quarantine__lists_each_row_once_also_on_resuming(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, 2)
    assert not quarantine
    found = [Replacement(view, 4, 4, ((6, 'no "end", cut off'), (3, "empty"))) for view in range(2)]
    assert quarantine.add(found) == [(3, "empty"), (6, 'no "end", cut off')]
    assert quarantine.add(found) == []
    quarantine.write()
    table = pd.read_csv(tmp_path / QUARANTINE)
    assert table.to_dict("list") == {"row": [3, 6], "reason": ["empty", 'no "end", cut off']}
    assert [file.name for file in tmp_path.iterdir()] == [QUARANTINE]

    resumed = Quarantine(tmp_path, 2)
    assert resumed.rows() == [3, 6]
    assert resumed.add(found) == []
    resumed.check_budget("train.csv")
    assert resumed.add([Replacement(0, 9, 9, ((11, "empty"),))]) == [(11, "empty")]
    with pytest.raises(DataError, match=r"^3 images of train\.csv cannot be used, more than data\.bad_images_budget 2"):
        resumed.check_budget("train.csv")
