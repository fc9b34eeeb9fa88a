"""Atomic, hashed, resumable checkpoints of tensors and plain values.

A file and its SHA-256 are written to temporary files, fsynced and renamed, the hash first, and the folder is fsynced
after each rename; so a crash at any moment leaves the previous checkpoint. torch.load does not notice a flipped bit;
the hash does.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from medmoco.config import RunSettings, Tree, as_tree, flatten
from medmoco.errors import CheckpointError, first_line
from medmoco.utils.files import replacing, sha256_of

FORMAT = 1
KEPT = 3

# Checkpoints do not contain the paths of this machine.
_LOCAL = (
    "out", "data.manifest", "data.root", "data.join.file", "data.pack", "data.pack_cache", "model.init",
    "detection.boxes",
)  # fmt: skip


def portable_settings(settings: RunSettings) -> Tree:
    """Return the settings as "group.key" -> value, without those that are paths."""
    return {key: value for key, value in flatten(as_tree(settings)) if key not in _LOCAL}


def save_checkpoint(folder: Path, step: int, content: dict[str, Any]) -> Path:
    """Write tensors and plain values after a step to a run's `checkpoints/`; delete all but the last three.

    Raises:
        CheckpointError: the file cannot be written; earlier checkpoints are untouched.
    """
    target = checkpoint_file(folder, step)
    content = {"format": FORMAT, "step": step, **content}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _drop_leftovers(folder)
        with _hashed(target) as temporary, temporary.open("wb") as file:  # given a path, torch hides why it fails
            torch.save(content, file)
        _drop_old(folder, step)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(_refusal(folder, content, error)) from None
    return target


def keep_as_best(folder: Path, step: int, best: Path) -> None:
    """Keep the checkpoint of a step in the folder `best` too, and no other; a hard link, if possible, takes no space.

    Raises:
        CheckpointError: it cannot be written; `folder` is untouched, and so is an earlier one in `best`.
    """
    source = checkpoint_file(folder, step)
    target = best / source.name
    try:
        best.mkdir(exist_ok=True)
        _drop_leftovers(best)  # before copying, which would overwrite the checkpoint that a leftover is linked to
        if not (target.exists() and target.samefile(source)):  # renaming a link to the same file would do nothing
            with _hashed(target) as temporary:
                try:
                    os.link(source, temporary)
                except OSError:  # the file system has no hard links
                    shutil.copyfile(source, temporary)
        keep_only(best, step)
    except OSError as error:
        raise CheckpointError(
            f"the best checkpoint, of step {step}, cannot be kept in {best.name}/: {error.strerror}\n"
            "All checkpoints are intact. Free some space or make the run folder writable, then continue with --resume."
        ) from None


def keep_only(folder: Path, step: int) -> None:
    """Delete all checkpoints in a folder except that of a step."""
    _delete(file for file in checkpoint_files(folder) if file != checkpoint_file(folder, step))


@contextmanager
def _hashed(target: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces a checkpoint once the block has written it, and record its hash."""
    with replacing(target, durable=True) as temporary:
        yield temporary
        new, old = sha256_of(temporary), _recorded(target)
        # Until the new file has its name, an old one of the same step must count as intact too.
        _record(target, [new, *old])
    if old:
        _record(target, [new])


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
    """Remove the files that a crash during an earlier save left behind."""
    for file in folder.glob("step-*.tmp"):
        file.unlink(missing_ok=True)
    for file in folder.glob("step-*.pt.sha256"):
        if not file.with_suffix("").exists():
            file.unlink(missing_ok=True)


def _drop_old(folder: Path, step: int) -> None:
    """Keep the last three up to this step; later ones are damaged, or this step would not have been repeated."""
    files = sorted(folder.glob("step-*.pt"))
    kept = [file for file in files if file.stem <= f"step-{step:09d}"][-KEPT:]
    _delete(file for file in files if file not in kept)


def keep_newest(folder: Path) -> None:
    """Delete all checkpoints of a finished run except the last."""
    _delete(checkpoint_files(folder)[1:])


def _delete(files: Iterable[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
        _hash_file(file).unlink(missing_ok=True)


def _refusal(folder: Path, content: dict[str, Any], error: Exception) -> str:
    """Clean up after a failed save and return why it failed."""
    cause = error.__context__ if isinstance(error.__context__, OSError) else error  # torch hides a full disk in its own
    reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else first_line(cause)
    with suppress(OSError):  # this may fail too; the next save tries again
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


class _Counter(io.RawIOBase):
    """A file that counts bytes and stores nothing."""

    bytes = 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.bytes += size
        return size


def load_checkpoint(folder: Path, warn: Callable[[str], None]) -> dict[str, Any]:
    """Read the newest undamaged checkpoint in a run's `checkpoints/`; `warn` receives a line for each damaged one.

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


def load_best(folder: Path) -> dict[str, Any]:
    """Read the checkpoint that `keep_as_best` kept in a folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    newest = f"use the newest checkpoint instead: give {folder.parent} as the encoder"
    files = checkpoint_files(folder)
    if not files:
        raise CheckpointError(
            f"{folder} holds no checkpoint: the run has no kNN score, which needs data.labels and train.knn_every;\n"
            f"{newest}"
        )
    try:
        return _read(files[0])
    except CheckpointError as damage:
        raise CheckpointError(f"the best checkpoint, {files[0].name}, is damaged ({damage});\n{newest}") from None


def checkpoint_file(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return folder / f"step-{step:09d}.pt"


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
    except Exception as error:  # of any kind: save_checkpoint did not write this file
        raise CheckpointError(first_line(error)) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise CheckpointError(f"format {found}, this version reads {FORMAT}")
    return content


def _hash_file(file: Path) -> Path:
    return file.with_suffix(".pt.sha256")
