"""Parse YAML into text, numbers, true, false, null, lists and mappings, and nothing else; write it back.

PyYAML reads YAML 1.1, in which 010 is 8, 12:30 is 750 and 2024-01-01 is a date. Here these are text, and a setting
that needs a number refuses them. Keys are always text, as written: `{yes: 1, 0: 0}` has the keys "yes" and "0".
"""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from medmoco.errors import SettingsError

_LEVELS = 50  # of nested lists and mappings
_VALUES = 100_000  # with aliases expanded, which lets a few lines stand for an unlimited number of values

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_PLAIN = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}
_NUMBER = "[-+]?[0-9][0-9_]*"
_FLOAT = re.compile(
    rf"(?:(?:{_NUMBER}\.[0-9_]*|[-+]?\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|{_NUMBER}[eE][-+]?[0-9]+"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
)
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+|0b[01_]+)$")


class _Refusal(yaml.MarkedYAMLError):
    """The text is valid YAML but cannot be settings."""

    def __init__(self, what: str, mark: yaml.Mark) -> None:
        super().__init__(problem=what, problem_mark=mark)


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse in a sentence what would exceed Python's recursion limit."""
        self._level += 1
        if self._level > _LEVELS:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _Refusal(f"lists and mappings are nested more than {_LEVELS} levels deep", mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._level -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in {f"{_TAG}bool", f"{_TAG}null", _MERGE}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))


def parse(text: str, where: str) -> Any:
    """Return the value of a YAML text; `where` is its origin, for messages.

    Raises:
        SettingsError: the text is not YAML, or contains other than plain values: other types, keys that are not text
            or are repeated, aliases that contain themselves or expand to too much.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _Check(loader).measure(node)
        return loader.construct_document(node)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        what = f"not valid YAML: it contains the character U+{ord(text[error.position]):04X}"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line if mark else 0
        what = ", ".join(part for part in (error.context, error.problem) if part)
        what = what if isinstance(error, _Refusal) else f"not valid YAML: {what}"
    except (ValueError, OverflowError):  # PyYAML turns escapes into characters without checking them
        line, what = loader.line, "not valid YAML: an escape stands for no character"
    position = f", line {line + 1}" if "\n" in text.rstrip("\n") else ""
    raise SettingsError(f"{where}{position}: {what}")


class _Check:
    """Check each node of a document once, however many aliases refer to it."""

    def __init__(self, loader: _Loader) -> None:
        self._loader = loader
        self._known: dict[yaml.Node, tuple[int, int] | None] = {}  # None while its own parts are checked

    def measure(self, node: yaml.Node) -> tuple[int, int]:
        """Return how many levels and values a node has, with its aliases expanded.

        Raises:
            yaml.MarkedYAMLError: the node is not a plain value; names the line.
        """
        if node not in self._known:
            self._known[node] = None
            self._known[node] = self._measure(node)
        known = self._known[node]
        if known is None:
            raise _Refusal("an alias (*name) refers to something that contains it", node.start_mark)
        return known

    def _measure(self, node: yaml.Node) -> tuple[int, int]:
        if node.tag not in _PLAIN:
            raise _Refusal(_unknown_type(node), node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            self._check_scalar(node)
            return 0, 1
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        parts = [value for _, value in node.value] if isinstance(node, yaml.MappingNode) else node.value
        measures = [self.measure(part) for part in parts]
        levels = 1 + max((levels for levels, _ in measures), default=0)
        values = 1 + sum(values for _, values in measures)
        if levels > _LEVELS or values > _VALUES:
            raise _Refusal("aliases (*name) expand to more values than settings can have", node.start_mark)
        return levels, values

    def _check_scalar(self, node: yaml.ScalarNode) -> None:
        if not _is_writable(node.value):
            raise _Refusal(
                "text contains an escape (such as \\0) that is not allowed in a name or path", node.start_mark
            )
        try:
            value = self._loader.construct_object(node)
        except (ValueError, LookupError):
            raise _Refusal(f"{shown(node.value)} cannot be read as {_name(node)}", node.start_mark) from None
        if isinstance(value, float) and not math.isfinite(value):
            raise _Refusal(
                f"{shown(node.value)} is not a finite number; put it in quotes if it is text", node.start_mark
            )


def _check_keys(node: yaml.MappingNode) -> None:
    """Check the keys of a mapping, and turn those that YAML reads as numbers or words such as yes and on into text."""
    seen = set()
    for number, (key, value) in enumerate(node.value):
        mark = key.start_mark
        if not isinstance(key, yaml.ScalarNode):
            raise _Refusal(f"a {_name(key)} is used as a key; keys must be text", mark)
        if key.tag not in _PLAIN | {_MERGE}:
            raise _Refusal(_unknown_type(key), mark)
        if not _is_writable(key.value):
            raise _Refusal("a key contains an escape (such as \\0) that is not allowed in a name", mark)
        if key.value in seen:
            raise _Refusal(f"key {shown(key.value)} appears twice; keep one", mark)
        seen.add(key.value)
        if key.tag != _MERGE:  # a new node, since an alias may use the same one as a value
            node.value[number] = yaml.ScalarNode(f"{_TAG}str", key.value, mark, key.end_mark, key.style), value


def _name(node: yaml.Node) -> str:
    """Return the everyday name of a node's type."""
    names = {"int": "a number", "float": "a number", "bool": "true or false", "seq": "list", "map": "mapping"}
    return names.get(node.tag.removeprefix(_TAG), node.tag.removeprefix(_TAG))


def _unknown_type(node: yaml.Node) -> str:
    if node.tag == _MERGE:
        return "<< is the key that merges mappings; put it in quotes if it is text"
    tag = f"!!{node.tag.removeprefix(_TAG)}" if node.tag.startswith(_TAG) else node.tag
    return f"settings cannot be of type {shown(tag)}; write text, a number, true, false, null, a list or a mapping"


def _is_writable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def shown(value: Any) -> str:
    """Return a value in quotes, on one line, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}..."


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write every value out in full."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar(f"{_TAG}str", text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)
_Dumper.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+.0123456789"))  # so that the text 1e5 gets its quotes


def dump(value: Any, **style: Any) -> str:
    """Return plain values as YAML that `parse` reads back."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, **style)
    return text
