"""Settings, manifests and folders that are not what the run was started with; and two runs on one folder."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.helpers.runs import IMAGES, Run, assert_same_result, checkpoints, pretrain, status, steps


def refuse(run: Run, code: int) -> str:
    """Wait for a refusal and return it."""
    assert run.wait() == code, run.said
    assert len(run.said.splitlines()) <= 5
    return run.said


def test_change__of_settings_is_shown_and_goes_on_when_allowed(settings: Path, stopped: Path) -> None:
    changed = ("train.lr=0.2", "views.flip_probability=0", "--resume")
    said = refuse(pretrain(settings, stopped, *changed), 2)
    assert "train.lr: was 0.1, now 0.2\n" in said
    assert "views.flip_probability: was 0.5, now 0" in said
    assert "--allow-change" in said
    run = pretrain(settings, stopped, *changed, "--allow-change")
    assert run.wait() == 0, run.said
    log = (stopped / "log.txt").read_text()
    assert "changed since the run was started, and alters the result: train.lr: was 0.1, now 0.2" in log
    assert status(stopped)["state"] == "done"
    assert refuse(pretrain(settings, stopped, "--resume"), 2).count("was 0.2, now 0.1") == 1  # it is that run now


@pytest.mark.parametrize(
    "change", ["method.queue_size=16", "method.embedding_dim=64", "model.backbone=resnet10t", "train.optimizer=adamw"]
)
def test_change__that_the_saved_state_does_not_fit_is_refused_even_if_allowed(
    settings: Path, stopped: Path, change: str
) -> None:
    said = refuse(pretrain(settings, stopped, change, "--resume", "--allow-change"), 2)
    assert f"{change.split('=')[0]}: was " in said
    assert "The saved state does not fit" in said


def test_change__of_the_manifest_is_shown_and_goes_on_when_allowed(settings: Path, stopped: Path) -> None:
    data = stopped.with_name("data")
    shutil.copytree(settings.parent, data)
    with (data / "train.csv").open("a") as file:
        file.write("more.png\n")
    shutil.copy(data / "0.png", data / "more.png")
    elsewhere = (f"data.manifest={data}", f"data.root={data}", "--resume")
    said = refuse(pretrain(settings, stopped, *elsewhere), 2)
    assert f"training manifest: was {IMAGES} rows, now {IMAGES + 1}; its SHA-256 differs" in said
    run = pretrain(settings, stopped, *elsewhere, "--allow-change")
    assert run.wait() == 0, run.said
    assert f"alters the result: training manifest: was {IMAGES} rows" in (stopped / "log.txt").read_text()


def test_change__of_epochs_goes_on_and_says_so_and_of_workers_goes_on_without_a_word(
    settings: Path, stopped: Path
) -> None:
    run = pretrain(settings, stopped, "--resume", "train.epochs=8", "data.workers=0", "train.log_every=2")
    assert run.wait() == 0, run.said
    assert "alters the result: train.epochs: was 10, now 8" in run.said
    assert run.said.count("alters the result") == 1
    assert status(stopped)["steps"] == 24


def test_two_runs__the_second_is_refused_and_the_first_unharmed(settings: Path, straight: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = pretrain(settings, out, "data.workers=2")
    first.wait_for(lambda: steps(out))
    first.signal(signal.SIGSTOP)  # so that it cannot end first
    for option in ("--overwrite", "--resume", "data.workers=0"):
        said = refuse(pretrain(settings, out, option, said=tmp_path / "second.said"), 4)
        assert f"in use by process {first.pid} on " in said
    first.signal(signal.SIGCONT)
    assert first.wait() == 0, first.said
    assert_same_result(out, straight)


@pytest.mark.slow
def test_two_runs__one_that_was_killed_keeps_nobody_out(settings: Path, straight: Path, tmp_path: Path) -> None:
    """Its data workers live on for a while; they do not hold the folder."""
    out = tmp_path / "run"
    first = pretrain(settings, out, "data.workers=2")
    first.wait_for(lambda: checkpoints(out))
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    assert (out / "lock").exists()
    second = pretrain(settings, out, "--resume")
    assert second.wait() == 0, second.said
    assert_same_result(out, straight)
