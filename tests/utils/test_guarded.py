from __future__ import annotations

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from medmoco.errors import ImageError
from medmoco.utils.guarded import Failure, map_guarded


def _map(function: Callable[[Any], Any], items: Iterable[Any], **limits: Any) -> dict[int, Any]:
    found = list(map_guarded(function, items, **{"workers": 2, "seconds": 30.0, "megabytes": 500, **limits}))
    assert len(dict(found)) == len(found)  # every position once
    return dict(found)


def _square_unless(harm: Callable[[], object], bad: set[int]) -> Callable[[int], int]:
    def work(item: int) -> int:
        if item in bad:
            harm()
        return item * item

    return work


def _refuse() -> None:
    raise ImageError("the image is cut off; fetch it again")


def _exhaust() -> None:
    np.ones(2**30, np.uint8)


def _exhaust_behind_an_image_error() -> None:
    try:
        _exhaust()
    except Exception:
        raise ImageError("damaged") from None


def _exhaust_in_cv2() -> None:
    cv2.resize(np.ones((8, 8), np.uint8), (2**15, 2**15))


def _exhaust_in_torch() -> None:
    torch.ones(2**30, dtype=torch.uint8)


HARM: dict[str, tuple[Callable[[], object], str]] = {
    "refused": (_refuse, "cut off"),
    "segfault": (lambda: ctypes.string_at(0), "crashed the decoder (SIGSEGV)"),
    "abort": (os.abort, "crashed the decoder (SIGABRT)"),
    "exit": (lambda: os._exit(3), "crashed the decoder (exit code 3)"),
    "oom_killer": (lambda: os.kill(os.getpid(), signal.SIGKILL), "lack of memory"),
    "memory": (_exhaust, "more than 500 MB"),
    "memory_behind_an_image_error": (_exhaust_behind_an_image_error, "more than 500 MB"),
    "memory_in_cv2": (_exhaust_in_cv2, "more than 500 MB"),
    "memory_in_torch": (_exhaust_in_torch, "more than 500 MB"),
}


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("workers", [1, 2])
def test_map_guarded__harm_costs_one_item(harm: str, workers: int) -> None:
    do, words = HARM[harm]
    bad = {0, 3, 4, 19}
    results = _map(_square_unless(do, bad), range(20), workers=workers)
    assert {position: value for position, value in results.items() if position not in bad} == {
        item: item * item for item in range(20) if item not in bad
    }
    for position in bad:
        assert isinstance(results[position], Failure)
        assert words in results[position].reason


@pytest.mark.parametrize("bad", [{0}, {2, 3}])
def test_map_guarded__a_hang_costs_one_item_also_in_native_code(bad: set[int]) -> None:
    forever = ctypes.CDLL(None).pause
    results = _map(_square_unless(forever, bad), range(5), seconds=0.5)
    assert {position for position in results if isinstance(results[position], Failure)} == bad
    assert all("longer than 0.5 s" in results[position].reason for position in bad)


def test_map_guarded__the_clock_runs_for_one_item_and_not_while_idle() -> None:
    def work(seconds: float) -> int:
        time.sleep(seconds)
        return os.getpid()

    def slow_items() -> Iterable[float]:
        yield 0.0
        time.sleep(1.2)
        yield 0.0

    assert len(set(_map(work, slow_items(), workers=1, seconds=1.0).values())) == 1  # the same process
    assert not any(isinstance(value, Failure) for value in _map(work, [0.4] * 6, seconds=1.0).values())


def test_map_guarded__worker_that_dies_between_items_costs_none() -> None:
    def work(item: int) -> int:
        threading.Timer(0.2, os._exit, (1,)).start()
        return item

    def slow_items() -> Iterable[int]:
        yield 0
        time.sleep(1)  # the first worker is dead by now, and its result still in the pipe
        yield 1

    assert _map(work, slow_items(), workers=1) == {0: 0, 1: 1}


def test_map_guarded__memory_is_counted_per_item() -> None:
    kept = []

    def keep(_: int) -> None:
        kept.append(np.ones(60 * 2**20, np.uint8))

    assert _map(keep, range(3), workers=1, megabytes=100) == {0: None, 1: None, 2: None}


def test_map_guarded__bug_is_raised_with_its_traceback() -> None:
    def buggy(item: int) -> float:
        return 1 / item

    with pytest.raises(RuntimeError, match=r"(?s)in a data worker.*buggy.*ZeroDivisionError"):
        _map(buggy, [1, 0, 1])


def test_map_guarded__result_that_cannot_be_sent_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="pickle"):
        _map(lambda item: lambda: item, [1])


def _map_endlessly(function: Callable[[int], Any], items: Iterable[int]) -> Generator[tuple[int, Any]]:
    yield from map_guarded(function, items, workers=2, seconds=30, megabytes=500)


def test_map_guarded__takes_lazily_and_stops_when_closed() -> None:
    taken = []

    def endless() -> Iterable[int]:
        for item in itertools.count():
            taken.append(item)
            yield item

    with closing(_map_endlessly(lambda _: os.getpid(), endless())) as results:
        workers = {value for _, value in itertools.islice(results, 50)}
        assert len(taken) <= 50 + 2 * 2 + 1
    assert workers
    for worker in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


def test_map_guarded__both_workers_work_though_items_are_few() -> None:
    def who(_: int) -> int:
        time.sleep(0.2)
        return os.getpid()

    assert len(set(_map(who, range(2)).values())) == 2


def test_map_guarded__no_items() -> None:
    assert _map(abs, []) == {}


def test_map_guarded__large_items_and_results_do_not_block() -> None:
    items = [bytes([number]) * 2_000_000 for number in range(12)]
    assert _map(bytes, items) == dict(enumerate(items))


def test_map_guarded__error_of_the_items_is_raised() -> None:
    def items() -> Iterable[int]:
        yield 1
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        _map(abs, items())


def test_map_guarded__one_thread_and_deaf_to_signals() -> None:
    def state(_: int) -> tuple[int, int]:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return cv2.getNumThreads(), torch.get_num_threads()

    assert _map(state, [0]) == {0: (1, 1)}


def test_map_guarded__workers_start_after_opencv_has_used_its_threads() -> None:
    """As in a notebook that draws a preview first; the notebook keeps its threads."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    cv2.warpAffine(np.zeros((3000, 3000), np.uint8), np.eye(2, 3, dtype=np.float32), (3000, 3000))
    found, threads = _map(abs, [-1, -2]), cv2.getNumThreads()
    cv2.setNumThreads(before)
    assert found == {0: 1, 1: 2}
    assert threads == 2


def test_map_guarded__workers_end_when_the_parent_is_killed() -> None:
    """The idle one at once, though the other started later and so may hold its pipe; the busy one by its clock."""
    script = """
import os, time
from medmoco.utils.guarded import map_guarded
def work(seconds):
    os.write(1, b"%d %d\\n" % (seconds, os.getpid()))
    time.sleep(seconds)
for _ in map_guarded(work, [0, 600], workers=2, seconds=4, megabytes=500):
    pass
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    workers = dict(map(int, process.stdout.readline().split()) for _ in range(2))
    process.kill()
    process.wait()
    process.stdout.close()
    _wait_for_end(workers[0])
    assert _lives(workers[600])
    _wait_for_end(workers[600])


def _wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 30
    while _lives(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    """Tell whether a process runs; a zombie that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
