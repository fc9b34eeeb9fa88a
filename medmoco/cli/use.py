"""The commands that bring encoders in and put them to use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import medmoco
from medmoco.cli import options
from medmoco.cli.options import Config, Overrides, ScoredSplit, load, log, path, split_name
from medmoco.errors import SettingsError

PANEL = "Use"
commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
def predict(
    config_file: Config,
    classifier: Annotated[
        Path, typer.Option(parser=path, help="Classifier folder, which finetune and evaluate leave.")
    ],
    out: Annotated[Path, typer.Option(parser=path, help="CSV file for row numbers and probabilities.")],
    overrides: Overrides = None,
    split: ScoredSplit = "test",
    with_path: Annotated[
        bool, typer.Option("--with-path", help="Add each row's Path, which may name patients.")
    ] = False,
) -> None:
    """Apply a classifier to the images of a manifest: a calibrated probability for each row and label."""
    settings = load(config_file, overrides)
    name = split_name(split)
    from medmoco.evaluation.supervised.predict import predict as apply

    rows = apply(settings, classifier, out, split=name, with_path=with_path, log=log)
    print(f"{rows} rows of {name} are in {out}")


@commands.command(rich_help_panel=PANEL)
def embed(
    config_file: Config,
    encoder: options.Encoder,
    out: Annotated[Path, typer.Option(parser=path, help="File for row numbers and features: .parquet, .npz or .csv.")],
    overrides: Overrides = None,
    split: ScoredSplit = "test",
    columns: Annotated[
        str, typer.Option(metavar="A,B", help="Columns of the manifest to copy, which may name patients.")
    ] = "",
) -> None:
    """Write the features of the images of a manifest, as evaluate computes them."""
    settings = load(config_file, overrides)
    name = split_name(split)
    from medmoco.evaluation.features.feature_tables import embed_split

    copied = [column.strip() for column in columns.split(",") if column.strip()]
    table = embed_split(settings, encoder, out, split=name, columns=copied, log=log)
    print(f"{len(table)} rows of {name} are in {out}")


@commands.command("import", rich_help_panel=PANEL)
def import_file(
    file: Annotated[
        Path, typer.Argument(parser=path, metavar="FILE", help="Weights of others: .pth, .ckpt, .safetensors, .npz.")
    ],
    out: Annotated[Path, typer.Option(parser=path, help="New or empty folder.")],
    backbone: Annotated[str | None, typer.Option(help="Name of the network; without it, told by its tensors.")] = None,
    which: Annotated[str, typer.Option(metavar="query|key", help="Encoder, where the file has two.")] = "query",
    scheme: Annotated[
        str | None, typer.Option(help="Whose file it is, such as moco-cxr, where its keys do not tell.")
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Keys not wanted, with *. Repeatable.")
    ] = None,
) -> None:
    """Bring in weights of other projects, with an account of every key."""
    if which not in ("query", "key"):
        raise SettingsError(f"--which {which!r}: name query, or key for the moving average of it")
    print(medmoco.import_weights(
        file, out, backbone=backbone, which="key" if which == "key" else "query", scheme=scheme,
        leave_out=tuple(leave_out or ()),
    ))  # fmt: skip


@commands.command(rich_help_panel=PANEL)
def export(
    out: Annotated[Path, typer.Option(parser=path, help="New or empty folder.")],
    run: Annotated[Path | None, typer.Option(parser=path, help="Run folder, whose encoder is exported.")] = None,
    classifier: Annotated[Path | None, typer.Option(parser=path, help="Folder that evaluate or finetune left.")] = None,
    encoder: Annotated[Path | None, typer.Option(parser=path, help="Weights file, used as --config says.")] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", "-c", parser=path, help="YAML settings of --encoder.")
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="A,B|all",
            help="safetensors, timm, torchvision, detectron2, huggingface, monai-bundle, onnx, program.",
        ),
    ] = "safetensors,onnx",
    licence: Annotated[str, typer.Option(help="Of the weights, for the card.")] = "not stated",
) -> None:
    """Write an encoder or a classifier with all that a stranger needs to use it; every file is read back."""
    given = [value for value in (run, classifier, encoder) if value is not None]
    if len(given) != 1 or (encoder is None) != (config_file is None):
        raise SettingsError("give one of --run, --classifier, and --encoder with --config")
    if run is not None:
        network: Any = medmoco.Run(run)
    else:
        network = medmoco.load_encoder(encoder, config_file) if encoder else classifier
    for file in medmoco.export(network, out, [name.strip() for name in formats.split(",")], licence=licence):
        print(file)


@commands.command(rich_help_panel=PANEL)
def verify(
    folder: Annotated[Path, typer.Argument(parser=path, metavar="DIR", help="Folder that export wrote.")],
    trust: Annotated[
        bool, typer.Option("--trust", help="Also load formats that can run code: program, monai-bundle.")
    ] = False,
) -> None:
    """Check an export anywhere: hashes of all files, then outputs of each format, loaded in a new process."""
    medmoco.verify(folder, trust=trust, log=print)
