from __future__ import annotations

from pathlib import Path

from medmoco.utils.settings_file import config_option


def test_config_option__only_for_another_file_than_the_default() -> None:
    assert config_option(Path() / "medmoco.yaml") == []
    assert config_option(Path("a/medmoco.yaml")) == ["--config", "a/medmoco.yaml"]
