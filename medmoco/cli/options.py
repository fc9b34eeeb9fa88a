"""Arguments shared by several commands, and how they are parsed."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medmoco.errors import SettingsError
from medmoco.utils.files import SETTINGS_FILE

if TYPE_CHECKING:
    from medmoco.config import RunSettings


def path(text: str) -> Path:
    """Return the path in an option; the shell does not expand ~ in --out=~/runs or anything in quotes."""
    from medmoco.config.paths import to_path  # not at the top: --help needs no settings, and importing them is slow

    try:
        return to_path(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def source(text: str) -> str:
    """Return a path, expanded, or the word "random"."""
    return str(path(text))


Config = Annotated[
    Path,
    typer.Option(
        "--config", "-c", parser=path, default_factory=lambda: SETTINGS_FILE, show_default=SETTINGS_FILE,
        help="YAML file with the settings.",
    ),
]  # fmt: skip
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to override, such as train.epochs=10.")
]
Devices = Annotated[
    int | None, typer.Option(min=1, help="Number of processes on this machine, one per GPU (default: all GPUs).")
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume from the latest checkpoint, if there is one.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the existing run in the folder.")]
AllowChange = Annotated[
    bool, typer.Option("--allow-change", help="Resume even if the settings or the manifest have changed.")
]
Dask = Annotated[str | None, typer.Option(help="Address of a Dask scheduler on whose workers to read the images.")]
Encoder = Annotated[
    str, typer.Option(parser=source, help='Run folder (RUN/best: its best checkpoint), weights file, or "random".')
]
ScoredSplit = Annotated[str, typer.Option(metavar="train|val|test", help="Split to read the images from.")]
_ENCODERS = (
    'Run folder (RUN/best: its best checkpoint), export, import, weights file, or "random". Repeatable; further '
    "encoders need names, such as imagenet=FILE"
)
Encoders = Annotated[list[str], typer.Option("--encoder", metavar="[NAME=]SOURCE", help=f"{_ENCODERS}.")]
SizedEncoders = Annotated[
    list[str],
    typer.Option(
        "--encoder",
        metavar="[NAME=]SOURCE[@SIZE]",
        help=f"{_ENCODERS}, and may have a size of their own, such as imagenet=FILE@224.",
    ),
]
Test = Annotated[
    bool, typer.Option("--test", help="Evaluate on the test set; every use of it is recorded in the ledger.")
]
Rows = Annotated[str, typer.Option(metavar="3,17", help="Row numbers in the split, counted as in a spreadsheet.")]


def load(config_file: Path, overrides: list[str] | None = None) -> RunSettings:
    """Return the settings of a command."""
    from medmoco import config

    check_given(config_file, overrides)
    return config.load(config_file, overrides or ())


def load_for_table(table: Path, config_file: Path | None, overrides: list[str] | None) -> RunSettings:
    """Return settings that describe a table; with no file, those that other commands need are filled in."""
    from medmoco import config
    from medmoco.config.paths import as_written

    needed = {"out": ".", "data": {"manifest": as_written(table), "root": "."}}
    return config.load(config_file, overrides or (), needed)


def is_missing_default(config_file: Path) -> bool:
    """Return whether no settings file was named, and the working folder has none."""
    return str(config_file) == SETTINGS_FILE and not config_file.exists()


def check_given(config_file: Path, overrides: list[str] | None) -> None:
    """Check that there is a settings file, and that it was not given as an override.

    Raises:
        SettingsError: says how to name the file.
    """
    for text in overrides or ():
        if "=" not in text and text.endswith((".yaml", ".yml")):
            raise SettingsError(f"give the settings file as an option: --config {shlex.quote(text)}")
    if is_missing_default(config_file):
        raise SettingsError(
            f"there is no {SETTINGS_FILE} in the working folder: name a settings file with --config FILE,\n"
            f"or let 'medmoco init FOLDER' write one for a folder of images"
        )


def named(encoders: list[str]) -> dict[str, str]:
    """Return the sources by name; the first is named "run" unless it has a name."""
    sources: dict[str, str] = {}
    for number, text in enumerate(encoders):
        match = re.fullmatch(r"([A-Za-z][\w-]*)=(.+)", text)
        if not match and number:
            raise SettingsError(f"--encoder {text}: give it a name, such as --encoder other={text}")
        name, location = match.groups() if match else ("run", text)
        if name in sources:
            raise SettingsError(f"--encoder: two encoders are named '{name}'; give them different names")
        try:
            sources[name] = source(location)
        except typer.BadParameter as error:
            raise SettingsError(f"--encoder: {error}") from None
    return sources


def row_numbers(text: str) -> list[int]:
    """Return the row numbers in --rows."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SettingsError(f"--rows: {text!r} is not a list of row numbers such as 3,17") from None


def split_name(name: str) -> str:
    """Return a split's name; raise SettingsError if there is no such split."""
    if name not in ("train", "val", "test"):
        raise SettingsError(f"{name!r} is not a split; give train, val or test")
    return name


def log(text: str) -> None:
    """Print progress to stderr; stdout is for results."""
    print(text, file=sys.stderr)
