"""Read parts of a pack's shards, with few of them open at a time."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmoco.errors import DataError, first_line

_OPEN_SHARDS = 128  # per process; reopening one takes about ten microseconds, or a millisecond on a network disk


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"shard-{number:05d}.npy"


@dataclass
class ShardFiles:
    """The shards of a pack, each an `.npy` file; open files do not travel to other processes."""

    folder: Path
    _open: dict[int, tuple[io.FileIO, int]] = field(default_factory=dict, repr=False)

    def read(self, shard: int, start: int, into: NDArray[Any]) -> None:
        """Fill an array with the bytes of a shard from `start`, counted after its header.

        Raises:
            DataError: the shard cannot be read, or ends before.
        """
        try:
            file, header = self._open.get(shard) or self._open_shard(shard)
            # Safe for forked processes that share the file, because it does not move the file position.
            count = os.preadv(file.fileno(), [into.data], header + start)
        except (OSError, ValueError, OverflowError) as error:
            raise DataError(f"{shard_name(shard)} of the pack cannot be read: {first_line(error)}") from None
        if count != into.nbytes:
            raise DataError(f"{shard_name(shard)} of the pack is truncated; run 'medmoco pack' again to repair it")

    def _open_shard(self, shard: int) -> tuple[io.FileIO, int]:
        while len(self._open) >= _OPEN_SHARDS:
            self._open.pop(next(iter(self._open)))[0].close()
        file = io.FileIO(self.folder / shard_name(shard))
        try:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
        except ValueError:
            file.close()
            raise
        self._open[shard] = file, file.tell()
        return self._open[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __del__(self) -> None:
        for file, _ in self._open.values():
            file.close()
