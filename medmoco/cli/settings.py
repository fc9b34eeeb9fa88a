"""The commands that show the settings, the state of the machine, and the networks."""

from __future__ import annotations

import typer

import medmoco
from medmoco.cli.options import Config, Overrides, check_given

PANEL = "Setup"
commands = typer.Typer()


@commands.command("config", rich_help_panel=PANEL)
def show_config(config_file: Config, overrides: Overrides = None) -> None:
    """Print every setting with its value and where the value comes from."""
    from medmoco import config

    check_given(config_file, overrides)
    print(config.describe(config_file, overrides or ()), end="")


@commands.command(rich_help_panel=PANEL)
def doctor() -> None:
    """Check the installation and the machine, and say what to do about each problem; exit code 1 if one stops a run."""
    from medmoco.starting.health.finding import findings_text

    findings = medmoco.doctor()
    print(findings_text(findings))
    faults = sum(finding.state == "fault" for finding in findings)
    if faults:
        print(f"{faults} problem{'s' * (faults > 1)} would stop a run")
        raise typer.Exit(1)
