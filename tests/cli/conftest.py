"""The command line in the tests' own process."""

from __future__ import annotations

import sys

import pytest

from medmoco import cli
from tests.helpers.commands import Call, Said


@pytest.fixture(autouse=True)
def _one_test_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take back after each test what the command line sets for the processes that it starts."""
    monkeypatch.setenv("PYTHONSAFEPATH", "")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return what runs medmoco's command line in this process."""

    def run(*arguments: object, code: int = 0) -> Said:
        monkeypatch.setattr(sys, "argv", ["medmoco", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = Said(*capsys.readouterr())
        assert (ended.value.code or 0) == code, said.stderr
        return said

    return run
