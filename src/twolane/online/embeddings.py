"""Embeddings: what a request means, and the story of one.

    read → may this key use this model? → route → the door → the whole answer → in the form asked for → recorded → sent

The answer passes as it came where it is whole and in the form that was asked for. Where the upstream answered in the
other form (a list of numbers, or base64 as OpenAI's libraries ask by default), it is written anew, vector by vector.
"""

from __future__ import annotations

import asyncio
import binascii
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import orjson

from twolane.config import RouteSection
from twolane.domain.records import Kind, ModelCall, Usage
from twolane.errors import BadRequest, UpstreamError
from twolane.kernel import Document, Kernel
from twolane.online.auth import Grant
from twolane.online.chat import request_of, settled
from twolane.online.stream import Exchange, Hangup
from twolane.online.wire import read_object, take_flag, take_model

MAX_INPUTS = 2_048
"""The most texts, or lists of tokens, of one request."""
MAX_TOKENS = 1_048_576
"""The most tokens of one request that are given as numbers."""
MAX_TOKEN = 2**31 - 1
MAX_DIMENSIONS = 16_384

_PAUSE_EVERY = 8
"""Vectors written anew before others get a turn."""


class Form(StrEnum):
    """How vectors are written."""

    FLOAT = "float"
    """A list of numbers."""
    BASE64 = "base64"
    """32-bit floats, the lowest byte first, in base64."""


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """What a client asks for; see `wire.Named`."""

    model: str
    call: ModelCall
    form: Form


async def embeddings(kernel: Kernel, grant: Grant, exchange: Exchange) -> None:
    """POST /v1/embeddings."""
    asked = read(await exchange.body())
    grant.require(asked.model)
    grant = grant.under(exchange.header(b"x-twolane-workflow"))
    served = kernel.config.route.get(asked.model) or RouteSection(light="")
    request = request_of(kernel, grant, asked, served)
    exchange.tell("x-twolane-route", request.route.name)
    exchange.tell("x-twolane-reason", request.route.reason)
    with Hangup(exchange):
        async with kernel.door.step(request) as answer:
            exchange.tell("x-twolane-step", answer.step)
            document = await answer.document()
            vectors = await written(document, asked.form, answer.upstream.name)
        usage = await settled(exchange, answer) if served.durable_ack else None
        await exchange.answer_bytes(200, whole(document, vectors, usage, answer.upstream.model_name))


# ── requests ──


def read(body: bytes) -> EmbeddingsRequest:
    """The request in a body. `input`, `dimensions` and `encoding_format` are checked, further fields pass through.

    Raises:
        BadRequest: not JSON, or a field we act on is missing or wrong; `param` names it.
    """
    fields = read_object(body, counted=())
    model = take_model(fields)
    if take_flag(fields, "stream"):
        raise BadRequest("embeddings are not streamed: leave 'stream' out", param="stream")
    if "messages" in fields:  # some servers embed conversations; what these hold by address has no bound
        raise BadRequest("'messages' is not taken here: send texts as 'input'", param="messages")
    for name in ("max_tokens", "max_completion_tokens"):
        fields.pop(name, None)  # nothing is written
    _check_input(fields.get("input"))
    _check_dimensions(fields.get("dimensions"))
    form = fields.get("encoding_format")
    if form is None:
        fields.pop("encoding_format", None)
    elif not isinstance(form, str) or form not in set(Form):
        raise BadRequest("'encoding_format' must be float or base64", param="encoding_format")
    return EmbeddingsRequest(model, ModelCall((), "", 0, extras=fields, kind=Kind.EMBEDDINGS), Form(form or Form.FLOAT))


def _check_input(value: object) -> None:
    if isinstance(value, str) and value:
        return
    if not isinstance(value, list) or not value:
        problem = "must be text, a list of texts, a list of tokens, or a list of lists of tokens, and not empty"
        raise BadRequest(f"'input' {problem}", param="input")
    if type(value[0]) is int:
        _check_tokens(value, "input", MAX_TOKENS)
        return
    if len(value) > MAX_INPUTS:
        raise BadRequest(f"'input' may hold at most {MAX_INPUTS:,} texts, not {len(value):,}", param="input")
    room = MAX_TOKENS
    for at, each in enumerate(value):
        if type(each) is not type(value[0]) or not isinstance(each, str | list) or not each:
            raise BadRequest(
                f"'input[{at}]' must be text or tokens like the others, and not empty", param=f"input[{at}]"
            )
        if isinstance(each, list):
            _check_tokens(each, f"input[{at}]", room)
            room -= len(each)


def _check_tokens(tokens: list[object], where: str, room: int) -> None:
    if len(tokens) > room:
        raise BadRequest(f"'input' may hold at most {MAX_TOKENS:,} tokens altogether", param="input")
    if not all(type(token) is int and 0 <= token <= MAX_TOKEN for token in tokens):
        raise BadRequest(f"'{where}' must hold tokens: whole numbers from 0 to {MAX_TOKEN}", param=where)


def _check_dimensions(value: object) -> None:
    if value is not None and not (type(value) is int and 1 <= value <= MAX_DIMENSIONS):
        raise BadRequest(f"'dimensions' must be a whole number from 1 to {MAX_DIMENSIONS:,}", param="dimensions")


# ── answers ──


async def written(document: Document, form: Form, upstream: str) -> list[bytes] | None:
    """Every vector as JSON in the form asked for; None where the document has them all so.

    Raises:
        UpstreamError: a vector cannot be read.
    """
    wanted = str if form is Form.BASE64 else list
    if all(isinstance(each["embedding"], wanted) for each in document.data):
        return None
    vectors = []
    for at, each in enumerate(document.data):
        if at % _PAUSE_EVERY == _PAUSE_EVERY - 1:
            await asyncio.sleep(0)
        try:
            vectors.append(orjson.dumps(converted(each["embedding"], form)))
        except ValueError as error:
            raise UpstreamError(upstream, "its answer holds a vector that cannot be read", detail=str(error)) from None
    return vectors


def converted(vector: object, form: Form) -> object:
    """A vector in this form.

    Raises:
        ValueError: it is not a list of finite numbers that fit into 32-bit floats, nor base64 of such.
    """
    try:
        if isinstance(vector, str):
            packed = binascii.a2b_base64(vector, strict_mode=True)
            numbers = struct.unpack(f"<{len(packed) // 4}f", packed)
        else:
            assert isinstance(vector, list), "the document was checked"
            packed = struct.pack(f"<{len(vector)}f", *vector)
            numbers = tuple(vector)
    except (struct.error, OverflowError) as error:
        raise ValueError(str(error)) from None
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a number that is not finite")
    return list(numbers) if form is Form.FLOAT else binascii.b2a_base64(packed, newline=False).decode()


def whole(document: Document, vectors: list[bytes] | None, usage: Usage | None, model: str) -> bytes:
    """The answer as clients of OpenAI read it; `vectors` replace those of the document, None where they stay.

    What an upstream left out of it is filled in: some have no `usage`, no `index`, or no `object`.
    """
    fields, told = document.fields, document.fields.get("usage")
    is_whole = isinstance(told, dict) and {"prompt_tokens", "total_tokens"} <= told.keys()
    is_whole = is_whole and fields.get("object") == "list" and isinstance(fields.get("model"), str)
    if vectors is None and is_whole and all({"index", "object"} <= each.keys() for each in document.data):
        return document.body
    head = {**fields, "object": "list", "model": fields.get("model") or model}
    counts = {} if usage is None else {"prompt_tokens": usage.input_tokens, "total_tokens": usage.input_tokens}
    if isinstance(told, dict) or counts:
        head["usage"] = {**(told if isinstance(told, dict) else {}), **counts}
    head.pop("data", None)
    items = [_item(at, each, None if vectors is None else vectors[at]) for at, each in enumerate(document.data)]
    return b'%b,"data":[%b]}' % (orjson.dumps(head)[:-1], b",".join(items))


def _item(at: int, item: Mapping[str, object], vector: bytes | None) -> bytes:
    written = orjson.dumps(item["embedding"]) if vector is None else vector
    head = orjson.dumps({"object": "embedding", "index": at} | {k: v for k, v in item.items() if k != "embedding"})
    return b'%b,"embedding":%b}' % (head[:-1], written)
