"""Read settings from YAML files and `key=value` overrides, with errors that name the key; write them as YAML."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError

from medmoco.config.base import Tree
from medmoco.config.data import NAMES, LabelPolicy
from medmoco.config.run import RunSettings
from medmoco.config.views import RGB_RECIPES
from medmoco.config.yaml_text import dump, parse, shown
from medmoco.errors import CheckpointError, SettingsError

ConfigSource = str | os.PathLike[str] | Mapping[str, Any] | RunSettings
"""What `load` reads settings from."""

BEST = "best"
"""Folder of a run with the checkpoint of the best kNN score; as an encoder, RUN/best means this checkpoint."""

_MOST_BYTES = 1_000_000  # of a settings file; an image or checkpoint given by mistake is refused without reading it all


def read_file(path: Path) -> Tree:
    """Return the settings in a YAML file.

    Raises:
        SettingsError: the file cannot be read or is not a mapping.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        text = content[:_MOST_BYTES].decode("utf-8-sig")
    except FileNotFoundError:
        raise SettingsError(f"settings file {path} does not exist") from None
    except OSError as error:
        raise SettingsError(f"settings file {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise SettingsError(f"settings file {path} is not UTF-8 text; save it as UTF-8") from None
    if len(content) > _MOST_BYTES:
        raise SettingsError(f"settings file {path} is larger than {_MOST_BYTES:,} bytes; is it the right file?")
    tree = parse(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: settings are a mapping of keys to values, such as 'out: runs/a'")
    return tree


def read_overrides(overrides: Sequence[str]) -> Tree:
    """Return the settings in `key=value` texts; later texts add to earlier ones or replace their values.

    Raises:
        SettingsError: a text is not key=value, or sets a key below one that already has a plain value.
    """
    tree: Tree = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        *parents, leaf = key.split(".")
        if not equals or not all((*parents, leaf)):
            raise SettingsError(f"{shown(text)} is not key=value, such as train.epochs=10")
        node = tree
        for depth, parent in enumerate(parents, 1):
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                outer = ".".join(parents[:depth])
                raise SettingsError(f"{shown(text)}: {shown(outer)} was already set to {shown(node)}; drop one of them")
        given = _given(leaf, value, shown(text))
        both = isinstance(given, dict) and isinstance(node.get(leaf), dict) and leaf not in NAMES
        node[leaf] = merge(node[leaf], given) if both else given
    return tree


def _given(key: str, value: str, where: str) -> Any:
    """Return the value of an override, read as YAML; a condition may begin with a quoted name."""
    try:
        return parse(value, where)
    except SettingsError:
        if key == "where" and value.lstrip()[:1] in ("'", '"'):
            return value
        raise


def merge(base: Tree, over: Tree) -> Tree:
    """Return `base` with the values of `over` added or replaced."""
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict) and key not in NAMES
        merged[key] = merge(merged[key], value) if nested else value
    return merged


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("train.lr", 0.03) for every leaf of a nested mapping."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def presets_for(user: Tree) -> Tree:
    """Return the field values of the presets that the user's settings select."""
    presets: Tree = {}
    for group, (selector, choices) in RunSettings.PRESETS.items():
        given = user.get(group)
        default = RunSettings.model_fields[group].annotation.model_fields[selector].default  # type: ignore[union-attr]
        name = given.get(selector, default) if isinstance(given, dict) else default
        presets[group] = choices.get(name, {}) if isinstance(name, str) else {}
        if group == "views" and isinstance(user.get("data"), dict) and user["data"].get("channels") == "rgb":
            presets[group] = {**presets[group], **RGB_RECIPES.get(str(name), {})}
    return presets


def _known_keys(location: Sequence[Any]) -> list[str]:
    node: Any = RunSettings
    for key in location:
        field = node.model_fields.get(key)
        node = (field and _group(field.annotation)) or LabelPolicy
    return list(node.model_fields)


def _group(annotation: Any) -> type[BaseModel] | None:
    """Return the group of settings that an annotation allows, if it allows one."""
    candidates = [annotation, *get_args(annotation)]
    return next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)


# Names that people know from other programs.
_ELSEWHERE = {
    "batch_size": "train.global_batch_size", "batch": "train.global_batch_size", "learning_rate": "train.lr",
    "num_workers": "data.workers", "image_size": "views.size",
}  # fmt: skip
_MOST_LINES = 4  # of problems, below the line that names the source


def _explain(error: ValidationError, tree: Tree) -> str:
    """Return pydantic's errors in a few lines, one or two per key, without its jargon."""
    texts = []
    for finding in error.errors():
        location = _location(finding, tree)
        parent, key = location[:-1], ".".join(map(_on_one_line, location))
        if finding["type"] == "extra_forbidden":
            texts.append(f"unknown key '{key}'; {_hint(parent, location[-1])}")
        elif finding["type"] == "missing" and isinstance(finding["loc"][-1], int):
            texts.append(f"'{'.'.join(parent)}' has too few values")
        elif finding["type"] == "missing":
            texts.append(f"'{key}' is required: {_help_of(location)}")
        elif finding["type"] == "model_type":
            texts.append(f"'{key}' is a group of settings: {', '.join(_known_keys(location))}")
        else:
            message = finding["msg"].removeprefix("Value error, ")
            texts.append(f"'{key}': {message}" if key else message)
    lines = [text.splitlines() for text in dict.fromkeys(texts)]
    if sum(map(len, lines)) <= _MOST_LINES:
        return "\n".join(chain.from_iterable(lines))
    shown_lines: list[str] = []
    for number, own in enumerate(lines):
        if len(shown_lines) + len(own) >= _MOST_LINES:
            return "\n".join([*shown_lines, f"and {len(lines) - number} more"])
        shown_lines += own
    return "\n".join(shown_lines)


def _hint(parent: Sequence[str], name: str) -> str:
    """Return the keys that an unknown key probably means: one of its group, or else one of another group."""
    known = _known_keys(parent)
    if close := difflib.get_close_matches(name, known, n=1):
        return f"did you mean '{'.'.join([*parent, close[0]])}'?"
    groups = [key for key in RunSettings.model_fields if _group(field_of([key]).annotation)]
    leaves = {leaf for group in groups for leaf in _known_keys([group])}
    meant = [_ELSEWHERE[name]] if name in _ELSEWHERE else []
    similar = [] if parent else difflib.get_close_matches(name, leaves, n=1, cutoff=0.7)
    if close := [name] if name in leaves else similar:
        meant += [f"{group}.{close[0]}" for group in groups if close[0] in _known_keys([group])]
    if meant:
        *others, last = [f"'{key}'" for key in dict.fromkeys(meant)]
        return f"did you mean {', '.join(others)}{' or ' * bool(others)}{last}?"
    return f"known: {', '.join(known)}"


def _location(finding: Mapping[str, Any], tree: Tree) -> list[str]:
    """Return the keys that lead to an error, without the type names that pydantic inserts between them."""
    location, node = [], cast(Any, tree)
    for part in finding["loc"]:
        inside = range(len(node)) if isinstance(node, list) else node if isinstance(node, dict) else ()
        if part in inside:
            node = node[part]
        elif finding["type"] != "missing":
            continue
        location.append(str(part))
    return location


def _on_one_line(text: str) -> str:
    return text if text.isprintable() and len(text) <= 80 else shown(text)


def field_of(dotted: Sequence[str]) -> Any:
    """Return the field that a key names, or None if there is no such field."""
    node: Any = RunSettings
    field = None
    for key in dotted:
        if node is None or key not in node.model_fields:
            return None
        field = node.model_fields[key]
        node = _group(field.annotation)
    return field


def _help_of(dotted: Sequence[str]) -> str:
    field = field_of(dotted)
    return (field.description or "see docs" if field else "see docs").split(" Source:")[0]


def load(source: ConfigSource | None, overrides: Sequence[str] = (), changes: Tree | None = None) -> RunSettings:
    """Read settings: defaults, below the presets that the user chose, below the source, below the overrides.

    Args:
        source: YAML file, tree of keys and values, or settings; None to use the overrides alone.
        overrides: Texts such as "train.lr=1e-3"; values are read as YAML.
        changes: The same as a tree, such as {"train": {"lr": 1e-3}}.

    Raises:
        SettingsError: a key is unknown or given twice, or a value has the wrong type or is out of range.
    """
    if isinstance(source, RunSettings) and not overrides and not changes:
        return source
    named = [str(source)] if isinstance(source, str | os.PathLike) else []
    user = merge(merge(_tree_of(source), read_overrides(overrides)), _plain(changes or {}))
    presets = presets_for(user)
    tree = merge(presets, user)
    try:
        settings = RunSettings.model_validate(tree)
    except ValidationError as error:
        named += ["command line"] * bool(overrides)
        raise SettingsError(f"{' and '.join(named) or 'settings'}:\n{_explain(error, tree)}") from None
    for group, values in presets.items():  # what a preset says does not count as given
        getattr(settings, group).model_fields_set.difference_update(values.keys() - user.get(group, {}).keys())
    return settings


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run folder."""
    return (folder / "config.yaml").is_file()


def run_of(source: Path) -> Path | None:
    """Return the run folder that an encoder's source is, or whose best checkpoint it is; None for other sources."""
    if is_run(source):
        return source
    return source.parent if source.name == BEST and is_run(source.parent) else None


def load_run(run: Path) -> RunSettings:
    """Read the settings of a run from its folder.

    Raises:
        CheckpointError: the folder is not a run.
    """
    if not is_run(run):
        raise CheckpointError(f"{run} is not a run folder: it has no config.yaml")
    settings = load(run / "config.yaml")
    tree = as_tree(settings)
    # The file states every value. Those that defaults and presets imply do not count as given: another preset replaces
    # them if the settings are loaded again with changes.
    for group, preset in presets_for(tree).items():
        implied = {**as_tree(RunSettings.model_fields[group].default), **preset}
        selector = RunSettings.PRESETS[group][0]
        stated = {key for key, value in tree[group].items() if key != selector and value == implied[key]}
        getattr(settings, group).model_fields_set.difference_update(stated)
    return settings


def _tree_of(source: ConfigSource | None) -> Tree:
    if source is None:
        return {}
    if isinstance(source, str | os.PathLike):
        return read_file(Path(source))
    tree: Tree = _plain(source)
    return tree


def _plain(value: Any) -> Any:
    """Return settings as YAML would hold them: folders as text, and of settings objects only what was given."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_unset=True)
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def as_tree(settings: BaseModel) -> Tree:
    """Return the settings as plain nested values, as stored in YAML, JSON and checkpoints."""
    return settings.model_dump(mode="json")


def to_yaml(tree: Tree) -> str:
    """Return a settings tree as YAML that `load` reads back."""
    return dump(tree, default_flow_style=None, width=120)


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
