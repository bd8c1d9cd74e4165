"""Embeddings out of thin air: the same text gives the same vector of length 1, and another text another. They say
nothing about meaning."""

from __future__ import annotations

import base64
import hashlib
import math
import struct

import orjson

from twolane.domain.records import ModelCall

DIMENSIONS = 32
"""Of a vector where the call names no other number."""


def document(call: ModelCall, *, prompt_tokens: int | None, seed: int = 0) -> bytes:
    """The answer to a call of kind `embeddings`; without usage where `prompt_tokens` is None."""
    asked = call.extras.get("dimensions")
    size = asked if isinstance(asked, int) else DIMENSIONS
    is_packed = call.extras.get("encoding_format") == "base64"
    data = [
        {"object": "embedding", "index": at, "embedding": _written(vector_of(each, size, seed), is_packed=is_packed)}
        for at, each in enumerate(inputs_of(call))
    ]
    fields: dict[str, object] = {"object": "list", "data": data, "model": call.model}
    if prompt_tokens is not None:
        fields["usage"] = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    return orjson.dumps(fields)


def tokens_of(call: ModelCall) -> int:
    """UTF-8 bytes / 4, rounded up, of every text; a list of tokens has as many as it says."""
    return sum(len(each) if isinstance(each, list) else -(-len(str(each).encode()) // 4) for each in inputs_of(call))


def inputs_of(call: ModelCall) -> list[object]:
    """Each text, or list of tokens, that wants a vector."""
    asked = call.extras.get("input")
    return asked if isinstance(asked, list) and asked and not isinstance(asked[0], int) else [asked]


def vector_of(text: object, size: int, seed: int = 0) -> list[float]:
    """`size` numbers that fit into 32-bit floats, their squares adding up to 1 within that precision."""
    stream = hashlib.shake_256(orjson.dumps([seed, text])).digest(4 * size)
    raw = [word / 2**31 - 1 + 2**-33 for word in struct.unpack(f"<{size}I", stream)]  # never 0, so never of length 0
    length = math.hypot(*raw)
    return list(struct.unpack(f"<{size}f", struct.pack(f"<{size}f", *(number / length for number in raw))))


def _written(vector: list[float], *, is_packed: bool) -> object:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if is_packed else vector
