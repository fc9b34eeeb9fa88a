"""Atomic, hashed, resumable checkpoints of tensors and plain values.

A file and its SHA-256 are written to temporary files, fsynced and renamed, the hash first, and the folder is fsynced
after each rename; so a crash at any moment leaves the previous checkpoint. torch.load does not notice a flipped bit;
the hash does.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from medmoco.config import RunSettings, Tree, as_tree, flatten, load
from medmoco.errors import CheckpointError, SettingsError, first_line
from medmoco.models.backbones import Backbone, check_size, create_backbone, load_weights
from medmoco.utils.files import replacing, sha256_of

FORMAT = 1
KEPT = 3

# Names of this machine's folders stay out of every checkpoint.
_LOCAL = ("out", "data.manifest", "data.root", "data.pack", "data.pack_cache", "model.init", "detection.boxes")


def portable_settings(settings: RunSettings) -> Tree:
    """Return the settings as "group.key" -> value, without those that name a folder."""
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
    content = {"format": FORMAT, "step": step, **content}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _drop_leftovers(folder)
        with replacing(target, durable=True) as temporary:
            with temporary.open("wb") as file:  # given a path, torch hides why the disk refused
                torch.save(content, file)
            new, old = sha256_of(temporary), _recorded(target)
            # Until the new file has its name, an old one of the same step must be found intact too.
            _record(target, [new, *old])
        if old:
            _record(target, [new])
        _drop_old(folder, step)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(_refusal(folder, content, error)) from None
    return target


def _record(target: Path, hashes: list[str]) -> None:
    """Write the hashes that the file may have, in the format of sha256sum."""
    with replacing(_hash_file(target), durable=True) as temporary:
        temporary.write_text("".join(f"{digest}  {target.name}\n" for digest in hashes))


def _recorded(target: Path) -> list[str]:
    try:
        return [line.split()[0] for line in _hash_file(target).read_text(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return []


def _drop_leftovers(folder: Path) -> None:
    """Remove what a crash inside an earlier save left."""
    for file in folder.glob("step-*.tmp"):
        file.unlink(missing_ok=True)
    for file in folder.glob("step-*.pt.sha256"):
        if not file.with_suffix("").exists():
            file.unlink(missing_ok=True)


def _drop_old(folder: Path, step: int) -> None:
    """Keep the last three up to this step; later ones are damaged, or this step would not have been repeated."""
    files = sorted(folder.glob("step-*.pt"))
    kept = [file for file in files if file.stem <= f"step-{step:09d}"][-KEPT:]
    for file in files:
        if file not in kept:
            file.unlink(missing_ok=True)
            _hash_file(file).unlink(missing_ok=True)


def keep_newest(folder: Path) -> None:
    """Drop all checkpoints of a finished run but the last."""
    for file in checkpoint_files(folder)[1:]:
        file.unlink(missing_ok=True)
        _hash_file(file).unlink(missing_ok=True)


def _refusal(folder: Path, content: dict[str, Any], error: Exception) -> str:
    """Clean up after a failed save and return why it failed."""
    cause = error.__context__ if isinstance(error.__context__, OSError) else error  # torch hides a full disk in its own
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else first_line(cause)
    with suppress(OSError):  # the folder may refuse this too; the next save tries again
        _drop_leftovers(folder)
    lines = [f"the checkpoint of step {content['step']} cannot be written: {reason}"]
    remedy = ""
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
        lines.append(f"It needs {_size(content):,} bytes; the disk has {free:,} bytes free.")
        remedy = " Free some space, then continue with --resume."
    elif isinstance(cause, OSError):
        remedy = " Make the run folder writable, then continue with --resume."
    return "\n".join([*lines, f"Earlier checkpoints are intact.{remedy}"])


def _size(content: dict[str, Any]) -> int:
    """Return how many bytes a checkpoint takes."""
    counter = _Counter()
    torch.save(content, counter)  # type: ignore[arg-type]
    return counter.bytes


class _Counter:
    """A file that counts bytes and keeps nothing."""

    bytes = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.bytes += size
        return size

    def flush(self) -> None:
        pass


def load_checkpoint(folder: Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """Read the newest undamaged checkpoint.

    Args:
        folder: The run's `checkpoints/`.
        warn: Receives a warning for every damaged one that is skipped.

    Raises:
        CheckpointError: there is none, or all are damaged.
    """
    files = checkpoint_files(folder)
    if not files:
        raise CheckpointError("the run folder holds no checkpoint yet")
    reasons = []
    for file in files:
        try:
            return _read(file)
        except CheckpointError as damage:
            warn(f"checkpoint {file.name} is damaged ({damage}); using the previous one")
            reasons.append(str(damage))
    raise CheckpointError(
        f"all {len(files)} checkpoints of the run are damaged ({', '.join(dict.fromkeys(reasons))}).\n"
        "Nothing was changed. Restore one with its .sha256, or replace the run with --overwrite."
    )


def checkpoint_files(folder: Path) -> list[Path]:
    """Return a run's checkpoints, the newest first."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def _read(file: Path) -> dict[str, Any]:
    try:
        recorded = _recorded(file)
        if not recorded:
            raise CheckpointError("its SHA-256 is missing")
        if sha256_of(file) not in recorded:
            raise CheckpointError("its SHA-256 differs")
    except OSError as error:
        raise CheckpointError(error.strerror or first_line(error)) from None
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever it is, the file is not one that save_checkpoint wrote
        raise CheckpointError(first_line(error)) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise CheckpointError(f"format {found}, this version reads {FORMAT}")
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
    source: str, settings: RunSettings, warn: Callable[[str], None] = lambda _: None, *, whole: bool = True
) -> tuple[Backbone, dict[str, Any]]:
    """Return the encoder that a run folder, a weights file or the word "random" stands for.

    Args:
        source: Run folder, weights file of any known scheme, or "random" for the untrained network of the seed.
        settings: Name the architecture and how it is fed; a run must agree with them.
        warn: Told of damaged checkpoints.
        whole: It is to see whole images, of `evaluate.size` (or `views.size`), unlike that of a detector.

    Returns:
        The backbone and what it is: kind, step and epoch.

    Raises:
        CheckpointError: unreadable, or of another architecture.
        SettingsError: the run was fed differently from what the settings say, or cannot take evaluate.size.
    """
    untrained = settings.model.model_copy(update={"init": None})
    size, channels = settings.views.size, settings.data.channel_count
    backbone = create_backbone(untrained, seed=settings.seed, size=size, channels=channels)
    if backbone.fixed_size and settings.evaluate.size not in (None, backbone.fixed_size):
        raise SettingsError(
            f"evaluate.size {settings.evaluate.size}: {backbone.name} takes views of {backbone.fixed_size} pixels only"
        )
    if whole:
        key = "evaluate.size" if settings.evaluate.size else "views.size"
        check_size(backbone, settings.evaluate.size or size, key)
    if source == "random":
        return backbone, {"kind": "random"}
    path = Path(source)
    if path.is_dir():
        _refuse_other_input(load_run(path), settings)
        content = load_checkpoint(path / "checkpoints", warn)
        prefix = "query_encoder.backbone.net."
        model = content.get("model", {})
        state = {key.removeprefix(prefix): value for key, value in model.items() if key.startswith(prefix)}
        if not state:
            raise CheckpointError(
                f"{path} holds no pretrained encoder; where it is a fine-tuning run, `medmoco predict` and `external`\n"
                "take the classifier folder in it, and --encoder the run that it started from"
            )
        try:
            backbone.net.load_state_dict(state)
        except RuntimeError:
            raise CheckpointError(
                f"the checkpoint of step {content['step']} does not hold a {backbone.name} of the run's settings"
            ) from None
        return backbone, {"kind": "run", "step": content["step"]}
    load_weights(backbone, path)
    return backbone, {"kind": "file"}


def _refuse_other_input(trained: RunSettings, settings: RunSettings) -> None:
    """An encoder fed another way than it was trained gives plausible, wrong features; refuse it."""
    keys = ("model.backbone", "views.mean", "views.std", "data.channels", "data.window", "data.scale",
            "data.band_ranges", "data.bit_depth")  # fmt: skip
    was, now = dict(flatten(as_tree(trained))), dict(flatten(as_tree(settings)))
    changed = [f"{key}: run {was[key]}, settings {now[key]}" for key in keys if was[key] != now[key]]
    if changed:
        raise SettingsError("the run was trained with other settings than these:\n" + "\n".join(changed[:4]))
