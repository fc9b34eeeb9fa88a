"""The command that shows the settings."""

from __future__ import annotations

import typer

from medmoco.cli.options import Config, Overrides, check_given

PANEL = "Settings"
commands = typer.Typer()


@commands.command("config", rich_help_panel=PANEL)
def show_config(config_file: Config, overrides: Overrides = None) -> None:
    """Print every setting with its value and where the value comes from."""
    from medmoco import config

    check_given(config_file, overrides)
    print(config.describe(config_file, overrides or ()), end="")
