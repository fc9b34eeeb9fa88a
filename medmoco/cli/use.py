"""The commands that import, apply and export encoders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import medmoco
from medmoco.cli import options
from medmoco.cli.options import Config, Overrides, ScoredSplit, load, log, path, split_name
from medmoco.errors import ImageError, SettingsError
from medmoco.utils.files import SETTINGS_FILE

if TYPE_CHECKING:
    from medmoco.config import RunSettings

PANEL = "Use"
commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
def predict(
    out: Annotated[Path, typer.Option(parser=path, help="CSV file for the probabilities, or folder for the masks.")],
    classifier: Annotated[
        Path | None, typer.Option(parser=path, help="Classifier folder written by evaluate or finetune.")
    ] = None,
    segmenter: Annotated[
        Path | None, typer.Option(parser=path, help="Run folder of segment, to write masks instead of probabilities.")
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            parser=path,
            help=f"YAML file with the settings of a manifest (default: {SETTINGS_FILE}, except with --images).",
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH...", help="Files, such as *.png, and folders of images, in place of a manifest."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH|KEY=VALUE]...",
            help="More files after --images, or settings such as data.workers=4.",
        ),
    ] = None,
    split: ScoredSplit = "test",
    with_path: Annotated[
        bool, typer.Option("--with-path", help="Add the Path of each row of a manifest, which may identify patients.")
    ] = False,
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="Write masks as DICOM segmentations instead of NIfTI or PNG.")
    ] = False,
) -> None:
    """Apply a classifier or a segmenter to the rows of a manifest, or to files: probabilities or masks."""
    if (classifier is None) == (segmenter is None):
        raise SettingsError("give either --classifier, for probabilities, or --segmenter, for masks")
    if (segmenter and with_path) or (classifier and dicom_seg):
        raise SettingsError("--with-path is for --classifier, and --dicom-seg for --segmenter")
    if images:
        files, settings_given = _files_and_overrides(images, overrides or [])
        machine = load(config_file, settings_given) if config_file else None
        if classifier:
            _predict_files(files, classifier, out, machine, settings_given)
        elif segmenter:
            _segment_files(files, segmenter, out, machine, settings_given, dicom_seg=dicom_seg)
        return
    settings, name = _settings_of_manifest(config_file, overrides), split_name(split)
    if classifier:
        from medmoco.evaluation.supervised.predict import predict as apply

        rows = apply(settings, classifier, out, split=name, with_path=with_path, log=log)
        print(f"{rows} rows of {name} were written to {out}")
    elif segmenter:
        from medmoco.segmentation.predict import predict_masks

        rows = predict_masks(settings, segmenter, out, split=name, dicom_seg=dicom_seg, log=log)
        print(f"masks of {rows} rows of {name} were written to {out}, named by their rows")


def _settings_of_manifest(config_file: Path | None, overrides: list[str] | None) -> RunSettings:
    if config_file is None and not Path(SETTINGS_FILE).exists():
        raise SettingsError(
            f"there is no {SETTINGS_FILE} in the working folder:\n"
            "give --images with files or folders, or --config FILE for the rows of a manifest"
        )
    return load(config_file or Path(SETTINGS_FILE), overrides)


def _files_and_overrides(images: list[str], arguments: list[str]) -> tuple[list[Path], list[str]]:
    """Return files and settings. Files that a shell puts in place of *.png arrive as arguments, next to overrides."""
    overrides = [text for text in arguments if re.match(r"[\w.]+=", text) and not Path(text).exists()]
    names = [*images, *(text for text in arguments if text not in overrides)]
    return [Path(name) if Path(name).exists() else path(name) for name in names], overrides


def _predict_files(
    files: list[Path], classifier: Path, out: Path, machine: RunSettings | None, overrides: list[str]
) -> None:
    from medmoco.evaluation.supervised.predict import predict_files

    count, unread = predict_files(files, classifier, out, settings=machine, overrides=overrides, log=log)
    print(f"{count} files were written to {out}, with their names as given")
    if unread:
        raise ImageError(
            f"{unread} of {count} files cannot be read: they have no probability, and the reason is in the column error"
        )


def _segment_files(
    files: list[Path],
    segmenter: Path,
    out: Path,
    machine: RunSettings | None,
    overrides: list[str],
    *,
    dicom_seg: bool,
) -> None:
    from medmoco.segmentation.predict import predict_masks_of_files

    count, unread = predict_masks_of_files(
        files, segmenter, out, settings=machine, overrides=overrides, dicom_seg=dicom_seg, log=log
    )  # fmt: skip
    print(f"masks of {count - unread} files were written to {out}, named like them")
    if unread:
        raise ImageError(f"{unread} of {count} files cannot be read; the reasons are above")


@commands.command(rich_help_panel=PANEL)
def embed(
    config_file: Config,
    encoder: options.Encoder,
    out: Annotated[Path, typer.Option(parser=path, help="File for row numbers and features: .parquet, .npz or .csv.")],
    overrides: Overrides = None,
    split: ScoredSplit = "test",
    columns: Annotated[
        str, typer.Option(metavar="A,B", help="Columns of the manifest to copy, which may identify patients.")
    ] = "",
    dask: options.Dask = None,
) -> None:
    """Write the features of the images of a manifest, computed as in evaluate; resume if interrupted."""
    settings = load(config_file, overrides)
    name = split_name(split)
    copied = [column.strip() for column in columns.split(",") if column.strip()]
    table = medmoco.embed(settings, encoder, out, split=name, columns=copied, dask=dask, log=log)
    print(f"{len(table)} rows of {name} were written to {out}")


@commands.command("import", rich_help_panel=PANEL)
def import_file(
    file: Annotated[
        Path,
        typer.Argument(
            parser=path, metavar="FILE", help="Another project's checkpoint: .pth, .ckpt, .safetensors, .npz."
        ),
    ],
    out: Annotated[Path, typer.Option(parser=path, help="New or empty folder.")],
    backbone: Annotated[str | None, typer.Option(help="Network (default: detected from the tensors).")] = None,
    which: Annotated[str, typer.Option(metavar="query|key", help="Encoder to import if the file has two.")] = "query",
    scheme: Annotated[
        str | None, typer.Option(help="Checkpoint format, such as moco-cxr (default: detected from the keys).")
    ] = None,
    leave_out: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Keys to skip, with * as a wildcard. Repeatable.")
    ] = None,
    mean: Annotated[
        float | None,
        typer.Option(
            help="Mean with which the source normalised gray images, 0 to 1 (default: if stated, the source's)."
        ),
    ] = None,
    std: Annotated[float | None, typer.Option(help="Standard deviation, together with --mean.")] = None,
) -> None:
    """Import the weights of another project, with a record of every key."""
    if which not in ("query", "key"):
        raise SettingsError(f"--which {which!r}: give query, or key for its moving average")
    print(medmoco.import_weights(
        file, out, backbone=backbone, which="key" if which == "key" else "query", scheme=scheme,
        leave_out=tuple(leave_out or ()), mean=mean, std=std,
    ))  # fmt: skip


@commands.command(rich_help_panel=PANEL)
def export(
    out: Annotated[Path, typer.Option(parser=path, help="New or empty folder.")],
    run: Annotated[
        Path | None, typer.Option(parser=path, help="Run folder, or RUN/best, with the encoder to export.")
    ] = None,
    classifier: Annotated[
        Path | None, typer.Option(parser=path, help="Classifier folder written by evaluate or finetune.")
    ] = None,
    segmenter: Annotated[
        Path | None, typer.Option(parser=path, help="Run folder of segment, with its segmentation network.")
    ] = None,
    encoder: Annotated[
        Path | None, typer.Option(parser=path, help="Weights file, with the settings in --config.")
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            parser=path,
            help=f"YAML file with the settings for --encoder (default: {SETTINGS_FILE}).",
        ),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="A,B|all",
            help="safetensors, timm, torchvision, detectron2, huggingface, monai-bundle, nnunet, onnx, program"
            " (default: safetensors,onnx; of a segmentation network onnx).",
        ),
    ] = None,
    licence: Annotated[str, typer.Option(help="Licence of the weights, for the model card.")] = "not stated",
) -> None:
    """Export an encoder, a classifier or a segmentation network with all that is needed to use it elsewhere.

    Every file is verified.
    """
    given = [value for value in (run, classifier, segmenter, encoder) if value is not None]
    if len(given) != 1 or (config_file and not encoder):
        raise SettingsError("give exactly one of --run, --classifier, --segmenter, or --encoder with --config")
    if run is not None:
        from medmoco.config import run_of

        medmoco.Run(run_of(run) or run)  # refuses what is not a run
        network: Any = run
    elif encoder is not None:
        network = medmoco.load_encoder(encoder, load(config_file or Path(SETTINGS_FILE)))
    else:
        network = medmoco.load_segmenter(segmenter) if segmenter is not None else classifier
    chosen = None if formats is None else [name.strip() for name in formats.split(",")]
    for file in medmoco.export(network, out, chosen, licence=licence):
        print(file)


@commands.command(rich_help_panel=PANEL)
def verify(
    folder: Annotated[Path, typer.Argument(parser=path, metavar="DIR", help="Folder written by export.")],
    trust: Annotated[
        bool, typer.Option("--trust", help="Also load formats that can run code: program, monai-bundle.")
    ] = False,
) -> None:
    """Verify an export on any machine: the hashes of all files, then the outputs of each format."""
    medmoco.verify(folder, trust=trust, log=print)
