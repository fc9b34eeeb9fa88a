"""The resolved settings as text, each value with its origin."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medmoco.config.base import Tree
from medmoco.config.reading import as_tree, field_of, flatten, load, merge, presets_for, read_file, read_overrides
from medmoco.config.run import RunSettings
from medmoco.config.yaml_text import dump


def describe(path: Path | None, overrides: Sequence[str] = ()) -> str:
    """Return the resolved settings as YAML; a comment on each line says where its value comes from."""
    resolved = as_tree(load(path, overrides))
    command_line = read_overrides(overrides)
    file_tree = read_file(path) if path else {}
    user = merge(file_tree, command_line)
    layers = [
        (dict(flatten(command_line)), "command line"),
        (dict(flatten(file_tree)), str(path)),
        (dict(flatten(presets_for(user))), "preset"),
    ]
    lines: list[str] = []
    _describe_node(resolved, [], layers, lines)
    return "\n".join(lines) + "\n"


def _describe_node(node: Tree, parents: list[str], layers: list[tuple[Tree, str]], lines: list[str]) -> None:
    indent = "  " * len(parents)
    for key, value in node.items():
        path = [*parents, key]
        if isinstance(value, dict) and value:
            lines.append(f"{indent}{_in_line(key)}:")
            _describe_node(value, path, layers, lines)
            continue
        lines.append(f"{f'{indent}{_in_line(key)}: {_in_line(value)}':<44} # {_source_of(path, layers)}")


def _in_line(value: Any) -> str:
    return dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()


def _source_of(path: list[str], layers: list[tuple[Tree, str]]) -> str:
    dotted = ".".join(path)
    for leaves, name in layers:
        if any(dotted == leaf or dotted.startswith(f"{leaf}.") for leaf in leaves):
            if name == "preset":
                group, (selector, _) = path[0], RunSettings.PRESETS[path[0]]
                return f"preset of {group}.{selector}"
            return name
    field = field_of(path)
    source = " ".join((field.description or "").partition("Source: ")[2].split()).rstrip(".") if field else ""
    return f"default: {source}" if source else "default"
