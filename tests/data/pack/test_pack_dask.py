from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from medmoco import __version__
from medmoco.data.pack import pack_dask
from medmoco.data.pack.pack_dask import on_cluster
from medmoco.data.pack.pack_shards import RECORDS, Shard
from medmoco.data.pack.pack_writing import Writer, make_pack
from medmoco.errors import DataError, SettingsError, Stopped
from tests.helpers.packs import content, make_images, pack, settings_for, small_shards

# distributed's own start-up and shut-down warn
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")]


@dataclass
class Cluster:
    """A real scheduler and workers of one thread, each a process of its own."""

    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments, "--no-dashboard"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        with (self.folder / f"{kind}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def start_worker(self) -> subprocess.Popen[bytes]:
        return self.start("worker", self.address, "--nthreads=1", "--no-nanny", f"--local-directory={self.folder}")

    @property
    def address(self) -> str:
        file = self.folder / "scheduler.json"
        wait_until(file.is_file)
        wait_until(lambda: bool(file.read_text()))
        return str(json.loads(file.read_text())["address"])


def wait_until(is_true: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_true():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path / "cluster")
    made.folder.mkdir()
    made.start("scheduler", "--host=127.0.0.1", "--port=0", f"--scheduler-file={made.folder / 'scheduler.json'}")
    try:
        yield made
    finally:
        for process in made.processes:
            process.kill()
            process.wait()


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_shards(monkeypatch)
    make_images(tmp_path / "data", train=60, val=4)
    (tmp_path / "data/train-5.png").write_bytes(b"")
    return tmp_path / "data"


@contextmanager
def connected(cluster: Cluster, workers: int) -> Iterator[Writer]:
    """Connect, and wait for the workers."""
    from distributed import Client

    with Client(cluster.address) as client, on_cluster(cluster.address) as write:
        if workers:
            client.wait_for_workers(workers, timeout=60)
        yield write


def test_on_cluster__a_worker_killed_half_way_changes_no_byte(cluster: Cluster, images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "local")
    workers = [cluster.start_worker() for _ in range(2)]
    with connected(cluster, 2) as write:

        def killing(*given: Any) -> Iterator[int]:
            for count, number in enumerate(write(*given)):
                if count == 12:
                    workers[0].kill()
                yield number

        assert make_pack(settings_for(images).data, tmp_path / "dask", lambda _: None, killing) == 1
    assert workers[0].poll() is not None
    assert workers[1].poll() is None
    assert content(tmp_path / "dask") == content(tmp_path / "local")


def test_on_cluster__stops_when_asked_and_goes_on_without_it(cluster: Cluster, images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "local")
    cluster.start_worker()
    records = tmp_path / "dask" / RECORDS
    with connected(cluster, 1) as write:

        def stopping(*given: Any) -> Iterator[int]:
            return write(*given[:3], lambda: len(list(records.glob("*.npy.json"))) > 2)

        with pytest.raises(Stopped):
            make_pack(settings_for(images).data, tmp_path / "dask", lambda _: None, stopping)
    for process in cluster.processes:
        process.kill()
        process.wait()
    assert pack(images, tmp_path / "dask")[1][0].startswith("packing ")
    assert content(tmp_path / "dask") == content(tmp_path / "local")


def test_on_cluster__what_workers_lack_is_said_before_anything_starts(
    cluster: Cluster, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = settings_for(images).data, tmp_path / "pack"
    with connected(cluster, 0) as write, pytest.raises(SettingsError, match="the scheduler has no workers"):
        make_pack(data, out, lambda _: None, write)
    cluster.start_worker()
    with connected(cluster, 1) as write:
        with monkeypatch.context() as patched:
            patched.setattr(pack_dask, "__version__", "9.9")
            with pytest.raises(SettingsError, match=r"has medmoco .*, not 9\.9; install the same version"):
                make_pack(data, out, lambda _: None, write)
        with monkeypatch.context() as patched:
            patched.setattr(pack_dask.os.path, "isfile", lambda _: True)
            (images / "train-0.png").unlink()
            with pytest.raises(SettingsError, match=r"cannot read below data\.root"):
                make_pack(data, out, lambda _: None, write)


def test_make_shard__a_worker_that_joins_late_is_checked_too(images: Path, tmp_path: Path) -> None:
    data = settings_for(images).data
    shard = Shard(0, [str(images / "train-0.png")], [1])
    for folder, image, version in (
        (tmp_path, str(images / "train-0.png"), "9.9"),
        (tmp_path, str(tmp_path / "elsewhere.png"), __version__),
        (tmp_path / "elsewhere", str(images / "train-0.png"), __version__),
    ):
        with pytest.raises(SettingsError, match="--dask: the worker on"):
            pack_dask._make_shard(str(folder), shard, data, image, version)
    assert not list(tmp_path.glob("shard*"))


def test_on_cluster__a_disk_that_refuses_is_an_error_of_ours(cluster: Cluster, images: Path, tmp_path: Path) -> None:
    cluster.start_worker()
    out = tmp_path / "pack"
    (out / RECORDS).mkdir(parents=True)
    (out / "shard-00001.npy").mkdir()
    (out / "shard-00001.npy/x").touch()
    with (
        connected(cluster, 1) as write,
        pytest.raises(DataError, match=r"shard-00001\.npy of the pack cannot be written"),
    ):
        make_pack(settings_for(images).data, out, lambda _: None, write)


def test_on_cluster__no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="no scheduler answers at this address"), on_cluster("tcp://127.0.0.1:9"):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SettingsError, match=r"pip install distributed"), on_cluster("tcp://127.0.0.1:9"):
        pass
