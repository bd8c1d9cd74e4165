"""OpenAI's chat completions: what a request means, and what of an answer goes to its client. No I/O here.

A stream passes through untouched, with three exceptions: usage that the client did not ask for is taken out again, an
upstream's error is told in the one shape that clients know, and the closing `data: [DONE]` is held back until the
step's record is on disk.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import orjson

from twolane.domain.completion import MAX_EVENT_BYTES, Completion, end_of, usage_fields
from twolane.domain.records import Message, ModelCall, ReplySchema, Usage
from twolane.errors import BadRequest
from twolane.online.wire import OpenAIErrors, read_object, take_flag, take_model

MAX_CHOICES = 128
"""The most answers (`n`) of one request."""

# ── requests ──


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion as a client asks for it; see `wire.Asked`."""

    model: str
    call: ModelCall
    is_streamed: bool
    wants_usage: bool
    """The client asked for usage in its stream; in a whole answer it always stands."""

    def flow(self, step: str) -> Outflow:
        """See `wire.Asked.flow`."""
        return Outflow(keeps_usage=self.wants_usage)

    def whole(self, completion: Completion, step: str, usage: Usage | None) -> dict[str, object]:
        """See `wire.Asked.whole`."""
        fields = completion.as_response()
        return fields if usage is None else fields | {"usage": usage_fields(usage)}


class ChatCompletions(OpenAIErrors):
    """The protocol of `/v1/chat/completions`."""

    def read(self, body: bytes) -> ChatRequest:
        """The fields we act on are checked, all others pass through as `extras`; see `wire.Wire.read`."""
        fields = read_object(body)
        model = take_model(fields)
        is_streamed = take_flag(fields, "stream")
        options = fields.get("stream_options")
        if options is not None and not isinstance(options, dict):
            raise BadRequest("'stream_options' must be an object", param="stream_options")
        _choices(fields.get("n"))
        messages, raw_messages = _messages(fields.pop("messages", None))
        call = ModelCall(
            messages=messages,
            model="",
            max_tokens=_max_tokens(fields),
            temperature=_temperature(fields.pop("temperature", None)),
            schema=_schema(fields),
            extras=fields,
            raw_messages=raw_messages,
        )
        return ChatRequest(model, call, is_streamed, wants_usage=bool(options and options.get("include_usage")))


def _messages(value: object) -> tuple[tuple[Message, ...], tuple[Mapping[str, object], ...] | None]:
    """The messages' text, and the messages as they came where they hold more than plain text."""
    if not isinstance(value, list) or not value:
        raise BadRequest("'messages' must be a list of at least one message", param="messages")
    texts, is_plain = [], True
    for at, message in enumerate(value):
        where = f"messages[{at}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not message["role"]:
            raise BadRequest(f"'{where}' must be an object with a role", param=where)
        content = message.get("content")
        is_plain = is_plain and isinstance(content, str) and len(message) == 2
        texts.append(Message(message["role"], _text(message, content, where)))
    return tuple(texts), None if is_plain else tuple(value)


def _text(message: Mapping[str, object], content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if content is None and any(message.get(name) for name in ("tool_calls", "function_call", "refusal", "audio")):
        return ""
    if isinstance(content, list) and content and all(isinstance(part, dict) and "type" in part for part in content):
        return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
    problem = "must be text, a list of parts that each have a type, or null beside tool_calls"
    raise BadRequest(f"'{where}.content' {problem}", param=f"{where}.content")


def _choices(value: object) -> None:
    if value is not None and not (type(value) is int and 1 <= value <= MAX_CHOICES):
        raise BadRequest(f"'n' must be a whole number from 1 to {MAX_CHOICES}", param="n")


def _max_tokens(fields: dict[str, object]) -> int:
    """The client's limit, 0 for none. `max_completion_tokens` stays in the fields: an upstream is told under the name
    that the client used."""
    limits = []
    for name, value in (
        ("max_tokens", fields.pop("max_tokens", None)),
        ("max_completion_tokens", fields.get("max_completion_tokens")),
    ):
        if value is None:
            continue
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # to JSON, 16 and 16.0 are one number
        if type(value) is not int or value < 1:
            raise BadRequest(f"'{name}' must be a whole number of at least 1", param=name)
        limits.append(value)
    return min(limits, default=0)


def _temperature(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise BadRequest("'temperature' must be a number of at least 0", param="temperature")
    return float(value)


def _schema(fields: dict[str, object]) -> ReplySchema | None:
    """Take a `json_schema` response format out of the fields; other formats pass through."""
    wanted = fields.get("response_format")
    if wanted is None:
        return None
    if not isinstance(wanted, dict):
        raise BadRequest("'response_format' must be an object", param="response_format")
    if wanted.get("type") != "json_schema":
        return None
    described = wanted.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(described, dict) or not isinstance(schema, dict):
        where = "response_format.json_schema"
        raise BadRequest(f"'{where}' must be an object with a schema", param=where)
    del fields["response_format"]
    return ReplySchema(str(described.get("name") or "reply"), schema, described.get("strict") is True)


# ── streams ──

_BLANK = (b"\n\n", b"\n\r\n")
"""What ends an event, for both kinds of line ends."""
_EVENT_END = re.compile(rb"\n\r?\n")
_ERROR = re.compile(rb'^data: \{"error".*$', re.MULTILINE)
_REPORT = re.compile(rb'"usage"\s*:\s*\{')
"""Usage that says something; ordinary chunks may hold `"usage": null`."""


class Outflow:
    """What of an upstream's stream may go to the client, and when.

    Blocks are cut at the ends of events: a part of an event waits for its rest, since nobody could read it anyway. Only
    blocks that report usage or the end are looked into.
    """

    __slots__ = ("_ending", "_keeps_usage", "_rest", "has_failed")

    def __init__(self, *, keeps_usage: bool) -> None:
        self._keeps_usage, self._rest, self._ending = keeps_usage, b"", b""
        self.has_failed = False

    def take(self, block: bytes) -> bytes:
        """What may leave now that this block has come; empty where nothing may."""
        if self._ending or self.has_failed:
            return b""
        if self._rest:
            block, self._rest = self._rest + block, b""
        if not block.endswith(b"\n\n"):
            block = self._whole_events(block)
        if b"[DONE]" in block:
            block = self._before_the_end(block)
        if b'data: {"error"' in block:
            block = self._until_it_failed(block)
        if not self._keeps_usage and b'"usage"' in block and _REPORT.search(block):
            block = _without_usage(block)
        return block

    def end(self) -> bytes:
        """What was held back, the closing `data: [DONE]`: to be sent when the record is on disk. Nothing after an
        error: an answer that failed has no end."""
        if self.has_failed:
            return b""
        return self._ending or self._rest.rstrip() + b"\n\n"

    def _whole_events(self, block: bytes) -> bytes:
        """The events of a block that are complete; the rest is kept for the next one."""
        at = _event_start(block, 0, len(block))
        if len(block) - at > MAX_EVENT_BYTES:
            return block  # nobody could read such an event: let it go as it comes rather than keep all of it
        self._rest = block[at:]
        return block[:at]

    def _until_it_failed(self, block: bytes) -> bytes:
        """A block up to its first error event, and that in our shape."""
        for event in _ERROR.finditer(block):
            told = _error(event.group())
            if told is not None:
                self.has_failed, self._ending = True, b""
                return block[: event.start()] + told
        return block

    def _before_the_end(self, block: bytes) -> bytes:
        end = end_of(block)
        if end < 0:
            return block
        self._ending = block[end:]
        return block[:end]


def _without_usage(block: bytes) -> bytes:
    """A block without the usage its events report. An event that held nothing else goes whole; some upstreams report
    usage beside the last words, and those stay."""
    kept, at = [], 0
    for report in _REPORT.finditer(block):
        if report.start() < at:
            continue  # a second mention in an event that was dealt with
        start = _event_start(block, at, report.start())
        match = _EVENT_END.search(block, report.end())
        end = match.end() if match else len(block)
        kept += [block[at:start], _stripped(block[start:end])]
        at = end
    return b"".join([*kept, block[at:]])


def _event_start(block: bytes, first: int, last: int) -> int:
    """Where the last event begins that begins between `first` and `last`; events may begin at `first`."""
    blanks = [(block.rfind(mark, first, last), len(mark)) for mark in _BLANK]
    return max((at + size for at, size in blanks if at >= 0), default=first)


def _stripped(event: bytes) -> bytes:
    try:
        chunk = orjson.loads(b"".join(line[5:] for line in event.splitlines() if line.startswith(b"data:")))
    except orjson.JSONDecodeError:
        return event
    if not isinstance(chunk, dict) or not isinstance(chunk.get("usage"), dict):
        return event
    if not chunk.get("choices"):
        return b""
    del chunk["usage"]
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _error(line: bytes) -> bytes | None:
    """An upstream's error event with every field that clients read; None if it is none: `"error": null` may stand in an
    ordinary chunk."""
    try:
        fault = orjson.loads(line.removeprefix(b"data: ")).get("error")
    except orjson.JSONDecodeError:
        return None
    if not fault:
        return None
    given = fault if isinstance(fault, dict) else {"message": fault}
    told = {name: given.get(name) for name in ("message", "type", "param", "code")}
    texts = {name: None if value is None else str(value) for name, value in told.items()}
    for name, otherwise in (("message", "the upstream failed"), ("type", "server_error"), ("code", "upstream_error")):
        texts[name] = texts[name] or otherwise
    return b"data: " + orjson.dumps({"error": texts}) + b"\n\n"
