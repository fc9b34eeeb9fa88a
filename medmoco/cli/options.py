"""Arguments that several commands share, and how their texts are read."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medmoco.errors import SettingsError

if TYPE_CHECKING:
    from medmoco.config import RunSettings


def path(text: str) -> Path:
    """Read an option that is a path: the shell leaves ~ alone in --out=~/runs, and all that is in quotes."""
    from medmoco.config.paths import to_path  # here, as --help needs no settings, and they take as long as the rest

    try:
        return to_path(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def source(text: str) -> str:
    """Read what is a path or the word "random"."""
    return str(path(text))


Config = Annotated[Path, typer.Option("--config", "-c", parser=path, help="YAML settings file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as train.epochs=10.")
]
Devices = Annotated[
    int | None, typer.Option(min=1, help="Processes on this machine, one for each GPU (all GPUs if not given).")
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint, if any.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in the folder.")]
AllowChange = Annotated[
    bool, typer.Option("--allow-change", help="Resume with other settings or another manifest than before.")
]
Encoder = Annotated[str, typer.Option(parser=source, help='Run folder, weights file, or the word "random".')]
ScoredSplit = Annotated[str, typer.Option(metavar="train|val|test", help="Whose images.")]
Encoders = Annotated[
    list[str],
    typer.Option(
        "--encoder",
        metavar="[NAME=]SOURCE",
        help='Run folder, weights file, or the word "random". Repeatable: others to compare with need names, '
        "such as imagenet=FILE.",
    ),
]
Test = Annotated[bool, typer.Option("--test", help="Look at the test split; each look is noted in the run's ledger.")]
Rows = Annotated[str, typer.Option(metavar="3,17", help="Rows of the split, as a spreadsheet counts them.")]


def load(config_file: Path, overrides: list[str] | None = None) -> RunSettings:
    """Read the settings of a command."""
    from medmoco import config

    return config.load(config_file, overrides or ())


def named(encoders: list[str]) -> dict[str, str]:
    """Return name -> source; the first is "run" unless it is named."""
    sources: dict[str, str] = {}
    for number, text in enumerate(encoders):
        match = re.fullmatch(r"([A-Za-z][\w-]*)=(.+)", text)
        if not match and number:
            raise SettingsError(f"--encoder {text}: name it, such as --encoder other={text}")
        name, place = match.groups() if match else ("run", text)
        if name in sources:
            raise SettingsError(f"--encoder: two are named '{name}'; give them different names")
        try:
            sources[name] = source(place)
        except typer.BadParameter as error:
            raise SettingsError(f"--encoder: {error}") from None
    return sources


def row_numbers(text: str) -> list[int]:
    """Read --rows."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise SettingsError(f"--rows: {text!r} is not a list of row numbers such as 3,17") from None


def split_name(name: str) -> str:
    """Return the name of a split, if it is one."""
    if name not in ("train", "val", "test"):
        raise SettingsError(f"{name!r} is no split; name train, val or test")
    return name


def log(text: str) -> None:
    """Tell the user how far it is, on stderr: stdout is for results."""
    print(text, file=sys.stderr)
