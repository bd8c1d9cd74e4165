"""What all translations share: names of the dialect, its counts, one event as bytes, and values that may be odd."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from twolane.domain.completion import EventError, whole_count
from twolane.domain.records import WEB_SEARCH, Usage

DIALECT = "anthropic"
"""The kind of upstream that understands these requests as they are."""

RAW = "anthropic"
"""The key of a chunk under which the upstream's own event stands."""

PING = b'event: ping\ndata: {"type":"ping"}\n\n'

Fields = dict[str, object]


# ── usage ──


def usage_from(fields: object) -> Usage | None:
    """Anthropic's counts, whose `input_tokens` are without the cached ones; None where there are none that make
    sense."""
    if not isinstance(fields, dict):
        return None
    plain, written = whole_count(fields.get("input_tokens")), whole_count(fields.get("output_tokens"))
    if plain is None or written is None:
        return None
    cached, details = whole_count(fields.get("cache_read_input_tokens")), mapping(fields.get("output_tokens_details"))
    by_age = mapping(fields.get("cache_creation"))
    minutes, hour = (whole_count(by_age.get(f"ephemeral_{age}_input_tokens")) for age in ("5m", "1h"))
    kept = whole_count(fields.get("cache_creation_input_tokens"))
    if minutes is not None or hour is not None:
        kept = max(kept or 0, (minutes or 0) + (hour or 0))
    searches = whole_count(mapping(fields.get("server_tool_use")).get("web_search_requests"))
    return Usage(
        input_tokens=plain + (cached or 0) + (kept or 0),
        output_tokens=written,
        cache_read_tokens=cached,
        cache_write_tokens=kept,
        reasoning_tokens=whole_count(details.get("thinking_tokens")),
        cache_write_1h_tokens=hour,
        kinds={WEB_SEARCH: searches} if searches else None,
    )


def anthropic_usage(usage: Usage | None) -> Fields:
    """The same the other way; zeros where nobody counted, because its clients want numbers."""
    if usage is None:
        return {"input_tokens": 0, "output_tokens": 0}
    cached, kept, hour = usage.cache_read_tokens, usage.cache_write_tokens, usage.cache_write_1h_tokens
    fields: Fields = {"input_tokens": max(0, usage.input_tokens - (cached or 0) - (kept or 0))}
    if kept is not None:
        fields["cache_creation_input_tokens"] = kept
    if kept is not None and hour is not None:
        ages = {"ephemeral_5m_input_tokens": max(0, kept - hour), "ephemeral_1h_input_tokens": hour}
        fields["cache_creation"] = ages
    if cached is not None:
        fields["cache_read_input_tokens"] = cached
    fields["output_tokens"] = usage.output_tokens
    if usage.reasoning_tokens is not None:
        fields["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    if usage.kinds and WEB_SEARCH in usage.kinds:
        fields["server_tool_use"] = {"web_search_requests": usage.kinds[WEB_SEARCH]}
    return fields


# ── events ──


def event_bytes(event: Mapping[str, object]) -> bytes:
    """One event as it goes over the wire."""
    return b"event: " + str(event.get("type")).encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"


def parsed(payload: bytes) -> Mapping[str, object]:
    """The event in a payload.

    Raises:
        EventError: it is not a JSON object.
    """
    try:
        event = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise EventError(f"an event that is not JSON: {error}") from None
    if not isinstance(event, dict):
        raise EventError("an event that is not a JSON object")
    return event


# ── values that may be anything ──


def input_of(arguments: object) -> Fields:
    """The input that a tool's arguments are as text; what is no JSON object is kept under `arguments`."""
    if not arguments:
        return {}
    try:
        found = orjson.loads(str(arguments))
    except orjson.JSONDecodeError:
        found = arguments
    return found if isinstance(found, dict) else {"arguments": found}


def text_of(content: object) -> str:
    """The text in a message's content, whichever shape it has."""
    if isinstance(content, str):
        return content
    return "\n".join(text for part in dicts(content) if isinstance(text := part.get("text"), str))


def dicts(value: object) -> list[Mapping[str, object]]:
    """The objects in a list; none where it is no list."""
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list | tuple) else []


def json_text(value: object) -> str:
    """A value as JSON."""
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()


def mapping(value: object) -> Mapping[str, object]:
    """An object; an empty one where it is none."""
    return value if isinstance(value, dict) else {}


def place_of(index: object) -> object:
    """A block's index as a key."""
    return index if isinstance(index, int | str) else None
