"""What makes two steps "the same": everything that could change the answer, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson

from twolane.domain.canonical import canonical_json
from twolane.domain.records import Message, ReplySchema

FORMAT = 1


def fingerprint(
    *,
    tenant: str,
    agent: str,
    messages: Sequence[Message],
    schema: ReplySchema,
    candidates: Sequence[Mapping[str, object]],
    max_tokens: int,
    temperature: float,
    sample: str,
) -> bytes:
    """Canonical bytes of what a step would ask; the caller keys and hashes them.

    `candidates` are the route's possible models by kind and name: its definition, not its decision. Validators are not
    in it (stored outputs are validated again), nor are addresses, keys, slots or prices. `sample` tells apart what
    is asked several times on purpose; for answers drawn at random (temperature > 0) it holds run and item, so that
    they are replayed inside one run and never reused by another.
    """
    asked = {
        "format": FORMAT,
        "tenant": tenant,
        "agent": agent,
        "messages": _written([[message.role, message.content] for message in messages]),
        "schema": orjson.Fragment(schema.canonical),
        "candidates": _canonical(candidates),
        "max_tokens": _canonical(max_tokens),
        "temperature": _canonical(temperature),
        "sample": sample,
    }
    try:
        return orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise ValueError(f"no canonical form: {error}") from error


def _canonical(value: object) -> orjson.Fragment:
    return orjson.Fragment(canonical_json(value))


def _written(messages: list[list[str]]) -> orjson.Fragment:
    """Texts have one form only, so they need no walk; what an agent gives instead of a text is looked at."""
    if all(type(part) is str for message in messages for part in message):
        try:
            return orjson.Fragment(orjson.dumps(messages))
        except orjson.JSONEncodeError as error:
            raise ValueError(f"no canonical form: {error}") from error
    return _canonical(messages)
