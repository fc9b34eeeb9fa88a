from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import time
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from medmoco.data.manifest.manifest import load_manifest
from medmoco.data.pack import pack_shards, pack_volumes, pack_writing, shard_files
from medmoco.data.pack.pack import VOLUME_ROW, key_of, keys_of, open_pack, packed_rows, usable_rows
from medmoco.data.pack.pack_volumes import CHUNK, PackedPixels, PackedVolumes, compressed
from medmoco.data.pack.shard_files import ShardFiles
from medmoco.data.volume_io.canvases import read_volume_canvas
from medmoco.errors import DataError, SettingsError, Stopped
from medmoco.utils.files import sha256_of
from medmoco.utils.guarded import Failure, map_guarded
from tests.helpers.packs import content, write_csv
from tests.helpers.volume_packs import REAL, data_for, make_volumes, needs_real, pack, provide_reader


@pytest.fixture(autouse=True)
def reader(monkeypatch: pytest.MonkeyPatch) -> None:
    provide_reader(monkeypatch)


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    make_volumes(tmp_path / "data", train=6, val=2)
    return tmp_path / "data"


def opened(volumes: Path, folder: Path, split: str = "train", **changes: Any) -> PackedVolumes:
    data = data_for(volumes, **changes)
    rows = packed_rows(open_pack(folder, data), load_manifest(data, (split,))[split], data)
    assert isinstance(rows, PackedVolumes)
    return rows


def stored(tmp_path: Path, pixels: NDArray[Any]) -> tuple[PackedPixels, int]:
    """Return pixels read from a shard that begins with something else, and where they start in the file."""
    data = compressed(pixels)
    np.save(tmp_path / "shard-00003.npy", np.concatenate([np.zeros(100, np.uint8), data]))
    start = (tmp_path / "shard-00003.npy").stat().st_size - len(data)
    return PackedPixels(ShardFiles(tmp_path), 3, 100, len(data), pixels.shape, pixels.dtype.type), start


# The storage


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(70, 33, 65), (32, 64, 1), (1, 1, 1), (5, 100, 31)])
def test_packed_pixels__any_part_is_that_of_the_array(tmp_path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    pixels[shape[0] // 2 :] = 7  # chunks of one value are stored in another way
    found, _ = stored(tmp_path, pixels)
    assert (found.shape, found.dtype) == (shape, dtype)
    np.testing.assert_array_equal(found[:, :, :], pixels)
    for _ in range(40):
        ends = [sorted(rng.integers(0, side + 1, 2).tolist()) for side in shape]
        part = tuple(slice(low, high) for low, high in ends)
        np.testing.assert_array_equal(found[part], pixels[part])  # type: ignore[index]
    np.testing.assert_array_equal(found[-3:, :-1, 2:99], pixels[-3:, :-1, 2:99])
    with pytest.raises(ValueError, match="three slices with step 1"):
        found[::2, :, :]


def test_packed_pixels__a_crop_reads_only_the_chunks_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4 * CHUNK, 4 * CHUNK, 4 * CHUNK), np.uint8, endpoint=False)
    found, _ = stored(tmp_path, pixels)
    read: list[int] = []
    real = ShardFiles.read

    def counting(self: ShardFiles, shard: int, start: int, into: NDArray[Any]) -> None:
        read.append(into.nbytes)
        real(self, shard, start, into)

    monkeypatch.setattr(ShardFiles, "read", counting)
    found[CHUNK : 2 * CHUNK, 0:1, CHUNK - 1 : CHUNK + 1]
    assert len(read) == 1
    assert 2 * CHUNK**3 <= sum(read) < 2.1 * CHUNK**3


def test_compressed__has_the_bytes_that_it_always_had(tmp_path: Path) -> None:
    pixels = (np.arange(40 * 35 * 3) % 251).astype(np.uint8).reshape(40, 35, 3)
    data = compressed(pixels)
    table = data[:16].view("<u4")
    assert table.sum() + 16 == len(data)
    starts = [16, *(16 + table.cumsum()).tolist()]
    headers = [data[low:high][:16].view("<u4")[1:].tolist() for low, high in pairwise(starts)]
    shapes = [32 * 32 * 3, 32 * 3 * 3, 8 * 32 * 3, 8 * 3 * 3]
    assert headers == [[size, size, length] for size, length in zip(shapes, table.tolist(), strict=True)]


def test_packed_pixels__a_damaged_shard_is_an_error_never_a_crash(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 50, (40, 40, 40), np.uint8)
    found, start = stored(tmp_path, pixels)
    file = tmp_path / "shard-00003.npy"
    whole = file.read_bytes()

    def flip(seed: int) -> str:
        rng = np.random.default_rng(seed)
        damaged = bytearray(whole)
        places = rng.integers(start, len(whole) if seed % 2 else start + 200, rng.integers(1, 6))
        for place in places:
            damaged[place] = rng.integers(256)
        file.write_bytes(damaged)
        try:
            PackedPixels(ShardFiles(tmp_path), 3, 100, len(whole) - start, (40, 40, 40), np.uint8)[:, :, :]
        except DataError as error:
            return str(error)
        return ""

    results = [result for _, result in map_guarded(flip, range(400), workers=1, seconds=20, megabytes=500)]
    assert not [result for result in results if isinstance(result, Failure)]
    assert {result for result in results if result} == {
        "shard-00003.npy of the pack is damaged; run 'medmoco pack' again to repair it"
    }
    assert sum(map(bool, results)) > 100
    file.write_bytes(whole)
    np.testing.assert_array_equal(found[:, :, :], pixels)


@pytest.mark.parametrize(
    "shape", [(2**32 - 1, 2**32 - 1, 2**32 - 1), (2**20, 2**20, 1), (64, 64, 64)], ids=["huge", "large", "other"]
)
def test_packed_pixels__a_shape_that_the_table_cannot_have_is_refused(tmp_path: Path, shape: Any) -> None:
    _, start = stored(tmp_path, np.zeros((40, 40, 40), np.uint8))
    length = (tmp_path / "shard-00003.npy").stat().st_size - start
    with pytest.raises(DataError, match="damaged"):
        PackedPixels(ShardFiles(tmp_path), 3, 100, length, shape, np.uint8)[:33, :33, :33]
    with pytest.raises(DataError, match=r"damaged|truncated"):
        PackedPixels(ShardFiles(tmp_path), 3, 100, 2**62, (40, 40, 40), np.uint8)


@pytest.mark.parametrize(("place", "value"), [(16, 3), (17, 160), (22, 200), (31, 8), (4, 1), (12, 1)])
def test_packed_pixels__headers_that_need_more_than_the_codec_are_refused(
    tmp_path: Path, place: int, value: int
) -> None:
    found, start = stored(tmp_path, np.zeros((8, 8, 8), np.uint8))
    assert not found[:, :, :].any()
    data = bytearray((tmp_path / "shard-00003.npy").read_bytes())
    data[start + 4 + place] = value
    (tmp_path / "shard-00003.npy").write_bytes(data)
    with pytest.raises(DataError, match="damaged"):
        found[:, :, :]


def test_blosc2__is_asked_for_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "blosc2", None)
    with pytest.raises(SettingsError, match=r"pip install medmoco\[volumes\]"):
        pack_volumes.blosc2()


# Packs


@pytest.mark.parametrize("bit_depth", [8, 16])
def test_pack__gives_what_the_files_give(volumes: Path, tmp_path: Path, bit_depth: int) -> None:
    changes: dict[str, Any] = {"bit_depth": bit_depth, "spacing": (1, 1, 2)}
    assert pack(volumes, tmp_path / "pack", **changes)[0] == 0
    data = data_for(volumes, **changes)
    for split in ("train", "val"):
        rows = opened(volumes, tmp_path / "pack", split, **changes)
        for sample, file in enumerate(load_manifest(data, (split,))[split].files):
            expected, _ = read_volume_canvas(file, "", data)
            found = rows.read(sample)
            assert (found.shape, found.spacing) == (expected.shape, expected.spacing)
            assert (found.slice_axis, found.pixels.dtype) == (expected.slice_axis, expected.pixels.dtype)
            np.testing.assert_array_equal(found.pixels[:, :, :], expected.pixels)
            np.testing.assert_array_equal(found.pixels[7:39, 3:30, 5:], expected.pixels[7:39, 3:30, 5:])


def test_pack__states_how_it_was_made_and_no_paths(volumes: Path, tmp_path: Path) -> None:
    failed, said = pack(volumes, tmp_path / "pack", window=(300, 900), spacing=(1, 1, 2))
    assert failed == 0
    assert said == ["packing 8 volumes", "the pack is complete: 8 of 8 volumes, 0.00 GB"]
    info = json.loads((tmp_path / "pack/pack.json").read_text())
    assert info["format"] == 3
    assert info["recipe"] == {"dimensions": 3, "spacing": [1.0, 1.0, 2.0], "window": [300.0, 900.0], "bit_depth": 8}
    assert info["canvases_per_shard"] == 4
    index = np.load(tmp_path / "pack/index.npy")
    assert index.dtype == VOLUME_ROW
    assert index["shard"].tolist() == [0] * 4 + [1] * 4
    for number in (0, 1):
        part = index[index["shard"] == number]
        shard = np.load(tmp_path / f"pack/shard-{number:05d}.npy", allow_pickle=False)
        assert part["start"].tolist() == (part["stored"].cumsum() - part["stored"]).tolist()
        assert part["stored"].sum() == len(shard)
    first = volumes / "train-0.nii.gz"
    assert (index["bytes"][0], index["sha256"][0].decode()) == (first.stat().st_size, sha256_of(first))
    for name, found in content(tmp_path / "pack").items():
        assert b"train-" not in found, name
        assert str(tmp_path).encode() not in found, name


def test_pack__bytes_do_not_depend_on_the_workers(volumes: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        pack(volumes, tmp_path / f"pack{workers}", workers=workers)
    assert content(tmp_path / "pack1") == content(tmp_path / "pack3")


def test_pack__interrupted_and_resumed_gives_the_same_bytes(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(volumes, tmp_path / "straight")

    def interrupted(*given: Any, workers: int) -> Iterator[int]:
        for count, number in enumerate(pack_shards.write_shards(*given, workers=1)):
            if count == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            yield number

    with monkeypatch.context() as patched:
        patched.setattr(pack_writing, "write_shards", interrupted)
        with pytest.raises(Stopped, match="after 6 of 8 volumes"):
            pack(volumes, tmp_path / "pack")
    assert [file.name for file in (tmp_path / "pack").glob("shard-*")] == ["shard-00000.npy"]
    assert "packing 4 volumes; 1 of 2 shards are already finished" in pack(volumes, tmp_path / "pack")[1]
    assert content(tmp_path / "pack") == content(tmp_path / "straight")


def test_pack__a_failed_volume_is_listed_and_tried_again(volumes: Path, tmp_path: Path) -> None:
    whole = pack(volumes, tmp_path / "whole") and content(tmp_path / "whole")
    good = (volumes / "train-2.nii.gz").read_bytes()
    (volumes / "train-2.nii.gz").write_bytes(good[:50])
    assert pack(volumes, tmp_path / "pack")[0] == 1
    lines = (tmp_path / "pack/failed.csv").read_text().splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("train,4,")
    data = data_for(volumes)
    split = load_manifest(data, ("train",))["train"]
    made = open_pack(tmp_path / "pack", data)
    with pytest.raises(DataError, match=r"1 of 6 train rows could not be packed \(rows 4\)"):
        usable_rows(made, split, data)
    left = usable_rows(made, split, data_for(volumes, pack_failures="leave_out"))
    assert left.tolist() == [True, True, False, True, True, True]
    rows = packed_rows(made, split, data)
    with pytest.raises(DataError, match=r"could not be packed; see failed\.csv"):
        rows.read(2)
    rows.read(3).pixels[:, :, :]
    before = (tmp_path / "pack/shard-00001.npy").stat().st_mtime_ns
    (volumes / "train-2.nii.gz").write_bytes(good)
    assert "packing 1 volumes; 1 of 2 shards are already finished" in pack(volumes, tmp_path / "pack")[1]
    assert content(tmp_path / "pack") == whole
    assert (tmp_path / "pack/shard-00001.npy").stat().st_mtime_ns == before


def test_pack__a_damaged_shard_is_made_again(volumes: Path, tmp_path: Path) -> None:
    pack(volumes, tmp_path / "pack")
    before = content(tmp_path / "pack")
    damaged = bytearray(before["shard-00001.npy"])
    damaged[-5] ^= 1
    (tmp_path / "pack/shard-00001.npy").write_bytes(damaged)
    said = pack(volumes, tmp_path / "pack")[1]
    assert said[0] == "1 shards are damaged and will be made again: shard-00001.npy"
    assert content(tmp_path / "pack") == before
    assert pack(volumes, tmp_path / "pack")[1] == ["the pack is complete: its 8 canvases and their files are unchanged"]


def test_pack__a_changed_source_is_refused(volumes: Path, tmp_path: Path) -> None:
    pack(volumes, tmp_path / "pack")
    (volumes / "train-1.nii.gz").write_bytes((volumes / "val-1.nii.gz").read_bytes())
    with pytest.raises(DataError, match=r"1 files have changed since they were packed \(rows: train 3\)"):
        pack(volumes, tmp_path / "pack")
    data = data_for(volumes)
    with pytest.raises(DataError, match=r"1 of 6 train rows have files that changed .* \(rows 3\)"):
        usable_rows(open_pack(tmp_path / "pack", data), load_manifest(data, ("train",))["train"], data)


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"spacing": (1, 1, 2)}, ["data.spacing: pack None, settings [1.0, 1.0, 2.0]"]),
        ({"window": (40, 400)}, ["data.window: pack percentiles, settings [40.0, 400.0]"]),
        ({"bit_depth": 16}, ["data.bit_depth: pack 8, settings 16"]),
        ({"dimensions": 2, "window": "voi"}, ["data.dimensions: pack 3, settings 2"]),
    ],
)
def test_pack__other_settings_are_refused(
    volumes: Path, tmp_path: Path, changes: dict[str, Any], lines: list[str]
) -> None:
    pack(volumes, tmp_path / "pack")
    with pytest.raises(SettingsError, match="made with different settings") as caught:
        open_pack(tmp_path / "pack", data_for(volumes, **changes))
    assert str(caught.value).splitlines()[1:-1] == lines


def test_pack__a_volume_that_hangs_or_takes_too_much_costs_its_row(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pack_shards.read_volume_canvas

    def hostile(file: str, *given: Any) -> Any:
        if "train-0" in file:
            time.sleep(60)
        if "train-1" in file:
            np.ones(2**27)
        return real(file, *given)

    monkeypatch.setattr(pack_shards, "read_volume_canvas", hostile)
    assert pack(volumes, tmp_path / "pack", decode_seconds=2, decode_megabytes=512)[0] == 2
    lines = (tmp_path / "pack/failed.csv").read_text().splitlines()
    assert "longer than 2 s" in lines[1]
    assert "more than 512 MB" in lines[2]


def test_read__keeps_few_shards_open_and_travels_to_other_processes(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_writing, "VOLUMES_PER_SHARD", 1)
    monkeypatch.setattr(shard_files, "_OPEN_SHARDS", 2)
    pack(volumes, tmp_path / "pack")
    rows = opened(volumes, tmp_path / "pack")
    before = len(os.listdir("/proc/self/fd"))
    canvases = [rows.read(sample) for sample in range(6)]
    for canvas in canvases * 2:
        canvas.pixels[:9, :9, :9]
    assert len(os.listdir("/proc/self/fd")) - before == 2
    copy = pickle.loads(pickle.dumps(canvases[4]))
    np.testing.assert_array_equal(copy.pixels[:, :, :], rows.read(4).pixels[:, :, :])
    (tmp_path / "pack/shard-00000.npy").unlink()
    with pytest.raises(DataError, match=r"shard-00000\.npy of the pack cannot be read"):
        rows.read(0)


def test_keys_of__a_series_has_a_key_of_its_own_and_images_keep_theirs(tmp_path: Path) -> None:
    table = "Path,SeriesInstanceUID\na,1.2.3\nb,\n"
    (tmp_path / "train.csv").write_text(table)
    for changes, first in (({}, key_of("a", 1, "1.2.3")), ({"dimensions": 2, "window": "voi"}, key_of("a", 1))):
        data = data_for(tmp_path, **changes)
        keys = keys_of(load_manifest(data, ("train",))["train"], data)
        assert keys.tolist() == [first, key_of("b", 1)]
    assert key_of("a", 1, "1.2.3") == 15387495916578256737  # as packs on disk have it: it must never change


@needs_real
def test_pack__of_real_volumes_gives_their_canvases(tmp_path: Path) -> None:
    names = sorted(file.name for file in (REAL / "hippocampus/images").glob("*.nii.gz"))[:6]
    write_csv(tmp_path, "train", names)
    changes = {"root": str(REAL / "hippocampus/images")}
    assert pack(tmp_path, tmp_path / "pack", **changes)[0] == 0
    rows = opened(tmp_path, tmp_path / "pack", **changes)
    index = np.load(tmp_path / "pack/index.npy")
    assert index["stored"].sum() < 1.01 * index["shape"].prod(axis=1).sum()  # noise is not compressible
    for sample, name in enumerate(names):
        expected, _ = read_volume_canvas(REAL / "hippocampus/images" / name, "", data_for(tmp_path))
        np.testing.assert_array_equal(rows.read(sample).pixels[:, :, :], expected.pixels)


@needs_real
@pytest.mark.skipif(find_spec("medmoco.data.volume_io.reading") is None, reason="this checkout has no readers")
def test_pack__of_dicom_series_hashes_their_files(tmp_path: Path) -> None:
    for number, name in enumerate(("HFS", "HFDR")):
        for file in sorted((REAL / "mr_series" / name).iterdir())[:12]:
            for folder in (tmp_path / "data" / name, tmp_path / "data/both"):
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, folder / f"{number}-{file.name}")
    uid = str(pydicom.dcmread(next((tmp_path / "data/HFS").iterdir())).SeriesInstanceUID)
    rows = ["Path,SeriesInstanceUID", "HFS,", "HFDR,", f"both,{uid}"]
    (tmp_path / "data/train.csv").write_text("\n".join(rows))
    assert pack(tmp_path / "data", tmp_path / "pack")[0] == 0
    index = np.load(tmp_path / "pack/index.npy")
    assert index["sha256"][0] == index["sha256"][2] != index["sha256"][1]
    found = opened(tmp_path / "data", tmp_path / "pack")
    np.testing.assert_array_equal(found.read(0).pixels[:, :, :], found.read(2).pixels[:, :, :])
    assert found.read(0).slice_axis == 0  # sagittal
    data = data_for(tmp_path / "data")
    split = load_manifest(data, ("train",))["train"]
    assert usable_rows(open_pack(tmp_path / "pack", data), split, data).all()
    next((tmp_path / "data/HFDR").iterdir()).unlink()
    with pytest.raises(DataError, match=r"1 of 3 train rows have files that changed .* \(rows 3\)"):
        usable_rows(open_pack(tmp_path / "pack", data), split, data)
    with pytest.raises(DataError, match=r"1 files have changed since they were packed \(rows: train 3\)"):
        pack(tmp_path / "data", tmp_path / "pack")
