"""Two machines: two network namespaces of this one, joined by a cable, with a torchrun in each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.runs import assert_same_result, checkpoints, pretrain, status

NAMES, ADDRESSES = ("medmoco-a", "medmoco-b"), ("10.231.77.1", "10.231.77.2")
PATIENCE = 300.0  # seconds; a rendezvous notices a lost node after some twenty


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *words], check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def cable() -> Iterator[None]:
    """Two namespaces that reach each other and nothing else."""
    if not shutil.which("ip"):
        pytest.skip("needs the command ip of iproute2")
    for name in NAMES:
        made = ip("netns", "add", name)
        if made.returncode:
            pytest.skip(f"network namespaces cannot be made here: {made.stderr.strip()}")
    try:
        ip("link", "add", "mm-a", "netns", NAMES[0], "type", "veth", "peer", "name", "mm-b", "netns", NAMES[1])
        for name, link, address in zip(NAMES, ("mm-a", "mm-b"), ADDRESSES, strict=True):
            for words in (("addr", "add", f"{address}/24", "dev", link), ("link", "set", link, "up"),
                          ("link", "set", "lo", "up")):  # fmt: skip
                done = ip("-n", name, *words)
                assert done.returncode == 0, done.stderr
        yield
    finally:
        for name in NAMES:
            end_all_in(name)
            ip("netns", "del", name)


def end_all_in(name: str) -> None:
    for process in ip("netns", "pids", name).stdout.split():
        os.kill(int(process), signal.SIGKILL)


class Node:
    """A machine's torchrun, with all that it starts in a process group."""

    def __init__(self, number: int, settings: Path, out: Path, said: Path) -> None:
        self._said, self._name = said, NAMES[number]
        meeting = [
            "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:29517",
            f"--rdzv-conf=is_host={int(number == 0)}", "--rdzv-id=test", f"--local-addr={ADDRESSES[number]}",
            "--max-restarts=3",
        ]  # fmt: skip
        run = [
            "-m", "medmoco", "pretrain", "--config", str(settings), f"out={out}", "--resume",
            "train.hang_seconds=30", "train.epochs=40",
        ]  # fmt: skip
        command = ["ip", "netns", "exec", NAMES[number], sys.executable, "-m", "torch.distributed.run", *meeting, *run]
        environment = {
            **os.environ,
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "GLOO_SOCKET_IFNAME": f"mm-{'ab'[number]}",
        }
        with said.open("a") as file:
            self._process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    @property
    def said(self) -> str:
        return self._said.read_text()

    def lose(self) -> None:
        """End the machine as a power cut would: torchrun and, in a session of its own, what it has started."""
        end_all_in(self._name)
        self._process.wait(PATIENCE)

    def end(self) -> int:
        return self._process.wait(PATIENCE)


def wait_for(what: Callable[[], object], *nodes: Node) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline, "\n\n".join(node.said for node in nodes)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.usefixtures("cable")
def test_nodes__two_train_together_and_survive_the_loss_and_return_of_one(settings: Path, tmp_path: Path) -> None:
    alone = tmp_path / "one-machine"
    straight = pretrain(settings, alone, "--devices", 2, "train.epochs=40")
    assert straight.wait(PATIENCE) == 0, straight.said

    out = tmp_path / "run"
    first = Node(0, settings, out, tmp_path / "a.said")
    second = Node(1, settings, out, tmp_path / "b.said")
    wait_for(lambda: len(checkpoints(out)) > 2, first, second)
    second.lose()
    reached = int(checkpoints(out)[-1].stem.removeprefix("step-"))
    back = Node(1, settings, out, tmp_path / "b2.said")
    assert first.end() == 0, first.said
    assert back.end() == 0, back.said
    assert status(out)["state"] == "done"
    log = (out / "log.txt").read_text()
    assert f"from step {reached}, 2 processes on cpu" in log
    assert_same_result(out, alone)
