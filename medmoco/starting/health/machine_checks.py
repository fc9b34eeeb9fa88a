"""Check the machine: CPU, memory, GPUs, shared memory, limits, folders, file locks, disk space and image decoders."""

from __future__ import annotations

import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from medmoco.config import TrainSettings
from medmoco.data.loading.workers import SHARED_MEMORY, check_sockets
from medmoco.errors import CheckpointError, SettingsError, without_names
from medmoco.starting.health.decoders import check_decoders
from medmoco.starting.health.finding import REINSTALL, Finding, State
from medmoco.starting.machine import Machine, inspect_machine
from medmoco.training.device import choose_device, choose_precision
from medmoco.training.run_folder import holding
from medmoco.utils.files import size_words

_LITTLE_SHARED, _LITTLE_MEMORY, _LITTLE_DISK = 1e9, 4e9, 10e9  # bytes
_LEAST_DISK = 1e9  # bytes, for a few checkpoints
_FEW_FILES = 1024
_A_FILE = 2**16  # bytes, more than the test images of decoders


def check_machine() -> Iterator[Finding]:
    """Yield the findings about the machine and the working folder."""
    machine = inspect_machine()
    yield from _cpu(machine)
    yield from _memory(machine)
    yield from _gpus(machine)
    yield from _shared_memory(machine)
    yield from _open_files()
    yield from _working_folder()
    temporary = _temporary_folder()
    yield temporary
    if temporary.state == "ok":  # decoders are tried on files in it
        yield from _decoders()


def _cpu(machine: Machine) -> Iterator[Finding]:
    level = torch.backends.cpu.get_cpu_capability()
    precision, reason = choose_precision(TrainSettings(device="cpu"), torch.device("cpu"))
    cores = f"{machine.cores} core{'s' * (machine.cores != 1)}"
    text = f"{cores}, {level}{' and AMX' * machine.has_amx}; trains in {precision} ({reason})"
    if level == "DEFAULT":
        yield Finding("CPU", "warning", f"{text}; without AVX2, training is very slow", "use another machine")
    else:
        yield Finding("CPU", "ok", text)
    threads = torch.get_num_threads()
    if threads > machine.cores:
        yield Finding(
            "threads", "warning", f"{threads} for {cores}: they slow each other down",
            f"set train.threads={machine.cores}, or OMP_NUM_THREADS={machine.cores} in the environment",
        )  # fmt: skip
    elif threads < machine.cores and not machine.gpus:
        yield Finding(
            "threads", "warning", f"{threads} for {cores}: training on the CPU leaves the others idle",
            f"set train.threads={machine.cores}, or unset OMP_NUM_THREADS in the environment",
        )  # fmt: skip
    else:
        yield Finding("threads", "ok", f"{threads} for {cores}")


def _memory(machine: Machine) -> Iterator[Finding]:
    text = size_words(machine.memory)
    if machine.memory < _LITTLE_MEMORY:
        yield Finding(
            "memory", "warning", text, "lower train.global_batch_size and data.workers, or use another machine"
        )
    else:
        yield Finding("memory", "ok", text)


def _gpus(machine: Machine) -> Iterator[Finding]:
    driver = _driver()
    build = f"torch for CUDA {torch.version.cuda}" if torch.version.cuda else "torch without CUDA"
    if not machine.gpus and driver:
        yield Finding(
            "GPU", "warning", f"driver {driver} is installed, but {build} sees no usable GPU; runs use the CPU",
            "install torch for a CUDA version that this driver supports (pytorch.org), or update the driver;"
            " check CUDA_VISIBLE_DEVICES",
        )  # fmt: skip
        return
    if not machine.gpus:
        yield Finding("GPU", "ok", f"none ({build}); runs use the CPU")
        return
    names = ", ".join(dict.fromkeys(f"{gpu.name} ({size_words(gpu.memory)})" for gpu in machine.gpus))
    text = f"{len(machine.gpus)} x {names}, driver {driver or 'unknown'}, {build}"
    try:
        for number in range(len(machine.gpus)):
            (torch.ones(8, 8, device=f"cuda:{number}") @ torch.ones(8, 8, device=f"cuda:{number}")).sum().item()
    except RuntimeError as error:
        yield Finding(
            "GPU", "fault", f"{text}; it cannot compute ({without_names(error)})",
            "install torch for this GPU and driver (pytorch.org); nvidia-smi shows whether another program occupies it",
        )  # fmt: skip
        return
    train = TrainSettings()
    precision, reason = choose_precision(train, choose_device(train))
    yield Finding("GPU", "ok", f"{text}; trains in {precision} ({reason})")
    if torch.distributed.is_available() and torch.distributed.is_nccl_available():
        yield Finding("NCCL", "ok", ".".join(map(str, torch.cuda.nccl.version())))
    elif len(machine.gpus) > 1:
        yield Finding("NCCL", "fault", "torch has none", "install torch with NCCL, or train with --devices 1")


def _driver() -> str:
    """Return the version of NVIDIA's driver; blank without one."""
    program = shutil.which("nvidia-smi")
    if not program:
        return ""
    query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next(iter(done.stdout.split()), "") if done.returncode == 0 else ""


def _shared_memory(machine: Machine) -> Iterator[Finding]:
    if machine.shared_memory is None:
        return
    name, total = str(SHARED_MEMORY), shutil.disk_usage(SHARED_MEMORY).total
    text = f"{size_words(machine.shared_memory)} free of {size_words(total)}"
    remedy = "give the container more (docker --shm-size=2g, or --ipc=host), or set data.workers=0"
    try:
        torch.zeros(1000).share_memory_()
    except RuntimeError:
        yield Finding(name, "fault", f"{text}; data workers cannot use it", remedy)
        return
    if machine.shared_memory < _LITTLE_SHARED:
        yield Finding(name, "warning", f"{text}, too little for several data workers", remedy)
    else:
        yield Finding(name, "ok", text)


def _open_files() -> Iterator[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _FEW_FILES:
        yield Finding("open files", "warning", f"at most {soft}", "raise the limit: ulimit -n 4096")
    else:
        yield Finding("open files", "ok", f"at most {soft}" if soft >= 0 else "no limit")


def _working_folder() -> Iterator[Finding]:
    name = "working folder"
    warnings: list[str] = []
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".medmoco-doctor-", dir=".") as folder,
            holding(Path(folder) / "run", warnings.append),
        ):
            pass
    except (OSError, CheckpointError, SettingsError):
        yield Finding(
            name, "fault", "cannot be written", "work in another folder, or set out to one that you can write"
        )
    else:
        if warnings:
            yield Finding(
                name, "warning", "its file system has no file locks",
                "start no second run in a folder that is in use, or set out to a local disk",
            )  # fmt: skip
        else:
            yield Finding(name, "ok", "can be written; file locks work")
    free = shutil.disk_usage(".").free
    if free < _LITTLE_DISK:
        state: State = "fault" if free < _LEAST_DISK else "warning"
        yield Finding(
            "disk space", state, f"{size_words(free)} free", "free some, or set out and data.pack to another disk"
        )
    else:
        yield Finding("disk space", "ok", f"{size_words(free)} free")


def _temporary_folder() -> Finding:
    name = "temporary folder"
    try:
        with tempfile.TemporaryDirectory(prefix="medmoco-doctor-") as folder:
            (Path(folder) / "file").write_bytes(bytes(_A_FILE))
        check_sockets()
    except OSError:
        return Finding(name, "fault", "is missing or full, or cannot be written", "set TMPDIR to a folder with space")
    except SettingsError:
        return Finding(
            name, "fault", "its path is too long for the sockets of data workers",
            "set TMPDIR to a folder with a shorter path, such as /tmp, or set data.workers=0",
        )  # fmt: skip
    return Finding(name, "ok", "can be written")


def _decoders() -> Iterator[Finding]:
    decoded, present, missing = check_decoders()
    if decoded:
        yield Finding("DICOM", "ok", f"decoded: {', '.join(decoded)}")
    if present:
        yield Finding("DICOM", "ok", f"decoder installed: {', '.join(present)}")
    for syntaxes, package in missing.items():
        yield Finding("DICOM", "fault", f"no working decoder for {syntaxes}", f"{REINSTALL} {package}")
