"""Runs that many tests of this folder start from; made once."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from tests.helpers.runs import STEPS, checkpoints, make_images, pretrain, steps


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """settings.yaml of a tiny data set that no test changes."""
    return make_images(tmp_path_factory.mktemp("faults") / "data")


@pytest.fixture(scope="session")
def straight(settings: Path) -> Path:
    """A run that nothing happened to."""
    out = settings.parents[1] / "straight"
    run = pretrain(settings, out)
    assert run.wait() == 0, run.said
    assert steps(out) == list(range(1, STEPS + 1))
    return out


@pytest.fixture(scope="session")
def _stopped(settings: Path) -> Path:
    out = settings.parents[1] / "stopped"
    run = pretrain(settings, out)
    run.wait_for(lambda: len(checkpoints(out)) == 3)
    run.signal(signal.SIGTERM)
    assert run.wait() == 75, run.said
    return out


@pytest.fixture
def stopped(_stopped: Path, tmp_path: Path) -> Path:
    """A run that was stopped on its way and has three checkpoints, for a test to harm."""
    return Path(shutil.copytree(_stopped, tmp_path / "run"))
