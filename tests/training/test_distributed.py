from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
import torch
from torch import nn

from medmoco.config import TrainSettings
from medmoco.errors import DistributedError, ImageError, SettingsError, Stopped
from medmoco.training.distributed import ALONE, Group, joined
from medmoco.training.launch import Placement
from tests.helpers.together import free_port, run_together


def _exchange(group: Group) -> dict[str, Any]:
    own = torch.arange(2.0) + 10 * group.rank
    return {
        "gather": group.gather(own).tolist(),
        "mean": group.mean(torch.tensor([float(group.rank)])).item(),
        "any": group.any_of(group.rank == 1, False),
        "tell": group.tell("é" * group.rank),
        "beside": group.beside("odd" if group.rank % 2 else "even"),
        "first": group.first(lambda: "done"),
        "from first": group.from_first(lambda: [group.rank, 0.1]),
        "sent": dict(group.sent),
    }


def test_group__exchanges_tensors_and_words() -> None:
    for rank, found in enumerate(run_together(3, _exchange)):
        assert found["gather"] == [0, 1, 10, 11, 20, 21]
        assert found["mean"] == 1
        assert found["any"] == (True, False)
        assert found["tell"] == ["", "é", "éé"]
        assert found["first"] == ("done" if rank == 0 else None)
        assert found["beside"] == (1 if rank == 1 else 2)
        assert found["from first"] == [0, 0.1]
        assert found["sent"]["embeddings"] == 2 * 2 * 4  # two floats to each of two others


def test_group__alone_is_a_no_op() -> None:
    x, layer = torch.ones(3), nn.Linear(1, 1)
    assert ALONE.gather(x) is ALONE.mean(x) is x
    assert ALONE.wrap(layer, torch.device("cpu")) is layer
    assert ALONE.any_of(True, False) == (True, False)
    assert ALONE.tell("word") == ["word"]
    assert ALONE.first(lambda: 7) == ALONE.from_first(lambda: 7) == 7
    assert ALONE.gather_trained(x, "statistics") is x
    with pytest.raises(ImageError), ALONE.one_fate():
        raise ImageError("row 7")


def _one_fails(group: Group, failing: int) -> str:
    try:
        with group.one_fate():
            if group.rank == failing:
                raise ImageError("train.csv row 7: truncated")
    except ImageError as error:
        return str(error)
    return "went on"


@pytest.mark.parametrize("failing", [0, 1])
def test_one_fate__an_error_of_one_process_is_raised_by_all(failing: int) -> None:
    assert run_together(2, _one_fails, failing) == ["train.csv row 7: truncated"] * 2


def _compare_weights(group: Group, change: float) -> str:
    weights = torch.arange(8.0)
    weights[5] += change * group.rank
    try:
        group.check_same("the weights", [weights, torch.zeros((), dtype=torch.int64)])
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
        group.check_same("the queue", [weights])
    except DistributedError:
        return "noticed"
    return "same"


def test_check_same__notices_exchanged_values() -> None:
    assert run_together(2, _swapped) == ["noticed"] * 2


def _one_leaves(group: Group, how: str) -> str:
    with group.explained():
        group.at_step(4)
        group.any_of(False)
        if group.rank == 1 and how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if group.rank == 1 and how == "hangs":
            time.sleep(8)
            return "woke up"
        group.at_step(5)
        group.any_of(False)
    return "went on"


def test_explained__a_process_that_died() -> None:
    survivor, dead = run_together(2, _one_leaves, "dies")
    assert isinstance(dead, EOFError)
    assert isinstance(survivor, DistributedError)
    assert str(survivor).startswith("process 1 (in step 4) has ended or cannot be reached")
    assert "--resume" in str(survivor)
    assert survivor.exit_code == 6


def test_explained__a_process_that_hangs_is_named_with_its_step() -> None:
    waiting, _ = run_together(2, _one_leaves, "hangs", hang_seconds=2.0)
    assert isinstance(waiting, DistributedError)
    assert str(waiting).startswith("process 1 (in step 4) has not answered for 2 s")
    assert len(str(waiting).splitlines()) <= 5


def test_explained__leaves_other_errors_alone() -> None:
    with pytest.raises(RuntimeError, match="shape"), ALONE.explained():
        raise RuntimeError("shape '[3]' is invalid")
    with pytest.raises(Stopped), Group(size=2).explained():
        raise Stopped("stopped")


def test_joined__port_in_use() -> None:
    import socket

    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        placement = Placement(0, 2, 0, "localhost", port)
        with (
            pytest.raises(DistributedError, match=rf"port {port} is in use.*\n.*MASTER_PORT"),
            joined(TrainSettings(device="cpu", hang_seconds=2.0), placement),
        ):
            pass


def test_joined__others_that_never_come() -> None:
    port = free_port()
    start = time.monotonic()
    with (
        pytest.raises(DistributedError, match=rf"the 2 processes did not meet at localhost:{port}, waiting up to 1 s"),
        joined(TrainSettings(device="cpu", hang_seconds=1.0), Placement(0, 2, 0, "localhost", port)),
    ):
        pass
    assert time.monotonic() - start < 30


def test_joined__one_process_meets_nobody() -> None:
    for placement in (None, Placement(0, 1, 0, "localhost", 1)):
        with joined(TrainSettings(device="cpu"), placement) as group:
            assert group is ALONE


def _settings_error(group: Group) -> str:
    try:
        group.first(_refuse)
    except SettingsError as error:
        return f"{type(error).__name__}: {error}"
    return "went on"


def _refuse() -> None:
    raise SettingsError("out: the folder holds a run")


def test_first__its_refusal_stops_all() -> None:
    assert run_together(2, _settings_error) == ["SettingsError: out: the folder holds a run"] * 2


def test_joined__more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    placement = Placement(2, 4, 2, "localhost", free_port())
    with (
        pytest.raises(SettingsError, match="process 2 of this machine has no GPU: torch sees 2"),
        joined(TrainSettings(), placement),
    ):
        pass
