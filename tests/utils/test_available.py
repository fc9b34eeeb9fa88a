"""The limits of a container on cores and memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medmoco.utils import available
from medmoco.utils.available import available_cores, available_memory


@pytest.fixture
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(available, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    return tmp_path


def test_available__without_limits(limits: Path) -> None:
    (limits / "cpu.max").write_text("max 100000\n")
    (limits / "memory.max").write_text("max\n")
    assert available_cores() == 8
    assert available_memory() == available._all_memory()


def test_available__in_a_container(limits: Path) -> None:
    (limits / "cpu.max").write_text("250000 100000\n")
    (limits / "memory.max").write_text("1000000000\n")
    assert (available_cores(), available_memory()) == (2, 1_000_000_000)


def test_available__in_a_container_with_older_limits(limits: Path) -> None:
    for name, text in {
        "cpu/cpu.cfs_quota_us": "300000",
        "cpu/cpu.cfs_period_us": "100000",
        "memory/memory.limit_in_bytes": "2000000000",
    }.items():
        file = limits / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert (available_cores(), available_memory()) == (3, 2_000_000_000)
    (limits / "cpu/cpu.cfs_quota_us").write_text("-1")
    assert available_cores() == 8
