"""Paths with shell syntax: ~ is the home folder, $NAME and ${NAME} are environment variables."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer

from medmoco.config.yaml_text import shown

_NAME = "[A-Za-z_][A-Za-z0-9_]*"
_DOLLAR = re.compile(rf"\$(?:(\$)|({_NAME})|\{{({_NAME})\}}|(\{{))")


def expand(text: str) -> str:
    """Return a path with ~ and variables replaced; $$ stands for $. URLs are returned unchanged.

    Raises:
        ValueError: a variable or user does not exist, or the result is not a path.
    """
    if is_url(text):
        return text
    home = ""
    if text.startswith("~"):
        user, slash, text = text.partition("/")
        home = os.path.expanduser(user) + slash
        if home.startswith("~"):
            raise ValueError(f"{shown(user)} is not a user with a home folder; for a file named {user}, write ./{user}")
    expanded = home + _DOLLAR.sub(_value, text)
    if not expanded or "\0" in expanded:
        raise ValueError(f"{shown(text)} is not a path; the working folder is '.'")
    return expanded


def _value(match: re.Match[str]) -> str:
    if match[1]:
        return "$"
    if match[4]:
        raise ValueError(f"{shown(match.string)}: ${{...}} must contain the name of a variable; write $$ for a plain $")
    name = match[2] or match[3]
    value = os.environ.get(name, "")
    if not value:  # an empty SCRATCH would turn $SCRATCH/runs into /runs
        raise ValueError(f"{shown(match.string)}: the environment variable {name} is not set; write $$ for a plain $")
    return value


def to_path(text: str) -> Path:
    """Return the path of a local file or folder, expanded.

    Raises:
        ValueError: the text is a URL, or `expand` refuses it.
    """
    if is_url(text):
        raise ValueError(f"{shown(text)} is a URL, but a path is needed here; only data.pack can be a URL")
    return Path(expand(text))


def as_written(path: str | Path) -> str:
    """Return the text from which `expand` makes this path."""
    text = str(path)
    if is_url(text):
        return text
    return ("./" if text.startswith("~") else "") + text.replace("$", "$$")


def is_url(text: str) -> bool:
    """Return whether a text is a URL instead of a path."""
    return "://" in text


def _refuse_other_types(value: Any) -> Any:
    if not isinstance(value, str | Path):
        raise ValueError(f"{shown(value)} is not a path; put it in quotes if it is")
    return value


def _expanded(value: Any) -> Any:
    return expand(value) if isinstance(_refuse_other_types(value), str) else str(value)


def _path(value: Any) -> Any:
    return to_path(value) if isinstance(_refuse_other_types(value), str) else value


_Written = PlainSerializer(as_written, return_type=str, when_used="json")
PathSetting = Annotated[Path, BeforeValidator(_path), _Written]
PathText = Annotated[str, BeforeValidator(_expanded), _Written]
"""Like PathSetting, for text that contains {split} or may be a URL."""
