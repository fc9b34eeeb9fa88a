"""The commands that evaluate encoders and report the results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import medmoco
from medmoco.cli.next_steps import after_evaluation
from medmoco.cli.options import (
    AllowChange,
    Config,
    Devices,
    Encoder,
    Overrides,
    Overwrite,
    Resume,
    SizedEncoders,
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
    encoder: SizedEncoders,
    out: Annotated[Path, typer.Option(parser=path, help="Folder for scores, predictions, the probe and the table.")],
    test: Test = False,
    overrides: Overrides = None,
) -> None:
    """Evaluate frozen encoders by AUROC on the labels, next to the controls: an untrained network and raw pixels."""
    settings = load(config_file, overrides)
    encoders = named(encoder)
    print(medmoco.evaluate(settings, encoders, out, test=test, log=log).table)
    if command := after_evaluation(next(iter(encoders.values())), out):
        print(command)


@commands.command(rich_help_panel=PANEL)
def curve(
    config_file: Config,
    encoder: SizedEncoders,
    out: Annotated[Path, typer.Option(parser=path, help="Folder for curve.csv, curve.json and the figures.")],
    draws: Annotated[int, typer.Option(min=1, help="Draws of patients for each label fraction below 100 %.")] = 5,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Also train end to end, from the encoder and from scratch (slow).")
    ] = False,
    segment: Annotated[
        bool,
        typer.Option(
            "--segment", help="Also train segmentation networks on masks, from every encoder and from scratch (slow)."
        ),
    ] = False,
    test: Test = False,
    overrides: Overrides = None,
) -> None:
    """Measure label efficiency: evaluate encoders with the labels or masks of 1 to 100 % of the patients."""
    settings = load(config_file, overrides)
    found = medmoco.curve(
        settings, named(encoder), out, draws=draws, finetune=finetune, segment=segment, test=test, log=log
    )
    print(found.table)


@commands.command(rich_help_panel=PANEL)
def external(
    config_file: Config,
    other: Annotated[
        Path, typer.Option(parser=path, help="YAML file of the external data: its manifest, root and labels.")
    ],
    classifier: Annotated[Path, typer.Option(parser=path, help="Classifier folder written by evaluate or finetune.")],
    out: Annotated[Path, typer.Option(parser=path, help="Folder for the results.")],
    overrides: Overrides = None,
) -> None:
    """Validate a frozen classifier on the test set of another hospital; the ledger records both test sets."""
    print(medmoco.external(load(config_file, overrides), other, classifier, out, log=log).table)


@commands.command(rich_help_panel=PANEL)
def detect(
    config_file: Config,
    encoder: Encoder,
    out: Annotated[Path, typer.Option(parser=path, help="Run folder of the detector.")],
    test: Test = False,
    against: Annotated[
        Path | None,
        typer.Option(parser=path, help="Run folder of another detector to compare with, on the same images."),
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(parser=path, help="PNG file for boxes on a few images. It shows images of patients.")
    ] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    devices: Devices = None,
    allow_change: AllowChange = False,
) -> None:
    """Train an object detector with the encoder as its backbone, and evaluate it by average precision."""
    settings = load(config_file, overrides)
    with in_processes(settings, devices, out):
        found = medmoco.detect(
            settings, encoder, out, test=test, against=against, pictures=pictures,
            resume=resume, overwrite=overwrite, allow_change=allow_change,
        )  # fmt: skip
        if found:
            print(found.table)
            print(f"run folder: {out}")


@commands.command(rich_help_panel=PANEL)
def segment(
    config_file: Config,
    encoder: Encoder,
    out: Annotated[Path, typer.Option(parser=path, help="Run folder of the segmentation network.")],
    test: Test = False,
    against: Annotated[
        Path | None,
        typer.Option(parser=path, help="Run folder of another segmentation to compare with, on the same images."),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(parser=path, help="PNG file for contours on a few images. It shows images of patients."),
    ] = None,
    overrides: Overrides = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    devices: Devices = None,
    allow_change: AllowChange = False,
) -> None:
    """Train a segmentation network on masks with the encoder under a decoder, and score it by Dice and surfaces."""
    settings = load(config_file, overrides)
    with in_processes(settings, devices, out):
        found = medmoco.segment(
            settings, encoder, out, test=test, against=against, pictures=pictures,
            resume=resume, overwrite=overwrite, allow_change=allow_change,
        )  # fmt: skip
        if found:
            print(found.table)
            print(f"run folder: {out}")


@commands.command(rich_help_panel=PANEL)
def report(
    runs: Annotated[list[Path], typer.Argument(parser=path, metavar="RUN...", help="Run folders to compare.")],
    out: Annotated[
        Path | None, typer.Option(parser=path, help="HTML file to write (default: report.html in the first folder).")
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(parser=path, help="Model card to include (default: export/MODEL_CARD.md in the first run)."),
    ] = None,
    images: Annotated[
        bool,
        typer.Option(
            "--images", help="Show views and nearest neighbours of a few images of the data. They show patients."
        ),
    ] = False,
    pictures: Annotated[
        list[Path] | None, typer.Option(parser=path, help="PNG file to include; it may show patients. Repeatable.")
    ] = None,
    title: Annotated[str, typer.Option(help="Title of the page (default: what was trained on how many images).")] = "",
) -> None:
    """Write a self-contained HTML report of runs: the gain, scores, curves, data, methods and reporting checklists."""
    page = medmoco.report(runs, out, card=card, images=images, pictures=pictures or (), title=title, log=print)
    print(f"report: {page}")
    if images or pictures:
        print(f"{page} may show images of patients: keep it where such images may be stored")
