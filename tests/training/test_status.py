from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medmoco.errors import CheckpointError, DistributedError, DivergedError, Stopped, UnexpectedError
from medmoco.training import status as module
from medmoco.training.engine import TrainState
from medmoco.training.run_folder import holding
from medmoco.training.status import keeping_status, note_death, write_status
from medmoco.utils.stopping import stop_requests


def a_state() -> TrainState:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False))


@pytest.mark.parametrize(
    ("error", "word", "code"), [(None, "done", 0), (Stopped("s"), "stopped", 75), (DivergedError("d"), "failed", 5)]
)
def test_keeping_status__says_how_a_run_ended(tmp_path: Path, error: Exception | None, word: str, code: int) -> None:
    state = a_state()

    def run() -> None:
        with keeping_status(tmp_path, state, 9):
            assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"
            state.step = 4
            if error:
                raise error

    if error:
        with pytest.raises(type(error)):
            run()
    else:
        run()
    found = json.loads((tmp_path / "status.json").read_text())
    assert (found["state"], found["step"], found["exit_code"]) == (word, 4, code)


@pytest.mark.parametrize(
    ("error", "word", "raised", "code"),
    [
        (RuntimeError("shapes (2, 3) and (4, 5)"), "failed", UnexpectedError, 1),
        (KeyError("P0017"), "failed", UnexpectedError, 1),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), "failed", UnexpectedError, 1),
        (SystemExit(3), "failed", UnexpectedError, 1),
        (KeyboardInterrupt(), "stopped", Stopped, 75),
    ],
)
def test_keeping_status__whatever_ends_a_run(
    tmp_path: Path, error: BaseException, word: str, raised: type[BaseException], code: int
) -> None:
    with pytest.raises(raised) as caught, keeping_status(tmp_path, a_state(), 9):
        raise error
    found = json.loads((tmp_path / "status.json").read_text())
    assert (found["state"], found["exit_code"]) == (word, code)
    if raised is UnexpectedError:
        assert found["message"] == str(caught.value)
        assert f"unexpected {type(error).__name__}" in found["message"]
        assert "P0017" not in found["message"] + (tmp_path / "log.txt").read_text().split("raise error")[1]
        assert "in test_keeping_status__whatever_ends_a_run" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_keeping_status__a_signal_outside_the_loop(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped), keeping_status(tmp_path, a_state(), 9):
        signal.raise_signal(number)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "stopped"
    assert signal.getsignal(number) is before


def test_keeping_status__a_signal_inside_is_told_outside_once(tmp_path: Path) -> None:
    with stop_requests() as search_asked, keeping_status(tmp_path, a_state(), 9):
        with stop_requests() as loop_asked:
            signal.raise_signal(signal.SIGTERM)
        assert loop_asked()
        assert search_asked()
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "done"


def test_keeping_status__a_signal_while_a_run_fails_does_not_hide_why(tmp_path: Path) -> None:
    def fail() -> None:
        try:
            raise RuntimeError
        except RuntimeError:
            signal.raise_signal(signal.SIGTERM)  # as a launcher sends it when another process has failed
            raise DistributedError("process 1 was lost") from None

    with pytest.raises(DistributedError), keeping_status(tmp_path, a_state(), 9):
        fail()
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"


def test_keeping_status__what_cannot_be_said_to_be_done_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def refuse_once(file: Path, content: Any) -> None:
        written.append(content["state"])
        if content["state"] == "done":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "write_json", refuse_once)
    with pytest.raises(CheckpointError, match="No space left"), keeping_status(tmp_path, a_state(), 9):
        pass
    assert written == ["running", "done", "failed"]


def test_note_death__of_a_run_that_could_not_say_so(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "environment.json").touch()
    write_status(tmp_path, "running", 4, 9)
    error = DistributedError("process 0 was killed")
    with holding(tmp_path, pytest.fail):
        pid = os.fork()  # another process, for which the folder is in use
        if not pid:
            note_death(tmp_path, error)
            os._exit(0)
        os.waitpid(pid, 0)
        assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"
    note_death(tmp_path, error)
    found = json.loads((tmp_path / "status.json").read_text())
    assert (found["state"], found["step"], found["exit_code"]) == ("failed", 4, 6)
    write_status(tmp_path, "done", 9, 9)
    note_death(tmp_path, error)
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "done"
