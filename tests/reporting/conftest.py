"""Runs that several tests of reports read and none changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from medmoco.reporting.runs import Run, read_run
from tests.helpers.made_runs import make_run


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "cxr-1")


@pytest.fixture(scope="session")
def run(run_folder: Path) -> Run:
    return read_run(run_folder)


@pytest.fixture(scope="session")
def other_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return read_run(make_run(tmp_path_factory.mktemp("runs") / "cxr-2", seed=1))


@pytest.fixture(scope="session")
def bare_folder(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which there is nothing but its settings."""
    folder = tmp_path_factory.mktemp("runs") / "bare"
    folder.mkdir()
    for name in ("config.yaml", "environment.json"):
        (folder / name).write_bytes((run_folder / name).read_bytes())
    return folder


@pytest.fixture(scope="session")
def bare_run(bare_folder: Path) -> Run:
    return read_run(bare_folder)


@pytest.fixture(scope="session")
def target_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with classes and an age."""
    return make_run(tmp_path_factory.mktemp("runs") / "cxr-3", targets=True)


@pytest.fixture(scope="session")
def target_run(target_folder: Path) -> Run:
    return read_run(target_folder)
