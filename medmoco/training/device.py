"""Device and precision."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from medmoco.config import TrainSettings
from medmoco.errors import SettingsError

_NO_MEMORY = re.compile(r"can't allocate memory|out of memory|(CUBLAS|CUDNN)_STATUS_ALLOC_FAILED")
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(train: TrainSettings) -> torch.device:
    """Return the device that `train.device` requests.

    Raises:
        SettingsError: a GPU is requested and none is usable.
    """
    if train.device == "cuda" and not torch.cuda.is_available():
        raise SettingsError(
            "train.device is cuda, but torch sees no usable GPU.\n"
            "Check nvidia-smi and that torch is a CUDA build, or set train.device=cpu."
        )
    use_gpu = train.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if use_gpu else "cpu")


def choose_precision(train: TrainSettings, device: torch.device) -> tuple[str, str]:
    """Return fp32, bf16 or fp16, and the reason.

    Without AMX, bf16 on a CPU is slower than fp32, and without AVX-512 it almost hangs, so it is no default there.

    Raises:
        SettingsError: fp16 is requested on a CPU, where it is useless.
    """
    if train.precision == "fp16" and device.type == "cpu":
        raise SettingsError("train.precision fp16 needs a GPU; on a CPU use fp32, or bf16 where it has AMX")
    if train.precision != "device":
        return train.precision, "train.precision"
    if device.type == "cuda":
        return ("bf16", "the GPU has it") if torch.cuda.is_bf16_supported() else ("fp16", "the GPU has no bf16")
    return ("bf16", "the CPU has AMX") if has_amx() else ("fp32", "the CPU has no AMX")


def has_amx() -> bool:
    """Whether the CPU multiplies bf16 matrices in its AMX unit."""
    if hasattr(torch.cpu, "get_capabilities"):
        return bool(torch.cpu.get_capabilities().get("amx_bf16", False))
    return torch.cpu._is_amx_tile_supported()  # PyTorch 2.10 has only this; every CPU with AMX has bf16


@contextmanager
def memory_explained(train: TrainSettings) -> Iterator[None]:
    """Explain what to change if the GPU or the machine runs out of memory.

    Raises:
        SettingsError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        on_gpu = isinstance(error, torch.OutOfMemoryError) or "CU" in str(error)
        raise SettingsError(
            f"the {'GPU' if on_gpu else 'machine'} has too little memory for train.global_batch_size"
            f" {train.global_batch_size}.\n"
            f"Raise train.accumulation_steps (now {train.accumulation_steps}), use more GPUs, or lower views.size;\n"
            f"{'nvidia-smi' if on_gpu else 'top'} shows what else uses memory. The last checkpoint is intact."
        ) from None


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the mixed-precision context of `precision`, which does nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])
