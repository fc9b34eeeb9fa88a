"""A real Dask cluster of processes on this machine, and parts of jobs that its workers can import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from medmoco.utils.jobs import cluster
from medmoco.utils.jobs.cluster import on_cluster


def on_dask(test: Any) -> Any:
    """Mark a test that starts a cluster; distributed's own start-up and shut-down warn."""
    quiet = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
    return pytest.mark.slow(quiet(test))


@dataclass
class Cluster:
    """A real scheduler and workers of one thread, each a process of its own."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, kind: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", *arguments, "--no-dashboard"]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **self.environment}
        with (self.folder / f"{kind}-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(command, env=environment, cwd=self.folder, stdout=log, stderr=log)
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

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def wait_until(is_true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@contextmanager
def running(folder: Path, workers: int = 0, **environment: str) -> Iterator[Cluster]:
    """Run a scheduler and workers."""
    folder.mkdir()
    made = Cluster(folder, environment)
    made.start("scheduler", "--host=127.0.0.1", "--port=0", f"--scheduler-file={folder / 'scheduler.json'}")
    try:
        for _ in range(workers):
            made.start_worker()
        if workers:
            wait_for_workers(made.address, workers)
        yield made
    finally:
        made.end()


def wait_for_workers(address: str, count: int) -> None:
    from distributed import Client

    with Client(address) as client:
        client.wait_for_workers(count, timeout=60)


@dataclass
class Watched:
    """A connection that calls a function with the number of parts that are done."""

    inner: cluster.Cluster
    after: Callable[[int], object]

    def run(self, *given: Any) -> Iterator[int]:
        for count, images in enumerate(self.inner.run(*given), 1):
            self.after(count)
            yield images


@contextmanager
def connected(address: str, after: Callable[[int], object] = lambda _: None) -> Iterator[Any]:
    """Connect to a cluster."""
    with on_cluster(address) as found:
        assert found
        yield Watched(found, after)


@dataclass(frozen=True)
class Part:
    number: int


def touch(folder: Path, parts: Iterable[Part], stop_asked: Callable[[], bool]) -> Iterator[int]:
    """Make a file for each part, of two images each."""
    for part in parts:
        (folder / f"{part.number}").touch()
        yield 1
        yield 1


def die_at_once(parts: Iterable[Part], stop_asked: Callable[[], bool]) -> Iterator[int]:
    yield os._exit(1)
