from __future__ import annotations

import runpy
import sys

import pytest


def test_main__is_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["medmoco", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("medmoco", run_name="__main__")
    assert not ended.value.code
    assert "Pretrain image encoders" in capsys.readouterr().out
