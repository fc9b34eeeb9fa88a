"""The commands that make, look at and check data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medmoco.cli.options import Config, Overrides, load, log, path
from medmoco.datasets.prepare import DATASETS
from medmoco.errors import DataError, SettingsError

if TYPE_CHECKING:
    from medmoco.config import RunSettings

PANEL = "Data"
commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
def phantom(
    out: Annotated[Path, typer.Option(parser=path, help="New or empty folder.")],
    patients: Annotated[int, typer.Option(min=10, help="Number of synthetic patients.")] = 160,
    image_size: Annotated[int, typer.Option(min=64, max=2048, help="Side of the images in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Make synthetic chest phantoms with a manifest, to try medmoco without data."""
    from medmoco.datasets.phantoms.phantom import make_phantoms

    make_phantoms(out, patients=patients, image_size=image_size, seed=seed)
    print(f"phantoms of {patients} synthetic patients, train.csv, val.csv and test.csv are in {out}")


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
    seed: Annotated[int, typer.Option(min=0, help="Seed of the splits that the makers do not define.")] = 0,
    gzip: Annotated[bool, typer.Option("--gzip", help="Write .csv.gz files.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes that read DICOM headers, if needed (all CPU cores if not given)."),
    ] = None,
) -> None:
    """Call `medmoco.datasets.prepare.prepare`; the help is above."""
    from medmoco.datasets.prepare import prepare as prepare_dataset

    print(prepare_dataset(name, source, out, seed=seed, gzip=gzip, workers=workers).text)


@commands.command(rich_help_panel=PANEL)
def split(
    csv_file: Annotated[Path, typer.Option("--csv", parser=path, help="Any table with a header; .csv.gz is read too.")],
    out: Annotated[
        Path, typer.Option(parser=path, help="New or empty folder for train.csv, val.csv, test.csv and README.md.")
    ],
    labels: Annotated[str, typer.Option(metavar="A,B", help="Columns of 1, 0, -1 and blank to balance.")] = "",
    group: Annotated[str | None, typer.Option(help="Column that names the patient; PatientID if not given.")] = None,
    keep: Annotated[str | None, typer.Option(help="Official split column: its val and test rows stay.")] = None,
    val: Annotated[float | None, typer.Option(help="Share of the patients that are split; 0.1 if not given.")] = None,
    test: Annotated[float | None, typer.Option(help="The same for test; 0.2 if not given.")] = None,
    fractions: Annotated[
        str, typer.Option(metavar="1,5,10,50", help="Percentages of the training patients for train_01.csv and so on.")
    ] = "",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Split a table by patient, balanced by label, whatever the order of its rows."""
    from medmoco.data.manifest.split_files import split_csv

    try:
        percentages = [float(text) for text in fractions.split(",") if text.strip()]
    except ValueError:
        raise SettingsError(f"--fractions: {fractions!r} is not a list of numbers such as 1,5,10,50") from None
    names = [name.strip() for name in labels.split(",") if name.strip()]
    shares = {"val": val, "test": test}
    print(split_csv(
        csv_file, out, labels=names, group=group, keep=keep, shares=shares, fractions=percentages, seed=seed
    ))  # fmt: skip


@commands.command(rich_help_panel=PANEL)
def preview(
    config_file: Config,
    out: Annotated[Path, typer.Option(parser=path, help="PNG file to write. It shows patients' images.")],
    overrides: Overrides = None,
    images: Annotated[int, typer.Option(min=1, max=50)] = 6,
    views: Annotated[int, typer.Option(min=1, max=20)] = 6,
) -> None:
    """Write a picture of a few images and their views."""
    from medmoco.data.loading.preview import preview as write_preview

    write_preview(load(config_file, overrides), out, images=images, views=views)
    print(f"{images} images with {views} views each are in {out}")


@commands.command(rich_help_panel=PANEL)
def check(
    config_file: Config,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(parser=path, help="Folder for the report and the list of bad rows [OUT-check].")
    ] = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            parser=path, help="YAML file or manifest of other pretraining data, to seek in val and test. Repeatable."
        ),
    ] = None,
) -> None:
    """Read every row and file, and say what is wrong with them."""
    settings = load(config_file, overrides)
    from medmoco.data.quality.audit import audit
    from medmoco.evaluation.leakage.shortcuts import find_shortcuts

    folder = out or settings.out.with_name(f"{settings.out.name}-check")
    report = audit(settings, folder, against or (), find_shortcuts)
    print(report.text, end="")
    if report.faults:
        kinds = ", ".join(dict.fromkeys(fault.kind for fault in report.faults))
        raise DataError(f"faults were found ({kinds}); the rows with their reasons are in {folder / 'rows.csv'}")
    print(f"no faults; the report and the list of rows are in {folder}")


@commands.command(rich_help_panel=PANEL)
def pack(
    config_file: Config,
    out: Annotated[Path | None, typer.Option(parser=path, help="Folder of the pack; without it, data.pack.")] = None,
    dask: Annotated[str | None, typer.Option(help="Address of a Dask scheduler whose workers do it.")] = None,
    overrides: Overrides = None,
) -> None:
    """Decode every image once, for training to read; go on with a pack that is there, or check it."""
    settings = load(config_file, overrides)
    from medmoco.config.paths import is_url

    folder = out or settings.data.pack
    if folder is None or is_url(str(folder)):
        raise SettingsError("give --out, or set data.pack to the folder that the pack shall be in")
    failed = _make_pack(settings, Path(folder), dask)
    if failed:
        raise DataError(
            f"{failed} images could not be packed; failed.csv in the pack lists their rows and why.\n"
            "The pack is complete without them. Mend the files and run the command again, take the rows out of the\n"
            "manifest, or train with data.pack_failures=leave_out."
        )
    print(f"use it with data.pack={folder}")


def _make_pack(settings: RunSettings, folder: Path, dask: str | None = None) -> int:
    from medmoco.data.pack.pack_writing import make_pack

    if dask is None:
        return make_pack(settings.data, folder, log)
    from medmoco.data.pack.pack_dask import on_cluster

    with on_cluster(dask) as write:
        return make_pack(settings.data, folder, log, write)


def make_missing_pack(settings: RunSettings) -> None:
    """Make the pack that the settings name, where there is none yet."""
    from medmoco.config.paths import is_url
    from medmoco.data.pack.pack import INFO

    place = settings.data.pack
    if place and not is_url(place) and not Path(place, INFO).is_file():
        log(f"data.pack: {place} is not there yet or unfinished; making it first")
        _make_pack(settings, Path(place))
