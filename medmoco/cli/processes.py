"""As many processes as are wanted, of which one speaks."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from medmoco.errors import DistributedError, MedmocoError, Stopped

if TYPE_CHECKING:
    from medmoco.config import RunSettings
    from medmoco.training.distributed import Group


@contextmanager
def in_processes(settings: RunSettings, devices: int | None, out: Path) -> Iterator[Group]:
    """Start as many processes as are wanted, unless a launcher has; one of them says what goes wrong, and how to go on.

    The process that starts others waits for them and ends with their exit code.

    Args:
        settings: Of the run.
        devices: Processes to start, as asked for.
        out: Run folder, whose status says how the processes ended where none of them can.
    """
    from medmoco.training.distributed import joined
    from medmoco.training.launch import find_placement, launch, wanted_processes
    from medmoco.training.status import note_death

    placement = find_placement(os.environ)
    processes = 1 if placement else wanted_processes(settings.train, devices)
    if processes > 1:
        try:
            raise typer.Exit(launch(sys.argv[1:], processes))
        except DistributedError as error:
            note_death(out, error)
            raise
    with joined(settings.train, placement) as group:
        try:
            yield group
        except DistributedError as error:
            raise DistributedError(f"process {group.rank}: {error}") from None
        except MedmocoError as error:
            if not group.is_first:
                raise typer.Exit(error.exit_code) from None  # all have met it, the first says it
            raise _with_way_on(error) from None


def _with_way_on(error: MedmocoError) -> MedmocoError:
    """Return the error, that of a stop with the command that resumes."""
    if not isinstance(error, Stopped):
        return error
    arguments = [text for text in sys.argv[1:] if text not in ("--resume", "--overwrite", "--allow-change")]
    return Stopped(f"{error}\nGo on with: medmoco {shlex.join(arguments)} --resume")
