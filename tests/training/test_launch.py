from __future__ import annotations

import signal
import socket
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from medmoco.config import TrainSettings
from medmoco.errors import DistributedError, SettingsError
from medmoco.training import launch as module
from medmoco.training.distributed import ALONE
from medmoco.training.launch import Placement, count_processes, find_placement, first_host, joined
from tests.helpers.together import free_port

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "4711"}
SRUN = {
    "SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_JOB_ID": "123456", "SLURM_STEP_ID": "2",
}  # fmt: skip


def test_find_placement__by_torchrun() -> None:
    assert find_placement(TORCHRUN) == Placement(3, 8, 1, "node1", 4711)


def test_find_placement__by_srun() -> None:
    assert find_placement(SRUN) == Placement(5, 8, 1, "gpu07", 23458)
    assert find_placement({**SRUN, "MASTER_ADDR": "other", "MASTER_PORT": "99"}) == Placement(5, 8, 1, "other", 99)


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"},  # in a batch script, outside any step
        {**SRUN, "SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
    ],
)
def test_find_placement__where_no_launcher_has_given_one(environment: dict[str, str]) -> None:
    assert find_placement(environment) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"), ("node1,node2", "node1"), ("gpu[07-09,12],x3", "gpu07"), ("gpu[5,7]", "gpu5"),
        ("r[1-2]-ib,b", "r1-ib"), ("a-b[003]", "a-b003"),
    ],
)  # fmt: skip
def test_first_host__of_slurms_lists(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


@pytest.mark.parametrize(
    ("device", "gpus", "asked", "expected"),
    [
        ("any", 0, None, 1), ("any", 0, 3, 3), ("any", 4, None, 4), ("any", 4, 2, 2), ("cpu", 4, 3, 3),
        ("cpu", 4, None, 1),
    ],
)  # fmt: skip
def test_count_processes__one_for_each_gpu(
    monkeypatch: pytest.MonkeyPatch, device: Any, gpus: int, asked: int | None, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert count_processes(TrainSettings(device=device), asked) == expected


@pytest.mark.parametrize(("device", "gpus"), [("any", 2), ("cuda", 2), ("cuda", 0)])
def test_count_processes__more_than_there_are(monkeypatch: pytest.MonkeyPatch, device: Any, gpus: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(SettingsError, match=f"--devices 4, but torch sees {gpus} usable GPUs"):
        count_processes(TrainSettings(device=device), 4)


def failures(*codes: int) -> dict[int, Any]:
    return {rank: SimpleNamespace(exitcode=code) for rank, code in enumerate(codes)}


@pytest.mark.parametrize(
    ("codes", "expected"), [((75, 75), 75), ((-signal.SIGTERM, 3), 3), ((1, -signal.SIGTERM), 1), ((2, 1), 2)]
)
def test_exit_code__is_what_the_processes_agreed_on(codes: tuple[int, ...], expected: int) -> None:
    assert module._exit_code(failures(*codes)) == expected


def test_exit_code__of_a_process_that_was_killed() -> None:
    with pytest.raises(DistributedError, match=r"process 1 was killed by SIGKILL, most often for lack of memory"):
        module._exit_code(failures(6, -signal.SIGKILL))
    with pytest.raises(DistributedError, match=r"process 0 was killed by SIGSEGV\.\n"):
        module._exit_code(failures(-signal.SIGSEGV, 6))


def test_launch__processes_look_for_no_modules_in_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[str, ...]] = []
    monkeypatch.setattr(module, "elastic_launch", lambda _plan, _python: lambda *words: started.append(words))
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    monkeypatch.setattr(module.logging, "disable", lambda _: None)
    for name in ("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    assert module.launch(["pretrain"], 2) == 0
    assert started == [("-P", "-m", "medmoco", "pretrain")]


def test_joined__port_in_use() -> None:
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
