"""The processes of a distributed command, of which the first one prints."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from medmoco.errors import DistributedError, MedmocoError, Stopped

if TYPE_CHECKING:
    from medmoco.config import RunSettings

DRY_RUN = "--dry-run"


@contextmanager
def in_processes(settings: RunSettings, devices: int | None, out: Path) -> Iterator[bool]:
    """Start the processes of a run, unless a launcher has; the first one reports errors and how to resume.

    The process that starts others waits for them and exits with their exit code. In the others the block runs; the
    context manager returns whether the process is the first one.

    Args:
        settings: Settings of the run.
        devices: Number of processes to start; None for one on each GPU.
        out: Run folder, whose status.json records how the processes ended if they cannot do so themselves.
    """
    from medmoco.training.launch import count_processes, find_placement, launch
    from medmoco.training.status import note_death

    placement = find_placement(os.environ)
    processes = 1 if placement else count_processes(settings.train, devices)
    if processes > 1:
        try:
            raise typer.Exit(launch(sys.argv[1:], processes))
        except DistributedError as error:
            note_death(out, error)
            raise
    rank = placement.rank if placement else 0
    try:
        yield rank == 0
    except DistributedError as error:
        raise DistributedError(f"process {rank}: {error}") from None
    except MedmocoError as error:
        if rank:
            raise typer.Exit(error.exit_code) from None  # all have the same error; the first one reports it
        raise _with_resume_command(error) from None


def _with_resume_command(error: MedmocoError) -> MedmocoError:
    """Return the error, with the command that resumes the run if it was stopped."""
    if not isinstance(error, Stopped):
        return error
    if DRY_RUN in sys.argv:
        return Stopped("the dry run was stopped; it left nothing behind")
    command = this_command(without=("--resume", "--overwrite", "--allow-change"))
    return Stopped(f"{error}\nResume with: {command} --resume")


def this_command(without: Collection[str]) -> str:
    """Return the command that runs, for a shell, without some of its options."""
    return f"medmoco {shlex.join(text for text in sys.argv[1:] if text not in without)}"
