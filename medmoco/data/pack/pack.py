"""A pack: canvases decoded once and stored in plain `.npy` files, indexed by Path and Frame.

    pack.json         how it was made, with the SHA-256 of every other file; written last, so it marks a complete pack
    index.npy         one record of ROW per canvas
    shard-00000.npy   (n, S, S) uint8 or uint16 canvases, or (n, S, S, C) with several channels
    failed.csv        rows whose image could not be used, with the reason
    notices.csv       rows with notices of the image reader

A pack of volumes has records of VOLUME_ROW, and shards of bytes that `pack_volumes` describes.

Rows are looked up by a hash of Path, Frame and series, so a manifest may be reordered, reduced or split again after
packing.
Canvases are read by `pread`, not through a memory map: the memory of data workers stays constant, and a failing disk
raises an error instead of killing the process.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmoco.config import DataSettings, as_tree
from medmoco.data.image_io.images import Canvas
from medmoco.data.image_io.intensity import dtype_of
from medmoco.data.manifest.manifest import Split
from medmoco.data.pack.pack_sources import size_of
from medmoco.data.pack.pack_volumes import PackedVolumes, blosc2
from medmoco.data.pack.shard_files import ShardFiles
from medmoco.errors import DataError, SettingsError
from medmoco.utils.files import sha256_of

FORMAT = 1
FORMAT_OF_CHANNELS = 2  # the same with several channels, which versions that support only gray must refuse
FORMAT_OF_VOLUMES = 3
RECIPE = ("canvas_size", "bit_depth", "window")  # the settings that determine a canvas's pixels
RECIPE_OF_CHANNELS = {"channels": "gray", "scale": "linear", "band_ranges": None}  # written only if they differ
RECIPE_OF_VOLUMES = ("dimensions", "spacing", "window", "bit_depth")
INFO, INDEX, FAILED, NOTICES = "pack.json", "index.npy", "failed.csv", "notices.csv"

ROW = np.dtype([
    ("key", "<u8"),       # of Path and Frame, see key_of
    ("shard", "<u4"),
    ("position", "<u4"),  # in the shard
    ("height", "<u2"),    # of the image in its canvas; 0 if there is none, see failed.csv
    ("width", "<u2"),
    ("bytes", "<u8"),     # size of the file
    ("sha256", "S64"),    # of the file
    ("split", "S5"),      # of the row when the pack was made
    ("row", "<u8"),
    ("frame", "<u4"),
])  # fmt: skip

VOLUME_ROW = np.dtype([
    ("key", "<u8"),            # of Path, Frame and series, see key_of
    ("shard", "<u4"),
    ("position", "<u4"),       # in the shard, in canvases
    ("start", "<u8"),          # in the shard, in bytes
    ("stored", "<u8"),         # bytes in the shard
    ("shape", "<u4", (3,)),    # of the canvas; 0 if there is none, see failed.csv
    ("spacing", "<f8", (3,)),  # of its voxels, in mm
    ("slice_axis", "u1"),
    ("bytes", "<u8"),          # size of the file, or of the files of a series
    ("sha256", "S64"),         # of the file, or of the names and hashes of the files of a series
    ("split", "S5"),           # of the row when the pack was made
    ("row", "<u8"),
    ("frame", "<u4"),
])  # fmt: skip


@dataclass(frozen=True)
class Pack:
    """A complete pack on a local disk."""

    folder: Path
    info: dict[str, Any]
    index: NDArray[Any]  # (N,) records of ROW or VOLUME_ROW, in the order of shards and positions

    def find(self, split: Split, data: DataSettings) -> NDArray[np.int64]:
        """Return the position in the index of each row of a split; -1 if the pack does not contain it."""
        order = np.argsort(self.index["key"])
        keys = keys_of(split, data)
        ranks = np.minimum(np.searchsorted(self.index["key"], keys, sorter=order), len(order) - 1)
        candidates = order[ranks]
        return np.where(self.index["key"][candidates] == keys, candidates, -1)


def key_of(path: str, frame: int, series: str = "") -> int:
    """Return a 64-bit hash of a row's image; of 10 million images, two collide in one of 400,000 packs."""
    name = f"{path}\n{frame}\n{series}" if series else f"{path}\n{frame}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def keys_of(split: Split, data: DataSettings) -> NDArray[np.uint64]:
    """Return the key of each row; it includes the split if data.root contains {split}."""
    folder = f"{split.name}/" if "{split}" in data.root else ""
    rows = zip(split.table["Path"], split.frames.tolist(), series_of(split, data), strict=True)
    return np.fromiter((key_of(folder + path, frame, series) for path, frame, series in rows), np.uint64, len(split))


def series_of(split: Split, data: DataSettings) -> list[str]:
    """Return the SeriesInstanceUID of each row's volume; blank if the manifest names none, and for images."""
    return split.series if data.dimensions == 3 else [""] * len(split)


def row_type(data: DataSettings) -> np.dtype[Any]:
    """Return the type of the records in the index."""
    return ROW if data.dimensions == 2 else VOLUME_ROW


def has_canvas(index: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which records (N,) of an index have a canvas."""
    there: NDArray[np.bool_] = index["height"] > 0 if index.dtype == ROW else index["shape"].min(axis=1) > 0
    return there


def recipe_of(data: DataSettings) -> dict[str, Any]:
    """Return the settings that determine a canvas's pixels, as stored in pack.json."""
    tree = as_tree(data)
    if data.dimensions == 3:
        return {key: tree[key] for key in RECIPE_OF_VOLUMES}
    other = {key: tree[key] for key, default in RECIPE_OF_CHANNELS.items() if tree[key] != default}
    return {**{key: tree[key] for key in RECIPE}, **other}


def refuse_other_recipe(made: dict[str, Any], data: DataSettings, remedy: str) -> None:
    """Raise SettingsError with the keys in which a pack differs from the settings."""
    usual = {"dimensions": 2, **RECIPE_OF_CHANNELS}
    made, required = {**usual, **made}, {**usual, **recipe_of(data)}
    keys = [*required] if made["dimensions"] == data.dimensions else ["dimensions"]
    changed = [
        f"data.{key}: pack {made.get(key)}, settings {required[key]}" for key in keys if made.get(key) != required[key]
    ]
    if changed:
        raise SettingsError("\n".join(["the pack was made with different settings:", *changed, remedy]))


def open_pack(folder: Path, data: DataSettings) -> Pack:
    """Open a pack and check that it is complete and matches the settings; the content of shards is not read.

    Raises:
        SettingsError: there is no pack, it is incomplete, or it was made with other settings.
        DataError: a part of it is missing or damaged.
    """
    pack = load_pack(folder, data, "make another pack, or use the settings of this one")
    for name, entry in pack.info["files"].items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != entry["bytes"]:
            raise DataError(f"{name} of the pack is missing or truncated; run 'medmoco pack' again to repair it")
    return pack


def load_pack(folder: Path, data: DataSettings, remedy: str) -> Pack:
    """Return a pack without checking its shards.

    Raises:
        SettingsError: there is no pack, or it was made with other settings; ends with `remedy`.
        DataError: pack.json or the index is damaged.
    """
    info = read_info(folder)
    refuse_other_recipe(info["recipe"], data, remedy)
    try:
        if sha256_of(folder / INDEX) != info["files"][INDEX]["sha256"]:
            raise DataError(
                f"{INDEX} of the pack is damaged: its SHA-256 does not match; delete the pack and make it again"
            )
        index = np.load(folder / INDEX, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{INDEX} of the pack cannot be read: {error.strerror}; make the pack again") from None
    if index.dtype != row_type(data):
        raise DataError(f"{INDEX} of the pack has other columns than this version reads; make the pack again")
    return Pack(folder, info, index)


def read_info(folder: Path) -> dict[str, Any]:
    """Return the content of pack.json.

    Raises:
        SettingsError: there is none.
        DataError: it cannot be read, or another version of medmoco wrote it.
    """
    try:
        return parse_info((folder / INFO).read_bytes())
    except FileNotFoundError:
        raise SettingsError(
            f"data.pack: {folder} contains no complete pack; make or finish it with 'medmoco pack', or unset data.pack"
        ) from None
    except OSError as error:
        raise DataError(f"{INFO} of the pack cannot be read: {error.strerror}") from None


def parse_info(raw: bytes) -> dict[str, Any]:
    """Return the parsed content of pack.json.

    Raises:
        DataError: it is damaged, or another version of medmoco wrote it.
    """
    try:
        info = json.loads(raw)
    except ValueError:
        raise DataError(f"{INFO} of the pack is damaged; make the pack again") from None
    known = FORMAT, FORMAT_OF_CHANNELS, FORMAT_OF_VOLUMES
    if not isinstance(info, dict) or info.get("format") not in known:
        raise DataError(f"the pack has another format than {known}, which this version reads; make it again")
    if any(Path(name).name != name for name in info["files"]):
        raise DataError(f"{INFO} of the pack names files outside its folder; do not use it")
    return info


def usable_rows(pack: Pack, split: Split, data: DataSettings) -> NDArray[np.bool_]:
    """Return which rows of a split have a canvas, (N,) bool, after checking the pack against the manifest.

    Raises:
        DataError: rows are not in the pack, their files have changed since, or their images failed and
            data.pack_failures is not leave_out.
    """
    positions = pack.find(split, data)
    _refuse(split, positions < 0, "are not in the pack", "run 'medmoco pack' with another --out to make a new one")
    changed = np.fromiter(_changes(split, data, pack.index["bytes"][positions]), bool, len(split))
    usable: NDArray[np.bool_] = has_canvas(pack.index)[positions]
    _refuse(split, changed & usable, "have files that changed after they were packed", "make a new pack")
    if data.pack_failures == "refuse":
        remedy = (
            f"its {FAILED} gives the reasons. Repair the files and run 'medmoco pack' again, remove the rows from the\n"
            "manifest, or set data.pack_failures=leave_out"
        )
        _refuse(split, ~usable, "could not be packed", remedy)
    if not usable.any():
        raise DataError(
            f"{split.csv.name}: none of the {split.name} rows could be packed; {FAILED} of the pack gives the reasons"
        )
    return usable


def _refuse(split: Split, bad: NDArray[np.bool_], what: str, remedy: str) -> None:
    if bad.any():
        rows = ", ".join(map(str, split.rows[bad][:3])) + (", ..." if bad.sum() > 3 else "")
        raise DataError(
            f"{split.csv.name}: {bad.sum()} of {len(split)} {split.name} rows {what} (rows {rows});\n{remedy}"
        )


def _changes(split: Split, data: DataSettings, sizes: NDArray[np.uint64]) -> Iterator[bool]:
    """Yield whether a row's size has changed, which is fast to check; missing files are accepted."""
    for file, series, size in zip(split.files, series_of(split, data), sizes.tolist(), strict=True):
        yield size_of(file, series) not in (size, None)


def packed_rows(pack: Pack, split: Split, data: DataSettings) -> PackedRows | PackedVolumes:
    """Return a reader of the canvases of a split's rows; rows without a canvas are refused when they are read."""
    at = pack.find(split, data)
    records = pack.index[at]
    found, files, dtype = has_canvas(records) & (at >= 0), ShardFiles(pack.folder), dtype_of(data.bit_depth)
    if data.dimensions == 3:
        blosc2()
        return PackedVolumes(files, records, found, dtype)
    shards, positions, heights, widths = (
        records[name].astype(np.int64) for name in ("shard", "position", "height", "width")
    )
    heights[~found] = 0
    shape, rgb = canvas_shape(data), data.channels == "rgb"
    return PackedRows(files, shards, positions, heights, widths, shape, dtype, rgb)


def canvas_shape(data: DataSettings) -> tuple[int, ...]:
    """Return the shape of a canvas's pixels, (S, S) or (S, S, C)."""
    sides = (data.canvas_size, data.canvas_size)
    return sides if data.channel_count == 1 else (*sides, data.channel_count)


@dataclass
class PackedRows:
    """Reads the canvases of a split's N rows."""

    files: ShardFiles
    shards: NDArray[np.int64]  # (N,) numbers of the shards
    positions: NDArray[np.int64]  # (N,) positions in the shards
    heights: NDArray[np.int64]  # (N,) heights of the images in their canvases, 0 if there is none
    widths: NDArray[np.int64]  # (N,) widths of the images in their canvases
    shape: tuple[int, ...]  # shape of a canvas, (S, S) or (S, S, C)
    dtype: type[Any]  # number type of a canvas
    rgb: bool = False  # whether the channels are red, green and blue

    def read(self, sample: int) -> Canvas:
        """Return the canvas of a row.

        Raises:
            DataError: there is none, or its shard cannot be read.
        """
        height, width = int(self.heights[sample]), int(self.widths[sample])
        if not height:
            raise DataError(f"its image is not in the pack, or could not be packed; see {FAILED} of the pack")
        pixels = np.empty(self.shape, self.dtype)
        self.files.read(int(self.shards[sample]), int(self.positions[sample]) * pixels.nbytes, pixels)
        return Canvas(pixels, height, width, self.rgb)
