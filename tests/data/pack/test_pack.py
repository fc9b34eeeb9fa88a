from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from medmoco.data.image_io.images import read_image, to_canvas
from medmoco.data.manifest.manifest import Split, load_manifest
from medmoco.data.pack import shard_files
from medmoco.data.pack.pack import FAILED, key_of, open_pack, packed_rows, usable_rows
from medmoco.errors import DataError, SettingsError
from tests.helpers.packs import SIDE, make_images, pack, settings_for, small_shards, write_csv


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_shards(monkeypatch)
    make_images(tmp_path / "data", train=8, val=2)
    pack(tmp_path / "data", tmp_path / "pack")
    return tmp_path / "data"


def split_of(images: Path, name: str = "train") -> Split:
    return load_manifest(settings_for(images).data, (name,))[name]


def assert_same_as_files(images: Path, folder: Path, split: Split) -> None:
    data = settings_for(images).data
    rows = packed_rows(open_pack(folder, data), split, data)
    for sample, file in enumerate(split.files):
        expected, found = to_canvas(read_image(file), SIDE, 8), rows.read(sample)
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        assert found.pixels.dtype == expected.pixels.dtype
        assert (found.height, found.width) == (expected.height, expected.width)


def test_read__is_what_the_files_give(images: Path, tmp_path: Path) -> None:
    for name in ("train", "val"):
        assert_same_as_files(images, tmp_path / "pack", split_of(images, name))


def test_find__rows_are_found_in_another_order_another_split_and_a_part(images: Path, tmp_path: Path) -> None:
    write_csv(images, "train", [f"train-{number}.png" for number in (6, 0, 3)] + ["val-1.png"])
    write_csv(images, "val", ["train-7.png"])
    for name in ("train", "val"):
        assert_same_as_files(images, tmp_path / "pack", split_of(images, name))


def test_key_of__depends_on_path_and_frame() -> None:
    assert len({key_of(path, frame) for path in ("a", "b", "a\n1") for frame in (1, 2, 11)}) == 9
    assert key_of("a.png", 1) == 548734491268330596  # as packs on disk have it: it must never change


def test_usable_rows__rows_that_were_never_packed_are_refused(images: Path, tmp_path: Path) -> None:
    (images / "new.png").write_bytes((images / "train-0.png").read_bytes())
    write_csv(images, "train", ["train-0.png", "new.png"])
    data = settings_for(images).data
    with pytest.raises(DataError, match=r"train\.csv: 1 of 2 train rows are not in the pack \(rows 3\)") as caught:
        usable_rows(open_pack(tmp_path / "pack", data), split_of(images), data)
    assert "new.png" not in str(caught.value)
    rows = packed_rows(open_pack(tmp_path / "pack", data), split_of(images), data)
    rows.read(0)
    with pytest.raises(DataError, match="not in the pack"):
        rows.read(1)


def test_usable_rows__files_may_be_away_but_not_changed(images: Path, tmp_path: Path) -> None:
    data = settings_for(images).data
    opened = open_pack(tmp_path / "pack", data)
    (images / "train-3.png").unlink()
    assert usable_rows(opened, split_of(images), data).all()
    with (images / "train-5.png").open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=r"1 of 8 train rows have files that changed after they were packed \(rows 7\)"):
        usable_rows(opened, split_of(images), data)


def test_usable_rows__failed_rows_are_refused_or_left_out_as_the_settings_say(images: Path, tmp_path: Path) -> None:
    for number in (1, 4, 5, 6):
        (images / f"train-{number}.png").write_bytes(b"")
    pack(images, tmp_path / "holes")
    refuse, leave_out = (settings_for(images, f"data.pack_failures={word}").data for word in ("refuse", "leave_out"))
    opened = open_pack(tmp_path / "holes", refuse)
    with pytest.raises(DataError, match=r"4 of 8 train rows could not be packed \(rows 3, 6, 7, \.\.\.\)") as caught:
        usable_rows(opened, split_of(images), refuse)
    assert FAILED in str(caught.value)
    assert "leave_out" in str(caught.value)
    assert usable_rows(opened, split_of(images), leave_out).tolist() == [True, False, True, True] + [False] * 3 + [True]
    write_csv(images, "train", ["train-1.png", "train-4.png"])
    with pytest.raises(DataError, match="none of the train rows could be packed"):
        usable_rows(opened, split_of(images), leave_out)


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["data.canvas_size=40"], "data.canvas_size: pack 32, settings 40"),
        (["data.bit_depth=16"], "data.bit_depth: pack 8, settings 16"),
        (["data.window=full"], "data.window: pack voi, settings full"),
    ],
)
def test_open_pack__other_settings_are_refused(images: Path, tmp_path: Path, overrides: list[str], line: str) -> None:
    with pytest.raises(SettingsError, match="made with different settings") as caught:
        open_pack(tmp_path / "pack", settings_for(images, *overrides).data)
    assert line in str(caught.value).splitlines()


def test_open_pack__a_window_of_numbers_is_the_same_after_json(images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "windowed", "data.window=[500,1000]")
    open_pack(tmp_path / "windowed", settings_for(images, "data.window=[500,1000]").data)


def test_open_pack__what_is_missing_or_damaged_is_refused(images: Path, tmp_path: Path) -> None:
    data, folder = settings_for(images).data, tmp_path / "pack"
    shard = (folder / "shard-00001.npy").read_bytes()
    (folder / "shard-00001.npy").write_bytes(shard[:-1])
    with pytest.raises(DataError, match=r"shard-00001\.npy of the pack is missing or truncated"):
        open_pack(folder, data)
    (folder / "shard-00001.npy").unlink()
    with pytest.raises(DataError, match=r"shard-00001\.npy of the pack is missing or truncated"):
        open_pack(folder, data)
    index = bytearray((folder / "index.npy").read_bytes())
    index[-5] ^= 1
    (folder / "index.npy").write_bytes(index)
    with pytest.raises(DataError, match=r"index\.npy of the pack is damaged"):
        open_pack(folder, data)
    (folder / "index.npy").unlink()
    with pytest.raises(DataError, match=r"index\.npy of the pack cannot be read"):
        open_pack(folder, data)
    info = json.loads((folder / "pack.json").read_text())
    for content in ("{", "[]", json.dumps(info | {"format": 99}), json.dumps(info | {"files": {"../x": {}}})):
        (folder / "pack.json").write_text(content)
        with pytest.raises(DataError):
            open_pack(folder, data)
    (folder / "pack.json").unlink()
    with pytest.raises(SettingsError, match="contains no complete pack"):
        open_pack(folder, data)


def test_read__keeps_few_shards_open_and_travels_to_other_processes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_files, "_OPEN_SHARDS", 2)
    data, split = settings_for(images).data, split_of(images)
    rows = packed_rows(open_pack(tmp_path / "pack", data), split, data)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        for sample in range(8):
            rows.read(sample)
    assert len(os.listdir("/proc/self/fd")) - before == 2
    copy = pickle.loads(pickle.dumps(rows))
    np.testing.assert_array_equal(copy.read(5).pixels, rows.read(5).pixels)
    del rows, copy
    assert len(os.listdir("/proc/self/fd")) == before


def test_read__a_shard_that_shrinks_or_goes_is_an_error_not_a_crash(images: Path, tmp_path: Path) -> None:
    data, split = settings_for(images).data, split_of(images)
    rows = packed_rows(open_pack(tmp_path / "pack", data), split, data)
    rows.read(0)
    (tmp_path / "pack/shard-00001.npy").unlink()
    with pytest.raises(DataError, match=r"shard-00001\.npy of the pack cannot be read"):
        rows.read(3)
    os.truncate(tmp_path / "pack/shard-00000.npy", 200)
    with pytest.raises(DataError, match=r"shard-00000\.npy of the pack is truncated"):
        rows.read(0)
