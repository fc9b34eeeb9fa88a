"""Manifest -> pack: what lies where, what an earlier run left, what is still to do, and the files that close a pack.

Which canvas lies where follows from the manifest alone, so the bytes are the same whatever the number of workers and
however often the work was interrupted. Until the pack is complete, the folder `unfinished` holds what was asked for and
a record for each finished shard.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import math
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmoco import __version__
from medmoco.config import DataSettings
from medmoco.data.image_io.intensity import worth_saying
from medmoco.data.manifest.file_checks import FileFault, check_files
from medmoco.data.manifest.manifest import Split, load_manifest, present_splits
from medmoco.data.pack.pack import (
    FAILED,
    FORMAT,
    FORMAT_OF_CHANNELS,
    INDEX,
    INFO,
    NOTICES,
    ROW,
    Pack,
    canvas_shape,
    keys_of,
    load_pack,
    read_info,
    recipe_of,
    refuse_other_recipe,
    shard_name,
)
from medmoco.data.pack.pack_shards import (
    RECORDS,
    Found,
    Record,
    Shard,
    read_record,
    write_atomically,
    write_record,
    write_shards,
)
from medmoco.errors import DataError, SettingsError, Stopped
from medmoco.utils.files import sha256_of
from medmoco.utils.guarded import map_guarded
from medmoco.utils.progress import track
from medmoco.utils.stopping import stop_requests

# Large enough for any file system and object store to be fast, small enough that losing one costs minutes even where a
# core decodes five images a second: 1,024 canvases of 256 pixels.
SHARD_BYTES = 2**26

_PLAN = "plan.json"
_OTHER = "use the settings of the pack, give --out another folder, or delete the pack"

Say = Callable[[str], None]
Lists = defaultdict[tuple[str, int], list[str]]  # remarks by split and row
Writer = Callable[[Path, Iterable[Shard], DataSettings, Callable[[], bool]], Iterator[int]]
"""Makes shards in a folder until asked to stop, and yields a shard's number for each image that is done."""


@dataclass(frozen=True)
class Plan:
    """What lies where: canvas i in shard i // per_shard.

    Attributes:
        data: The settings.
        index: (N,) records of ROW, of which only what the manifest tells is filled in.
        files: (N,) paths.
        per_shard: Canvases of a full shard.
        manifest: SHA-256 and number of rows of each split.
        frames_are_named: The manifest has a Frame column.
    """

    data: DataSettings
    index: NDArray[Any]
    files: NDArray[Any]
    per_shard: int
    manifest: dict[str, Any]
    frames_are_named: bool = False

    @property
    def canvas_bytes(self) -> int:
        """Size of a canvas."""
        return bytes_of_canvas(self.data)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return math.ceil(len(self.index) / self.per_shard)

    def part(self, number: int) -> slice:
        """Return which canvases are a shard's."""
        start = number * self.per_shard
        return slice(start, start + self.length(number))

    def length(self, number: int) -> int:
        """Return how many canvases a shard has."""
        return min(self.per_shard, len(self.index) - number * self.per_shard)

    def shard(self, number: int, record: Record | None) -> Shard:
        """Return the work of a shard of which a record may be there."""
        part = self.part(number)
        known = {i: image for i, image in enumerate(record.images) if not image.failure} if record else {}
        return Shard(number, self.files[part].tolist(), self.index["frame"][part].tolist(), known)


def bytes_of_canvas(data: DataSettings) -> int:
    """Return the size of a canvas."""
    return math.prod(canvas_shape(data)) * (data.bit_depth // 8)


def make_pack(data: DataSettings, out: Path, log: Say, write: Writer | None = None) -> int:
    """Make a pack of all splits of the manifest, go on with one, or check and mend one that is complete.

    Args:
        data: What to pack and how.
        out: Folder of the pack: new, empty, or holding a pack of the same.
        log: Told what is being done.
        write: Makes the shards; None is on this machine, with data.workers processes.

    Returns:
        The number of images that could not be packed.

    Raises:
        SettingsError: `out` holds something else, another process is at it, or the disk is too small.
        DataError: the manifest or a whole root cannot be used, files have changed, or the disk refuses.
        Stopped: a signal asked for it; finished shards stay.
    """
    write = write or _on_this_machine
    plan = _make_plan(data)
    with _claimed(out):
        if (out / INFO).is_file():
            plan = replace(plan, per_shard=read_info(out)["canvases_per_shard"])
            failed = _reopen(plan, out, log)
            if failed is not None:
                return failed
        _check_plan(plan, out)
        todo = _todo(plan, out)
        images = sum(todo.values())
        _check_space(plan, out, sum(plan.length(n) for n in todo if todo[n] == plan.length(n)))
        if todo:
            ready = plan.shards - len(todo)
            there = f"; {ready} of {plan.shards} shards are there already" if ready else ""
            log(f"packing {images} images to canvases of {data.canvas_size} pixels{there}")
        shards = (plan.shard(number, read_record(out, number)) for number in todo)
        with stop_requests() as stop_asked:
            done = sum(1 for _ in track(write(out, shards, data, stop_asked), images, "packing"))
        if done < images:
            raise Stopped(
                f"stopped packing after {done} of {images} images; finished shards are kept.\n"
                "The same command goes on from there."
            )
        return _finish(plan, out, log)


def _on_this_machine(
    out: Path, shards: Iterable[Shard], data: DataSettings, stop_asked: Callable[[], bool]
) -> Iterator[int]:
    return write_shards(out, shards, data, stop_asked, workers=max(1, data.workers))


# What is asked for


def _make_plan(data: DataSettings) -> Plan:
    """List every image once, in the order of train, val and test."""
    splits = load_manifest(data, present_splits(data))
    for split in splits.values():
        _refuse_wrong_root(split, data)
    keys = np.concatenate([keys_of(split, data) for split in splits.values()])
    files = np.concatenate([split.files for split in splits.values()])
    names = [name for name, split in splits.items() for _ in range(len(split))]
    rows = np.concatenate([split.rows for split in splits.values()])
    frames = np.concatenate([split.frames for split in splits.values()])
    _, first = np.unique(keys, return_index=True)  # one canvas for an image that several splits share
    first.sort()
    index = np.zeros(len(first), ROW)
    per_shard = max(1, SHARD_BYTES // bytes_of_canvas(data))
    index["key"], index["row"], index["frame"] = keys[first], rows[first], frames[first]
    index["split"] = np.array(names, "S5")[first]
    manifest = {name: {"sha256": split.sha256, "rows": len(split)} for name, split in splits.items()}
    frames_are_named = all(split.names_frames for split in splits.values())
    return Plan(data, index, files[first], per_shard, manifest, frames_are_named)


def _refuse_wrong_root(split: Split, data: DataSettings) -> None:
    """A missing file is a failed row; a hundred of a hundred are a wrong data.root, as are links that leave it."""
    check_files(split, data, [FileFault.OUTSIDE])
    sample = np.unique(np.linspace(0, len(split) - 1, 100).astype(np.int64))
    if not any(os.path.isfile(split.files[i]) for i in sample):
        check_files(split, data)


def _check_plan(plan: Plan, out: Path) -> None:
    """Note what is asked for, or make sure that it is what was asked for before."""
    asked = {
        "recipe": recipe_of(plan.data),
        "images": len(plan.index),
        "canvases_per_shard": plan.per_shard,
        "keys_sha256": hashlib.sha256(plan.index["key"].tobytes()).hexdigest(),
    }
    file = out / RECORDS / _PLAN
    if not any(file.parent.glob("*.npy.json")):
        write_atomically(file, lambda stream: stream.write(json.dumps(asked).encode()))
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    refuse_other_recipe(before["recipe"], plan.data, _OTHER)
    if before != asked:
        raise SettingsError(
            f"{out} holds an unfinished pack of another manifest ({before['images']} images, this one has "
            f"{asked['images']});\ngive --out another folder, or delete it"
        )


def _todo(plan: Plan, out: Path) -> dict[int, int]:
    """Return how many images are to be decoded for each shard that is not done or has failed rows."""
    todo = {}
    for number in range(plan.shards):
        record = read_record(out, number)
        if count := len(record.failed) if record else plan.length(number):
            todo[number] = count
    return todo


def _check_space(plan: Plan, out: Path, missing: int) -> None:
    needed = missing * plan.canvas_bytes + 3 * plan.index.nbytes + SHARD_BYTES
    free = shutil.disk_usage(out).free
    if needed > free:
        raise SettingsError(
            f"the pack needs {needed / 1e9:.2f} GB more, but the disk of {out} has {free / 1e9:.2f} GB free;\n"
            "free some, give --out a folder on another disk, or lower data.canvas_size"
        )


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Keep other processes out of a folder while it is written."""
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or _holds_pack(out))):
        raise SettingsError(f"{out} holds something else than a pack; give --out a new folder")
    try:
        (out / RECORDS).mkdir(parents=True, exist_ok=True)
        lock = (out / RECORDS / "lock").open("w")
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}") from None
    with lock:
        try:
            # Not flock, which data workers would inherit; they may outlive this process by an image.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise SettingsError(f"another process is making the pack in {out}; let it finish") from None
        except OSError:
            pass  # a file system without locks
        _drop_half_written(out)
        yield


def _drop_half_written(out: Path) -> None:
    for file in [*out.glob("*.tmp"), *(out / RECORDS).glob("*.tmp")]:
        file.unlink(missing_ok=True)


def _holds_pack(out: Path) -> bool:
    return (out / INFO).is_file() or (out / RECORDS).is_dir()


# A pack that is complete


def _reopen(plan: Plan, out: Path, log: Say) -> int | None:
    """Check a complete pack, and where something can be mended turn it back into an unfinished one.

    Returns:
        The number of the manifest's images that could not be packed; None where there is something to mend.
    """
    pack = load_pack(out, plan.data, _OTHER)
    if not np.array_equal(pack.index["key"], plan.index["key"]):
        lacking = len(np.setdiff1d(plan.index["key"], pack.index["key"]))
        shutil.rmtree(out / RECORDS)
        if lacking:
            raise SettingsError(
                f"the pack in {out} lacks {lacking} of the manifest's {len(plan.index)} images;\n"
                "give --out another folder to make a new pack"
            )
        log(f"the pack is complete: it holds all {len(plan.index)} images of this manifest")
        failed = pack.index["key"][pack.index["height"] == 0]
        return int(np.isin(failed, plan.index["key"]).sum())
    _refuse_changed_sources(plan, pack, log)
    hashes = {number: pack.info["files"][shard_name(number)]["sha256"] for number in range(plan.shards)}
    damaged = [shard_name(number) for number, sha256 in hashes.items() if _hash(out / shard_name(number)) != sha256]
    if damaged:
        log(f"{len(damaged)} shards are damaged and will be made again: {', '.join(damaged[:3])}")
    if not damaged and not pack.info["failed"]:
        shutil.rmtree(out / RECORDS)
        log(f"the pack is complete: its {len(plan.index)} canvases and their files are as they were")
        return 0
    for leftover in (out / RECORDS).glob("*.json"):  # of an attempt to mend it that did not get far
        leftover.unlink()
    _check_plan(plan, out)
    notices, failures = (_read_list(pack.folder / name) for name in (NOTICES, FAILED))
    for number, sha256 in hashes.items():
        if shard_name(number) not in damaged:
            images = [_found(row, notices, failures) for row in pack.index[plan.part(number)]]
            write_record(out, number, Record(sha256, images))
    (out / INFO).unlink()
    return None


def _found(row: Any, notices: Lists, failures: Lists) -> Found:
    """Read back what was found of an image."""
    where = row["split"].decode(), int(row["row"])
    height, width, size = (int(row[column]) for column in ("height", "width", "bytes"))
    return Found(height, width, size, row["sha256"].decode(), tuple(notices[where]), "".join(failures[where]))


def _refuse_changed_sources(plan: Plan, pack: Pack, log: Say) -> None:
    packed = np.flatnonzero(pack.index["height"])
    hashes = map_guarded(
        _hash, (plan.files[i] for i in packed), workers=max(1, plan.data.workers), seconds=plan.data.decode_seconds,
        megabytes=plan.data.decode_megabytes,
    )  # fmt: skip
    changed, absent = [], 0
    for number, digest in track(hashes, len(packed), "checking"):
        row = pack.index[packed[number]]
        if not digest:
            absent += 1
        elif digest != row["sha256"].decode():
            changed.append((row["split"].decode(), int(row["row"])))
    if absent:
        log(f"{absent} files are no longer there and could not be compared")
    if changed:
        rows = ", ".join(f"{split} {row}" for split, row in sorted(changed)[:3]) + ", ..." * (len(changed) > 3)
        raise DataError(
            f"{len(changed)} files have changed since they were packed (rows: {rows});\n"
            "give --out another folder to make a new pack, or delete this one"
        )


def _hash(file: str | Path) -> str:
    return sha256_of(file) if os.path.isfile(file) else ""


# The files that close a pack


def _finish(plan: Plan, out: Path, log: Say) -> int:
    """Write the index, the lists and pack.json; return the number of failures."""
    index = plan.index.copy()
    index["shard"], index["position"] = np.divmod(np.arange(len(index)), plan.per_shard)
    hashes = {}
    noticed: list[tuple[str, int, str]] = []
    failed: list[tuple[str, int, str]] = []
    for number in range(plan.shards):
        record = read_record(out, number)
        assert record is not None
        hashes[shard_name(number)] = record.sha256
        rows = index[plan.part(number)]
        for column in ("height", "width", "bytes", "sha256"):
            rows[column] = [getattr(image, column) for image in record.images]
        for row, image in zip(rows, record.images, strict=True):
            where = row["split"].decode(), int(row["row"])
            said = worth_saying(image.notices, frames_are_named=plan.frames_are_named)
            noticed += [(*where, notice) for notice in said]
            failed += [(*where, image.failure)] if image.failure else []
    hashes[INDEX] = write_atomically(out / INDEX, lambda stream: np.save(stream, index))
    hashes[FAILED] = _write_list(out / FAILED, "reason", failed)
    hashes[NOTICES] = _write_list(out / NOTICES, "notice", noticed)
    _drop_half_written(out)  # by a worker of a cluster that was killed
    info = {
        "format": FORMAT if plan.data.channels == "gray" else FORMAT_OF_CHANNELS,
        "medmoco": __version__,
        "recipe": recipe_of(plan.data),
        "images": len(index),
        "failed": len(failed),
        "canvases_per_shard": plan.per_shard,
        "manifest": plan.manifest,
        "files": {name: {"bytes": (out / name).stat().st_size, "sha256": sha256} for name, sha256 in hashes.items()},
    }
    write_atomically(out / INFO, lambda stream: stream.write((json.dumps(info, indent=1) + "\n").encode()))
    shutil.rmtree(out / RECORDS)
    for notice, count in Counter(notice for *_, notice in noticed).most_common():
        log(f"{count} images: {notice}")
    size = sum(file.stat().st_size for file in out.iterdir())
    log(f"the pack is complete: {len(index) - len(failed)} of {len(index)} images, {size / 1e9:.2f} GB")
    return len(failed)


def _write_list(file: Path, what: str, lines: list[tuple[Any, ...]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("split", "row", what), *lines])
    return write_atomically(file, lambda stream: stream.write(text.getvalue().encode()))


def _read_list(file: Path) -> Lists:
    listed: Lists = defaultdict(list)
    with file.open(encoding="utf-8", newline="") as stream:
        for split, row, what in list(csv.reader(stream))[1:]:
            listed[split, int(row)].append(what)
    return listed
