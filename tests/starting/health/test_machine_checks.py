from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from medmoco.starting.health import machine_checks as module
from medmoco.starting.health.decoders import Decoders
from medmoco.starting.health.finding import Finding
from medmoco.starting.machine import Gpu, Machine

PLAIN = Machine(cores=2, memory=25 * 10**9, gpus=(), shared_memory=10**10, has_amx=False)
GPU = Gpu("NVIDIA H200", 150 * 10**9)


def states(findings: Iterable[Finding]) -> list[tuple[str, str]]:
    found = list(findings)
    assert all(bool(finding.remedy) == (finding.state != "ok") for finding in found)
    return [(finding.name, finding.state) for finding in found]


@pytest.mark.parametrize(("threads", "state"), [(1, "warning"), (2, "ok"), (8, "warning")])
def test_cpu__threads_match_cores(monkeypatch: pytest.MonkeyPatch, threads: int, state: str) -> None:
    monkeypatch.setattr(module.torch, "get_num_threads", lambda: threads)
    assert states(module._cpu(PLAIN)) == [("CPU", "ok"), ("threads", state)]


def test_cpu__without_vector_instructions_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert states(module._cpu(PLAIN))[0] == ("CPU", "warning")


def test_memory__little() -> None:
    assert states(module._memory(PLAIN)) == [("memory", "ok")]
    assert states(module._memory(Machine(2, 2 * 10**9, (), None, False))) == [("memory", "warning")]


def with_gpus(count: int) -> Machine:
    return Machine(16, 128 * 10**9, (GPU,) * count, 10**10, False)


def test_gpus__a_driver_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_driver", lambda: "470.82")
    (finding,) = module._gpus(PLAIN)
    assert finding.state == "warning"
    assert "driver 470.82 is installed" in finding.text
    monkeypatch.setattr(module, "_driver", lambda: "")
    assert states(module._gpus(PLAIN)) == [("GPU", "ok")]


def test_gpus__that_compute_and_communicate(monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.torch.ones
    monkeypatch.setattr(module.torch, "ones", lambda *size, device: real(*size))
    monkeypatch.setattr(module, "choose_precision", lambda *_: ("bf16", "the GPU has it"))
    monkeypatch.setattr(module.torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(module.torch.cuda.nccl, "version", lambda: (2, 28, 9))
    gpu, nccl = module._gpus(with_gpus(2))
    assert gpu.text.startswith("2 x NVIDIA H200 (150 GB), driver unknown, torch ")
    assert nccl.text == "2.28.9"
    monkeypatch.setattr(module.torch.distributed, "is_nccl_available", lambda: False)
    assert states(module._gpus(with_gpus(2))) == [("GPU", "ok"), ("NCCL", "fault")]
    assert states(module._gpus(with_gpus(1))) == [("GPU", "ok")]


def test_gpus__that_cannot_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr(module.torch, "ones", fail)
    (finding,) = module._gpus(with_gpus(1))
    assert (finding.state, "no kernel image" in finding.text) == ("fault", True)


@pytest.mark.gpu
def test_gpus__of_this_machine() -> None:
    assert states(module._gpus(module.inspect_machine())) == [("GPU", "ok"), ("NCCL", "ok")]


@pytest.mark.parametrize(("free", "state"), [(10**10, "ok"), (64 * 10**6, "warning")])
def test_shared_memory__little(free: int, state: str) -> None:
    assert states(module._shared_memory(Machine(2, 10**10, (), free, False))) == [("/dev/shm", state)]


def test_shared_memory__that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def share_memory_(self) -> None:
            raise RuntimeError("unable to open shared memory object")

    monkeypatch.setattr(module.torch, "zeros", lambda _: Broken())
    assert states(module._shared_memory(PLAIN)) == [("/dev/shm", "fault")]
    assert states(module._shared_memory(Machine(2, 10**10, (), None, False))) == []


@pytest.mark.parametrize(("limit", "state"), [(256, "warning"), (4096, "ok"), (-1, "ok")])
def test_open_files__few(monkeypatch: pytest.MonkeyPatch, limit: int, state: str) -> None:
    monkeypatch.setattr(module.resource, "getrlimit", lambda _: (limit, limit))
    assert states(module._open_files()) == [("open files", state)]


def test_working_folder__locks_and_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * 10**9, total=10**12))
    assert states(module._working_folder()) == [("working folder", "ok"), ("disk space", "warning")]

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * 10**8, total=10**12))
    assert states(module._working_folder()) == [("working folder", "warning"), ("disk space", "fault")]

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(module.tempfile, "TemporaryDirectory", read_only)
    assert states(module._working_folder())[0] == ("working folder", "fault")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["missing", "full", "long"])
def test_temporary_folder__a_fault_ends_the_checks_that_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = tmp_path / ("x" * 100 if kind == "long" else "x")
    folder.mkdir()
    monkeypatch.setattr(module.tempfile, "tempdir", str(folder))
    monkeypatch.chdir(tmp_path)
    if kind != "long":  # as tmp_path itself may be
        monkeypatch.setattr(module, "check_sockets", lambda: None)
    assert states([module._temporary_folder()]) == [("temporary folder", "ok" if kind != "long" else "fault")]
    assert not list(folder.iterdir())

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    if kind == "missing":
        folder.rmdir()
    if kind == "full":
        monkeypatch.setattr(Path, "write_bytes", full)
    found = list(module.check_machine())
    assert states(found)[-1] == ("temporary folder", "fault")
    assert str(tmp_path) not in found[-1].text + found[-1].remedy


def test_decoders__each_package_that_is_missing_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Decoders(["RLE"], ["HTJ2K"], {"JPEG-LS": "pyjpegls"})
    monkeypatch.setattr(module, "check_decoders", lambda: found)
    assert [finding.text for finding in module._decoders()] == [
        "decoded: RLE", "decoder installed: HTJ2K", "no working decoder for JPEG-LS",
    ]  # fmt: skip
    assert list(module._decoders())[-1].remedy.endswith("pyjpegls")
