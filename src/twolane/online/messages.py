"""Anthropic's messages: what a request means, and how an answer is told to its client. No I/O here.

A request becomes a chat completion for every upstream, and stays beside it as it was for those that speak the same
dialect. An answer comes as chunks: where the upstream's own events stand in them these are passed on, else the chunks
are told as events. The closing `message_stop` is held back until the step's record is on disk.

There is no `/v1/messages/count_tokens`: only the upstream's tokenizer could answer it, and a guess would be taken for
a count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from twolane.domain.anthropic.request import to_chat
from twolane.domain.anthropic.teller import Teller
from twolane.domain.anthropic.whole import message_of, whole_message
from twolane.domain.anthropic.words import DIALECT, PING, RAW, Fields, event_bytes
from twolane.domain.completion import Completion, EventReader, parse_event, usage_of
from twolane.domain.records import ModelCall, Native, Usage
from twolane.errors import BadRequest, Killed, TwolaneError, Unauthenticated, UpstreamError
from twolane.online.wire import message_of as words_of
from twolane.online.wire import read_object, status_of, take_flag, take_model

_ROLES = frozenset({"user", "assistant", "system"})
_BETAS = re.compile(r"[A-Za-z0-9._, -]{1,1024}")
_STOP = {"type": "message_stop"}

# ── requests ──


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    """A message as a client asks for it; see `wire.Asked`."""

    model: str
    call: ModelCall
    is_streamed: bool

    def with_betas(self, betas: str) -> MessagesRequest:
        """The same request with what its header `anthropic-beta` said, empty for nothing.

        Raises:
            BadRequest: no name of a beta looks like that.
        """
        if not betas:
            return self
        if not _BETAS.fullmatch(betas):
            raise BadRequest("the header 'anthropic-beta' must be names with commas between them", param="betas")
        assert self.call.native is not None
        native = replace(self.call.native, headers={"anthropic-beta": betas})
        return replace(self, call=replace(self.call, native=native))

    def flow(self, step: str) -> Events:
        """See `wire.Asked.flow`."""
        stops = self.call.extras.get("stop")
        return Events(Teller(_id(step), self.model, stops if isinstance(stops, list) else ()))

    def whole(self, completion: Completion, step: str, usage: Usage | None) -> dict[str, object]:
        """See `wire.Asked.whole`."""
        if completion.events:
            return whole_message(completion.events)
        choice = completion.choices.get(0, {})
        return message_of(choice, id=_id(step), model=completion.model, usage=usage or completion.usage)


def _id(step: str) -> str:
    return f"msg_{step}"


class Messages:
    """The protocol of `/v1/messages`; see `wire.Wire`."""

    keep_alive = PING

    def read(self, body: bytes) -> MessagesRequest:
        """The fields we act on are checked; the request as a whole goes on beside its translation."""
        fields = read_object(body)
        native = Native(DIALECT, dict(fields))
        model = take_model(fields)
        is_streamed = take_flag(fields, "stream")
        _check(fields)
        chat = to_chat(fields)
        call = ModelCall(
            messages=chat.messages,
            model="",
            max_tokens=_max_tokens(fields.get("max_tokens")),
            temperature=_temperature(fields.get("temperature")),
            schema=chat.schema,
            extras=chat.extras,
            raw_messages=chat.raw_messages,
            native=native,
        )
        return MessagesRequest(model, call, is_streamed)

    def error_fields(self, error: TwolaneError | Killed) -> dict[str, object]:
        """See `wire.Wire.error_fields`. Whoever shows no key reads the same bytes every time: no id stands in them."""
        fields: Fields = {"type": "error", "error": {"type": _type_of(error), "message": words_of(error)}}
        return fields if isinstance(error, Unauthenticated) else {**fields, "request_id": None}

    def error_event(self, error: TwolaneError | Killed) -> bytes:
        """See `wire.Wire.error_event`."""
        return event_bytes({"type": "error", "error": {"type": _type_of(error), "message": words_of(error)}})


MESSAGES = Messages()

# ── what is checked ──


def _check(fields: Mapping[str, object]) -> None:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages: must be a list of at least one message", param="messages")
    for at, message in enumerate(messages):
        where = f"messages.{at}"
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(role, str) or role not in _ROLES:
            raise BadRequest(f"{where}: must be an object with the role user or assistant", param=where)
        _check_content(message.get("content"), f"{where}.content")
    if fields.get("system") is not None:
        _check_content(fields["system"], "system")
    for name, what in (("tools", dict), ("stop_sequences", str)):
        value = fields.get(name)
        if value is not None and not (isinstance(value, list) and all(isinstance(part, what) for part in value)):
            words = "objects" if what is dict else "texts"
            raise BadRequest(f"{name}: must be a list of {words}", param=name)
    for name in ("tool_choice", "thinking", "metadata", "output_config", "output_format"):
        if not isinstance(fields.get(name), dict | None):
            raise BadRequest(f"{name}: must be an object", param=name)


def _check_content(content: object, where: str) -> None:
    is_list = isinstance(content, list) and all(
        isinstance(block, dict) and isinstance(block.get("type"), str) for block in content
    )
    if not isinstance(content, str) and not is_list:
        raise BadRequest(f"{where}: must be text, or a list of blocks that each have a type", param=where)


def _max_tokens(value: object) -> int:
    if type(value) is not int or value < 1:
        raise BadRequest("max_tokens: must be a whole number of at least 1", param="max_tokens")
    return value


def _temperature(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1 or not math.isfinite(value):
        raise BadRequest("temperature: must be a number from 0 to 1", param="temperature")
    return float(value)


# ── errors ──

_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
}


def _type_of(error: TwolaneError | Killed) -> str:
    if isinstance(error, UpstreamError) and error.http_status in (503, 529):
        return "overloaded_error"
    status = status_of(error)
    return _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")


# ── streams ──


class Events:
    """What of an upstream's stream goes to the client; see `wire.Flow`."""

    __slots__ = ("_ending", "_is_done", "_is_native", "_open", "_reader", "_teller")

    has_failed = False
    """An upstream's own error is raised here, never passed on."""

    def __init__(self, teller: Teller) -> None:
        self._reader, self._teller = EventReader(), teller
        self._ending, self._is_done, self._is_native = b"", False, False
        self._open: object = None
        """The index of the upstream's own block that is open."""

    def take(self, block: bytes) -> bytes:
        """What may leave now that this block has come."""
        told = b"".join([self._tell(payload) for payload in self._reader.feed(block)])
        # A comment says that the upstream lives: so do we.
        return told or (PING if block.startswith(b":") and not self._is_done else b"")

    def end(self) -> bytes:
        """What was held back: to be sent when the record is on disk."""
        told = self.take(b"\n\n")  # some servers leave out the last empty line
        if not self._is_done and not self._is_native:
            told += self._teller.finish()
        self._is_done = True
        return told + (self._ending or event_bytes(_STOP))

    def _tell(self, payload: bytes) -> bytes:
        if self._is_done:
            return b""
        chunk = parse_event(payload)
        if chunk is None:
            self._is_done = True
            return b"" if self._is_native else self._teller.finish()
        event = chunk.get(RAW)
        if isinstance(event, dict):
            self._is_native = True
            return self._pass_on(event)
        return b"" if self._is_native else self._teller.take(chunk, usage_of(chunk))

    def _pass_on(self, event: Fields) -> bytes:
        told = event_bytes(event)
        match event.get("type"):
            case "content_block_start":
                self._open = event.get("index")
            case "content_block_stop":
                self._open = None
            case "message_delta" if self._open is not None:  # it was cut off inside a block
                told = event_bytes({"type": "content_block_stop", "index": self._open}) + told
                self._open = None
            case "message_stop":
                self._ending, told = told, b""
        return told
