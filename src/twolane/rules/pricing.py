"""Usage × price → charge, and the most a call can cost. Integers all the way."""

from __future__ import annotations

import math
from collections.abc import Mapping

import orjson

from twolane.domain.records import Bound, ModelCall, Price, Usage

_SCHEMA_WORDS = 128
"""Bytes of the words that ask for a schema where a server does not take it as such."""


def charge(usage: Usage, price: Price) -> int:
    """What an attempt cost, in picounits. Cached tokens are part of `input_tokens`; a missing cache price is the input
    price, a missing cache count is none cached."""
    read = min(usage.cache_read_tokens or 0, usage.input_tokens)
    written = min(usage.cache_write_tokens or 0, usage.input_tokens - read)
    plain = usage.input_tokens - read - written
    return (
        plain * price.input
        + read * (price.input if price.cache_read is None else price.cache_read)
        + written * (price.input if price.cache_write is None else price.cache_write)
        + usage.output_tokens * price.output
    )


def input_bound(call: ModelCall, overhead_tokens: int = 8) -> int:
    """The most input tokens this call can have: the UTF-8 bytes of everything the model may read (a byte-level token
    covers at least one byte) plus `overhead_tokens` per message for the upstream's template.

    Source: notes on token counting; characters ÷ 4 under-counts up to three times.
    """
    if call.raw_messages is not None:
        size, messages = len(orjson.dumps(call.raw_messages)), len(call.raw_messages)
    else:
        size, messages = sum(len(message.content.encode()) for message in call.messages), len(call.messages)
    if call.schema is not None:
        size += len(orjson.dumps(call.schema.schema)) + _SCHEMA_WORDS
    if call.extras:
        size += len(orjson.dumps(dict(call.extras)))  # any of them may reach the prompt: tools, documents, templates
    return size + overhead_tokens * (messages + 1)


def unbounded_part(call: ModelCall) -> str | None:
    """What in this call has no bound in tokens: something the upstream would fetch from an address of its own, or a
    service of its own that it would use. None where everything is in the request itself."""
    for message in call.raw_messages or ():
        parts = message.get("content")
        for part in parts if isinstance(parts, list) else ():
            kind = str(part.get("type")) if isinstance(part, dict) else ""
            held = part.get(kind) if isinstance(part, dict) else None
            address = held.get("url") or held.get("file_id") if isinstance(held, dict) else held
            if kind in ("image_url", "file", "video_url", "audio_url") and not str(address).startswith("data:"):
                return f"{kind} by address"
    return next((name for name in ("web_search_options", "service_tier") if call.extras.get(name)), None)


def upper_bound(call: ModelCall, price: Price | None) -> Bound:
    """The most this call can use: bytes in, `max_tokens` out for each of `n` choices, no cache discount assumed; a
    dearer cache is. `pico` is None without a price."""
    overhead = price.overhead_tokens if price else 8
    read = input_bound(call, overhead)
    written = call.max_tokens * choices(call.extras)
    if price is None:
        return Bound(None, read + written)
    dearest = max(price.input, price.cache_read or 0, price.cache_write or 0)
    return Bound(read * dearest + written * price.output, read + written)


def affordable_tokens(call: ModelCall, price: Price | None, *, pico: int | None, tokens: int | None) -> int:
    """The largest `max_tokens` whose bound fits into what is left; 0 or less when not even the input does.

    `pico` and `tokens` are what remains, None for no limit.
    """
    empty = upper_bound(_with_output(call, 0), price)
    count, fits = choices(call.extras), []
    if pico is not None and price is not None and price.output > 0:
        fits.append((pico - (empty.pico or 0)) // (price.output * count))
    elif pico is not None and price is not None and (empty.pico or 0) > pico:
        fits.append(0)
    if tokens is not None:
        fits.append((tokens - empty.tokens) // count)
    return min([call.max_tokens, *fits])


def choices(extras: Mapping[str, object]) -> int:
    """How many answers the call asks for (`n`), at least one."""
    count = extras.get("n")
    return math.ceil(count) if isinstance(count, int | float) and 1 < count < math.inf else 1


def _with_output(call: ModelCall, max_tokens: int) -> ModelCall:
    return ModelCall(call.messages, call.model, max_tokens, None, call.schema, call.extras, call.raw_messages)


def estimate(call: ModelCall, output_bytes: int) -> Usage:
    """Usage where the upstream did not say: four bytes a token, marked as estimated, and never more than the call may
    use. For settling only, never to bound."""
    written = min(-(-output_bytes // 4), call.max_tokens * choices(call.extras))
    return Usage(input_tokens=-(-input_bound(call) // 4), output_tokens=written, estimated=True)


def expected_tokens(call: ModelCall) -> int:
    """What a rate of tokens is asked for: four bytes a token of everything the model may read, and all that it may
    write, as providers count it themselves."""
    return -(-input_bound(call) // 4) + call.max_tokens * choices(call.extras)
