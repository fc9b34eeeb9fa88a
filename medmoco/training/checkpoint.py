"""Atomic, hashed, resumable checkpoints of tensors and plain values.

A file is written beside its name, fsynced, hashed, renamed, and the folder fsynced, so that a crash at any moment
leaves the one before. A flipped bit passes torch.load unnoticed; the SHA-256 beside each file does not let it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from medmoco.config import RunSettings, Tree, as_tree, flatten, load
from medmoco.data.files import sha256_of, sync_folder
from medmoco.errors import CheckpointError, SettingsError, first_line
from medmoco.models.backbones import Backbone, create_backbone, load_weights

FORMAT = 1
KEPT = 3

# What names this machine's folders stays out of every checkpoint.
_LOCAL = ("out", "data.manifest", "data.root", "data.pack", "data.pack_cache", "model.weights")


def portable_settings(settings: RunSettings) -> Tree:
    """Return the settings as "group.key" -> value, without anything that names a folder."""
    return {key: value for key, value in flatten(as_tree(settings)) if key not in _LOCAL}


def save_checkpoint(folder: Path, step: int, content: dict[str, Any]) -> Path:
    """Write one checkpoint and drop all but the last three.

    Args:
        folder: The run's `checkpoints/`.
        step: Optimiser steps done.
        content: Tensors and plain values.

    Raises:
        CheckpointError: the disk refuses; earlier checkpoints are untouched.
    """
    target = folder / f"step-{step:09d}.pt"
    temporary = target.with_suffix(".tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, "step": step, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        _hash_file(target).write_text(f"{sha256_of(temporary)}  {target.name}\n")
        temporary.replace(target)
        sync_folder(folder)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"checkpoint of step {step} cannot be written: {first_line(error)}\n"
            "Earlier checkpoints are intact. Free space or permissions there, then go on with --resume."
        ) from None
    for old in sorted(folder.glob("step-*.pt"))[:-KEPT]:
        old.unlink()
        _hash_file(old).unlink(missing_ok=True)
    return target


def load_checkpoint(folder: Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """Read the newest undamaged checkpoint.

    Args:
        folder: The run's `checkpoints/`.
        warn: Told of every damaged one that is passed over.

    Raises:
        CheckpointError: there is none, or all are damaged.
    """
    files = sorted(folder.glob("step-*.pt"), reverse=True)
    if not files:
        raise CheckpointError("the run folder holds no checkpoint yet; start it without --resume, with --overwrite")
    for file in files:
        try:
            return _read(file)
        except CheckpointError as damage:
            warn(f"checkpoint {file.name} is damaged ({damage}); using the one before")
    raise CheckpointError(f"all {len(files)} checkpoints of the run are damaged; nothing was changed or restarted")


def _read(file: Path) -> dict[str, Any]:
    try:
        recorded = _hash_file(file).read_text().split()[0]
    except (OSError, IndexError):
        raise CheckpointError("its SHA-256 file is missing") from None
    if recorded != sha256_of(file):
        raise CheckpointError("its SHA-256 differs")
    try:
        content: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever it is, the file is not one that save_checkpoint wrote
        raise CheckpointError(first_line(error)) from None
    if content.get("format") != FORMAT:
        raise CheckpointError(f"format {content.get('format')}, this version reads {FORMAT}")
    return content


def _hash_file(file: Path) -> Path:
    return file.with_suffix(".pt.sha256")


def load_run(run: Path) -> RunSettings:
    """Read the settings a run folder was made with.

    Raises:
        CheckpointError: the folder is not a run.
    """
    if not (run / "config.yaml").is_file():
        raise CheckpointError(f"{run} is no run folder: it has no config.yaml")
    return load(run / "config.yaml")


def load_backbone(
    source: str, settings: RunSettings, warn: Callable[[str], None] = lambda _: None
) -> tuple[Backbone, dict[str, Any]]:
    """Return the encoder that a run folder, a weights file or the word "random" stands for.

    Args:
        source: Run folder, .safetensors or .pth file, or "random" for the untrained network of the settings' seed.
        settings: Name the architecture and how it is fed; a run must agree with them.
        warn: Told of damaged checkpoints.

    Returns:
        The backbone and what it is: kind, step and epoch.

    Raises:
        CheckpointError: unreadable, or of another architecture.
        SettingsError: the run was fed differently from what the settings say, or cannot take evaluate.size.
    """
    untrained = settings.model.model_copy(update={"weights": None})
    backbone = create_backbone(untrained, seed=settings.seed, size=settings.views.size)
    if backbone.fixed_size and settings.evaluate.size not in (None, backbone.fixed_size):
        raise SettingsError(
            f"evaluate.size {settings.evaluate.size}: {backbone.name} takes views of {backbone.fixed_size} pixels only"
        )
    if source == "random":
        return backbone, {"kind": "random"}
    path = Path(source)
    if path.is_dir():
        _refuse_other_input(load_run(path), settings)
        content = load_checkpoint(path / "checkpoints", warn)
        prefix = "query_encoder.backbone.net."
        state = {key.removeprefix(prefix): value for key, value in content["model"].items() if key.startswith(prefix)}
        backbone.net.load_state_dict(state)
        return backbone, {"kind": "run", "step": content["step"]}
    load_weights(backbone, path)
    return backbone, {"kind": "file"}


def _refuse_other_input(trained: RunSettings, settings: RunSettings) -> None:
    """An encoder fed another way than it was trained gives plausible, wrong features; refuse it."""
    keys = ("model.backbone", "views.mean", "views.std", "data.window", "data.bit_depth")
    was, now = dict(flatten(as_tree(trained))), dict(flatten(as_tree(settings)))
    changed = [f"{key}: run {was[key]}, settings {now[key]}" for key in keys if was[key] != now[key]]
    if changed:
        raise SettingsError("the run was trained with other settings than these:\n" + "\n".join(changed[:4]))
