"""The commands that show the settings, the state of the machine, and the networks."""

from __future__ import annotations

from typing import Annotated

import typer

import medmoco
from medmoco.cli.options import Config, Overrides, check_given
from medmoco.datasets import resources

PANEL = "Setup"
commands = typer.Typer()


@commands.command("config", rich_help_panel=PANEL)
def show_config(
    config_file: Config,
    overrides: Overrides = None,
    example: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"Print an example of a settings file instead: {', '.join(resources.EXAMPLES)}."
        ),
    ] = None,
) -> None:
    """Print every setting with its value and where the value comes from."""
    from medmoco import config

    if example is not None:
        print(resources.example(example), end="")
        return
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


_MOST = 30  # networks on the screen


@commands.command(rich_help_panel=PANEL)
def models(
    pattern: Annotated[
        str, typer.Argument(help="Part of the name, or a pattern such as 'vit_*_224' (default: a selection).")
    ] = "",
    dimensions: Annotated[
        int, typer.Option(min=2, max=3, help="2 for networks for images, 3 for those for volumes.")
    ] = 2,
) -> None:
    """List networks for model.backbone, with their parameters and the width of their features."""
    from medmoco.models.listing import matching_names

    table = medmoco.list_models(pattern, limit=_MOST, dimensions=dimensions)
    width = table["name"].str.len().max()
    print(f"{'model.backbone':{width}} {'parameters':>10} {'features':>9}")
    for name, parameters, features, advice in table.astype(object).where(table.notna(), "").itertuples(index=False):
        millions = f"{parameters:.1f} M" if parameters else ""
        print(f"{name:{width}} {millions:>10} {features:>9}  {advice}".rstrip())
    if not pattern and dimensions == 2:
        print("medmoco models PATTERN lists others, such as: medmoco models resnet; for volumes, add --dimensions 3")
    elif (more := len(matching_names(pattern, dimensions)) - len(table)) > 0:
        print(f"and {more} more; a longer pattern shows fewer")
