"""The run folder: a single run at a time, no accidental deletion, no resuming with other settings."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

import torch

from medmoco.config import RETIRED, RunSettings, Tree, as_tree, is_run, to_yaml
from medmoco.data.manifest.manifest import Split
from medmoco.data.manifest.row_filter import names_ids
from medmoco.errors import CheckpointError, SettingsError
from medmoco.training.agreement import on_first, together
from medmoco.training.checkpoint import checkpoint_files, load_best, load_checkpoint, portable_settings
from medmoco.training.context import RunContext
from medmoco.training.engine import TrainState
from medmoco.training.runlog import explaining_disk_errors, write_json
from medmoco.utils.files import replacing

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
LOCK = "lock"
STATUS = "status.json"

_LIBRARIES = ("medmoco", "torch", "torchvision", "timm", "numpy", "cv2", "pydicom")

# May change between a stop and --resume without a warning: these affect neither the views nor the weights.
HARMLESS = ("out", "data.root", "data.manifest", "data.pack", "data.max_bytes", "data.max_frames", "data.decode_",
             "data.allow_symlinks", "data.bad_images", "data.workers", "model.init", "train.hang_seconds",
             "train.log_every", "train.checkpoint_every", "train.knn_every", "evaluate.", "finetune.",
             "detection.", "segmentation.", "tune.")  # fmt: skip
# May change too, but affect the weights; the log warns.
_FREE = ("train.epochs", "train.patience")
# Determine the shape of the saved state, so --allow-change cannot help.
_FIXED = (
    "data.channels", "model.backbone", "model.fixed_patches", "method.projector", "method.hidden_dim",
    "method.embedding_dim", "method.predictor", "method.queue_size", "method.negatives",
    "decoder.weight", "decoder.channels", "train.optimizer",
)  # fmt: skip


@dataclass(frozen=True)
class StartMode:
    """What happens to a run that is in the folder already; without any of these it is refused."""

    resume: bool = False  # continue from its newest checkpoint, or from step 0 if it has none yet
    overwrite: bool = False
    allow_change: bool = False  # resume although settings or the manifest have changed


NEW = StartMode()


# One run at a time


@contextmanager
def holding(folder: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Lock a folder, created if necessary, against other runs; one process of a run does this.

    Args:
        folder: Run folder.
        warn: Receives a warning if the file system has no locks.

    Raises:
        SettingsError: the folder contains something other than a run.
        CheckpointError: another run is using it, or it cannot be written.
    """
    _refuse_foreign(folder)
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _open_locked(folder / LOCK, warn)
    except OSError as error:
        raise CheckpointError(f"the run folder {folder} cannot be written: {error.strerror}") from None
    with lock:
        try:
            yield
        finally:  # a killed run leaves the file behind, but not the lock
            with suppress(OSError):
                (folder / LOCK).unlink()
            with suppress(OSError):  # not empty
                if is_new:  # a refused run leaves nothing behind
                    folder.rmdir()


def _open_locked(file: Path, warn: Callable[[str], None]) -> TextIO:
    while True:
        lock = file.open("a+", encoding="utf-8")
        try:
            # Not flock, which data workers would inherit; they may outlive this process by a batch.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            with lock:
                lock.seek(0)
                holder = lock.read().strip() or "another process"
            raise CheckpointError(
                f"the run folder {file.parent} is in use by {holder}.\n"
                "Let that run finish, stop it, or choose another out."
            ) from None
        except OSError:
            warn("the file system of the run folder has no locks; make sure that no second run uses the folder")
        if _is_still(lock, file):
            break
        lock.close()  # the previous run removed it after we opened it, and another run may have created a new one
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}\n")
    lock.flush()
    return lock


def _is_still(lock: TextIO, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), file.stat())
    except FileNotFoundError:
        return False


# Content of a folder


def claim(folder: Path, start: StartMode) -> None:
    """Check that a locked folder can be used for a run; empty it if that is requested.

    Raises:
        SettingsError: it contains a run and neither resume nor overwrite is set, or both are.
    """
    refuse_taken(folder, start)
    if start.overwrite and _holds_run(folder):
        _empty(folder)


def refuse_taken(folder: Path, start: StartMode) -> None:
    """Check that a folder can be used for a run, without changing it.

    Raises:
        SettingsError: see `claim`.
    """
    if start.resume and start.overwrite:
        raise SettingsError("--resume continues the run in the folder and --overwrite deletes it; use one of them")
    _refuse_foreign(folder)
    if _holds_run(folder) and not (start.resume or start.overwrite):
        raise SettingsError(
            f"out: {folder} holds a run; continue it with --resume, replace it with --overwrite, or choose another"
            " folder"
        )


def _names(folder: Path) -> set[str]:
    """Return the entries of a folder, without empty folders and the files of a run that was killed before it began."""
    if not folder.is_dir():
        return set()
    names = {name for name in os.listdir(folder) if name != LOCK and not name.endswith(".tmp")} - {ENVIRONMENT}
    return {name for name in names if not (folder / name).is_dir() or any((folder / name).iterdir())}


def _holds_run(folder: Path) -> bool:
    return CONFIG in _names(folder) and (folder / ENVIRONMENT).is_file()


def _refuse_foreign(folder: Path) -> None:
    if (folder.exists() and not folder.is_dir()) or (_names(folder) and not _holds_run(folder)):
        raise SettingsError(f"out: {folder} is not empty and does not hold a run; choose another folder")


def _empty(folder: Path) -> None:
    """Delete a run except its lock; the files that identify it as a run go last, so that this can be repeated."""
    last = [ENVIRONMENT, CONFIG]
    for entry in sorted(folder.iterdir(), key=lambda entry: (entry.name in last, entry.name)):
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def describe_run(folder: Path, context: RunContext, facts: Tree) -> list[str]:
    """Write environment.json and config.yaml; return what has changed since the run was last started."""
    device, precision = context.device, context.precision
    environment = {
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "processes": facts["processes"],
        "manifest_sha256": facts["manifest_sha256"],
        "libraries": {name: import_module(name).__version__ for name in _LIBRARIES},
    }
    changes = _changes(folder / ENVIRONMENT, environment)
    with explaining_disk_errors():
        write_json(folder / ENVIRONMENT, environment)
        with replacing(folder / CONFIG) as temporary:
            temporary.write_text(to_yaml(as_tree(context.settings)), encoding="utf-8")
    return changes


def _changes(file: Path, environment: Mapping[str, Any]) -> list[str]:
    """Return the differences from the machine that wrote the file, if they affect the arithmetic."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        changed = [
            f"{name} {before[name]} before, {environment[name]} now"
            for name in ("device", "cpu", "precision")
            if name in before and before[name] != environment[name]
        ]
    except (OSError, ValueError, TypeError):  # there is none, or it is damaged
        return []
    if not changed:
        return []
    return [
        f"resumed on another machine: {', '.join(changed)}; views stay the same, weights may differ in the last bits"
    ]


# Resuming


def load_source(source: Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """Read the checkpoint that an encoder's source means: the newest of a run folder, or that in its folder `best`.

    Raises:
        CheckpointError: there is none, or none is intact.
    """
    return load_checkpoint(source / CHECKPOINTS, warn) if is_run(source) else load_best(source)


def load_newest(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """Read the newest undamaged checkpoint of a run; None if the run has not saved any.

    Raises:
        CheckpointError: all are damaged or missing, or it is not a checkpoint of pretraining.
    """
    if not checkpoint_files(folder / CHECKPOINTS):
        _refuse_lost(folder)
        return None
    content = load_checkpoint(folder / CHECKPOINTS, warn)
    lacking = {"step", "model", "optimizer", "scaler", "settings", "manifest_sha256"} - content.keys()
    if lacking:
        raise CheckpointError(
            f"the newest checkpoint cannot be resumed: it lacks {', '.join(sorted(lacking))}.\n"
            "Replace the run with --overwrite, or choose another folder."
        )
    return content


def _refuse_lost(folder: Path) -> None:
    """Refuse to restart a run with lost checkpoints, which would hide the loss."""
    try:
        status = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    if status["state"] != "failed" and status["step"]:  # a failed run may not have saved any
        raise CheckpointError(
            f"the run was saved at step {status['step']}, but its checkpoints are gone; restore them,\n"
            "or replace the run with --overwrite"
        )


def facts_of(settings: RunSettings, train: Split) -> Tree:
    """Return what checkpoints store about the run, for `check_changes` to compare."""
    return {"settings": portable_settings(settings), "manifest_sha256": train.sha256, "manifest_rows": len(train)}


def check_changes(saved: dict[str, Any], now: Tree, *, allow: bool, harmless: tuple[str, ...] = HARMLESS) -> list[str]:
    """Compare the settings of a checkpoint with those (see `facts_of`) with which the run is resumed.

    Args:
        saved: Content of the checkpoint.
        now: The present facts.
        allow: Accept any change that fits the saved state.
        harmless: Prefixes of the settings that may change.

    Returns:
        A line for the log for each change that affects the result.

    Raises:
        SettingsError: a change is not allowed; shows the difference.
    """
    # A checkpoint from before a setting existed, or after it was retired, was trained with its default.
    was, now_is = {**portable_defaults(), **saved["settings"]}, {**RETIRED, **now["settings"]}
    changed = [
        key
        for key in sorted(saved["settings"].keys() | now_is.keys())
        if was.get(key) != now_is.get(key) and not key.startswith(harmless)
    ]
    lines = {key: f"{key}: was {shown(key, was)}, now {shown(key, now_is)}" for key in changed}
    if saved["manifest_sha256"] != now["manifest_sha256"]:
        before = saved.get("manifest_rows", "an unknown number of")
        lines["manifest"] = f"training manifest: was {before} rows, now {now['manifest_rows']}; its SHA-256 differs"
    fixed = [line for key, line in lines.items() if key in _FIXED]
    refused = [line for key, line in lines.items() if key not in _FREE]
    if fixed:
        _refuse(fixed, "The saved state does not fit; undo the change, or start a new run in another folder.")
    if refused and not allow:
        _refuse(refused, "Undo the change, or accept it with --allow-change.")
    return [f"changed since the run was started, and alters the result: {line}" for line in lines.values()]


def shown(key: str, settings: Tree) -> Any:
    """Return the value of a setting for a message, without the IDs in a condition."""
    value = settings.get(key, "not set")
    return "a condition on ids" if key.endswith(".where") and names_ids(value) else value


def portable_defaults() -> Tree:
    """Return the defaults of all settings, and of those that were retired, as stored in checkpoints."""
    return RETIRED | portable_settings(RunSettings.model_validate({"out": ".", "data": {"manifest": ".", "root": "."}}))


def _refuse(lines: list[str], remedy: str) -> None:
    shown = lines if len(lines) <= 3 else [*lines[:2], f"and {len(lines) - 2} more"]
    raise SettingsError("\n".join(["--resume: the run was started with other settings or data:", *shown, remedy]))


@dataclass(frozen=True)
class InitialState:
    """The state in which a session begins."""

    state: TrainState  # networks, optimiser and step
    checkpoint: dict[str, Any] | None  # the content of the checkpoint that the state comes from; None for a new run
    warnings: list[str]  # for the log


def enter_folder(
    stack: ExitStack,
    context: RunContext,
    facts: Tree,
    create_state: Callable[[], TrainState],
    start: StartMode = NEW,
    harmless: tuple[str, ...] = HARMLESS,
) -> InitialState:
    """Lock the run folder until the stack ends, and restore the state saved in it, or create that of step 0.

    Raises:
        SettingsError, CheckpointError: see `holding`, `claim`, `load_newest`, `check_changes` and `restore`.
    """
    warnings: list[str] = []
    out = context.settings.out

    def take() -> None:
        stack.enter_context(holding(out, warnings.append))
        claim(out, start)

    on_first(context.group, take)
    with together(context.group):
        saved = load_newest(out, warnings.append) if start.resume else None
        warnings += check_changes(saved, facts, allow=start.allow_change, harmless=harmless) if saved else []
        state = create_state()
        if saved:
            restore(state, saved)
    return InitialState(state, saved, warnings)


def restore(state: TrainState, saved: dict[str, Any]) -> None:
    """Load a checkpoint into the state.

    Raises:
        CheckpointError: it does not fit the networks or the optimiser.
    """
    if not saved["scaler"]:  # the run had no loss scaling, and is resumed on a GPU that needs it
        saved = {**saved, "scaler": state.scaler.state_dict()}
    try:
        state.restore(saved)
    except (KeyError, RuntimeError, TypeError, ValueError):
        raise CheckpointError(
            f"the checkpoint of step {saved['step']} does not fit the networks and the optimiser of these settings.\n"
            "Use the settings and the version of medmoco and timm that the run was started with; see environment.json."
        ) from None
