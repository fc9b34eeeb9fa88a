"""A settings file -> a job for SLURM that saves and queues itself again whenever its time is up."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import load_manifest
from medmoco.errors import SettingsError
from medmoco.training.moco_task import check_sizes

_SAVING_SECONDS = (
    300  # warning before the time is up; a checkpoint on a slow disk takes one minute, SLURM is late by one
)


@dataclass(frozen=True)
class Resources:
    """What to ask SLURM for.

    Attributes:
        nodes: Machines.
        gpus: On each node.
        hours: Until SLURM stops the job, which then queues again.
        cpus: For each GPU; None is one for training and one for each data worker.
        memory: Of each node, in SLURM's words, such as 128G; None is the cluster's default.
        partition: None is the cluster's default.
        account: None is the user's default.
    """

    nodes: int = 1
    gpus: int = 1
    hours: float = 24.0
    cpus: int | None = None
    memory: str | None = None
    partition: str | None = None
    account: str | None = None


def write_job(
    file: Path, config_file: Path, overrides: Sequence[str], settings: RunSettings, resources: Resources
) -> str:
    """Write a batch file that pretrains with these settings, from the folder and with the Python of this process.

    Args:
        file: To write; must not exist.
        config_file: YAML file that the job shall read.
        overrides: Texts such as "train.epochs=80" for the job's command line.
        settings: What the two come to.
        resources: What to ask for.

    Returns:
        What was written and how to submit it, in words.

    Raises:
        ManifestError: the training split cannot be read.
        SettingsError: the batch or the queue does not fit the images or the processes; the file exists or cannot be
            written; a word would break the batch file.
    """
    processes = resources.nodes * resources.gpus
    check_sizes(len(load_manifest(settings.data, ("train",))["train"]), settings, processes)
    script = job_script(config_file, overrides, settings, resources, python=Path(sys.executable), folder=Path.cwd())
    try:
        with file.open("x", encoding="utf-8") as stream:
            stream.write(script)
    except FileExistsError:
        raise SettingsError(f"{file} exists; give another --out, or delete it") from None
    except OSError as error:
        raise SettingsError(f"{file} cannot be written: {error.strerror}") from None
    share = settings.train.global_batch_size // processes
    return (
        f"{file}: {_machines(resources)},"
        f" {share} of the {settings.train.global_batch_size} images of a batch on each GPU\n"
        f"Look it over, then submit it with: sbatch {shlex.quote(str(file))}"
    )


def job_script(
    config_file: Path,
    overrides: Sequence[str],
    settings: RunSettings,
    resources: Resources,
    *,
    python: Path,
    folder: Path,
) -> str:
    """Return the text of a batch file for an interpreter and a folder to work in; see `write_job`.

    Raises:
        SettingsError: a word would break it.
    """
    arguments = ["pretrain", "--config", str(folder / config_file), *overrides, "--resume"]
    status = shlex.quote(str(settings.out / "status.json"))
    return f"""#!/bin/bash
# Pretraining on {_machines(resources)}. Written by `medmoco slurm`, and yours to edit.

{_header(settings, resources, folder)}

# Lines that your cluster wants before Python starts, such as `module load`, belong here.
python={shlex.quote(str(python))}

{_environment(resources)}

# Written anew below. An old one would be taken for what becomes of this start.
rm -f {status}

# The same command starts the run and goes on with it. SLURM starts it once for each GPU; medmoco sees that it did.
# srun does not know --cpus-per-task of the job by itself. When one process has ended, the others get two minutes to
# save and to say why, then srun ends them. -P keeps Python from running modules that lie in the folder above.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 --wait=120 \\
    "$python" -P -m medmoco.cli {shlex.join(arguments)}
code=$?

# Stopped before its end, and saved: back into the queue. Whatever else happened wants a person.
if grep -qs '"state": "stopped"' {status}; then
    echo "the job queues again and then goes on by itself"
    scontrol requeue "$SLURM_JOB_ID" || echo "it cannot: submit it once more with sbatch"
fi
exit "$code"
"""


def _header(settings: RunSettings, resources: Resources, folder: Path) -> str:
    workers = settings.data.workers
    optional = {"partition": resources.partition, "account": resources.account, "mem": resources.memory}
    lines = [
        _option("job-name", (folder / settings.out).name),
        *(_option(name, value) for name, value in optional.items() if value is not None),
        _option("time", _clock(resources.hours)),
        "",
        "# One process for each GPU. All of them see all GPUs of their node, which lets them exchange data directly.",
        _option("nodes", resources.nodes),
        _option("ntasks-per-node", resources.gpus),
        _option("gres", f"gpu:{resources.gpus}"),
        f"# For each process: its training, and data.workers={workers} data workers.",
        _option("cpus-per-task", resources.cpus or workers + 1),
        "",
        "# Relative paths in the settings start from this folder; what the job prints is written there.",
        _option("chdir", folder),
        _option("output", "%x-%j.out"),
        "",
        f"# {_SAVING_SECONDS // 60} minutes before the time is up, the processes are told to save and stop.",
        _option("signal", f"USR1@{_SAVING_SECONDS}"),
        "# A job that was stopped or preempted, or lost a node, queues again and goes on in the same output.",
        _option("requeue"),
        _option("open-mode", "append"),
    ]
    return "\n".join(lines)


def _option(name: str, value: object = None) -> str:
    """Return a line for sbatch, which splits it as a shell would."""
    text = str(value)
    if not text.isprintable():
        raise SettingsError(f"--{name} of the job would be {text!r}, which does not fit into one line")
    return f"#SBATCH --{name}" if value is None else f"#SBATCH --{name}={shlex.quote(text)}"


def _environment(resources: Resources) -> str:
    lines = [
        "# Otherwise each process starts a thread for every core of the node.",
        'export OMP_NUM_THREADS="$SLURM_CPUS_PER_TASK"',
        "# The GPUs' library says what goes wrong. Its other settings are best left alone: docs/cluster.md.",
        "export NCCL_DEBUG=WARN",
    ]
    if resources.nodes > 1:
        lines += [
            "# If the nodes do not find one another, name the network between them (`ip -br address` on a node):",
            "# export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0",
        ]
    return "\n".join(lines)


def _clock(hours: float) -> str:
    minutes = round(hours * 60)
    return f"{minutes // 60}:{minutes % 60:02}:00"


def _machines(resources: Resources) -> str:
    nodes, gpus = resources.nodes, resources.gpus
    return f"{nodes} node{'s' * (nodes > 1)} with {gpus} GPU{'s' * (gpus > 1)}{' each' * (nodes > 1)}"
