from __future__ import annotations

import errno
import os
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import active_children
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from medmoco import config
from medmoco.data.loading import workers as module
from medmoco.data.loading.workers import check_shared_memory, items_of, shared_bytes, shared_memory_place, start_worker
from medmoco.errors import DataError, SettingsError


def make_settings(*overrides: str) -> config.RunSettings:
    return config.load(None, ["out=run", "data.manifest=m", "data.root=r", "train.hang_seconds=2", *overrides])


class Trouble(Dataset[torch.Tensor]):
    """Numbers, but for one of them something happens in the worker."""

    def __init__(self, at: int, action: Callable[[], Any]) -> None:
        self.at, self.action = at, action

    def __getitem__(self, number: int) -> torch.Tensor:
        if number == self.at:
            self.action()
        return torch.tensor(number)


def load(action: Callable[[], Any], at: int = 5, count: int = 100, workers: int = 2) -> Any:
    loader: DataLoader[Any] = DataLoader(
        Trouble(at, action), batch_size=None, sampler=range(count), num_workers=workers, worker_init_fn=start_worker
    )
    return items_of(loader, make_settings())


def die(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def no_memory() -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("action", "words"),
    [
        pytest.param(
            die(signal.SIGKILL), r"killed \(SIGKILL\), usually by the system because memory ran out", id="kill"
        ),
        pytest.param(die(signal.SIGSEGV), r"killed by SIGSEGV: usually an image has crashed its decoder", id="segv"),
        pytest.param(die(signal.SIGBUS), r"killed by SIGBUS: shared memory", id="bus"),
        pytest.param(die(signal.SIGSTOP), r"delivered no batch for 1\.5 s", id="stop"),
        pytest.param(lambda: time.sleep(600), r"delivered no batch for 1\.5 s: the storage", id="hang"),
        pytest.param(no_memory, "ran out of memory", id="memory"),
        pytest.param(lambda: os._exit(3), "exited with code 3", id="exit"),
    ],
)
def test_items_of__says_what_became_of_a_worker_and_leaves_none(
    action: Callable[[], Any], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    items = load(action)
    got: list[int] = []
    with pytest.raises(DataError, match=words) as caught:
        got.extend(int(item) for item in items)
    assert got == list(range(len(got)))
    assert len(got) <= 5  # what a worker that dies has made is lost with it
    assert len(str(caught.value).splitlines()) <= 5
    assert caught.value.__context__ is None
    assert not active_children()
    assert next(items, None) is None
    assert capfd.readouterr() == ("", "")


def test_items_of__says_so_after_a_plain_loader_has_set_its_signal_handler() -> None:
    list(DataLoader([0], num_workers=1))
    before = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(DataError, match="SIGKILL"):
        list(load(die(signal.SIGKILL)))
    assert signal.getsignal(signal.SIGCHLD) == before


def test_items_of__too_many_open_files_says_so() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    items = load(list)
    next(items)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # what is open stays so
    try:
        with pytest.raises(DataError, match=r"^too many open files: .*ulimit -n"):
            list(items)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not active_children()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of DataLoader, half made
def test_items_of__a_temporary_folder_too_long_for_sockets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = "/" + "x" * (107 - len("/pymp-xxxxxxxx/listener-xxxxxxxx") - 1)
    monkeypatch.setattr(tempfile, "tempdir", longest)
    module.check_sockets()
    monkeypatch.setattr(tempfile, "tempdir", f"{longest}x")
    with pytest.raises(SettingsError, match=r"is 1 bytes too long for the sockets(?s:.*)TMPDIR"):
        next(load(list))
    assert len(list(load(list, count=6, workers=0))) == 6


# Whenever the loader that DataLoader did not finish is collected, it lacks an attribute that its __del__ needs.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_items_of__a_worker_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, started = os.fork, []

    def fork_once() -> int:
        if started:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        started.append(True)
        return fork()

    monkeypatch.setattr(os, "fork", fork_once)
    with pytest.raises(DataError, match=r"cannot be started: Resource temporarily unavailable\. Lower data\.workers"):
        next(load(list))
    assert started
    assert not active_children()


def test_items_of__an_end_is_met_only_where_a_batch_is_awaited() -> None:
    items = load(die(signal.SIGKILL), at=3)
    next(items)
    deadline = time.monotonic() + 20
    while len(active_children()) > 1:  # of two; DataLoader's own handler of signals would raise here
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(DataError, match="SIGKILL"):
        list(items)


def test_items_of__a_bug_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError, match="in DataLoader worker process"):
        list(load(lambda: 1 // 0))
    assert not active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_items_of__gives_all_and_restores_what_it_changed(workers: int) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGALRM)]
    assert [int(item) for item in load(list, workers=workers)] == list(range(100))
    assert [signal.getsignal(number) for number in (signal.SIGCHLD, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert not active_children()


def test_items_of__closing_ends_the_workers_even_one_that_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)  # how long DataLoader is polite
    reader, writer = os.pipe()

    def be_busy() -> None:
        os.write(writer, b"!")
        time.sleep(600)

    items = load(be_busy, at=1)
    next(items)
    assert os.read(reader, 1) == b"!"
    items.close()
    assert not active_children()
    os.close(reader)
    os.close(writer)


def test_items_of__works_in_a_thread() -> None:
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.extend(int(item) for item in load(list)))
    thread.start()
    thread.join(60)
    assert got == list(range(100))


def test_share__moves_to_shared_memory_only_in_a_worker() -> None:
    own = torch.zeros(3)
    module.share([own])
    assert not own.is_shared()


# ---- shared memory ----


BIG = ("data.workers=4", "views.size=224", "data.bit_depth=16")
MEGABYTES = 64 * 2 * 224**2 * 2 / 1e6  # of one batch


@pytest.mark.parametrize(
    ("free", "processes", "fewer"),
    [(18.1, 1, None), (17.9, 1, 3), (7.0, 1, 1), (5.0, 1, 0), (18.1, 2, 1), (36.1, 2, None)],
)
def test_check_shared_memory__counts_batches_under_way(
    monkeypatch: pytest.MonkeyPatch, free: float, processes: int, fewer: int | None
) -> None:
    usage = SimpleNamespace(free=int(free * MEGABYTES * 1e6))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    settings = make_settings(*BIG)
    if fewer is None:
        check_shared_memory(settings, 64, processes)
        return
    with pytest.raises(SettingsError, match=rf"set data\.workers={fewer}\b") as caught:
        check_shared_memory(settings, 64, processes)
    assert f"up to {18 * processes * MEGABYTES:,.0f} MB" in str(caught.value)
    assert "--shm-size" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
    check_shared_memory(make_settings(*BIG, f"data.workers={fewer}"), 64, processes)


def test_shared_bytes__adds_the_knn_score_where_there_is_one() -> None:
    plain = shared_bytes(make_settings(*BIG), 64, 2, 4)
    scored = shared_bytes(make_settings(*BIG, "data.labels=[A]", "evaluate.batch_size=32"), 64, 2, 4)
    assert plain == 2 * 18 * 64 * 2 * 224**2 * 2
    assert scored - plain == 18 * 32 * 224**2 * 2
    assert shared_bytes(make_settings(*BIG, "data.labels=[A]", "train.knn_every=0"), 64, 2, 4) == plain


def test_shared_memory_place__is_one_for_all_processes_of_a_machine(tmp_path: Any, monkeypatch: Any) -> None:
    assert shared_memory_place() == shared_memory_place() != ""
    monkeypatch.setattr(module, "SHARED_MEMORY", tmp_path / "none")
    assert shared_memory_place() == ""
    check_shared_memory(make_settings("data.workers=1000"), 10**6, 1)  # another system's; nothing to measure
