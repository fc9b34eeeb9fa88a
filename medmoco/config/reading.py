"""YAML and `key=value` to the tree, with errors that name the key; and back to YAML."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from medmoco.config.base import Tree
from medmoco.config.data import RGB_RECIPES, LabelPolicy
from medmoco.config.run import RunSettings
from medmoco.errors import SettingsError


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys and reads 1e-3 as a number (YAML 1.2; PyYAML is 1.1)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise SettingsError(f"line {key_node.start_mark.line + 1}: key {key!r} is written twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except SettingsError as error:
        raise SettingsError(f"{where}, {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"{where}{line}: not valid YAML: {getattr(error, 'problem', error)}") from None


def read_file(path: Path) -> Tree:
    """Return what a YAML file says; SettingsError where it cannot be read or is no mapping."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SettingsError(f"settings file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"settings file {path} cannot be read: {error}") from None
    tree = _parse_yaml(text, str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"{path}: settings are a mapping of keys to values, not a {type(tree).__name__}")
    return tree


def read_overrides(overrides: Sequence[str]) -> Tree:
    """Return what `key=value` texts say; SettingsError where one is none."""
    tree: Tree = {}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise SettingsError(f"'{text}' is not key=value, such as train.epochs=10")
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = _parse_yaml(value, f"'{text}'")
    return tree


def merge(base: Tree, over: Tree) -> Tree:
    """Lay one tree over another."""
    merged = dict(base)
    for key, value in over.items():
        # Labels are the user's own names: giving them again replaces the set instead of adding to it.
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "labels"
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
    """Return the field values that the chosen recipe and method put below the user's own."""
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
        field = node.model_fields.get(key) if isinstance(node, type) and issubclass(node, BaseModel) else None
        annotation = field.annotation if field else None
        candidates = [annotation, *get_args(annotation)]
        node = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), LabelPolicy)
    return list(node.model_fields)


_TYPE = re.compile(r"[\[(]|^constrained-")  # what pydantic adds to a key that may be of several types


def _explain(error: ValidationError) -> str:
    """Put pydantic's findings into at most four lines, one per key, without its jargon."""
    lines = []
    for finding in error.errors():
        location = [str(part) for part in finding["loc"] if not _TYPE.search(str(part))]
        parent, key = location[:-1], ".".join(location)
        if finding["type"] == "extra_forbidden":
            known = _known_keys(parent)
            close = difflib.get_close_matches(location[-1], known, n=1)
            hint = f"did you mean '{'.'.join([*parent, close[0]])}'?" if close else f"known: {', '.join(known)}"
            lines.append(f"unknown key '{key}'; {hint}")
        elif finding["type"] == "missing":
            lines.append(f"'{key}' is required: {_help_of(location)}")
        else:
            message = finding["msg"].removeprefix("Value error, ")
            lines.append(f"'{key}': {message}" if key else message)
    shown = list(dict.fromkeys(lines))
    more = [f"and {len(shown) - 3} more"] if len(shown) > 4 else []
    return "\n".join(shown[: 3 if more else 4] + more)


def field_of(dotted: Sequence[str]) -> Any:
    """Return the field of the settings that a key names; None if there is none."""
    node: Any = RunSettings
    field = None
    for key in dotted:
        if not (isinstance(node, type) and issubclass(node, BaseModel)) or key not in node.model_fields:
            return None
        field = node.model_fields[key]
        node = field.annotation
    return field


def _help_of(dotted: Sequence[str]) -> str:
    field = field_of(dotted)
    return (field.description or "see docs" if field else "see docs").split(" Source:")[0]


def load(path: Path | None, overrides: Sequence[str] = ()) -> RunSettings:
    """Read settings from a YAML file and `key=value` overrides.

    Args:
        path: YAML file, or None to use the overrides alone.
        overrides: Texts such as "train.lr=1e-3"; values are read as YAML.

    Raises:
        SettingsError: unknown or duplicate key, wrong type, impossible value; at most five lines.
    """
    file_tree = read_file(path) if path else {}
    user = merge(file_tree, read_overrides(overrides))
    try:
        return RunSettings.model_validate(merge(presets_for(user), user))
    except ValidationError as error:
        sources = [str(path)] * bool(path) + ["command line"] * bool(overrides)
        raise SettingsError(f"{' and '.join(sources)}:\n{_explain(error)}") from None


def as_tree(settings: BaseModel) -> Tree:
    """Return plain nested values: what YAML, JSON and checkpoints hold."""
    return settings.model_dump(mode="json")


def to_yaml(tree: Tree) -> str:
    """Write a settings tree as YAML that `load` reads back."""
    return yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=120)
