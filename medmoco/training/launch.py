"""Start the processes of a run, by torchrun, srun or torchrun's elastic launcher in this process, and let them meet."""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from medmoco import errors
from medmoco.config import TrainSettings
from medmoco.errors import DistributedError, SettingsError, Stopped
from medmoco.training.distributed import ALONE, Group
from medmoco.training.lost_processes import explaining_lost
from medmoco.utils.available import available_cores

_PATIENCE = timedelta(hours=2)  # the others wait for the first process to pack, read or score
_SAVING_SECONDS = 600  # time for the processes to save after a signal, before the launcher kills them


@dataclass(frozen=True)
class Placement:
    """The place of this process in the run, from its launcher."""

    rank: int  # number of the process in the run, from 0
    size: int  # processes of the run
    local_rank: int  # number of the process on its machine
    address: str  # machine of process 0
    port: int


def find_placement(environment: Mapping[str, str]) -> Placement | None:
    """Return the ranks that torchrun or srun have set; None without a launcher.

    A batch script, or a shell inside an allocation, is not a step of srun and has none.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        return Placement(
            int(environment["RANK"]), int(environment["WORLD_SIZE"]), int(environment.get("LOCAL_RANK", 0)),
            environment.get("MASTER_ADDR", "localhost"), int(environment.get("MASTER_PORT", 29500)),
        )  # fmt: skip
    if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "SLURM_PROCID" in environment:
        nodes = environment.get("SLURM_STEP_NODELIST", "localhost")
        job = int(environment.get("SLURM_JOB_ID", 0)) + int(environment.get("SLURM_STEP_ID", 0))
        return Placement(
            int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment.get("SLURM_LOCALID", 0)), environment.get("MASTER_ADDR", first_host(nodes)),
            int(environment.get("MASTER_PORT", 20000 + job % 10000)),
        )  # fmt: skip
    return None


def first_host(nodes: str) -> str:
    """Return the first name in SLURM's short form of a list, such as node07 of "node[07-09,12],gpu3"."""
    name, bracket, rest = re.split(r",(?![^\[]*\])", nodes)[0].partition("[")
    numbers, _, end = rest.partition("]")
    return name + re.split("[-,]", numbers)[0] + end if bracket else name


def count_processes(train: TrainSettings, devices: int | None) -> int:
    """Return the number of processes to start on this machine: `devices`, or one per GPU.

    Raises:
        SettingsError: more than there are GPUs.
    """
    gpus = 0 if train.device == "cpu" else torch.cuda.device_count()
    if devices is not None and devices > max(gpus, 1) and (gpus or train.device == "cuda"):
        raise SettingsError(
            f"--devices {devices}, but torch sees {gpus} usable GPUs.\n"
            f"Ask for {max(gpus, 1)}, check nvidia-smi and CUDA_VISIBLE_DEVICES, or set train.device=cpu."
        )
    return devices or gpus or 1


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `medmoco ARGUMENTS` in several processes on this machine; return the exit code of the run.

    The processes print their errors themselves.

    Raises:
        DistributedError: a process was killed.
    """
    logging.disable(logging.ERROR)  # the launcher would repeat the errors of the processes
    # The launcher passes SIGTERM on to the processes.
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SAVING_SECONDS))
    # Otherwise every process would start a thread for each core.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // processes)))
    plan = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        run_id="medmoco", max_restarts=0,
    )  # fmt: skip
    try:
        # -P: otherwise a random.py in the working folder would be imported instead of Python's own.
        elastic_launch(plan, sys.executable)("-P", "-m", "medmoco", *arguments)
    except ChildFailedError as error:
        return _exit_code(error.failures)
    except SignalException:
        return Stopped.exit_code
    return 0


def _exit_code(failures: dict[int, Any]) -> int:
    """Return the exit code of the run; if a process was killed, the errors of the others are a consequence."""
    codes = {rank: failure.exitcode for rank, failure in sorted(failures.items())}
    for rank, code in codes.items():
        if code < 0 and code != -signal.SIGTERM:  # the launcher ends the others with SIGTERM
            name = signal.Signals(-code).name
            raise DistributedError(
                f"process {rank} was killed by {name}"
                f"{', most often for lack of memory: lower data.workers or train.global_batch_size' * (code == -9)}.\n"
                "The last checkpoint is intact: resume with --resume."
            )
    known = {getattr(kind, "exit_code", None) for kind in vars(errors).values()}
    return next((code for code in codes.values() if code in known), max(codes.values(), default=1))


@contextmanager
def joined(train: TrainSettings, placement: Placement | None) -> Iterator[Group]:
    """Join the other processes of the run and leave them at the end; a process without a placement is alone.

    Raises:
        DistributedError: not all processes join in time.
        SettingsError: there are more processes on this machine than GPUs.
    """
    if placement is None or placement.size == 1:
        yield ALONE
        return
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = placement.address, str(placement.port)
    on_gpu = train.device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        gpus = torch.cuda.device_count()
        if placement.local_rank >= gpus > 1:  # each process may see only its own GPU
            raise SettingsError(
                f"process {placement.local_rank} of this machine has no GPU: torch sees {gpus}; start one for each"
            )
        torch.cuda.set_device(placement.local_rank % gpus)
    timeout = timedelta(seconds=train.hang_seconds)
    try:
        rendezvous = dist.rendezvous("env://", placement.rank, placement.size, timeout=timeout)  # type: ignore[attr-defined]
        store, _, _ = next(rendezvous)
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", store=store, timeout=timeout,
            rank=placement.rank, world_size=placement.size,
        )  # fmt: skip
        control = dist.new_group(backend="gloo", timeout=timeout)
        patient = dist.new_group(backend="gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise DistributedError(_meeting_failed(str(error), placement, train)) from None
    group = Group(placement.rank, placement.size, train.hang_seconds, Counter(), control, patient, store)
    try:
        with explaining_lost(group):
            yield group
    except DistributedError:
        raise  # leaving the group would wait for the lost processes
    except BaseException:
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _meeting_failed(text: str, placement: Placement, train: TrainSettings) -> str:
    if "EADDRINUSE" in text or "address already in use" in text:
        return (
            f"port {placement.port} is in use on this machine, so the processes cannot meet there.\n"
            "Set MASTER_PORT to a free one (with torchrun: --rdzv-endpoint=HOST:PORT), or end the program that uses it."
        )
    return (
        f"the {placement.size} processes did not meet at {placement.address}:{placement.port}, waiting up to "
        f"{train.hang_seconds:g} s.\nStart all of them; that machine must be reachable from the others. Where it has "
        "several networks,\nset GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the right one (docs/cluster.md)."
    )
