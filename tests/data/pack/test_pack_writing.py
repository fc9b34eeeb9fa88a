from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medmoco.data.image_io.images import Canvas, read_image, to_canvas
from medmoco.data.loading.loading import check_images
from medmoco.data.manifest.manifest import load_manifest
from medmoco.data.pack import pack_shards, pack_writing
from medmoco.data.pack.pack import INDEX
from medmoco.data.pack.pack_shards import RECORDS
from medmoco.data.pack.pack_writing import make_pack
from medmoco.errors import DataError, ManifestError, SettingsError, Stopped
from tests.helpers.dask_cluster import connected, on_dask, running
from tests.helpers.packs import PER_SHARD, SIDE, content, make_images, pack, settings_for, small_shards, write_csv


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_shards(monkeypatch)
    make_images(tmp_path / "data", train=7, val=2, test=1)
    return tmp_path / "data"


def test_make_pack__anyone_can_read_it_with_numpy_alone(images: Path, tmp_path: Path) -> None:
    failed, said = pack(images, tmp_path / "pack")
    assert failed == 0
    assert said[-1] == "the pack is complete: 10 of 10 images, 0.00 GB"
    index = np.load(tmp_path / "pack/index.npy")
    assert len(index) == 10
    names = [f"train-{n}" for n in range(7)] + ["val-0", "val-1", "test-0"]
    for row, name in zip(index, names, strict=True):
        shard = np.load(tmp_path / f"pack/shard-{row['shard']:05d}.npy", mmap_mode="r")
        assert shard.shape[1:] == (SIDE, SIDE)
        expected = to_canvas(read_image(images / f"{name}.png"), SIDE, 8)
        np.testing.assert_array_equal(shard[row["position"]], expected.pixels)
        assert (row["height"], row["width"]) == (expected.height, expected.width)
        assert row["bytes"] == (images / f"{name}.png").stat().st_size
        assert row["split"].decode() == name.split("-")[0]
        assert row["row"] == int(name.split("-")[1]) + 2
    assert [len(np.load(file)) for file in sorted((tmp_path / "pack").glob("shard-*"))] == [3, 3, 3, 1]
    info = json.loads((tmp_path / "pack/pack.json").read_text())
    assert info["recipe"] == {"canvas_size": SIDE, "bit_depth": 8, "window": "voi"}
    assert info["files"].keys() == content(tmp_path / "pack").keys() - {"pack.json"}


def test_make_pack__keeps_paths_and_the_machine_to_itself(images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "pack")
    for name, found in content(tmp_path / "pack").items():
        assert b"train-" not in found, name
        assert str(tmp_path).encode() not in found, name


def test_make_pack__bytes_do_not_depend_on_the_workers(images: Path, tmp_path: Path) -> None:
    for workers in (1, 3):
        pack(images, tmp_path / f"pack{workers}", f"data.workers={workers}")
    assert content(tmp_path / "pack1") == content(tmp_path / "pack3")


def test_make_pack__an_image_of_two_splits_is_packed_once_unless_the_root_tells_them_apart(tmp_path: Path) -> None:
    make_images(tmp_path, train=3)
    write_csv(tmp_path, "val", ["train-1.png"])
    pack(tmp_path, tmp_path / "shared")
    assert len(np.load(tmp_path / "shared/index.npy")) == 3
    for split in ("train", "val"):
        shutil.copytree(tmp_path, tmp_path.parent / "apart" / split, dirs_exist_ok=True)
    pack(tmp_path, tmp_path / "apart", f"data.root={tmp_path.parent / 'apart'}/{{split}}")
    assert len(np.load(tmp_path / "apart/index.npy")) == 4


def slowly(decode: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*given: Any) -> Any:
        time.sleep(0.1)
        return decode(*given)

    return wrapped


def test_make_pack__killed_half_way_loses_at_most_the_shard_in_hand(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(images, tmp_path / "straight")
    out = tmp_path / "killed"
    with monkeypatch.context() as patched:
        patched.setattr(pack_shards, "read_canvas", slowly(pack_shards.read_canvas))
        process = get_context("fork").Process(target=pack, args=(images, out))
        process.start()
        first = out / RECORDS / "shard-00000.npy.json"
        while not first.exists():
            time.sleep(0.01)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    assert not (out / "pack.json").exists()
    (out / "shard-00001.npy.1234.tmp").write_bytes(b"half")
    before = (out / "shard-00000.npy").stat().st_mtime_ns
    said = pack(images, out)[1]
    assert "1 of 4 shards are already finished" in said[0]
    assert "packing 7 images" in said[0]
    assert (out / "shard-00000.npy").stat().st_mtime_ns == before
    assert content(out) == content(tmp_path / "straight")


def test_make_pack__stops_when_asked_and_goes_on(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(images, tmp_path / "straight")

    def interrupted(*given: Any, workers: int) -> Iterator[int]:
        for count, one in enumerate(pack_shards.write_shards(*given, workers=workers)):
            if count == 4:
                os.kill(os.getpid(), signal.SIGTERM)
            yield one

    with monkeypatch.context() as patched:
        patched.setattr(pack_writing, "write_shards", interrupted)
        with pytest.raises(Stopped, match=r"after 5 of 10 images; finished shards are kept") as caught:
            pack(images, tmp_path / "stopped")
    assert caught.value.exit_code == 75
    pack(images, tmp_path / "stopped")
    assert content(tmp_path / "stopped") == content(tmp_path / "straight")


def test_make_pack__failed_rows_are_listed_and_tried_again(images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "straight")
    good = (images / "train-4.png").read_bytes()
    (images / "train-4.png").write_bytes(good[:60])
    (images / "val-1.png").rename(images / "away")
    assert pack(images, tmp_path / "pack")[0] == 2
    with (tmp_path / "pack/failed.csv").open(newline="") as file:
        listed = list(csv.reader(file))
    assert [line[:2] for line in listed] == [["split", "row"], ["train", "6"], ["val", "3"]]
    assert "does not exist" in listed[2][2]
    index = np.load(tmp_path / "pack/index.npy")
    assert (index["height"] == 0).tolist() == [False] * 4 + [True] + [False] * 3 + [True, False]

    (images / "train-4.png").write_bytes(good)
    failed, said = pack(images, tmp_path / "pack")
    assert failed == 1
    assert said[0] == "packing 2 images as canvases of 32 pixels; 2 of 4 shards are already finished"
    (images / "away").rename(images / "val-1.png")
    assert pack(images, tmp_path / "pack")[0] == 0
    assert content(tmp_path / "pack") == content(tmp_path / "straight")


def test_make_pack__notices_are_counted_and_survive_a_second_go(images: Path, tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((20, 20), 7, np.uint8)).save(images / "train-0.png")
    (images / "train-1.png").write_bytes(b"")
    said = pack(images, tmp_path / "pack")[1]
    assert any(line.startswith("1 images: constant") for line in said)
    before = content(tmp_path / "pack")
    assert b"train,2,constant" in before["notices.csv"]
    pack(images, tmp_path / "pack")
    assert content(tmp_path / "pack") == before


def test_make_pack__again_checks_shards_and_files(images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "pack")
    before = content(tmp_path / "pack")
    assert pack(images, tmp_path / "pack") == (
        0,
        ["the pack is complete: its 10 canvases and their files are unchanged"],
    )
    shard = bytearray(before["shard-00001.npy"])
    shard[-1] ^= 1
    (tmp_path / "pack/shard-00001.npy").write_bytes(shard)
    (tmp_path / "pack/shard-00002.npy").write_bytes(before["shard-00002.npy"][:200])
    (tmp_path / "pack/shard-00003.npy").unlink()
    said = pack(images, tmp_path / "pack")[1]
    assert said[0].startswith("3 shards are damaged and will be made again: shard-00001.npy, ")
    assert content(tmp_path / "pack") == before
    pixels = bytearray((images / "train-2.png").read_bytes())
    pixels[-20] ^= 1  # the same size
    (images / "train-2.png").write_bytes(pixels)
    with pytest.raises(DataError, match=r"1 files have changed since they were packed \(rows: train 4\)"):
        pack(images, tmp_path / "pack")
    (images / "train-2.png").unlink()
    assert pack(images, tmp_path / "pack")[1][0] == "1 files no longer exist and could not be compared"
    assert content(tmp_path / "pack") == before


def test_make_pack__a_pack_with_shards_of_another_size_is_checked_and_mended_as_it_is(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(images, tmp_path / "pack")
    before = content(tmp_path / "pack")
    (tmp_path / "pack/shard-00001.npy").unlink()
    monkeypatch.setattr(pack_writing, "SHARD_BYTES", 5 * SIDE**2)
    pack(images, tmp_path / "pack")
    assert content(tmp_path / "pack") == before


def test_make_pack__mending_that_was_killed_goes_on(images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "pack")
    before = content(tmp_path / "pack")
    (tmp_path / "pack/shard-00001.npy").write_bytes(b"")
    (tmp_path / "pack" / RECORDS).mkdir()
    (tmp_path / "pack" / RECORDS / "shard-00000.npy.json").write_text("{")
    pack(images, tmp_path / "pack")
    assert content(tmp_path / "pack") == before


@pytest.mark.parametrize("finished", [True, False])
def test_make_pack__other_settings_are_refused_with_the_keys(images: Path, tmp_path: Path, finished: bool) -> None:
    pack(images, tmp_path / "pack")
    if not finished:
        (tmp_path / "pack" / RECORDS).mkdir()
        (tmp_path / "pack/pack.json").unlink()
        (tmp_path / "pack" / RECORDS / "shard-00000.npy.json").write_text("{}")
        plan = {"recipe": {"canvas_size": SIDE, "bit_depth": 8, "window": "voi"}, "images": 10, "keys_sha256": ""}
        (tmp_path / "pack" / RECORDS / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(SettingsError) as caught:
        pack(images, tmp_path / "pack", "data.canvas_size=40", "data.window=[500,1000]")
    lines = str(caught.value).splitlines()
    assert lines[1:3] == [
        "data.canvas_size: pack 32, settings 40",
        "data.window: pack voi, settings [500.0, 1000.0]",
    ]
    assert len(lines) == 4


def test_make_pack__another_manifest_is_refused_unless_all_its_images_are_there(images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "pack")
    before = content(tmp_path / "pack")
    write_csv(images, "train", ["train-5.png", "train-2.png"])
    assert pack(images, tmp_path / "pack")[1] == ["the pack is complete: it contains all 5 images of this manifest"]
    (images / "train-2.png").write_bytes(b"")
    pack(images, tmp_path / "holes")
    assert pack(images, tmp_path / "holes")[0] == 1
    write_csv(images, "train", ["train-2.png"])
    assert pack(images, tmp_path / "holes")[0] == 1
    shutil.copy(images / "train-5.png", images / "new.png")
    write_csv(images, "train", ["train-5.png", "new.png"])
    with pytest.raises(SettingsError, match="lacks 1 of the manifest's 5 images"):
        pack(images, tmp_path / "pack")
    assert content(tmp_path / "pack") == before


def test_make_pack__an_unfinished_pack_of_another_manifest_is_refused(images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "pack")
    (tmp_path / "pack/shard-00001.npy").write_bytes(b"")
    real = pack_shards.write_shards

    def broken(*given: Any, **options: Any) -> Iterator[int]:
        yield from ()
        raise DataError("the disk refuses")

    pack_writing.write_shards = broken  # type: ignore[assignment]
    try:
        with pytest.raises(DataError, match="the disk refuses"):
            pack(images, tmp_path / "pack")
    finally:
        pack_writing.write_shards = real
    write_csv(images, "train", ["train-5.png"])
    with pytest.raises(SettingsError, match=r"unfinished pack of another manifest \(10 images, this one has 4\)"):
        pack(images, tmp_path / "pack")


def test_make_pack__needs_the_space_before_it_starts(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(pack_writing.shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(SettingsError, match=r"needs 0\.00 GB more, but the disk of .* has 0\.00 GB free"):
        pack(images, tmp_path / "pack")
    monkeypatch.undo()
    small_shards(monkeypatch)
    pack(images, tmp_path / "pack", "data.canvas_size=24")  # what the message advises must then work


def test_make_pack__two_at_a_time_are_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "pack" / RECORDS).mkdir(parents=True)
    locked = get_context("fork").Event()

    def hold() -> None:
        with (tmp_path / "pack" / RECORDS / "lock").open("w") as lock:
            fcntl.lockf(lock, fcntl.LOCK_EX)
            locked.set()
            time.sleep(60)

    process = get_context("fork").Process(target=hold)
    process.start()
    locked.wait()
    try:
        with pytest.raises(SettingsError, match="another process is making the pack"):
            pack(images, tmp_path / "pack")
    finally:
        process.kill()
        process.join()
    pack(images, tmp_path / "pack")


def test_make_pack__leaves_foreign_folders_alone(images: Path) -> None:
    before = content(images)
    with pytest.raises(SettingsError, match="is not a pack"):
        pack(images, images)
    assert content(images) == before


def test_make_pack__a_wrong_root_is_one_error_not_a_thousand_failed_rows(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"7 of 7 train files do not exist.*\n.*data\.root"):
        pack(images, tmp_path / "pack", f"data.root={tmp_path / 'elsewhere'}")
    assert not (tmp_path / "pack").exists()


def test_make_pack__a_disk_that_refuses_is_said_in_words(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(pack_shards.np, "save", full)
        with pytest.raises(DataError, match=r"shard-00000.npy of the pack cannot be written: No space left on device"):
            pack(images, tmp_path / "pack")
    assert not list((tmp_path / "pack").glob("*.tmp"))
    assert pack(images, tmp_path / "pack")[0] == 0


def test_make_pack__sixteen_bits(images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "pack", "data.bit_depth=16")
    shard = np.load(tmp_path / "pack/shard-00000.npy")
    expected: Canvas = to_canvas(read_image(images / "train-0.png"), SIDE, 16)
    assert shard.dtype == np.uint16
    assert len(shard) == PER_SHARD // 2
    np.testing.assert_array_equal(shard[0], expected.pixels)
    assert (tmp_path / "pack" / INDEX).is_file()
    assert settings_for(images).data.pack is None


def test_make_pack__of_some_rows_serves_a_manifest_of_those(images: Path, tmp_path: Path) -> None:
    for split, count in (("train", 7), ("val", 2), ("test", 1)):
        rows = "".join(f"{split}-{number}.png,{'MR' if number % 2 else 'CT'}\n" for number in range(count))
        (images / f"{split}.csv").write_text(f"File,Modality\n{rows}")
    columns, some = "data.columns={Path: File}", "data.where=Modality == MR"
    said = pack(images, tmp_path / "some", columns, some)[1]
    assert said[0] == "train: 4 of 7 rows are left out by data.where"
    assert said[-1].startswith("the pack is complete: 4 of 4 images")
    assert pack(images, tmp_path / "all", columns)[1][-1].startswith("the pack is complete: 10 of 10 images")
    loaded = load_manifest(settings_for(images, columns, some).data, ["train"])["train"]
    assert len(check_images(loaded, settings_for(images, columns, some, f"data.pack={tmp_path / 'all'}").data)) == 3
    assert pack(images, tmp_path / "all", columns, some)[1][-1] == (
        "the pack is complete: it contains all 4 images of this manifest"
    )
    with pytest.raises(SettingsError, match="lacks 6 of the manifest's 10 images"):
        pack(images, tmp_path / "some", columns)
    everything = settings_for(images, columns, f"data.pack={tmp_path / 'some'}").data
    with pytest.raises(DataError, match="4 of 7"):
        check_images(load_manifest(everything, ["train"])["train"], everything)


@on_dask
def test_make_pack__on_a_cluster_a_worker_killed_half_way_changes_no_byte(images: Path, tmp_path: Path) -> None:
    (images / "train-5.png").write_bytes(b"")
    pack(images, tmp_path / "local")
    with running(tmp_path / "cluster", 2) as cluster:
        killed = cluster.processes[1]

        def kill(parts: int) -> None:
            if parts == 1:
                killed.kill()

        with connected(cluster.address, kill) as dask:
            assert make_pack(settings_for(images).data, tmp_path / "dask", print, dask) == 1
        assert killed.poll() is not None
        assert cluster.processes[2].poll() is None
    assert content(tmp_path / "dask") == content(tmp_path / "local")


@on_dask
def test_make_pack__stops_on_a_cluster_and_goes_on_without_it(images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "local")
    out, data = tmp_path / "dask", settings_for(images).data
    with running(tmp_path / "cluster", 1) as cluster:
        (out / RECORDS).mkdir(parents=True)
        (out / "shard-00001.npy").mkdir()
        (out / "shard-00001.npy/x").touch()
        with (
            connected(cluster.address) as dask,
            pytest.raises(DataError, match=r"shard-00001\.npy of the pack cannot be written"),
        ):
            make_pack(data, out, print, dask)
        shutil.rmtree(out)
        with (
            connected(cluster.address, lambda parts: os.kill(os.getpid(), signal.SIGTERM)) as dask,
            pytest.raises(Stopped, match="finished shards are kept"),
        ):
            make_pack(data, out, print, dask)
    assert pack(images, out)[1][0].startswith("packing ")
    assert content(out) == content(tmp_path / "local")
