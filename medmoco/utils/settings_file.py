"""The settings file that commands read by default. Light, since `medmoco --help` imports it."""

from __future__ import annotations

from pathlib import Path

SETTINGS_FILE = "medmoco.yaml"
"""In the working folder, read if --config is not given; `medmoco init` writes one."""


def config_option(config_file: Path) -> list[str]:
    """Return the option for another command in the same working folder to read the same file; empty if it does so."""
    return [] if str(config_file) == SETTINGS_FILE else ["--config", str(config_file)]
