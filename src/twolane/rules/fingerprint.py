"""What makes two steps "the same": everything that could change the answer, and nothing else. And, where two are not
the same, why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import orjson

from twolane.domain.canonical import canonical_json
from twolane.domain.records import Message, ReplySchema

FORMAT = 1
INPUT = "input "
"""Before the name of an input among a step's parts."""

_AT_LEAST = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_AT_MOST = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_ALIKE = ("pattern", "format", "uniqueItems", "multipleOf")
_CONSTRAINTS = frozenset({*_AT_LEAST, *_AT_MOST, *_ALIKE, "enum", "const"})
_SCHEMAS = ("items", "additionalProperties")
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
_NAMED = ("properties", "$defs")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a step would ask.

    `candidates` are the route's possible models by kind and name: its definition, not its decision. Validators are not
    in it (stored outputs are validated again), nor are addresses, keys, slots or prices. `sample` tells apart what
    is asked several times on purpose; for answers drawn at random (temperature > 0) it holds run and item, so that
    they are replayed inside one run and never reused by another. `again` is there when a person had this agent asked
    again, though there was an answer.
    """

    tenant: str
    agent: str
    messages: Sequence[Message]
    schema: ReplySchema
    candidates: Sequence[Mapping[str, object]]
    max_tokens: int
    temperature: float
    sample: str
    again: str = ""
    tools: Sequence[Mapping[str, object]] = ()
    """What the model is told that it may call."""
    turns: Sequence[Mapping[str, object]] = ()
    """What followed the messages in a conversation with tools: its calls, and what they gave."""

    def canonical(self) -> bytes:
        """Canonical bytes of all of it; the caller keys and hashes them.

        Raises:
            ValueError: there is no canonical form, see `canonical_json`.
        """
        asked: dict[str, object] = {
            "format": FORMAT,
            "tenant": self.tenant,
            "agent": self.agent,
            "messages": _written([[message.role, message.content] for message in self.messages]),
            "schema": orjson.Fragment(self.schema.canonical),
            "candidates": _named(self.candidates),
            "max_tokens": self.max_tokens if type(self.max_tokens) is int else _canonical(self.max_tokens),
            "temperature": _canonical(self.temperature),
            "sample": self.sample,
        }
        if self.again:
            asked["again"] = self.again
        if self.tools:
            asked |= {"tools": _canonical(list(self.tools)), "turns": _canonical(list(self.turns))}
        try:
            return orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
        except orjson.JSONEncodeError as error:
            raise ValueError(f"no canonical form: {error}") from error

    def parts(self) -> dict[str, bytes]:
        """What it is made of beside the schema, each part on its own, so that a change can be named. For what has a
        canonical form: it is written here without looking for one."""
        first, *middle, last = self.messages if len(self.messages) > 1 else (Message("", ""), *self.messages)
        talk = {"tools": _canonical(list(self.tools)), "turns": _canonical(list(self.turns))} if self.tools else {}
        return {name: orjson.dumps(part) for name, part in talk.items()} | {
            "prompt": orjson.dumps([first.role, first.content, last.role, last.content]),
            "passages": orjson.dumps([[each.role, each.content] for each in middle]),
            "route": orjson.dumps(list(self.candidates), option=orjson.OPT_SORT_KEYS),
            "sampling": orjson.dumps([self.max_tokens, float(self.temperature)]),
            "sample": self.sample.encode(),
            "again": self.again.encode(),
        }


# ── why two are not the same ──

NEVER = "never asked"
_WORDS = {
    "again": "asked again on purpose",
    "prompt": "its prompt changed",
    "passages": "its passages changed",
    "schema": "its schema changed",
    "route": "its route's models changed",
    "sampling": "its sampling changed",
    "tools": "its tools changed",
    "turns": "its conversation went another way",
    "sample": "never asked for this sample",
}


def explain(now: Mapping[str, str], before: Sequence[Mapping[str, str]], *, makers: Mapping[str, str]) -> str:
    """Why a step has no memo, in words: what of it differs from the most similar of those `before` (newest first).

    Parts are digests by name; inputs stand among them as `input NAME`, and `makers` says which agent made an input.
    Where the question changed and an input did, the input is named: the question, which is made from it, had to.
    """
    if not before:
        return NEVER
    nearest = max(before, key=lambda parts: sum(parts.get(name) == digest for name, digest in now.items()))
    changed = {name for name in _WORDS if now.get(name) != nearest.get(name)}
    inputs = [
        name.removeprefix(INPUT)
        for name in now
        if name.startswith(INPUT) and name in nearest and now[name] != nearest[name]
    ]
    words = []
    if inputs and changed & {"prompt", "passages"}:
        named = [f"{name} of {makers[name]}" if name in makers else name for name in inputs]
        words = [f"its input changed ({', '.join(named)})"]
        changed -= {"prompt", "passages"}
    return ", ".join(words + [text for name, text in _WORDS.items() if name in changed])


# ── schemas that only became stricter ──


def is_tightened(old: Mapping[str, object], new: Mapping[str, object]) -> bool:
    """True when `new` asks for the same as `old`, in the same words, and accepts a part of what that accepted.

    Limits (lengths, bounds, choices, patterns) may have come in or become narrower; names, types, descriptions and
    structure are the same. What was loosened could be answered better by asking again, so that is False.
    """
    if wording(old) != wording(new):
        return False
    return all(_is_narrower(before, after) for before, after in _pairs(old, new))


def wording(schema: Mapping[str, object]) -> dict[str, object]:
    """A schema without its limits: two of the same wording ask the same question, and may differ in how narrow an
    answer they accept. Only where schemas stand: a property may be called `pattern`."""
    plain: dict[str, object] = {name: value for name, value in schema.items() if name not in _CONSTRAINTS}
    for name in _SCHEMAS:
        if isinstance(inner := plain.get(name), Mapping):
            plain[name] = wording(inner)
    for name in _LISTS:
        if isinstance(several := plain.get(name), list):
            plain[name] = [wording(each) if isinstance(each, Mapping) else each for each in several]
    for name in _NAMED:
        if isinstance(named := plain.get(name), Mapping):
            plain[name] = {key: wording(each) if isinstance(each, Mapping) else each for key, each in named.items()}
    return plain


def _pairs(
    old: Mapping[str, object], new: Mapping[str, object]
) -> Iterator[tuple[Mapping[str, object], Mapping[str, object]]]:
    """Every schema inside two of the same wording, side by side."""
    yield old, new
    for before, after in zip(_inside(old), _inside(new), strict=True):
        yield from _pairs(before, after)


def _inside(schema: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    for name in _SCHEMAS:
        if isinstance(inner := schema.get(name), Mapping):
            yield inner
    for name in _LISTS:
        if isinstance(several := schema.get(name), list):
            yield from (each for each in several if isinstance(each, Mapping))
    for name in _NAMED:
        if isinstance(named := schema.get(name), Mapping):
            yield from (named[key] for key in sorted(named) if isinstance(named[key], Mapping))


def _is_narrower(old: Mapping[str, object], new: Mapping[str, object]) -> bool:
    for name in _AT_LEAST:
        if name in old and not _number(new.get(name), float("-inf")) >= _number(old[name], float("inf")):
            return False
    for name in _AT_MOST:
        if name in old and not _number(new.get(name), float("inf")) <= _number(old[name], float("-inf")):
            return False
    if any(name in old and old[name] != new.get(name) for name in _ALIKE):
        return False
    before, after = _choices(old), _choices(new)
    return before is None or (after is not None and all(choice in before for choice in after))


def _number(value: object, otherwise: float) -> float:
    return value if isinstance(value, int | float) else otherwise


def _choices(schema: Mapping[str, object]) -> list[object] | None:
    if "const" in schema:
        return [schema["const"]]
    choices = schema.get("enum")
    return list(choices) if isinstance(choices, list) else None


def _canonical(value: object) -> orjson.Fragment:
    return orjson.Fragment(canonical_json(value))


def _named(candidates: Sequence[Mapping[str, object]]) -> object:
    """Texts by name, and so without a walk too."""
    if all(type(each) is dict and all(type(text) is str for text in each.values()) for each in candidates):
        return list(candidates)
    return _canonical(candidates)


def _written(messages: list[list[str]]) -> orjson.Fragment:
    """Texts have one form only, so they need no walk; what an agent gives instead of a text is looked at."""
    if all(type(part) is str for message in messages for part in message):
        try:
            return orjson.Fragment(orjson.dumps(messages))
        except orjson.JSONEncodeError as error:
            raise ValueError(f"no canonical form: {error}") from error
    return _canonical(messages)
