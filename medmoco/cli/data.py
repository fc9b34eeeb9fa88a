"""The commands that create, inspect and check data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

import medmoco
from medmoco.cli.options import Config, Dask, Overrides, load, load_for_table, log, path
from medmoco.datasets.prepare import DATASETS
from medmoco.errors import DataError, SettingsError

PANEL = "Data"
commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
def init(
    source: Annotated[
        Path,
        typer.Argument(parser=path, metavar="SOURCE", help="Folder of images, CSV with images, or manifest."),
    ],
    out: Annotated[
        Path | None, typer.Option(parser=path, help="Folder for medmoco.yaml and manifest/ (default: .).")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(parser=path, help="Folder with the images of a CSV (default: the folder of the CSV).")
    ] = None,
    patient: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help=r"Find the patient's ID in file names: '(\d+)_' takes 12 from 12_3.png."),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="A,B", help="Label columns or classes (default: those that look like labels).")
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Time for pretraining (default: 60).")] = None,
    hours: Annotated[float | None, typer.Option(help="The same in hours.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the splits and of the run.")] = 0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether columns are read correctly.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier medmoco.yaml and manifest.")
    ] = False,
) -> None:
    """Inspect your images and this machine, and write a manifest and settings for them."""
    if minutes is not None and hours is not None:
        raise SettingsError("--minutes and --hours exclude each other; give one")
    time = 60 * hours if hours is not None else 60.0 if minutes is None else minutes
    chosen = [name.strip() for name in labels.split(",") if name.strip()] if labels is not None else None
    ask = _confirm if sys.stdin.isatty() and not yes else None
    print(medmoco.init(
        source, out or Path(), images=images, patient=patient, labels=chosen, minutes=time, seed=seed,
        overwrite=overwrite, confirm=ask, log=log,
    ).text)  # fmt: skip


def _confirm(columns: str) -> bool:
    return typer.confirm(f"{columns}\nIs this right?", default=True)


@commands.command(rich_help_panel=PANEL)
def phantom(
    out: Annotated[Path, typer.Option(parser=path, help="New or empty folder.")],
    patients: Annotated[int, typer.Option(min=10, help="Number of synthetic patients.")] = 160,
    volumes: Annotated[bool, typer.Option("--volumes", help="CT volumes instead of chest films.")] = False,
    image_size: Annotated[
        int | None,
        typer.Option(min=64, max=2048, help="Side of the images or slices in pixels (default: 256; volumes: 128)."),
    ] = None,
    formats: Annotated[
        str | None,
        typer.Option("--format", metavar="A,B", help="dicom, and png or, for volumes, nifti (default: both)."),
    ] = None,
    masks: Annotated[
        bool, typer.Option("--masks", help="Write masks of the opacities too, for medmoco segment; films only.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random draws.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw; 0 draws in this one.")] = 0,
) -> None:
    """Generate synthetic chest phantoms with a manifest, to try medmoco without data."""
    chosen = [name.strip() for name in formats.split(",") if name.strip()] if formats is not None else None
    medmoco.phantom(
        out, volumes=volumes, patients=patients, image_size=image_size, seed=seed, formats=chosen, masks=masks,
        workers=workers,
    )  # fmt: skip
    print(f"wrote phantoms of {patients} synthetic patients, with train.csv, val.csv and test.csv, to {out}")


@commands.command(
    rich_help_panel=PANEL,
    help="Write the manifest of a public data set, split by patient.\n\n\b\n"
    + "\n".join(f"{name:24}{line}" for name, line in DATASETS.items()),
)
def prepare(
    name: Annotated[str, typer.Argument(help="One of the data sets above.")],
    source: Annotated[
        Path,
        typer.Option(parser=path, help="Folder with its tables and images as published, or MedMNIST's file."),
    ],
    out: Annotated[Path, typer.Option(parser=path, help="New or empty folder for the manifest.")],
    volumes: Annotated[
        bool, typer.Option("--volumes", help="With dicom_tree: one row for each CT, MR or PT series.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the splits that the makers do not define.")] = 0,
    gzip: Annotated[bool, typer.Option("--gzip", help="Write .csv.gz files.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that read DICOM headers, if needed (all CPU cores if not given)."),
    ] = None,
) -> None:
    """Call `medmoco.prepare`; the help is above."""
    print(medmoco.prepare(name, source, out, volumes=volumes, seed=seed, gzip=gzip, workers=workers).text)


@commands.command(rich_help_panel=PANEL)
def split(
    csv_file: Annotated[Path, typer.Option("--csv", parser=path, help="Any CSV with a header; may be a .csv.gz.")],
    out: Annotated[
        Path, typer.Option(parser=path, help="New or empty folder for train.csv, val.csv, test.csv and README.md.")
    ],
    labels: Annotated[
        str, typer.Option(metavar="A,B", help="Label columns (1, 0, -1 or blank) to balance between the splits.")
    ] = "",
    group: Annotated[str | None, typer.Option(help="Column with the patient's ID (default: PatientID).")] = None,
    keep: Annotated[
        str | None, typer.Option(help="Column with an official split, whose val and test rows are kept.")
    ] = None,
    val: Annotated[float | None, typer.Option(help="Fraction of the patients in val (default: 0.1).")] = None,
    test: Annotated[float | None, typer.Option(help="Fraction of the patients in test (default: 0.2).")] = None,
    fractions: Annotated[
        str,
        typer.Option(metavar="1,5,10,50", help="Percentages of training patients to write as train_01.csv and so on."),
    ] = "",
    merge_duplicates: Annotated[
        Path | None,
        typer.Option(parser=path, help="Folder written by check: patients with the same image come into one split."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draw of patients.")] = 0,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", "-c", parser=path, help="YAML file whose data.columns, labels, join and where apply."),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Split a CSV by patient, balanced by label and independent of the order of its rows."""
    try:
        percentages = [float(text) for text in fractions.split(",") if text.strip()]
    except ValueError:
        raise SettingsError(f"--fractions: {fractions!r} is not a list of numbers such as 1,5,10,50") from None
    names = [name.strip() for name in labels.split(",") if name.strip()]
    config = load_for_table(csv_file, config_file, overrides) if config_file or overrides else None
    print(medmoco.split(
        csv_file, out, labels=names, group=group, keep=keep, val=val, test=test, fractions=percentages,
        merge_duplicates=merge_duplicates, seed=seed, config=config,
    ))  # fmt: skip


@commands.command(rich_help_panel=PANEL)
def preview(
    config_file: Config,
    out: Annotated[Path, typer.Option(parser=path, help="PNG file to write. It shows images of patients.")],
    overrides: Overrides = None,
    images: Annotated[int, typer.Option(min=1, max=50, help="Number of images, one a row.")] = 6,
    views: Annotated[int, typer.Option(min=1, max=20, help="Number of views of each image.")] = 6,
) -> None:
    """Write a figure with a few images and their augmented views."""
    medmoco.preview(load(config_file, overrides), out, images=images, views=views)
    print(f"wrote {images} images with {views} views each to {out}")


@commands.command(rich_help_panel=PANEL)
def check(
    config_file: Config,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=path, help="Folder for the report and the list of bad rows (default: OUT-check)."),
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            parser=path, help="YAML file or manifest of other pretraining data to look for in val and test. Repeatable."
        ),
    ] = None,
    dask: Dask = None,
) -> None:
    """Check every row and image file for faults, duplicates and leakage; resume if interrupted."""
    audit = medmoco.check(load(config_file, overrides), out=out, against=against or (), dask=dask, log=log)
    print(audit.text, end="")
    if audit.faults:
        kinds = ", ".join(dict.fromkeys(fault.kind for fault in audit.faults))
        raise DataError(f"faults were found ({kinds}); {audit.folder / 'rows.csv'} lists the rows and reasons")
    print(f"no faults; the report and the list of rows are in {audit.folder}")


@commands.command(rich_help_panel=PANEL)
def pack(
    config_file: Config,
    out: Annotated[Path | None, typer.Option(parser=path, help="Folder of the pack (default: data.pack).")] = None,
    dask: Dask = None,
    overrides: Overrides = None,
) -> None:
    """Decode every image once into a pack for training; resume or verify a pack that exists."""
    made = medmoco.pack(load(config_file, overrides), out=out, dask=dask, log=log)
    if made.failed:
        raise DataError(
            f"{made.failed} images could not be packed; failed.csv in the pack lists their rows and the reasons.\n"
            "All other images are packed. Repair the files and run the command again, remove the rows from the\n"
            "manifest, or train with data.pack_failures=leave_out."
        )
    print(f"to train from it, set data.pack={made.folder}")
