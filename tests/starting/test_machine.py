"""The resources of a machine, and the limits of a container on them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medmoco.starting.machine import Gpu, Machine, inspect_machine
from medmoco.utils import available


def test_inspect_machine__of_this_machine() -> None:
    found = inspect_machine()
    assert 1 <= found.cores <= len(os.sched_getaffinity(0))
    assert 2**28 < found.memory < 2**50
    assert found.shared_memory is None or found.shared_memory >= 0


@pytest.fixture
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(available, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


def test_inspect_machine__without_limits(limits: Path) -> None:
    (limits / "cpu.max").write_text("max 100000\n")
    (limits / "memory.max").write_text("max\n")
    found = inspect_machine()
    assert found.cores == 8
    assert found.memory == available._all_memory()


def test_inspect_machine__in_a_container(limits: Path) -> None:
    (limits / "cpu.max").write_text("250000 100000\n")
    (limits / "memory.max").write_text("1000000000\n")
    found = inspect_machine()
    assert (found.cores, found.memory) == (2, 1_000_000_000)


def test_inspect_machine__in_a_container_with_older_limits(limits: Path) -> None:
    for name, text in {
        "cpu/cpu.cfs_quota_us": "300000",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "2000000000",
    }.items():
        file = limits / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    found = inspect_machine()
    assert (found.cores, found.memory) == (3, 2_000_000_000)
    (limits / "cpu/cpu.cfs_quota_us").write_text("-1")
    assert inspect_machine().cores == 8


def test_machine__text_counts_gpus_of_one_kind() -> None:
    gpus = (Gpu("H200", 150_000_000_000), Gpu("H200", 150_000_000_000))
    assert Machine(16, 128_000_000_000, gpus, 64_000_000, has_amx=True).text == (
        "16 CPU cores with AMX, 128 GB of memory, 2 x H200 (150 GB), 0.1 GB free in /dev/shm"
    )
    assert Machine(1, 8_000_000_000, (), None, has_amx=False).text == "1 CPU core, 8.0 GB of memory, no GPU"
