"""The tests of what computes, as they pass or fail on CPUs with fewer instructions than this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.cpus import instruction_sets

ROOT = Path(__file__).parents[1]
COMPUTING = ("data", "models", "training", "evaluation", "detection", "exporting")


@pytest.mark.slow
@pytest.mark.parametrize("folder", COMPUTING)
@pytest.mark.parametrize("name", instruction_sets())
def test_suite__passes_on_other_cpus(folder: str, name: str) -> None:
    """Whoever runs the tests has another CPU than whoever wrote them."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{folder}"]
    run = subprocess.run(command, env=os.environ | instruction_sets()[name], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-4000:]
