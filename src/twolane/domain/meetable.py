"""Whether any JSON can fit a schema. One that nothing fits would be paid for, reply after reply, and never met."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

Schema = Mapping[str, object]

_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int, float), "number": (int, float), "boolean": (bool,), "null": (type(None),),
    "array": (list,), "object": (dict,),
}  # fmt: skip


def unmeetable(schema: Schema) -> str | None:
    """Why nothing fits this schema, with the place in a reply; None where something may.

    It finds what contradicts itself by its own words: a minimum above its maximum, a choice without a value, an object
    that must hold itself. That nothing fits a pattern, or a validator, it cannot know.
    """
    return _Reader(schema).why(schema, "", ())


class _Reader:
    """Reads one schema; `root` is where its references lead."""

    def __init__(self, root: Schema) -> None:
        self._root = root
        self._met: set[str] = set()
        """References that something fits."""

    def why(self, schema: object, at: str, within: tuple[str, ...]) -> str | None:
        """Why nothing fits; `within` are the references on the way here: a value that is finite ends before it comes
        to one of them again."""
        if schema is False:
            return f"{at or '/'}: nothing is allowed there"
        if not isinstance(schema, Mapping):
            return None
        return next((why for why in self._reasons(schema, at, within) if why), None)

    def _reasons(self, schema: Schema, at: str, within: tuple[str, ...]) -> Iterator[str | None]:
        target = schema.get("$ref")
        if isinstance(target, str):
            yield self._why_reference(target, at, within)
        for part in _list(schema.get("allOf")):
            yield self.why(part, at, within)
        for word in ("anyOf", "oneOf"):
            if word in schema:
                reasons = [self.why(part, at, within) for part in _list(schema[word])]
                yield (
                    None if None in reasons else (reasons[0] if reasons else f"{at or '/'}: it is a choice of nothing")
                )
        types = schema.get("type")
        types = types if isinstance(types, list) else [types]
        yield _why_values(schema, types, at)
        if len(types) == 1:
            match types[0]:
                case "integer" | "number" as kind:
                    yield _why_number(schema, at, is_whole=kind == "integer")
                case "string":
                    yield _why_range(schema, "minLength", "maxLength", at)
                case "array":
                    yield self._why_array(schema, at, within)
                case "object":
                    yield self._why_object(schema, at, within)

    def _why_reference(self, target: str, at: str, within: tuple[str, ...]) -> str | None:
        if target in self._met:
            return None
        if target in within:
            return f"{at or '/'}: it must hold itself, without end"
        found: object = self._root
        for part in target.removeprefix("#").split("/")[1:]:
            found = found.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        if found is None:
            return f"{at or '/'}: the reference {target} leads nowhere"
        why = self.why(found, at, (*within, target))
        if why is None:
            self._met.add(target)
        return why

    def _why_array(self, schema: Schema, at: str, within: tuple[str, ...]) -> str | None:
        least = schema.get("minItems")
        least = least if isinstance(least, int) else 0
        if why := _why_range(schema, "minItems", "maxItems", at):
            return why
        first = _list(schema.get("prefixItems"))
        reasons = [self.why(part, f"{at}/{number}", within) for number, part in enumerate(first[:least])]
        if least > len(first) and "items" in schema:
            items = schema["items"]
            reasons.append(self.why(items, f"{at}/{len(first)}", within))
            values = items.get("enum") if isinstance(items, Mapping) else None
            if schema.get("uniqueItems") is True and isinstance(values, list) and len(values) < least - len(first):
                reasons.append(f"{at or '/'}: it wants {least} different values of {len(values)}")
        return next((why for why in reasons if why), None)

    def _why_object(self, schema: Schema, at: str, within: tuple[str, ...]) -> str | None:
        members = schema.get("properties")
        members = members if isinstance(members, Mapping) else {}
        for name in _list(schema.get("required")):
            if name in members:
                why = self.why(members[str(name)], f"{at}/{name}", within)
            else:
                is_closed = schema.get("additionalProperties") is False and "patternProperties" not in schema
                why = f"{at}/{name}: it is required and not allowed" if is_closed else None
            if why:
                return why
        return _why_range(schema, "minProperties", "maxProperties", at)


def _why_values(schema: Schema, types: Sequence[object], at: str) -> str | None:
    """A list of values none of which is of the type, or none at all."""
    if "enum" not in schema and "const" not in schema:
        return None
    values = _list(schema["enum"]) if "enum" in schema else [schema["const"]]
    kinds = [kind for name in types if isinstance(name, str) for kind in _TYPES.get(name, ())]
    fitting = [each for each in values if not kinds or type(each) in kinds]
    return None if fitting else f"{at or '/'}: none of its values is allowed"


def _why_number(schema: Schema, at: str, *, is_whole: bool) -> str | None:
    low, high = _number(schema, "minimum", -math.inf), _number(schema, "maximum", math.inf)
    over, under = _number(schema, "exclusiveMinimum", -math.inf), _number(schema, "exclusiveMaximum", math.inf)
    least, most = max(low, over), min(high, under)
    is_open = least in (over, under) or most in (over, under)
    if is_whole and math.isfinite(least) and math.isfinite(most):
        least = math.floor(least) + 1 if least == over else math.ceil(least)
        most = math.ceil(most) - 1 if most == under else math.floor(most)
        is_open = False
    if least > most or (least == most and is_open and math.isfinite(least)):
        return f"{at or '/'}: no number is both at least {max(low, over):g} and at most {min(high, under):g}"
    return None


def _why_range(schema: Schema, low: str, high: str, at: str) -> str | None:
    least, most = _number(schema, low, 0), _number(schema, high, math.inf)
    return f"{at or '/'}: its {low} {least:g} is above its {high} {most:g}" if least > most else None


def _number(schema: Schema, name: str, otherwise: float) -> float:
    value = schema.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else otherwise


def _list(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else []
