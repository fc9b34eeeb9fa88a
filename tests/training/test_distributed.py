from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from medmoco.config import TrainSettings
from medmoco.errors import DistributedError, SettingsError
from medmoco.training.distributed import ALONE, Group, joined
from medmoco.training.launch import Placement
from tests.helpers.together import free_port, run_together


def _exchange(group: Group) -> dict[str, Any]:
    own = torch.arange(2.0) + 10 * group.rank
    return {
        "gather": group.gather(own).tolist(),
        "mean": group.mean(torch.tensor([float(group.rank)])).item(),
        "sent": dict(group.sent),
    }


def test_group__exchanges_tensors() -> None:
    for found in run_together(3, _exchange):
        assert found["gather"] == [0, 1, 10, 11, 20, 21]
        assert found["mean"] == 1
        assert found["sent"]["embeddings"] == 2 * 2 * 4  # two floats to each of two others


def test_group__alone_is_a_no_op() -> None:
    x, layer = torch.ones(3), nn.Linear(1, 1)
    assert ALONE.gather(x) is ALONE.mean(x) is x
    assert ALONE.wrap(layer, torch.device("cpu")) is layer
    assert ALONE.gather_trained(x, "statistics") is x


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


def test_joined__more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    placement = Placement(2, 4, 2, "localhost", free_port())
    with (
        pytest.raises(SettingsError, match="process 2 of this machine has no GPU: torch sees 2"),
        joined(TrainSettings(), placement),
    ):
        pass
