"""The commands that show what an encoder is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medmoco.cli.options import (
    AllowChange,
    Config,
    Devices,
    Encoder,
    Encoders,
    Overrides,
    Overwrite,
    Resume,
    Test,
    load,
    log,
    named,
    path,
)
from medmoco.cli.processes import in_processes

PANEL = "Evidence"
commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
def evaluate(
    config_file: Config,
    encoder: Encoders,
    out: Annotated[Path, typer.Option(parser=path, help="Folder for scores, predictions, the probe and the table.")],
    test: Test = False,
    overrides: Overrides = None,
) -> None:
    """Score the frozen encoder on the labels, next to its controls."""
    settings = load(config_file, overrides)
    encoders = named(encoder)
    from medmoco.evaluation.evaluate import evaluate as score

    print(score(settings, encoders, out, test=test, log=log).table)


@commands.command(rich_help_panel=PANEL)
def curve(
    config_file: Config,
    encoder: Encoders,
    out: Annotated[Path, typer.Option(parser=path, help="Folder for curve.csv, curve.json and the figures.")],
    draws: Annotated[int, typer.Option(min=1, help="Draws of patients for each share of labels below 100 %.")] = 5,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Also train end to end, from the encoder and from nothing. Takes long.")
    ] = False,
    test: Test = False,
    overrides: Overrides = None,
) -> None:
    """Score with labels of 1 to 100 % of the patients, on the same draws for every encoder."""
    settings = load(config_file, overrides)
    encoders = named(encoder)
    from medmoco.evaluation.curve import curve as score

    print(score(settings, encoders, out, draws=draws, finetuned=finetune, test=test, log=log).table)


@commands.command(rich_help_panel=PANEL)
def external(
    config_file: Config,
    other: Annotated[
        Path, typer.Option(parser=path, help="YAML file of the other data: its manifest, root and labels.")
    ],
    classifier: Annotated[Path, typer.Option(parser=path, help="Folder that evaluate or finetune left.")],
    out: Annotated[Path, typer.Option(parser=path, help="Folder for the results.")],
    overrides: Overrides = None,
) -> None:
    """Score a frozen classifier on the test split of other data, and show the drop; both looks are noted."""
    settings, theirs = load(config_file, overrides), load(other)
    from medmoco.evaluation.supervised.external import external as score

    print(score(settings, theirs, classifier, out, log=log).table)


@commands.command(rich_help_panel=PANEL)
def detect(
    config_file: Config,
    encoder: Encoder,
    out: Annotated[Path, typer.Option(parser=path, help="Run folder of the detector.")],
    test: Test = False,
    against: Annotated[
        Path | None,
        typer.Option(parser=path, help="Run folder of another detector, for paired differences on the same images."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(parser=path, help="PNG file of boxes in a few images. It shows patients' images.")
    ] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    devices: Devices = None,
    allow_change: AllowChange = False,
) -> None:
    """Train a detector on boxes with the encoder as its backbone, and score it by average precision."""
    settings = load(config_file, overrides)
    from medmoco.detection.detect import detect as run

    changes = {"resume": resume, "overwrite": overwrite, "allow_change": allow_change}
    with in_processes(settings, devices, out) as group:
        found = run(
            settings, encoder, out, test=test, against=against, pictures=pictures, **changes, log=log, group=group
        )
        if found:
            print(found.table)
            print(f"run folder: {out}")


@commands.command(rich_help_panel=PANEL)
def report(
    runs: Annotated[
        list[Path], typer.Argument(parser=path, metavar="RUN...", help="Run folders, to stand side by side.")
    ],
    out: Annotated[
        Path | None, typer.Option(parser=path, help="HTML file to write [report.html in the first folder].")
    ] = None,
    card: Annotated[
        Path | None, typer.Option(parser=path, help="Model card of the first run [export/MODEL_CARD.md in it].")
    ] = None,
    pictures: Annotated[
        list[Path] | None, typer.Option(parser=path, help="PNG file to show too; it may show patients. Repeatable.")
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page [the names of the folders].")] = "",
) -> None:
    """Write one HTML file about runs: data, curves, scores, and checklists filled in; it works offline."""
    from medmoco.reporting.report import report as write

    print(write(runs, out or runs[0] / "report.html", card=card, pictures=pictures or (), title=title))
