"""What this process may use of its machine: cores, memory, GPUs and shared memory, within the limits of a container."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import torch

from medmoco.data.loading.workers import SHARED_MEMORY
from medmoco.training.device import has_amx
from medmoco.utils.available import available_cores, available_memory


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
        cores=available_cores(),
        memory=available_memory(),
        gpus=tuple(Gpu(found.name, found.total_memory) for found in properties),
        shared_memory=shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None,
        has_amx=has_amx(),
    )


def _gigabytes(count: int) -> str:
    size = count / 1e9
    return f"{size:.0f} GB" if size >= 10 else f"{size:.1f} GB"
