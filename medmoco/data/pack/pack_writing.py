"""Make a pack of a manifest: plan its layout, resume or repair earlier work, and write the final files.

The position of each canvas follows from the manifest alone, so the bytes do not depend on the number of workers or on
interruptions. Until the pack is complete, the folder `unfinished` contains the plan and a record of each finished
shard.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmoco import __version__
from medmoco.config import DataSettings
from medmoco.data.image_io.intensity import relevant_notices
from medmoco.data.manifest.file_checks import FileFault, check_files
from medmoco.data.manifest.manifest import Split, load_manifest, present_splits
from medmoco.data.pack.pack import (
    FAILED,
    FORMAT,
    FORMAT_OF_CHANNELS,
    FORMAT_OF_VOLUMES,
    INDEX,
    INFO,
    NOTICES,
    Pack,
    canvas_shape,
    has_canvas,
    keys_of,
    load_pack,
    read_info,
    recipe_of,
    refuse_other_recipe,
    row_type,
    series_of,
)
from medmoco.data.pack.pack_records import fill, read_list, result_of, write_list
from medmoco.data.pack.pack_shards import (
    RECORDS,
    Record,
    Shard,
    read_record,
    write_atomically,
    write_record,
    write_shards,
)
from medmoco.data.pack.pack_sources import size_and_hash
from medmoco.data.pack.shard_files import shard_name
from medmoco.errors import DataError, SettingsError, Stopped
from medmoco.utils.files import lock_or_refuse, sha256_of
from medmoco.utils.guarded import map_guarded
from medmoco.utils.jobs.cluster import Cluster, Needs, absolute, first_existing
from medmoco.utils.progress import track
from medmoco.utils.stopping import stop_requests

# Large enough to be efficient on file systems and object stores, small enough that losing one costs only minutes at
# five decoded images per second and core: 1,024 canvases of 256 pixels.
SHARD_BYTES = 2**26
# Their canvases differ in size, which is unknown before they are read. Four take up to a minute and 0.7 GB (CT at 1 mm
# and 8 bits); 10,000 volumes make 2,500 files.
VOLUMES_PER_SHARD = 4

_PLAN = "plan.json"
_OTHER = "use the settings of the pack, choose another folder with --out, or delete the pack"

Log = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """The layout of a pack: canvas i is in shard i // per_shard."""

    data: DataSettings
    index: NDArray[Any]  # (N,) records of ROW or VOLUME_ROW, with only the fields known from the manifest
    files: NDArray[Any]  # (N,) paths
    per_shard: int  # canvases per full shard
    manifest: dict[str, Any]  # SHA-256 and number of rows of each split
    frames_are_named: bool = False  # whether the manifest has a Frame column
    series: tuple[str, ...] = ()  # N SeriesInstanceUIDs of volumes; blank if none is needed

    @property
    def shards(self) -> int:
        """Number of shards."""
        return math.ceil(len(self.index) / self.per_shard)

    def part(self, number: int) -> slice:
        """Return the range of canvases in a shard."""
        start = number * self.per_shard
        return slice(start, start + self.length(number))

    def length(self, number: int) -> int:
        """Return the number of canvases in a shard."""
        return min(self.per_shard, len(self.index) - number * self.per_shard)

    def shard(self, number: int, record: Record | None) -> Shard:
        """Return the work to make a shard, using its record if there is one."""
        part = self.part(number)
        known = {i: image for i, image in enumerate(record.images) if not image.failure} if record else {}
        files, frames = absolute(self.files[part]), self.index["frame"][part].tolist()
        return Shard(number, files, frames, known, list(self.series[part]))


def bytes_of_canvas(data: DataSettings) -> int:
    """Return the size of a canvas, in bytes."""
    return math.prod(canvas_shape(data)) * (data.bit_depth // 8)


def make_pack(data: DataSettings, out: Path, log: Log, cluster: Cluster | None = None) -> int:
    """Make a pack of all splits of the manifest, resume an incomplete one, or verify and repair a complete one.

    Args:
        data: Data settings.
        out: Folder of the pack: new, empty, or with a pack of the same images and settings.
        log: Receives progress messages.
        cluster: Makes the shards; None means this machine, with data.workers processes.

    Returns:
        The number of images that could not be packed.

    Raises:
        SettingsError: `out` contains something else, another process is using it, the disk is too small, or the
            cluster cannot access the files.
        DataError: the manifest or the whole root cannot be used, files have changed, or writing fails.
        Stopped: a signal has requested it; finished shards are kept.
    """
    plan = _make_plan(data, log)
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
            finished = f"; {ready} of {plan.shards} shards are already finished" if ready else ""
            canvases = f" as canvases of {data.canvas_size} pixels" if data.dimensions == 2 else ""
            log(f"packing {images} {data.noun}{canvases}{finished}")
        shards = (plan.shard(number, read_record(out, number)) for number in todo)
        with stop_requests() as stop_asked:
            done = sum(track(_write(plan, out, shards, stop_asked, cluster), images, "packing", size=int))
        if done < images:
            raise Stopped(
                f"stopped packing after {done} of {images} {data.noun}; finished shards are kept.\n"
                "Run the same command to continue."
            )
        return _finish(plan, out, log)


def _write(
    plan: Plan, out: Path, shards: Iterable[Shard], stop_asked: Callable[[], bool], cluster: Cluster | None
) -> Iterator[int]:
    if cluster is None:
        return write_shards(out, plan.data, shards, stop_asked, workers=max(1, plan.data.workers))
    make = partial(write_shards, out.absolute(), plan.data, workers=1)
    return cluster.run(make, shards, stop_asked, Needs(out, {"the images below data.root": first_existing(plan.files)}))


# The plan


def _make_plan(data: DataSettings, log: Log) -> Plan:
    """Return the layout, with every image once, in the order of train, val and test."""
    splits = load_manifest(data, present_splits(data))
    for split in splits.values():
        for notice in split.table_notices:
            log(notice)
        _refuse_wrong_root(split, data)
    keys = np.concatenate([keys_of(split, data) for split in splits.values()])
    files = np.concatenate([split.files for split in splits.values()])
    names = [name for name, split in splits.items() for _ in range(len(split))]
    rows = np.concatenate([split.rows for split in splits.values()])
    frames = np.concatenate([split.frames for split in splits.values()])
    _, first = np.unique(keys, return_index=True)  # one canvas for an image that several splits share
    first.sort()
    index = np.zeros(len(first), row_type(data))
    per_shard = max(1, SHARD_BYTES // bytes_of_canvas(data)) if data.dimensions == 2 else VOLUMES_PER_SHARD
    index["key"], index["row"], index["frame"] = keys[first], rows[first], frames[first]
    index["split"] = np.array(names, "S5")[first]
    manifest = {name: {"sha256": split.sha256, "rows": len(split)} for name, split in splits.items()}
    frames_are_named = all(split.names_frames for split in splits.values())
    series = [uid for split in splits.values() for uid in series_of(split, data)]
    named = tuple(series[at] for at in first.tolist())
    return Plan(data, index, files[first], per_shard, manifest, frames_are_named, named)


def _refuse_wrong_root(split: Split, data: DataSettings) -> None:
    """Refuse a wrong data.root, from which a sample of a hundred files is missing, and links that lead out of it."""
    check_files(split, data, [FileFault.OUTSIDE])
    is_there = os.path.isfile if data.dimensions == 2 else os.path.exists  # a volume may be a folder
    if not any(is_there(split.files[i]) for i in split.spread(100)):
        check_files(split, data)


def _check_plan(plan: Plan, out: Path) -> None:
    """Write the plan of a new pack, or check that it equals that of the incomplete pack in the folder."""
    requested = {
        "recipe": recipe_of(plan.data),
        "images": len(plan.index),
        "canvases_per_shard": plan.per_shard,
        "keys_sha256": hashlib.sha256(plan.index["key"].tobytes()).hexdigest(),
    }
    file = out / RECORDS / _PLAN
    if not any(file.parent.glob("*.npy.json")):
        write_atomically(file, lambda stream: stream.write(json.dumps(requested).encode()))
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    refuse_other_recipe(before["recipe"], plan.data, _OTHER)
    if before != requested:
        raise SettingsError(
            f"{out} contains an unfinished pack of another manifest ({before['images']} images, this one has "
            f"{requested['images']});\nchoose another folder with --out, or delete this one"
        )


def _todo(plan: Plan, out: Path) -> dict[int, int]:
    """Return the number of images to decode in each shard that is not finished or has failed rows."""
    todo = {}
    for number in range(plan.shards):
        record = read_record(out, number)
        if count := len(record.failed) if record else plan.length(number):
            todo[number] = count
    return todo


def _check_space(plan: Plan, out: Path, missing: int) -> None:
    # The size of volumes is unknown before they are read.
    canvases = missing * bytes_of_canvas(plan.data) if plan.data.dimensions == 2 else 0
    needed = canvases + 3 * plan.index.nbytes + SHARD_BYTES
    free = shutil.disk_usage(out).free
    if needed > free:
        raise SettingsError(
            f"the pack needs {needed / 1e9:.2f} GB more, but the disk of {out} has {free / 1e9:.2f} GB free;\n"
            "free some space, choose a folder on another disk with --out, or lower data.canvas_size"
        )


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Lock a folder against other processes while it is written."""
    is_pack = (out / INFO).is_file() or (out / RECORDS).is_dir()
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or is_pack)):
        raise SettingsError(f"{out} is not a pack and not empty; choose a new folder with --out")
    try:
        (out / RECORDS).mkdir(parents=True, exist_ok=True)
        lock = (out / RECORDS / "lock").open("w")
    except OSError as error:
        raise SettingsError(f"{out} cannot be written: {error.strerror}") from None
    with lock:
        lock_or_refuse(lock, f"another process is making the pack in {out}; wait until it has finished")
        _drop_half_written(out)
        yield


def _drop_half_written(out: Path) -> None:
    for file in [*out.glob("*.tmp"), *(out / RECORDS).glob("*.tmp")]:
        file.unlink(missing_ok=True)


# Complete packs


def _reopen(plan: Plan, out: Path, log: Log) -> int | None:
    """Verify a complete pack, and turn it back into an unfinished one if something can be repaired.

    Returns:
        The number of the manifest's images that could not be packed; None if there is something to repair.
    """
    pack = load_pack(out, plan.data, _OTHER)
    if not np.array_equal(pack.index["key"], plan.index["key"]):
        lacking = len(np.setdiff1d(plan.index["key"], pack.index["key"]))
        shutil.rmtree(out / RECORDS)
        if lacking:
            raise SettingsError(
                f"the pack in {out} lacks {lacking} of the manifest's {len(plan.index)} images;\n"
                "choose another folder with --out to make a new pack"
            )
        log(f"the pack is complete: it contains all {len(plan.index)} images of this manifest")
        failed = pack.index["key"][~has_canvas(pack.index)]
        return int(np.isin(failed, plan.index["key"]).sum())
    _refuse_changed_sources(plan, pack, log)
    hashes = {number: pack.info["files"][shard_name(number)]["sha256"] for number in range(plan.shards)}
    damaged = [shard_name(number) for number, sha256 in hashes.items() if _hash(out / shard_name(number)) != sha256]
    if damaged:
        log(f"{len(damaged)} shards are damaged and will be made again: {', '.join(damaged[:3])}")
    if not damaged and not pack.info["failed"]:
        shutil.rmtree(out / RECORDS)
        log(f"the pack is complete: its {len(plan.index)} canvases and their files are unchanged")
        return 0
    for leftover in (out / RECORDS).glob("*.json"):  # of an earlier, interrupted repair
        leftover.unlink()
    _check_plan(plan, out)
    notices, failures = read_list(out / NOTICES), read_list(out / FAILED)
    for number, sha256 in hashes.items():
        if shard_name(number) not in damaged:
            images = [result_of(row, notices, failures) for row in pack.index[plan.part(number)]]
            write_record(out, number, Record(sha256, images))
    (out / INFO).unlink()
    return None


def _refuse_changed_sources(plan: Plan, pack: Pack, log: Log) -> None:
    packed = np.flatnonzero(has_canvas(pack.index))
    sources = ((plan.files[i], plan.series[i]) for i in packed)
    hashes = map_guarded(
        _hash_source, sources, workers=max(1, plan.data.workers), seconds=plan.data.decode_seconds,
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
        log(f"{absent} files no longer exist and could not be compared")
    if changed:
        rows = ", ".join(f"{split} {row}" for split, row in sorted(changed)[:3]) + ", ..." * (len(changed) > 3)
        raise DataError(
            f"{len(changed)} files have changed since they were packed (rows: {rows});\n"
            "choose another folder with --out to make a new pack, or delete this one"
        )


def _hash(file: Path) -> str:
    return sha256_of(file) if file.is_file() else ""


def _hash_source(source: tuple[str, str]) -> str:
    return size_and_hash(*source)[1] if os.path.exists(source[0]) else ""


# Finishing a pack


def _finish(plan: Plan, out: Path, log: Log) -> int:
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
        fill(rows, record.images)
        for row, image in zip(rows, record.images, strict=True):
            where = row["split"].decode(), int(row["row"])
            relevant = relevant_notices(image.notices, frames_are_named=plan.frames_are_named)
            noticed += [(*where, notice) for notice in relevant]
            failed += [(*where, image.failure)] if image.failure else []
    hashes[INDEX] = write_atomically(out / INDEX, lambda stream: np.save(stream, index))
    hashes[FAILED] = write_list(out / FAILED, "reason", failed)
    hashes[NOTICES] = write_list(out / NOTICES, "notice", noticed)
    _drop_half_written(out)  # by cluster workers that were killed
    image_format = FORMAT if plan.data.channels == "gray" else FORMAT_OF_CHANNELS
    info = {
        "format": image_format if plan.data.dimensions == 2 else FORMAT_OF_VOLUMES,
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
        log(f"{count} {plan.data.noun}: {notice}")
    size = sum(file.stat().st_size for file in out.iterdir())
    log(f"the pack is complete: {len(index) - len(failed)} of {len(index)} {plan.data.noun}, {size / 1e9:.2f} GB")
    return len(failed)
