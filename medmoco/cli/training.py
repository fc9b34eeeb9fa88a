"""The commands that train encoders."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

import medmoco
from medmoco.cli.next_steps import after_pretraining
from medmoco.cli.options import (
    AllowChange,
    Config,
    Devices,
    Encoder,
    Overrides,
    Overwrite,
    Resume,
    is_missing_default,
    load,
    log,
    path,
)
from medmoco.cli.processes import DRY_RUN, in_processes, this_command
from medmoco.datasets.resources import resource

PANEL = "Training"
commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
def bench(
    config_file: Config,
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="Duration of each of four measurements.")] = 20.0,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Measure with synthetic images, without any data.")
    ] = False,
) -> None:
    """Find the bottleneck of pretraining on this machine, and suggest improvements.

    With --synthetic and no settings file, the example settings for chest films are measured.
    """
    if synthetic and is_missing_default(config_file):
        config_file = resource("configs/cxr.yaml")
    settings = load(config_file, overrides)
    from medmoco.training.bench import bench as measure
    from medmoco.training.synthetic import on_phantoms

    with on_phantoms(settings, log) if synthetic else nullcontext(settings) as measured:
        print(measure(measured, seconds, log))


@commands.command(rich_help_panel=PANEL)
def pretrain(
    config_file: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    devices: Devices = None,
    allow_change: AllowChange = False,
    dry_run: Annotated[
        bool, typer.Option(DRY_RUN, help="Try two steps and an export, and estimate what the run takes.")
    ] = False,
) -> None:
    """Pretrain an encoder on the training split."""
    settings = load(config_file, overrides)
    with in_processes(settings, devices, settings.out) as is_first:
        if dry_run:
            found = medmoco.dry_run(settings, overwrite=overwrite or resume, log=log)
            if is_first:
                print(f"{found.text}\nnext: {this_command(without=[DRY_RUN])}")
            return
        run = medmoco.pretrain(settings, resume=resume, overwrite=overwrite, allow_change=allow_change, log=log)
        if is_first:
            best = f"best checkpoint: {run.best}\n" if run.best else ""
            print(f"run folder: {run.folder}\n{best}{after_pretraining(settings, config_file, overrides)}")


@commands.command(rich_help_panel=PANEL)
def tune(
    config_file: Config,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(parser=path, help="Folder of the search (default: OUT-tune).")] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    devices: Devices = None,
) -> None:
    """Search tune.space for the settings with the best features on val, by one pretraining run after another."""
    settings = load(config_file, overrides)
    folder = out or settings.out.with_name(f"{settings.out.name}-tune")
    with in_processes(settings, devices, folder) as is_first:
        table = medmoco.tune(settings, folder, resume=resume, overwrite=overwrite, log=log)
        if is_first:
            print(f"{table}\nsearch folder: {folder}")


@commands.command(rich_help_panel=PANEL)
def slurm(
    config_file: Config,
    out: Annotated[Path, typer.Option(parser=path, help="Batch file to write, such as job.sbatch.")],
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(min=1, help="Number of machines.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs per node, with one process each.")] = 1,
    hours: Annotated[float, typer.Option(min=0.25, help="Time limit of a job, which then resubmits itself.")] = 24.0,
    cpus: Annotated[int | None, typer.Option(min=1, help="CPUs per GPU (default: data.workers + 1).")] = None,
    memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Memory per node, such as 128G.")] = None,
    partition: Annotated[str | None, typer.Option(help="Partition to submit to.")] = None,
    account: Annotated[str | None, typer.Option(help="Account to charge.")] = None,
) -> None:
    """Write a SLURM batch file for pretraining on one or more nodes, which resubmits itself until the run is done."""
    settings = load(config_file, overrides)
    from medmoco.training.slurm import Resources, write_job

    resources = Resources(nodes, gpus, hours, cpus, memory, partition, account)
    print(write_job(out, config_file, overrides or (), settings, resources))


@commands.command(rich_help_panel=PANEL)
def finetune(
    config_file: Config,
    encoder: Encoder,
    out: Annotated[Path, typer.Option(parser=path, help="Run folder of the fine-tuning.")],
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    devices: Devices = None,
    allow_change: AllowChange = False,
) -> None:
    """Fine-tune the encoder with a classifier on the labels of train, and keep the epoch that is best on val."""
    settings = load(config_file, overrides)
    with in_processes(settings, devices, out) as is_first:
        medmoco.finetune(settings, encoder, out, resume=resume, overwrite=overwrite, allow_change=allow_change)
        if is_first:
            print(f"run folder: {out}")
