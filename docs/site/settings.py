"""The reference of all settings, generated from the settings tree."""

from __future__ import annotations

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
    plain = list(value) if isinstance(value, tuple) else value
    text = dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f"`{text}`"


def _type_of(schema: dict[str, Any], models: dict[str, Any]) -> str:
    """Return a JSON schema in words."""
    if "$ref" in schema:
        fields = models[schema["$ref"].rpartition("/")[2]]["properties"]
        return f"mapping with the keys {_listed([f'`{key}`' for key in fields])}"
    if "anyOf" in schema:
        return _listed([_type_of(choice, models) for choice in schema["anyOf"]])
    if "enum" in schema or "const" in schema:
        return _listed([_code(value) for value in schema.get("enum") or [schema["const"]]])
    kind = schema.get("type")
    if kind == "null":
        return "`null`"
    if kind == "array" and "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}: {_type_of(schema['prefixItems'][0], models)}"
    if kind == "array":
        return f"list of {_type_of(schema['items'], models)}"
    if kind == "object":
        return f"mapping of names to {_type_of(schema['additionalProperties'], models)}"
    name = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true` or `false`"}[
        kind or "string"
    ]
    return ("path" if schema.get("format") == "path" else name) + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    words = {"minimum": "at least", "ge": "at least", "exclusiveMinimum": "above", "gt": "above"}
    words |= {"maximum": "at most", "le": "at most", "exclusiveMaximum": "below", "lt": "below"}
    limits = [f"{words[key]} {value:,}" for key, value in schema.items() if key in words and value < 2**63]
    return f", {' and '.join(limits)}" if limits else ""


def _listed(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]
