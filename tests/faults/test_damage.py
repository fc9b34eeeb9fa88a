"""Checkpoints that a disk or a person has damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from medmoco.utils.files import sha256_of
from tests.helpers.harm import HARM, empty
from tests.helpers.runs import assert_same_result, checkpoints, pretrain


@pytest.mark.parametrize("harm", HARM)
def test_damage__falls_back_to_the_one_before_and_loses_nothing(
    settings: Path, straight: Path, stopped: Path, harm: Callable[[Path], None]
) -> None:
    *_, before, newest = checkpoints(stopped)
    harm(newest)
    run = pretrain(settings, stopped, "--resume")
    assert run.wait() == 0, run.said
    assert f"warning: checkpoint {newest.name} is damaged (its SHA-256 " in run.said
    assert f"from step {int(before.stem.removeprefix('step-'))}, " in run.said
    assert f"warning: checkpoint {newest.name} is damaged" in (stopped / "log.txt").read_text()
    assert_same_result(stopped, straight)


def test_damage__of_all_is_exit_code_4_and_changes_nothing(settings: Path, stopped: Path) -> None:
    for harm, file in zip(HARM, checkpoints(stopped), strict=False):
        harm(file)
    before = {file: sha256_of(file) for file in stopped.rglob("*") if file.is_file()}
    run = pretrain(settings, stopped, "--resume")
    assert run.wait() == 4
    assert "all 3 checkpoints of the run are damaged (its SHA-256 differs)" in run.said
    assert len(run.said.splitlines()) <= 5
    assert {file: sha256_of(file) for file in stopped.rglob("*") if file.is_file()} == before


def test_damage__checkpoints_that_are_gone_are_no_reason_for_a_silent_new_start(settings: Path, stopped: Path) -> None:
    shutil.rmtree(stopped / "checkpoints")
    run = pretrain(settings, stopped, "--resume")
    assert run.wait() == 4
    assert "its checkpoints are gone" in run.said


def test_damage__of_all_can_be_left_behind_with_overwrite(settings: Path, straight: Path, stopped: Path) -> None:
    for file in checkpoints(stopped):
        empty(file)
    run = pretrain(settings, stopped, "--overwrite")
    assert run.wait() == 0, run.said
    assert_same_result(stopped, straight)
