from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from medmoco.data.pack import shard_files
from medmoco.data.pack.shard_files import ShardFiles, shard_name
from medmoco.errors import DataError


def test_read__is_a_part_of_the_shard_and_few_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_files, "_OPEN_SHARDS", 2)
    content = np.random.default_rng(0).integers(0, 256, (4, 300), np.uint8)
    for number, shard in enumerate(content):
        np.save(tmp_path / shard_name(number), shard)
    files, before = ShardFiles(tmp_path), len(os.listdir("/proc/self/fd"))
    for number in (0, 3, 1, 0, 2, 0):
        part = np.empty((5, 10), np.uint8)
        files.read(number, 17, part)
        np.testing.assert_array_equal(part.ravel(), content[number, 17:67])
    assert len(os.listdir("/proc/self/fd")) - before == 2
    del files
    assert len(os.listdir("/proc/self/fd")) == before


def test_read__beyond_the_end_or_of_something_else_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / shard_name(0), np.zeros(10, np.uint8))
    (tmp_path / shard_name(1)).write_bytes(b"something else")
    files, part = ShardFiles(tmp_path), np.empty(4, np.uint8)
    for start in (7, 2**62):
        with pytest.raises(DataError, match=r"shard-00000\.npy of the pack (is truncated|cannot be read)"):
            files.read(0, start, part)
    with pytest.raises(DataError, match=r"shard-00000\.npy of the pack cannot be read"):
        files.read(0, 2**64, part)
    with pytest.raises(DataError, match=r"shard-00001\.npy of the pack cannot be read"):
        files.read(1, 0, part)
    with pytest.raises(DataError, match=r"shard-00002\.npy of the pack cannot be read"):
        files.read(2, 0, part)
