"""The reference of all settings, generated from the settings tree."""

from __future__ import annotations

import re
from typing import Any

from pydantic_core import PydanticUndefined

from medmoco.config.base import Settings
from medmoco.config.run import RunSettings
from medmoco.config.yaml_text import dump


def markdown() -> str:
    """Return every setting, group by group, as Markdown."""
    return "\n".join(["## The run", "", *_group(RunSettings, "")])


def _group(model: type[Settings], prefix: str) -> list[str]:
    """Return the lines of a group: first its own settings, then the groups inside it."""
    schema = model.model_json_schema(mode="validation")
    lines, groups = [], []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            groups += [f"## {prefix}{name}", "", _paragraph(kind.__doc__), "", *_group(kind, f"{prefix}{name}.")]
            continue
        effect, _, source = _paragraph(field.description).partition("Source: ")
        default = (
            "required"
            if field.default is PydanticUndefined and not field.default_factory
            else _default(model, prefix, name)
        )
        lines += [
            f"### {prefix}{name}",
            "",
            f"{_type_of(schema['properties'][name], schema.get('$defs', {}))} · {default}",
            "{ .kind }",
            "",
            effect.strip(),
            *(["", f"*Source: {source}*"] if source else []),
            "",
        ]
    return lines + groups


def _paragraph(text: str | None) -> str:
    return " ".join((text or "").split())


def _default(model: type[Settings], prefix: str, name: str) -> str:
    """Return the default of a setting, for each preset if they differ."""
    value = model.model_fields[name].get_default(call_default_factory=True)
    selector, presets = RunSettings.PRESETS.get(prefix.removesuffix("."), ("", {}))
    by_preset = {preset: keys[name] for preset, keys in presets.items() if name in keys}
    if len({repr(chosen) for chosen in by_preset.values()} | {repr(value)} if by_preset else set()) > 1:
        listed = ", ".join(f"`{preset}` {_code(chosen)}" for preset, chosen in by_preset.items())
        return f"default {_code(value)}; by `{prefix}{selector}`: {listed}"
    return f"default {_code(value)}"


def _code(value: Any) -> str:
    text = dump(_readable(value), default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f"`{re.sub(r'(?<![0-9.])[0-9]{6,}(?![0-9.])', lambda digits: f'{int(digits.group()):_}', text)}`"


def _readable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_readable(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _type_of(schema: dict[str, Any], models: dict[str, Any], *, plural: bool = False) -> str:
    """Return a JSON schema in words."""
    if "anyOf" in schema or "oneOf" in schema:
        return _either([_type_of(choice, models, plural=plural) for choice in schema.get("anyOf") or schema["oneOf"]])
    if "enum" in schema or "const" in schema:
        return _listed([_code(value) for value in schema.get("enum") or [schema["const"]]])
    if schema.get("type") == "null":
        return "`null`"
    noun, details = _noun(schema, models)
    if plural and noun != "text":
        noun = re.sub(r"^\w+", r"\g<0>s", noun)
        details = details.replace(", at", ", each at", 1).replace(", above", ", each above", 1)
    return noun + details


def _noun(schema: dict[str, Any], models: dict[str, Any]) -> tuple[str, str]:
    """Return what a value is, in the singular, and what else must be so."""
    if "$ref" in schema:
        return "mapping", _keys(models[schema["$ref"].rpartition("/")[2]])
    if "prefixItems" in schema:
        return f"pair of {_type_of(schema['prefixItems'][0], models, plural=True)}", ""
    kind = schema.get("type", "")
    if kind == "array":
        return f"list of {_type_of(schema['items'], models, plural=True)}", ""
    if kind == "object":
        return f"mapping of names to {_type_of(schema['additionalProperties'], models, plural=True)}", ""
    names = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true` or `false`"}
    return "path" if schema.get("format") == "path" else names.get(kind, "value"), _bounds(schema)


def _keys(model: dict[str, Any]) -> str:
    required = [f"`{key}`" for key in model.get("required", [])]
    optional = [f"`{key}`" for key in model["properties"] if f"`{key}`" not in required]
    if not required:
        return f" with any of the keys {_listed(optional)}"
    return f" with the keys {_listed(required, 'and')}" + (f" (and optionally {_listed(optional)})" if optional else "")


def _bounds(schema: dict[str, Any]) -> str:
    words = {"minimum": "at least", "ge": "at least", "exclusiveMinimum": "above", "gt": "above"}
    words |= {"maximum": "at most", "le": "at most", "exclusiveMaximum": "below", "lt": "below"}
    limits = [f"{words[key]} {value:,}" for key, value in schema.items() if key in words and value < 2**63]
    return f", {' and '.join(limits)}" if limits else ""


def _listed(words: list[str], last: str = "or") -> str:
    return f"{', '.join(words[:-1])} {last} {words[-1]}" if len(words) > 1 else words[0]


def _either(words: list[str]) -> str:
    """Return alternatives, with a comma between them if one of them is more than a few words."""
    return ", or ".join(words) if any(re.search(", | or |[)]", word) for word in words) else _listed(words)
