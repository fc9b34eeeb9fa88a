"""The reference of all commands, generated from the command line."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.cli import get_docs_for_click

from medmoco.cli import app


def markdown() -> str:
    """Return every command with its arguments and options, as Markdown."""
    group = typer.main.get_command(app)
    context: Any = typer.Context(group, info_name="medmoco")
    text = get_docs_for_click(obj=group, ctx=context, name="medmoco")
    return _corrected(text[text.index("\n## ") :])  # below the title and the list of commands


def _corrected(text: str) -> str:
    """Return what typer writes, with tables kept as lines, usage that can be copied and defaults without brackets."""
    text = re.sub(r"^\x08\n((?:.+\n)+)", r"```text\n\1```\n", text, flags=re.MULTILINE)
    text = text.replace("```console\n$ ", "```text\n")
    return re.sub(r" *\[default: \(([^()]*)\)", r" [default: \1", text)
