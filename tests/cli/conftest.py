"""The command line in the tests' own process."""

from __future__ import annotations

import sys

import pytest

from medmoco import cli
from tests.cli.commands import Call, Said


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Return what runs medmoco's command line in this process."""

    def run(*arguments: object, code: int = 0) -> Said:
        monkeypatch.setattr(sys, "argv", ["medmoco", *map(str, arguments)])
        monkeypatch.setenv("PYTHONSAFEPATH", "")  # the command line sets it, for the processes of this test alone
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = Said(*capsys.readouterr())
        assert (ended.value.code or 0) == code, said.stderr
        return said

    return run
