from __future__ import annotations

from typing import Any

import pytest
import torch

from medmoco.errors import DistributedError, ImageError, SettingsError
from medmoco.training.agreement import any_of, check_same, count_sharing, exchange, from_first, on_first, together
from medmoco.training.distributed import ALONE, Group
from tests.helpers.together import run_together


def _agree(group: Group) -> dict[str, Any]:
    return {
        "any": any_of(group, group.rank == 1, False),
        "texts": exchange(group, "é" * group.rank),
        "sharing": count_sharing(group, "odd" if group.rank % 2 else "even"),
        "first": on_first(group, lambda: "done"),
        "from first": from_first(group, lambda: [group.rank, 0.1]),
    }


def test_agreement__of_three_processes() -> None:
    for rank, found in enumerate(run_together(3, _agree)):
        assert found["any"] == (True, False)
        assert found["texts"] == ["", "é", "éé"]
        assert found["first"] == ("done" if rank == 0 else None)
        assert found["sharing"] == (1 if rank == 1 else 2)
        assert found["from first"] == [0, 0.1]


def test_agreement__alone_is_a_no_op() -> None:
    assert any_of(ALONE, True, False) == (True, False)
    assert exchange(ALONE, "word") == ["word"]
    assert on_first(ALONE, lambda: 7) == from_first(ALONE, lambda: 7) == 7
    with pytest.raises(ImageError), together(ALONE):
        raise ImageError("row 7")


def _one_fails(group: Group, failing: int) -> str:
    try:
        with together(group):
            if group.rank == failing:
                raise ImageError("train.csv row 7: truncated")
    except ImageError as error:
        return str(error)
    return "continued"


@pytest.mark.parametrize("failing", [0, 1])
def test_together__an_error_of_one_process_is_raised_by_all(failing: int) -> None:
    assert run_together(2, _one_fails, failing) == ["train.csv row 7: truncated"] * 2


def _compare_weights(group: Group, change: float) -> str:
    weights = torch.arange(8.0)
    weights[5] += change * group.rank
    try:
        check_same(group, "the weights", [weights, torch.zeros((), dtype=torch.int64)])
    except DistributedError as error:
        return str(error)
    return "same"


def test_check_same__notices_the_last_bit() -> None:
    assert run_together(3, _compare_weights, 0.0) == ["same"] * 3
    for message in run_together(3, _compare_weights, 1e-6):
        assert message.startswith("the weights of process 1, 2 differ from those of process 0")


def _swapped(group: Group) -> str:
    weights = torch.tensor([1.0, 2.0] if group.rank else [2.0, 1.0])
    try:
        check_same(group, "the queue", [weights])
    except DistributedError:
        return "noticed"
    return "same"


def test_check_same__notices_exchanged_values() -> None:
    assert run_together(2, _swapped) == ["noticed"] * 2


def _settings_error(group: Group) -> str:
    try:
        on_first(group, _refuse)
    except SettingsError as error:
        return f"{type(error).__name__}: {error}"
    return "continued"


def _refuse() -> None:
    raise SettingsError("out: the folder holds a run")


def test_on_first__its_refusal_stops_all() -> None:
    assert run_together(2, _settings_error) == ["SettingsError: out: the folder holds a run"] * 2
