"""Store the canvases of volumes in compressed chunks, and read a part of one without the rest.

A stored canvas is a table with the length of each chunk in bytes (little-endian uint32), followed by the chunks in C
order: cubes of 32 voxels, smaller at the far end of an axis. A chunk is its voxels in C order, compressed by Blosc2.
The canvases of a shard follow one another in an `.npy` file of bytes, so a pack of many volumes has few files.

The bytes depend on the version of Blosc2, the voxels do not.

Source: measured (`benchmarks/volume_packs.py`). Memory-mapped `.npy` files take 1.4 times the bytes, and crops from
Zarr take five times as long. From files of Blosc2's own format they take 0.8 times as long, but each volume needs an
open file, and the metadata can describe functions, which not every version of Blosc2 refuses to rebuild when it opens
the file. So only its compressor is used, and lengths, filters and codec are checked before a chunk is decompressed into
an array of the expected size. LZ4 after a bit shuffle takes a sixth more bytes than Zstandard, and half of its time.
"""

from __future__ import annotations

import importlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medmoco.data.image_io.intensity import Pixels
from medmoco.data.pack.shard_files import ShardFiles, shard_name
from medmoco.data.volume_io.volume import VolumeCanvas
from medmoco.errors import DataError, SettingsError

Bytes = NDArray[np.uint8]
Shape = tuple[int, int, int]

CHUNK = 32
"""Voxels per side. Source: measured, 64 takes as long for a crop of 96 voxels, and reads twice the bytes."""

_LENGTH = np.dtype("<u4")
# Of a chunk: its length when decompressed and compressed, filters, codec and flags. Source: C-Blosc2,
# README_CHUNK_FORMAT.rst.
_HEADER = struct.Struct("<4xi4xi6sB8xB")
_BITSHUFFLE, _ZSTD, _ONE_VALUE = 2, 5, 0x70  # the last known filter and codec; flags of chunks of one value


def blosc2() -> Any:
    """Return the module; import it before data workers start, so that it does not count as memory of their work.

    Raises:
        SettingsError: it is not installed.
    """
    try:
        return importlib.import_module("blosc2")
    except ImportError:
        raise SettingsError("packs of volumes need Blosc2: pip install medmoco[volumes]") from None


def compressed(pixels: Pixels) -> Bytes:
    """Return a canvas (X, Y, Z) uint8 or uint16 as it is stored; the bytes do not depend on threads."""
    chunks = [_compress(np.ascontiguousarray(pixels[part])) for part in _chunks(pixels.shape)]
    table = np.array([len(chunk) for chunk in chunks], _LENGTH)
    return np.frombuffer(table.tobytes() + b"".join(chunks), np.uint8)


def _compress(chunk: Pixels) -> bytes:
    module = blosc2()
    data: bytes = module.compress2(
        chunk, codec=module.Codec.LZ4, clevel=5, filters=[module.Filter.BITSHUFFLE], typesize=chunk.itemsize,
        splitmode=module.SplitMode.NEVER_SPLIT, blocksize=2 * CHUNK**3, nthreads=1,
    )  # fmt: skip
    return data


def _chunks(shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Yield the part of each chunk."""
    starts = product(*(range(0, side, CHUNK) for side in shape))
    yield from (tuple(slice(start, start + CHUNK) for start in corner) for corner in starts)


class _Segment(NamedTuple):
    """What a chunk contributes to a part, along one axis."""

    chunk: int  # its number
    side: int  # of the chunk
    source: slice  # in the chunk
    target: slice  # in the part


def _segments(part: range, side: int) -> list[_Segment]:
    segments = []
    for chunk in range(part.start // CHUNK, (part.stop - 1) // CHUNK + 1):
        begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, side)
        low, high = max(begin, part.start), min(end, part.stop)
        source, target = slice(low - begin, high - begin), slice(low - part.start, high - part.start)
        segments.append(_Segment(chunk, end - begin, source, target))
    return segments


class PackedPixels:
    """The voxels of a canvas in a pack; indexing it by three slices reads and decompresses the chunks they need."""

    def __init__(self, files: ShardFiles, shard: int, start: int, length: int, shape: Shape, dtype: type[Any]) -> None:
        """Read the table of chunks.

        Args:
            files: Shards of the pack.
            shard: Number of the shard.
            start: Position of the canvas in the shard, in bytes.
            length: Its length in bytes.
            shape: X, Y and Z.
            dtype: Number type of the voxels.

        Raises:
            DataError: the shard cannot be read, or is damaged.
        """
        self.shape, self.dtype = shape, np.dtype(dtype)
        self._files, self._shard, self._decompress2 = files, shard, blosc2().decompress2
        self._grid = [math.ceil(side / CHUNK) for side in shape]
        count = math.prod(self._grid)
        if count * _LENGTH.itemsize > length:
            raise _damaged(shard)
        table = np.empty(count, _LENGTH)
        files.read(shard, start, table)
        ends = table.astype(np.int64).cumsum() + table.nbytes
        if ends[-1] != length or table.max() > CHUNK**3 * self.dtype.itemsize + _HEADER.size:
            raise _damaged(shard)
        self._bounds = [start + table.nbytes, *(start + ends).tolist()]

    def __getitem__(self, parts: tuple[slice, slice, slice]) -> Pixels:
        """Return a part as an array.

        Raises:
            DataError: the shard cannot be read, or is damaged.
        """
        ranges = [range(side)[part] for side, part in zip(self.shape, parts, strict=True)]
        if any(axis.step != 1 for axis in ranges):
            raise ValueError("a canvas in a pack is indexed by three slices with step 1")
        pixels = np.empty([len(axis) for axis in ranges], self.dtype)
        if pixels.size:
            x, y, z = (_segments(axis, side) for axis, side in zip(ranges, self.shape, strict=True))
            for column in product(x, y):
                self._fill(pixels, *column, z)
        return pixels

    def _fill(self, pixels: Pixels, x: _Segment, y: _Segment, z: list[_Segment]) -> None:
        """Fill a part from neighbouring chunks along the last axis, which are read at once."""
        first = (x.chunk * self._grid[1] + y.chunk) * self._grid[2]
        bounds = self._bounds[first + z[0].chunk : first + z[-1].chunk + 2]
        data = np.empty(bounds[-1] - bounds[0], np.uint8)
        self._files.read(self._shard, bounds[0], data)
        for number, along in enumerate(z):
            chunk = np.empty((x.side, y.side, along.side), self.dtype)
            self._decompress(data[bounds[number] - bounds[0] : bounds[number + 1] - bounds[0]], chunk)
            pixels[x.target, y.target, along.target] = chunk[x.source, y.source, along.source]

    def _decompress(self, data: Bytes, chunk: Pixels) -> None:
        if not _is_plain(data, chunk.nbytes):
            raise _damaged(self._shard)
        try:
            self._decompress2(data, dst=chunk, nthreads=1)
        except (RuntimeError, ValueError):
            raise _damaged(self._shard) from None


def _is_plain(data: Bytes, nbytes: int) -> bool:
    """Return whether a chunk's header states these lengths, and nothing but a built-in codec and filter."""
    if len(data) < _HEADER.size:
        return False
    stated, length, filters, codec, flags = _HEADER.unpack_from(data.data)
    known = max(filters) <= _BITSHUFFLE and codec <= _ZSTD and not flags & ~_ONE_VALUE
    return bool(stated == nbytes and length == len(data) and known)


def _damaged(shard: int) -> DataError:
    return DataError(f"{shard_name(shard)} of the pack is damaged; run 'medmoco pack' again to repair it")


@dataclass
class PackedVolumes:
    """Reads the canvases of a split's N rows."""

    files: ShardFiles
    records: NDArray[Any]  # (N,) records of VOLUME_ROW
    found: NDArray[np.bool_]  # (N,) whether there is a canvas
    dtype: type[Any]  # number type of a canvas

    def read(self, sample: int) -> VolumeCanvas:
        """Return the canvas of a row, whose voxels are read when they are indexed.

        Raises:
            DataError: there is none, or its shard cannot be read.
        """
        if not self.found[sample]:
            raise DataError("its volume is not in the pack, or could not be packed; see failed.csv of the pack")
        row = self.records[sample]
        x, y, z = row["shape"].tolist()
        shard, start, stored = (int(row[name]) for name in ("shard", "start", "stored"))
        pixels = PackedPixels(self.files, shard, start, stored, (x, y, z), self.dtype)
        across, front, up = row["spacing"].tolist()
        return VolumeCanvas(pixels, (across, front, up), int(row["slice_axis"]))
