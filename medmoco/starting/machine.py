"""What this process may use of its machine: cores, memory, GPUs and shared memory, within the limits of a container."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from medmoco.data.loading.workers import SHARED_MEMORY

_CGROUPS = Path("/sys/fs/cgroup")
_MEMORY_FILE = Path("/proc/meminfo")
_UNLIMITED = 2**60  # version 1 of cgroups writes a huge number where there is no limit


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can use."""

    name: str
    memory: int  # bytes


@dataclass(frozen=True)
class Machine:
    """The resources that this process may use."""

    cores: int  # at least 1
    memory: int  # bytes: of the machine, or the limit of the container
    gpus: tuple[Gpu, ...]
    shared_memory: int | None  # free bytes in /dev/shm; None if there is no such folder
    has_amx: bool  # whether the CPU multiplies bf16 matrices in hardware

    @property
    def text(self) -> str:
        """Return the machine in one line, such as "2 CPU cores, 24 GB of memory, no GPU, 24 GB free in /dev/shm"."""
        names = [gpu.name for gpu in self.gpus]
        gpus = [
            f"{names.count(gpu.name)} x {gpu.name} ({_gigabytes(gpu.memory)})"
            for number, gpu in enumerate(self.gpus)
            if gpu.name not in names[:number]
        ]
        parts = [
            f"{self.cores} CPU core{'s' * (self.cores != 1)}{' with AMX' * self.has_amx}",
            f"{_gigabytes(self.memory)} of memory",
            *(gpus or ["no GPU"]),
        ]
        if self.shared_memory is not None:
            parts.append(f"{_gigabytes(self.shared_memory)} free in {SHARED_MEMORY}")
        return ", ".join(parts)


def inspect_machine() -> Machine:
    """Return the resources that this process may use."""
    properties = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return Machine(
        cores=_cores(),
        memory=_memory(),
        gpus=tuple(Gpu(found.name, found.total_memory) for found in properties),
        shared_memory=shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None,
        has_amx=bool(torch.cpu.get_capabilities().get("amx_bf16", False)),
    )


def _cores() -> int:
    """Return the number of cores: those of the affinity mask, or fewer if the container's share of time is smaller."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _number_pair(_CGROUPS / "cpu.max")
    if share is None:
        quota, period = (_number(_CGROUPS / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        share = (quota, period) if quota and period and quota > 0 else None
    return max(1, min(allowed, round(share[0] / share[1]))) if share else allowed


def _memory() -> int:
    """Return the bytes of memory: all of the machine's, or the limit of the container."""
    limits = [_number(_CGROUPS / "memory.max"), _number(_CGROUPS / "memory" / "memory.limit_in_bytes")]
    fitting = [limit for limit in limits if limit and limit < _UNLIMITED]
    return min([_all_memory(), *fitting])


def _all_memory() -> int:
    try:
        lines = _MEMORY_FILE.read_text(encoding="ascii").splitlines()
    except OSError:  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return next(int(line.split()[1]) for line in lines if line.startswith("MemTotal:")) * 1024


def _number(file: Path) -> int | None:
    """Return the number in a file of one number; None if there is no such file, or no number in it, such as "max"."""
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _number_pair(file: Path) -> tuple[int, int] | None:
    """Return the two numbers in a file; None if there is no such file, or the first is "max"."""
    try:
        quota, period = file.read_text(encoding="ascii").split()
        return int(quota), int(period)
    except (OSError, ValueError):
        return None


def _gigabytes(count: int) -> str:
    size = count / 1e9
    return f"{size:.0f} GB" if size >= 10 else f"{size:.1f} GB"
