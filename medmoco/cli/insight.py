"""The commands that visualise what an encoder has learned."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import medmoco
from medmoco.cli.options import (
    Config,
    Encoder,
    Encoders,
    Overrides,
    Rows,
    ScoredSplit,
    load,
    log,
    named,
    path,
    row_numbers,
    split_name,
)

PANEL = "Inspection"
commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
def neighbours(
    config_file: Config,
    encoder: Encoder,
    out: Annotated[
        Path, typer.Option(parser=path, help="NAME.png (shows images of patients) with NAME.csv, or NAME.csv alone.")
    ],
    rows: Rows,
    overrides: Overrides = None,
    split: ScoredSplit = "val",
    bank: Annotated[
        str, typer.Option(metavar="train|val|test", help="Split in which to search for neighbours.")
    ] = "train",
    count: Annotated[int, typer.Option(min=1, max=50, help="Number of neighbours per image.")] = 6,
    same_patient: Annotated[
        bool, typer.Option("--same-patient", help="Allow other images of the same patient as neighbours.")
    ] = False,
) -> None:
    """Find the nearest neighbours of images in the encoder's feature space."""
    settings = load(config_file, overrides)
    queries, names = row_numbers(rows), {"split": split_name(split), "bank": split_name(bank)}
    table = medmoco.neighbours(
        settings, encoder, out, queries, **names, count=count, same_patient=same_patient, log=log
    )
    print(f"wrote {len(table)} neighbours of {len(set(queries))} images to {out.with_suffix('.csv')}")
    if out.suffix.lower() == ".png":
        print(f"{out} shows images of patients: keep it where such images may be stored")


@commands.command(rich_help_panel=PANEL)
def projection(
    config_file: Config,
    encoder: Encoder,
    out: Annotated[Path, typer.Option(parser=path, help="Folder for the table and the figure.")],
    overrides: Overrides = None,
    split: ScoredSplit = "val",
    colour: Annotated[
        str | None, typer.Option(help="Label by which to colour the points (default: the first).")
    ] = None,
) -> None:
    """Project the features to two dimensions, coloured by a label."""
    settings = load(config_file, overrides)
    print(medmoco.projection(settings, encoder, out, split=split_name(split), colour=colour, log=log))


@commands.command(rich_help_panel=PANEL)
def placement(
    config_file: Config,
    encoder: Encoders,
    out: Annotated[
        Path, typer.Option(parser=path, help="Folder for placement.json, histogram.csv, figures and the table.")
    ],
    overrides: Overrides = None,
    split: ScoredSplit = "val",
    perturbation: Annotated[
        list[str] | None,
        typer.Option(help="flip, rotate:10, crop:0.7, intensity:0.2 or view. Repeatable (default: all of them)."),
    ] = None,
    twin: Annotated[list[str] | None, typer.Option(hidden=True, help="Former name of --perturbation.")] = None,
) -> None:
    """Measure invariance: rank the perturbed copy of each image among all images."""
    settings = load(config_file, overrides)
    encoders, where, chosen = named(encoder), split_name(split), [*(perturbation or ()), *(twin or ())]
    print(medmoco.placement(settings, encoders, out, split=where, perturbations=chosen, log=log), end="")


@commands.command(rich_help_panel=PANEL)
def saliency(
    config_file: Config,
    classifier: Annotated[Path, typer.Option(parser=path, help="Classifier folder written by evaluate or finetune.")],
    out: Annotated[Path, typer.Option(parser=path, help="PNG file to write. It shows images of patients.")],
    rows: Rows,
    label: Annotated[str, typer.Option(help="One of the classifier's labels.")],
    overrides: Overrides = None,
    split: ScoredSplit = "val",
) -> None:
    """Draw saliency maps of a classifier for some images: patch scores or Grad-CAM."""
    settings = load(config_file, overrides)
    print(medmoco.saliency(settings, classifier, out, row_numbers(rows), label, split=split_name(split), log=log))


@commands.command(rich_help_panel=PANEL)
def reconstruct(
    config_file: Config,
    run: Annotated[Path, typer.Option(parser=path, help="Run folder of a pretraining run with a decoder.")],
    out: Annotated[Path, typer.Option(parser=path, help="PNG file to write. It shows images of patients.")],
    rows: Rows,
    overrides: Overrides = None,
    split: ScoredSplit = "val",
) -> None:
    """Draw the reconstructions of some images by a run's decoder."""
    settings = load(config_file, overrides)
    print(medmoco.reconstruct(settings, run, out, row_numbers(rows), split=split_name(split), log=log))
