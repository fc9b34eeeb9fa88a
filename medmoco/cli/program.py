"""The command line: all commands, and errors turned into exit codes."""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from typing import Annotated

import typer

from medmoco import __version__
from medmoco.cli import data, demo, evidence, insight, settings, training, use
from medmoco.cli.messages import columns, fitted
from medmoco.errors import MedmocoError, UnexpectedError, traceback_of, without_names

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="Pretrain image encoders on unlabelled grayscale medical images with momentum contrast, "
    "and evaluate them with patient-level confidence intervals.",
    epilog="images + CSV -> pretrain -> evaluate -> report, export. Commands read their settings from "
    "medmoco.yaml or another --config, and from key=value overrides.",
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"medmoco {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options without a command; the help is above."""


for panel in (settings, demo, data, training, evidence, use, insight):  # the order of the help
    app.add_typer(panel.commands)


def main(*command: str) -> None:
    """Run the command line; expected errors end with a message and an exit code, without a traceback.

    Args:
        command: Words to put before the arguments of this process, such as "prepare", "chexpert".
    """
    # Users cannot act on third-party deprecations; medmoco's own warnings go to the run log.
    warnings.filterwarnings("ignore")
    # Otherwise child processes would import a random.py in the working folder instead of Python's own.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        app([*command, *sys.argv[1:]], prog_name="medmoco" if command else None)
    except MedmocoError as error:
        print(fitted(f"medmoco: {error}", columns()), file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as error:
        text = f"medmoco: unexpected {without_names(error)}\n{_saved(traceback_of(error))}"
        print(fitted(text, columns()), file=sys.stderr)
        sys.exit(UnexpectedError.exit_code)


def _saved(text: str) -> str:
    """Write a traceback to a temporary file and return a message that names it, or the text if that fails."""
    try:
        with tempfile.NamedTemporaryFile("w", prefix="medmoco-", suffix=".txt", delete=False, encoding="utf-8") as file:
            file.write(f"medmoco {__version__}\n{text}\n")
    except OSError:
        return text
    return f"This is a bug in medmoco or in a library it uses; please report it with the traceback in {file.name}"
