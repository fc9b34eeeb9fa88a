"""The commands that show what an encoder sees."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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

PANEL = "What an encoder sees"
commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
def neighbours(
    config_file: Config,
    encoder: Encoder,
    out: Annotated[
        Path, typer.Option(parser=path, help="NAME.png, which shows patients, with NAME.csv; or NAME.csv alone.")
    ],
    rows: Rows,
    overrides: Overrides = None,
    split: ScoredSplit = "val",
    bank: Annotated[str, typer.Option(metavar="train|val|test", help="The images to compare them with.")] = "train",
    count: Annotated[int, typer.Option(min=1, max=50, help="Neighbours of each.")] = 6,
    same_patient: Annotated[
        bool, typer.Option("--same-patient", help="Other images of the same patient may be neighbours.")
    ] = False,
) -> None:
    """Find the images that the encoder finds most like some of yours."""
    settings = load(config_file, overrides)
    wanted, names = row_numbers(rows), {"split": split_name(split), "bank": split_name(bank)}
    from medmoco.inspection.neighbours import neighbours as find

    found = find(settings, encoder, out, wanted, **names, count=count, same_patient=same_patient, log=log)
    print(f"{len(found)} neighbours of {len(set(wanted))} images are in {out.with_suffix('.csv')}")
    if out.suffix.lower() == ".png":
        print(f"{out} shows them: keep it where the images may be")


@commands.command(rich_help_panel=PANEL)
def projection(
    config_file: Config,
    encoder: Encoder,
    out: Annotated[Path, typer.Option(parser=path, help="Folder for the table and the figure.")],
    overrides: Overrides = None,
    split: ScoredSplit = "val",
    colour: Annotated[str | None, typer.Option(help="Label that colours the points; without it, the first.")] = None,
) -> None:
    """Lay the features out on a plane, coloured by a label."""
    settings = load(config_file, overrides)
    from medmoco.inspection.projection import projection as project

    print(project(settings, encoder, out, split=split_name(split), colour=colour, log=log))


@commands.command(rich_help_panel=PANEL)
def placement(
    config_file: Config,
    encoder: Encoders,
    out: Annotated[
        Path, typer.Option(parser=path, help="Folder for placement.json, histogram.csv, figures and the table.")
    ],
    overrides: Overrides = None,
    split: ScoredSplit = "val",
    twin: Annotated[
        list[str] | None,
        typer.Option(help="flip, rotate:10, crop:0.7, intensity:0.2 or view; repeatable; all of them if not given."),
    ] = None,
) -> None:
    """Rank each image's changed twin among all images: what the features do not care about."""
    settings = load(config_file, overrides)
    from medmoco.inspection.retrieval import placement as place

    print(place(settings, named(encoder), out, split=split_name(split), twins=twin or (), log=log), end="")


@commands.command(rich_help_panel=PANEL)
def saliency(
    config_file: Config,
    classifier: Annotated[
        Path, typer.Option(parser=path, help="Classifier folder, as evaluate and finetune leave it.")
    ],
    out: Annotated[Path, typer.Option(parser=path, help="PNG file to write. It shows patients' images.")],
    rows: Rows,
    label: Annotated[str, typer.Option(help="One of the classifier's labels.")],
    overrides: Overrides = None,
    split: ScoredSplit = "val",
) -> None:
    """Draw where a classifier looks, for some images: the scores of patches, or Grad-CAM."""
    settings = load(config_file, overrides)
    from medmoco.inspection.saliency import saliency as draw

    print(draw(settings, classifier, out, row_numbers(rows), label, split=split_name(split), log=log))


@commands.command(rich_help_panel=PANEL)
def reconstruct(
    config_file: Config,
    run: Annotated[Path, typer.Option(parser=path, help="Run folder of a run with a decoder.")],
    out: Annotated[Path, typer.Option(parser=path, help="PNG file to write. It shows patients' images.")],
    rows: Rows,
    overrides: Overrides = None,
    split: ScoredSplit = "val",
) -> None:
    """Draw what a run's decoder makes of some images' embeddings."""
    settings = load(config_file, overrides)
    from medmoco.inspection.reconstruct import reconstruct as draw

    print(draw(settings, run, out, row_numbers(rows), split=split_name(split), log=log))
