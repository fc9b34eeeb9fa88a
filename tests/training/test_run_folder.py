from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medmoco import config
from medmoco.errors import CheckpointError, SettingsError
from medmoco.training import run_folder as module
from medmoco.training.checkpoint import save_checkpoint
from medmoco.training.context import RunContext
from medmoco.training.engine import TrainState
from medmoco.training.run_folder import (
    StartMode,
    check_changes,
    claim,
    describe_run,
    holding,
    load_newest,
    restore,
)

# One run at a time


def in_a_process(work: Callable[[], None]) -> int:
    """Start work in a fork of this process; return its id."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def wait_for(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def hold_for_ever(folder: Path, held: Path, also: Callable[[], object] = lambda: None) -> Callable[[], None]:
    def work() -> None:
        with holding(folder, pytest.fail):
            also()
            held.touch()
            time.sleep(600)

    return work


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_holding__names_who_holds_the_folder_and_a_kill_frees_it(tmp_path: Path) -> None:
    run, held = tmp_path / "a/run", tmp_path / "held"
    pid = in_a_process(hold_for_ever(run, held))
    try:
        wait_for(held.exists)
        with pytest.raises(CheckpointError) as caught, holding(run, pytest.fail):
            pass
        assert f"in use by process {pid} on {os.uname().nodename}." in str(caught.value)
    finally:
        kill(pid)
    assert (run / "lock").exists()
    with holding(run, pytest.fail):
        assert f"process {os.getpid()} " in (run / "lock").read_text()
    assert not (run / "lock").exists()


def test_holding__a_data_worker_that_outlives_its_run_holds_nothing(tmp_path: Path) -> None:
    run, held, worker = tmp_path / "run", tmp_path / "held", tmp_path / "worker"

    def start_worker() -> None:
        worker.write_text(str(in_a_process(lambda: time.sleep(600))))

    pid = in_a_process(hold_for_ever(run, held, start_worker))
    wait_for(held.exists)
    kill(pid)
    try:
        os.kill(int(worker.read_text()), 0)  # is alive
        with holding(run, pytest.fail):
            pass
    finally:
        os.kill(int(worker.read_text()), signal.SIGKILL)


def test_holding__is_not_fooled_by_a_lock_file_that_is_removed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run before ends, and another starts, between our opening the file and our locking it."""
    real, held = module.fcntl.lockf, tmp_path / "held"
    pids: list[int] = []

    def lockf(*arguments: Any) -> None:
        if not pids:
            (tmp_path / "run/lock").unlink()
            pids.append(in_a_process(hold_for_ever(tmp_path / "run", held)))
            wait_for(held.exists)
        real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(module.fcntl, "lockf", lambda *arguments: (lockf if os.getpid() == me else real)(*arguments))
        me = os.getpid()
        try:
            with pytest.raises(CheckpointError, match="in use by process"), holding(tmp_path / "run", pytest.fail):
                pass
        finally:
            kill(pids[0])


def test_holding__goes_without_locks_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "lockf", none)
    said: list[str] = []
    with holding(tmp_path / "run", said.append):
        pass
    assert len(said) == 1
    assert "no locks" in said[0]


def test_holding__leaves_nothing_in_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("of another program")
    (tmp_path / "thesis.tex").write_text("do not delete")
    before = set(tmp_path.iterdir())
    with pytest.raises(SettingsError, match="does not hold a run"), holding(tmp_path, pytest.fail):
        pass
    assert set(tmp_path.iterdir()) == before


# What a folder holds


def make_run(folder: Path) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    for name in ("config.yaml", "environment.json", "log.txt", "checkpoints/step-000000001.pt", "lock"):
        (folder / name).write_text("x")


@pytest.mark.parametrize("leftovers", [[], ["lock"], ["lock", "environment.json.tmp"], ["environment.json", "lock"]])
@pytest.mark.parametrize("options", [(False, False), (True, False), (False, True)])
def test_claim__takes_a_folder_in_which_no_run_has_begun(
    tmp_path: Path, leftovers: list[str], options: tuple[bool, bool]
) -> None:
    for name in leftovers:
        (tmp_path / name).write_text("")
    (tmp_path / "evaluation").mkdir()  # by a command that was refused
    claim(tmp_path, StartMode(*options))


def test_claim__of_a_run_needs_resume_or_overwrite(tmp_path: Path) -> None:
    make_run(tmp_path)
    with pytest.raises(SettingsError, match=r"--resume.*--overwrite"):
        claim(tmp_path, StartMode())
    with pytest.raises(SettingsError, match="use one of them"):
        claim(tmp_path, StartMode(resume=True, overwrite=True))
    claim(tmp_path, StartMode(resume=True))
    assert (tmp_path / "checkpoints/step-000000001.pt").exists()
    claim(tmp_path, StartMode(overwrite=True))
    assert [file.name for file in tmp_path.iterdir()] == ["lock"]


def test_claim__that_was_killed_while_it_deleted_can_be_repeated(tmp_path: Path) -> None:
    for deletions in range(1, 6):
        folder = tmp_path / str(deletions)
        make_run(folder)
        pid = in_a_process(partial(delete_some, folder, deletions))
        os.waitpid(pid, 0)
        assert len(list(folder.rglob("*"))) == 6 - deletions
        claim(folder, StartMode(overwrite=True))
        assert {file.name for file in folder.iterdir()} <= {"lock", "environment.json"}


def delete_some(folder: Path, deletions: int) -> None:
    left = [deletions]

    def counted(function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **options: Any) -> None:
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            function(*arguments, **options)

        return call

    os.unlink, os.rmdir = counted(os.unlink), counted(os.rmdir)
    claim(folder, StartMode(overwrite=True))


# What --resume continues


def test_load_newest__without_a_checkpoint(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "absent", pytest.fail) is None
    for state, step in (("running", 0), ("failed", 3)):
        (tmp_path / "status.json").write_text(json.dumps({"state": state, "step": step}))
        assert load_newest(tmp_path, pytest.fail) is None
    (tmp_path / "status.json").write_text("cut of")
    assert load_newest(tmp_path, pytest.fail) is None


@pytest.mark.parametrize("state", ["running", "stopped", "done"])
def test_load_newest__notices_that_checkpoints_are_gone(tmp_path: Path, state: str) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"state": state, "step": 7}))
    with pytest.raises(CheckpointError, match="saved at step 7, but its checkpoints are gone"):
        load_newest(tmp_path, pytest.fail)


def test_load_newest__names_what_a_checkpoint_lacks(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoints", 3, {"model": {}, "optimizer": {}, "settings": {}})
    with pytest.raises(CheckpointError, match="it lacks manifest_sha256, scaler"):
        load_newest(tmp_path, pytest.fail)


def facts(**changes: Any) -> dict[str, Any]:
    manifest = {"manifest_sha256": changes.pop("sha256", "aa"), "manifest_rows": changes.pop("rows", 24)}
    settings = {"train.lr": 0.1, "train.epochs": 3, "method.queue_size": 20, "data.workers": 2, "evaluate.size": None}
    return {"settings": settings | {key.replace("__", "."): value for key, value in changes.items()}, **manifest}


@pytest.mark.parametrize("allow", [False, True])
def test_check_changes__harmless_ones_need_no_word_and_epochs_one(allow: bool) -> None:
    assert check_changes(facts(), facts(), allow=allow) == []
    assert check_changes(facts(), facts(data__workers=0, evaluate__size=64), allow=allow) == []
    [said] = check_changes(facts(), facts(train__epochs=4), allow=allow)
    assert said.endswith("alters the result: train.epochs: was 3, now 4")


def test_check_changes__others_are_shown_unless_allowed() -> None:
    now = facts(train__lr=0.2, train__epochs=4, sha256="bb", rows=25)
    with pytest.raises(SettingsError) as caught:
        check_changes(facts(), now, allow=False)
    assert "train.lr: was 0.1, now 0.2\ntraining manifest: was 24 rows, now 25; its SHA-256 differs" in str(
        caught.value
    )
    assert "epochs" not in str(caught.value)
    assert len(check_changes(facts(), now, allow=True)) == 3


def test_check_changes__an_older_checkpoint_knows_no_rows_and_has_defaults_of_new_settings() -> None:
    old = facts(sha256="bb")
    del old["manifest_rows"], old["settings"]["train.lr"]
    with pytest.raises(SettingsError) as caught:
        check_changes(old, facts(), allow=False)
    assert "train.lr: was 0.03, now 0.1" in str(caught.value)
    assert (
        check_changes({**old, "manifest_sha256": facts()["manifest_sha256"]}, facts(train__lr=0.03), allow=False) == []
    )
    assert "was an unknown number of rows, now 24" in str(caught.value)


def test_check_changes__a_retired_setting_at_its_default_is_no_change() -> None:
    assert check_changes(facts(method__queue_sharded=False), facts(), allow=False) == []
    with pytest.raises(SettingsError, match="queue_sharded: was True, now False"):
        check_changes(facts(method__queue_sharded=True), facts(), allow=False)


def test_check_changes__of_the_rows_show_no_ids() -> None:
    for where, words in (("Age > 3", "Age > 3"), ("PatientID != P17", "a condition on ids")):
        [said] = check_changes(facts(), facts(data__where=where), allow=True)
        assert said.endswith(f"data.where: was None, now {words}")


def test_check_changes__many_fit_in_five_lines() -> None:
    now = facts(**{f"views__v{number}": number for number in range(9)})
    with pytest.raises(SettingsError, match="and 7 more") as caught:
        check_changes(facts(), now, allow=False)
    assert len(str(caught.value).splitlines()) == 5


def test_check_changes__what_the_state_does_not_fit_is_never_allowed() -> None:
    for allow in (False, True):
        with pytest.raises(SettingsError, match="state does not fit") as caught:
            check_changes(facts(), facts(method__queue_size=24, train__lr=0.2), allow=allow)
        assert "method.queue_size: was 20, now 24" in str(caught.value)
        assert "train.lr" not in str(caught.value)


def test_check_changes__its_keys_exist() -> None:
    settings = config.load(None, ["out=x", "data.manifest=x", "data.root=x"])
    keys = dict(config.flatten(config.as_tree(settings)))
    for known in (*module.HARMLESS, *module._FREE, *module._FIXED):
        assert any(key.startswith(known) for key in keys), known


def make_state(width: int = 3, *, scaling: bool = False) -> TrainState:
    model = nn.Linear(width, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return TrainState(model, optimizer, torch.amp.GradScaler("cpu", enabled=scaling))


def test_restore__says_that_a_checkpoint_does_not_fit() -> None:
    saved = {**make_state().as_content(), "step": 5}
    state = make_state()
    restore(state, saved)
    assert state.step == 5
    for harmed in ({**saved, "model": {}}, {**saved, "optimizer": {"state": {}}}):
        with pytest.raises(CheckpointError, match="the checkpoint of step 5 does not fit"):
            restore(make_state(), harmed)
    with pytest.raises(CheckpointError, match="does not fit"):
        restore(make_state(width=4), saved)


def test_restore__takes_a_run_to_a_device_that_needs_loss_scaling() -> None:
    state = make_state(scaling=True)
    restore(state, {**make_state().as_content(), "step": 5})
    assert state.scaler.get_scale() == 2**16


def test_describe_run__says_where_arithmetic_differs_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config.load(None, ["data.manifest=m", "data.root=r", f"out={tmp_path}"])

    def describe(precision: str) -> list[str]:
        context = RunContext(settings, precision=precision)
        return describe_run(tmp_path, context, {"processes": 1, "manifest_sha256": "0"})

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert describe("fp32") == []
    assert describe("fp32") == []
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    (said,) = describe("bf16")
    assert "cpu AVX512 before, AVX2 now, precision fp32 before, bf16 now" in said
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert (environment["cpu"], environment["precision"]) == ("AVX2", "bf16")
    del environment["cpu"]  # as runs have it from before it was noted
    (tmp_path / "environment.json").write_text(json.dumps(environment))
    assert describe("bf16") == []
