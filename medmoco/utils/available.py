"""The cores and the memory that this process may use, within the limits of a container."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMORY_FILE = Path("/proc/meminfo")
_UNLIMITED = 2**60  # version 1 of cgroups writes a huge number where there is no limit


def available_cores() -> int:
    """Return the number of cores: those of the affinity mask, or fewer if the container's share of time is smaller."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = _number_pair(_CGROUPS / "cpu.max")
    if share is None:
        quota, period = (_number(_CGROUPS / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        share = (quota, period) if quota and period and quota > 0 else None
    return max(1, min(allowed, round(share[0] / share[1]))) if share else allowed


def available_memory() -> int:
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
