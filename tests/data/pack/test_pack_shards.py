from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmoco.data.image_io.images import read_image, to_canvas
from medmoco.data.pack import pack_shards
from medmoco.data.pack.pack_shards import RECORDS, Shard, read_record, write_atomically, write_shards
from medmoco.errors import DataError
from medmoco.utils.files import sha256_of
from tests.helpers.packs import SIDE, make_images, settings_for


@pytest.fixture
def images(tmp_path: Path) -> Path:
    make_images(tmp_path / "data", train=5)
    (tmp_path / RECORDS).mkdir()
    return tmp_path / "data"


def shard(images: Path, number: int, *which: int, **options: Any) -> Shard:
    return Shard(number, [str(images / f"train-{i}.png") for i in which], [1] * len(which), **options)


def write(tmp_path: Path, shards: list[Shard], *overrides: str) -> list[int]:
    data = settings_for(tmp_path / "data", *overrides).data
    return list(write_shards(tmp_path, data, shards, lambda: False, workers=2))


def test_write_shards__file_and_record_agree_with_the_images(images: Path, tmp_path: Path) -> None:
    made = write(tmp_path, [shard(images, 3, 4, 2), shard(images, 0, 1)])
    assert made == [1, 1, 1]
    record = read_record(tmp_path, 3)
    assert record is not None
    assert record.sha256 == sha256_of(tmp_path / "shard-00003.npy")
    for position, number in enumerate((4, 2)):
        file = images / f"train-{number}.png"
        canvas = to_canvas(read_image(file), SIDE, 8)
        np.testing.assert_array_equal(np.load(tmp_path / "shard-00003.npy")[position], canvas.pixels)
        found = record.images[position]
        assert found[:4] == (canvas.height, canvas.width, file.stat().st_size, sha256_of(file))
    assert read_record(tmp_path, 1) is None


def test_write_shards__a_decoder_that_crashes_hangs_or_eats_costs_its_row(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pack_shards.read_canvas

    def hostile(file: str, *given: Any) -> Any:
        if "train-0" in file:
            os.kill(os.getpid(), signal.SIGSEGV)
        if "train-1" in file:
            time.sleep(60)
        if "train-2" in file:
            np.ones(2**27)
        return real(file, *given)

    monkeypatch.setattr(pack_shards, "read_canvas", hostile)
    write(tmp_path, [shard(images, 0, 0, 1, 2, 3)], "data.decode_seconds=1", "data.decode_megabytes=256")
    record = read_record(tmp_path, 0)
    assert record is not None
    assert record.failed == [0, 1, 2]
    for image, words in zip(record.images, ("crashed", "longer than 1 s", "more than 256 MB"), strict=False):
        assert words in image.failure
        assert "train-" not in image.failure
    canvases = np.load(tmp_path / "shard-00000.npy")
    assert canvases.any((1, 2)).tolist() == [False, False, False, True]


def test_write_shards__only_what_is_not_known_is_decoded(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, [shard(images, 0, 0, 1, 2)])
    before, record = (tmp_path / "shard-00000.npy").read_bytes(), read_record(tmp_path, 0)
    assert record is not None
    for number in (0, 2):
        (images / f"train-{number}.png").unlink()
    known = {0: record.images[0], 2: record.images[2]}
    assert write(tmp_path, [shard(images, 0, 0, 1, 2, known=known)]) == [1]
    assert (tmp_path / "shard-00000.npy").read_bytes() == before
    assert read_record(tmp_path, 0) == record


def test_write_shards__stops_when_asked(images: Path, tmp_path: Path) -> None:
    data = settings_for(images).data
    shards = [shard(images, number, number) for number in range(5)]
    made = []
    for number in write_shards(tmp_path, data, shards, lambda: len(made) == 2, workers=1):
        made.append(number)
    assert len(made) == 2
    assert len(list(tmp_path.glob("shard-*.npy"))) == 2


def test_write_atomically__leaves_the_old_file_where_writing_fails(tmp_path: Path) -> None:
    file = tmp_path / "file"
    digest = write_atomically(file, lambda stream: stream.write(b"old"))
    assert digest == sha256_of(file)

    def fail(stream: Any) -> None:
        stream.write(b"new")
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match="file of the pack cannot be written: No space left on device"):
        write_atomically(file, fail)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
