"""The resources of a machine."""

from __future__ import annotations

import os

from medmoco.starting.machine import Gpu, Machine, inspect_machine


def test_inspect_machine__of_this_machine() -> None:
    found = inspect_machine()
    assert 1 <= found.cores <= len(os.sched_getaffinity(0))
    assert 2**28 < found.memory < 2**50
    assert found.shared_memory is None or found.shared_memory >= 0


def test_machine__text_counts_gpus_of_one_kind() -> None:
    gpus = (Gpu("H200", 150_000_000_000), Gpu("H200", 150_000_000_000))
    assert Machine(16, 128_000_000_000, gpus, 64_000_000, has_amx=True).text == (
        "16 CPU cores with AMX, 128 GB of memory, 2 x H200 (150 GB), 0.1 GB free in /dev/shm"
    )
    assert Machine(1, 8_000_000_000, (), None, has_amx=False).text == "1 CPU core, 8.0 GB of memory, no GPU"
