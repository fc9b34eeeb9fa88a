"""Signals that ask a run to stop."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

import pytest

from tests.helpers.runs import Run, assert_same_result, checkpoints, pretrain, status, steps


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, id="SIGTERM"),
        *(pytest.param(number, id=number.name, marks=pytest.mark.slow) for number in (signal.SIGUSR1, signal.SIGINT)),
    ],
)
def test_stop__saves_and_the_printed_command_goes_on_to_the_same_weights(
    settings: Path, straight: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "run"
    run = pretrain(settings, out, "data.workers=2")
    run.wait_for(lambda: len(steps(out)) >= 5)
    run.signal(number, group=number != signal.SIGUSR1)
    assert run.wait() == 75
    reached = steps(out)[-1]
    assert f"stopped after step {reached} of" in run.said
    assert "Traceback" not in run.said
    assert checkpoints(out)[-1].name == f"step-{reached:09d}.pt"
    assert status(out)["state"] == "stopped"
    assert not (out / "lock").exists()

    [command] = [line for line in run.said.splitlines() if line.startswith("Resume with: medmoco ")]
    words = shlex.split(command.removeprefix("Resume with: medmoco "))
    again = Run(tmp_path / "again.said", *words, "data.workers=0")
    assert again.wait() == 0, again.said
    assert f"from step {reached}, " in again.said
    assert_same_result(out, straight)


def test_stop__one_command_serves_the_first_start_and_every_requeue(
    settings: Path, straight: Path, tmp_path: Path
) -> None:
    """Killed while it starts, killed before its first checkpoint, stopped later; always `--resume`."""
    out = tmp_path / "run"
    first = pretrain(settings, out, "--resume")
    first.wait_for(lambda: (out / "config.yaml").exists())
    first.kill()
    second = pretrain(settings, out, "--resume")
    second.wait_for(lambda: steps(out))
    assert second.kill()
    assert not checkpoints(out)
    third = pretrain(settings, out, "--resume")
    third.wait_for(lambda: len(checkpoints(out)) == 2)
    third.signal(signal.SIGTERM)
    assert third.wait() == 75
    last = pretrain(settings, out, "--resume")
    assert last.wait() == 0, last.said
    log = (out / "log.txt").read_text()
    assert log.count("no checkpoint yet: starting from step 0") in (
        2,
        3,
    )  # did the first get to say so?
    assert log.count("resuming ") == 1
    assert_same_result(out, straight)
