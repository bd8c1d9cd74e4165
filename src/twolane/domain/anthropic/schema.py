"""JSON Schema in the part of it that Anthropic's structured replies know.

Source: Anthropic's page on structured outputs; `lib/_parse/_transform.py` of anthropic 2.11.0.
"""

from __future__ import annotations

from collections.abc import Mapping

import orjson

_KEPT = ("$ref", "type", "enum", "const", "title", "description", "required")
_FORMATS = frozenset("date-time time date duration email hostname uri ipv4 ipv6 uuid".split())
_CHOICES = ("anyOf", "oneOf")
_UNTELLABLE = frozenset(
    "allOf not if patternProperties prefixItems dependentSchemas dependentRequired definitions".split()
)
"""With these a schema would say less, and words in a description would not make up for it."""


def strict_schema(schema: object) -> dict[str, object] | None:
    """A schema as the API takes it, None where that would change its meaning: an object that may hold any key, or a
    rule that cannot be left to words.

    Limits on lengths and sizes are moved into the description: a reply is checked against the whole schema anyway.
    """
    if not isinstance(schema, dict) or not schema or not _UNTELLABLE.isdisjoint(schema):
        return None
    if isinstance(schema.get("type"), list):
        return strict_schema(_by_type(schema, schema["type"]))
    told: dict[str, object] = {name: schema[name] for name in _KEPT if name in schema}
    if "enum" in told or "const" in told:
        told.pop("type", None)  # the values say it
    if schema.get("format") in _FORMATS:
        told["format"] = schema["format"]
    if _is_object(schema):
        if schema.get("additionalProperties") not in (None, False) or not isinstance(schema.get("properties"), dict):
            return None
        told["additionalProperties"] = False
    for name in ("$defs", "properties"):
        if isinstance(schema.get(name), dict):
            told[name] = {key: strict_schema(part) for key, part in schema[name].items()}
    if "items" in schema:
        told["items"] = strict_schema(schema["items"])
    for name in _CHOICES:
        if isinstance(schema.get(name), list):
            told["anyOf"] = [strict_schema(part) for part in schema[name]]
    if _has_gaps(told):
        return None
    known = {*told, *_CHOICES, "type", "$schema", "$id"}
    left = {name: value for name, value in schema.items() if name not in known}
    if left:
        told["description"] = f"{told.get('description', '')} {orjson.dumps(left).decode()}".strip()
    return told


def _by_type(schema: Mapping[str, object], types: list[object]) -> dict[str, object]:
    """A schema of several types as a choice between them: the API knows no list of types."""
    outer = {name: schema[name] for name in ("title", "description", "$defs") if name in schema}
    if "enum" in schema or "const" in schema or "anyOf" in schema or "oneOf" in schema:
        return {name: value for name, value in schema.items() if name != "type"}
    inner = {name: value for name, value in schema.items() if name not in (*outer, "type")}
    return {**outer, "anyOf": [{"type": kind} | (inner if kind != "null" else {}) for kind in types]}


def _has_gaps(told: Mapping[str, object]) -> bool:
    """True where a part could not be told."""
    groups = [told.get(name) for name in ("$defs", "properties")]
    parts = [part for group in groups if isinstance(group, dict) for part in group.values()]
    choices = told.get("anyOf")
    return None in [*parts, *(choices if isinstance(choices, list) else ()), told.get("items", 0)]


def _is_object(schema: Mapping[str, object]) -> bool:
    return schema.get("type") == "object" or "properties" in schema
