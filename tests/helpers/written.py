"""Settings files, and what is said when they are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from medmoco import config
from medmoco.errors import SettingsError

MINIMAL = "out: runs/a\ndata: {manifest: m, root: r}\n"


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "settings.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def refusal(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        config.load(write(tmp_path, text), overrides)
    message = str(caught.value)
    assert len(message.splitlines()) <= 5
    assert caught.value.exit_code == 2
    return message
