from __future__ import annotations

import os
import signal
import time

import pytest

from medmoco.errors import DistributedError, Stopped
from medmoco.training.agreement import any_of
from medmoco.training.distributed import ALONE, Group
from medmoco.training.lost_processes import explaining_lost, report_step
from tests.helpers.together import run_together


def _one_leaves(group: Group, how: str) -> str:
    with explaining_lost(group):
        report_step(group, 4)
        any_of(group, False)
        if group.rank == 1 and how == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if group.rank == 1 and how == "hangs":
            time.sleep(8)
            return "woke up"
        report_step(group, 5)
        any_of(group, False)
    return "continued"


def test_explaining_lost__a_process_that_died() -> None:
    survivor, dead = run_together(2, _one_leaves, "dies")
    assert isinstance(dead, EOFError)
    assert isinstance(survivor, DistributedError)
    assert str(survivor).startswith("process 1 (in step 4) has ended or cannot be reached")
    assert "--resume" in str(survivor)
    assert survivor.exit_code == 6


@pytest.mark.slow
def test_explaining_lost__a_process_that_hangs_is_named_with_its_step() -> None:
    waiting, _ = run_together(2, _one_leaves, "hangs", hang_seconds=2.0)
    assert isinstance(waiting, DistributedError)
    assert str(waiting).startswith("process 1 (in step 4) has not answered for 2 s")
    assert len(str(waiting).splitlines()) <= 5


def test_explaining_lost__leaves_other_errors_alone() -> None:
    with pytest.raises(RuntimeError, match="shape"), explaining_lost(ALONE):
        raise RuntimeError("shape '[3]' is invalid")
    with pytest.raises(Stopped), explaining_lost(Group(size=2)):
        raise Stopped("stopped")
