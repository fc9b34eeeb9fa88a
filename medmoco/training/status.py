"""Keep status.json of a run folder: whether the run is running, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from medmoco.config import TrainSettings
from medmoco.errors import CheckpointError, MedmocoError, Stopped, UnexpectedError, traceback_of, without_names
from medmoco.training.device import memory_explained
from medmoco.training.distributed import Group
from medmoco.training.engine import TrainState
from medmoco.training.lost_processes import explaining_lost
from medmoco.training.run_folder import STATUS, holding
from medmoco.training.runlog import LOG, explaining_disk_errors, write_json
from medmoco.utils.stopping import stopping_at_once


@contextmanager
def keeping_status(folder: Path, state: TrainState, steps: int) -> Iterator[None]:
    """Keep status.json: "running" and, in the end, how the run ended, for whatever reason.

    Raises:
        UnexpectedError: an exception that is not one of medmoco's own; log.txt has its traceback.
        Stopped: a signal came outside the training loop.
    """
    write_status(folder, "running", state.step, steps)
    try:
        with stopping_at_once():
            yield
        write_status(folder, "done", state.step, steps)
    except BaseException as error:
        ours = _as_ours(error, folder)
        with suppress(CheckpointError):  # this fails too if the disk is full or missing
            write_status(folder, "stopped" if isinstance(ours, Stopped) else "failed", state.step, steps, ours)
        if ours is error:
            raise
        raise ours from error


def _as_ours(error: BaseException, folder: Path) -> MedmocoError:
    """Return the exception that ended a run as one of medmoco's."""
    if isinstance(error, MedmocoError):
        return error
    if isinstance(error, KeyboardInterrupt):  # the second Ctrl-C
        return Stopped("stopped at once; --resume repeats the steps since the last checkpoint")
    with suppress(OSError), (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(f"{traceback_of(error)}\n")
    return UnexpectedError(
        f"the run ended with an unexpected {without_names(error)}\n"
        f"The traceback is at the end of {folder / LOG}.\n"
        "The last checkpoint is intact: once the cause is fixed, continue with --resume."
    )


def write_status(folder: Path, status: str, step: int, steps: int, error: MedmocoError | None = None) -> None:
    """Write status.json: running, stopped, failed or done, after `step` of `steps`, and the error if there was one."""
    content = {
        "state": status,
        "step": step,
        "steps": steps,
        "exit_code": error.exit_code if error else 0,
        "message": str(error) if error else "",
    }
    with explaining_disk_errors():
        write_json(folder / STATUS, content)


@contextmanager
def reporting_end(folder: Path, state: TrainState, steps: int, train: TrainSettings, group: Group) -> Iterator[None]:
    """Keep status.json on the first process, and explain lost processes and lack of memory on all.

    Raises:
        SettingsError: memory ran out.
        DistributedError: another process has ended or hangs.
        UnexpectedError, Stopped: see `keeping_status`.
    """
    keeping = keeping_status(folder, state, steps) if group.is_first else stopping_at_once()
    with keeping, explaining_lost(group), memory_explained(train):
        yield


def note_death(folder: Path, error: MedmocoError) -> None:
    """Record in status.json that a run has ended with an error, for a process that can no longer do so."""
    with suppress(OSError, ValueError, KeyError, MedmocoError), holding(folder, lambda _: None):
        status = json.loads((folder / STATUS).read_text(encoding="utf-8"))
        if status["state"] == "running":
            write_status(folder, "failed", status["step"], status["steps"], error)
