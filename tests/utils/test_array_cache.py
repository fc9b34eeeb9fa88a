from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medmoco.utils import array_cache
from medmoco.utils.array_cache import ArrayCache


def one(value: float, count: int = 1000) -> dict[str, np.ndarray]:
    return {"features": np.full((count, 2), value, np.float32), "notices": np.array([], np.str_)}


def test_array_cache__returns_what_was_stored(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path / "features")
    assert cache.get("a") is None
    cache.put("a", one(1.5))
    cache.put("a", one(2.5))
    found = cache.get("a")
    assert found is not None
    np.testing.assert_array_equal(found["features"], one(2.5)["features"])
    assert found["notices"].tolist() == []
    assert [file.name for file in (tmp_path / "features").iterdir()] == ["a.npz"]


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "a flipped bit":
        content[2000] ^= 1
        file.write_bytes(content)
    elif how == "truncated":
        file.write_bytes(content[:3000])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "text":
        file.write_text("not an archive")
    elif how == "npy":
        with file.open("wb") as stream:
            np.save(stream, np.zeros(3))
    elif how == "pickle":
        file.write_bytes(pickle.dumps({"features": 1}))
    else:
        with zipfile.ZipFile(file, "w") as archive:  # an array of objects, which would be unpickled
            archive.writestr("features.npy", b"\x93NUMPY\x01\x00" + b"v\x00{'descr': '|O', 'fortran_order': False, "
                             b"'shape': (1,), }".ljust(118) + pickle.dumps([1]))  # fmt: skip


@pytest.mark.parametrize("how", ["a flipped bit", "truncated", "empty", "text", "npy", "pickle", "objects"])
def test_array_cache__a_damaged_file_counts_as_missing_with_a_note(tmp_path: Path, how: str) -> None:
    log: list[str] = []
    cache = ArrayCache(tmp_path / "features", log.append)
    cache.put("a", one(1))
    damage(tmp_path / "features/a.npz", how)
    assert cache.get("a") is None
    assert log == ["features/a.npz is damaged or of another program: its content is computed again"]
    cache.put("a", one(1))
    assert cache.get("a") is not None


def test_array_cache__deletes_what_was_not_used_for_longest(tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path / "features", limit=20_000)  # two files of somewhat more than 8,000 bytes
    for number, key in enumerate("ab"):
        cache.put(key, one(number))
        os.utime(tmp_path / f"features/{key}.npz", (number, number))
    (tmp_path / "features/c.npz.1234.tmp").write_bytes(bytes(4000))
    os.utime(tmp_path / "features/c.npz.1234.tmp", (1, 1))
    (tmp_path / "features/notes.txt").write_text("of the user")
    assert cache.get("a") is not None  # now the newest
    cache.put("c", one(2))
    assert sorted(file.name for file in (tmp_path / "features").iterdir()) == ["a.npz", "c.npz", "notes.txt"]


def test_array_cache__files_that_others_delete_meanwhile_do_not_matter(tmp_path: Path) -> None:
    log: list[str] = []
    cache = ArrayCache(tmp_path / "features", log.append, limit=20_000)
    for number, key in enumerate("abc"):
        cache.put(key, one(number))
        os.utime(tmp_path / f"features/{key}.npz", (number, number))
        if key == "a":
            (tmp_path / "features/gone.npz").symlink_to("deleted")  # listed, but without a state
    assert not log
    assert sorted(file.name for file in (tmp_path / "features").iterdir()) == ["b.npz", "c.npz", "gone.npz"]


def test_array_cache__keeps_nothing_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    ArrayCache(tmp_path / "features", log.append, limit=1000).put("a", one(1))
    monkeypatch.setattr(array_cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    ArrayCache(tmp_path / "features", log.append).put("a", one(1))
    assert log == [f"features: 0 MiB are not kept, since there is room for {0} MiB"] * 2
    assert not list((tmp_path / "features").iterdir())


def test_array_cache__a_folder_that_cannot_be_written_is_noted(tmp_path: Path) -> None:
    log: list[str] = []
    (tmp_path / "features").write_text("a file")
    cache = ArrayCache(tmp_path / "features", log.append)
    cache.put("a", one(1))
    assert log == ["features cannot be written, so that nothing is kept: File exists"]
    cache = ArrayCache(tmp_path / "gone/features", log.append)
    cache.put("a", one(1))
    assert "No such file" in log[1]
