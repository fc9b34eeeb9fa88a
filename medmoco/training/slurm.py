"""Write a SLURM job for a settings file, which saves and requeues itself when its time limit approaches."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from medmoco.config import RunSettings
from medmoco.data.manifest.manifest import load_manifest
from medmoco.errors import SettingsError
from medmoco.training.sizes import check_sizes

_SAVING_SECONDS = 300  # from the signal to the end: a checkpoint on a slow disk takes a minute, and SLURM may be late


@dataclass(frozen=True)
class Resources:
    """Resources to request from SLURM."""

    nodes: int = 1  # number of machines
    gpus: int = 1  # GPUs per node
    hours: float = 24.0  # time limit; after it the job queues again
    cpus: int | None = None  # CPU cores per GPU; None is one for training and one for each data worker
    memory: str | None = None  # memory per node in SLURM's notation, such as 128G; None is the default of the cluster
    partition: str | None = None  # None is the default of the cluster
    account: str | None = None  # None is the default of the user


def write_job(
    file: Path, config_file: Path, overrides: Sequence[str], settings: RunSettings, resources: Resources
) -> str:
    """Write a batch file that pretrains with these settings, in the working folder and with the Python of this process.

    Args:
        file: Batch file to write; must not exist.
        config_file: YAML file that the job reads.
        overrides: Settings such as "train.epochs=80" for the command line of the job.
        settings: The resulting settings.
        resources: Resources to request.

    Returns:
        A summary of the job, and how to submit it.

    Raises:
        ManifestError: the training split cannot be read.
        SettingsError: the batch or the queue does not fit the images or the processes; the file exists or cannot be
            written; an option contains a line break.
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
        f"Review the file, then submit it with: sbatch {shlex.quote(str(file))}"
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
    """Return the text of a batch file for a Python interpreter and a working folder; see `write_job`.

    Raises:
        SettingsError: an option contains a line break.
    """
    templates = Environment(
        loader=PackageLoader("medmoco.training"),
        autoescape=False,  # noqa: S701, as it escapes HTML; words of the shell are quoted
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    templates.filters["quote"] = shlex.quote
    minutes = round(resources.hours * 60)
    return templates.get_template("job.sbatch.j2").render(
        option=_option,
        machines=_machines(resources),
        clock=f"{minutes // 60}:{minutes % 60:02}:00",
        seconds=_SAVING_SECONDS,
        status=str(settings.out / "status.json"),
        command=shlex.join(["pretrain", "--config", str(folder / config_file), *overrides, "--resume"]),
        python=python,
        folder=folder,
        settings=settings,
        resources=resources,
    )


def _option(name: str, value: object) -> str:
    """Return a line for sbatch, which splits it like a shell."""
    text = str(value)
    if not text.isprintable():
        raise SettingsError(f"--{name} of the job would be {text!r}, which does not fit on one line")
    return f"#SBATCH --{name}={shlex.quote(text)}"


def _machines(resources: Resources) -> str:
    nodes, gpus = resources.nodes, resources.gpus
    return f"{nodes} node{'s' * (nodes > 1)} with {gpus} GPU{'s' * (gpus > 1)}{' each' * (nodes > 1)}"
