"""A chat completion → OpenAI's Response: as typed events while it is generated, or in one piece. No I/O here.

An answer is a list of items: reasoning, a message of one or more parts, calls of functions. Both forms are made by the
same `ResponseFlow`; the whole one is fed as a single large chunk.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import orjson

from twolane.domain.completion import Completion, EventError, EventReader, parse_event, usage_of
from twolane.domain.records import Usage
from twolane.errors import Killed, TwolaneError
from twolane.online.wire import OpenAIErrors, status_of

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
"""Reasons to end that leave a response incomplete, in the words of chat completions and of responses."""
_FAILURES = {400: "invalid_prompt", 413: "invalid_prompt", 429: "rate_limit_exceeded"}


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a kind of text is spelled in events and items."""

    item: str
    holder: str
    """The item's field that holds such parts."""
    part_event: str
    text_event: str
    index: str
    text: str


_KINDS = {
    "summary_text": _Kind(
        "reasoning", "summary", "reasoning_summary_part", "reasoning_summary_text", "summary_index", "text"
    ),
    "output_text": _Kind("message", "content", "content_part", "output_text", "content_index", "text"),
    "refusal": _Kind("message", "content", "content_part", "refusal", "content_index", "refusal"),
}


@dataclass(frozen=True, slots=True)
class Frame:
    """What is known of a Response before its answer."""

    step: str
    model: str
    """As the client named it; what the upstream says counts for more."""
    echo: Mapping[str, object]


@dataclass(slots=True)
class _Part:
    """A text that grows."""

    kind: str
    where: dict[str, object]
    """Which item, and where in it: the identity of each of its events."""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[object] = field(default_factory=list)

    def fields(self) -> dict[str, object]:
        text = "".join(self.pieces)
        more = {"annotations": [], "logprobs": self.logprobs} if self.kind == "output_text" else {}
        return {"type": self.kind, _KINDS[self.kind].text: text, **more}


@dataclass(slots=True)
class _Call:
    """A call of a function that grows. It becomes an item with its first arguments, when its name must be whole."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)
    output_index: int | None = None


class ResponseFlow:
    """The events of one answer; see `wire.Flow`. Reading further than the end changes nothing."""

    has_failed = False
    """An upstream's own error is raised here, never passed on."""

    __slots__ = (
        "_calls",
        "_created",
        "_finish_reason",
        "_frame",
        "_has_ended",
        "_item",
        "_items",
        "_model",
        "_out",
        "_part",
        "_reader",
        "_sequence",
        "_usage",
    )

    def __init__(self, frame: Frame) -> None:
        self._frame, self._model = frame, ""
        self._created = 0
        self._reader = EventReader()
        self._out: list[bytes] = []
        self._sequence = 0
        self._items: list[dict[str, object]] = []
        """The output as it is told: an item's entry is replaced when it is done."""
        self._item: dict[str, object] | None = None
        """The message or reasoning that is open: always the last item, for a call that begins closes it."""
        self._part: _Part | None = None
        self._calls: list[_Call] = []
        self._finish_reason = ""
        self._usage: Usage | None = None
        self._has_ended = False

    def take(self, block: bytes) -> bytes:
        """See `wire.Flow.take`."""
        for payload in self._reader.feed(block):
            if self._has_ended:
                break
            chunk = parse_event(payload)
            if chunk is None:
                self._end_items()
            else:
                self._read(chunk)
        return self._ready()

    def end(self) -> bytes:
        """The event that says how the response ended; see `wire.Flow.end`."""
        if not self._has_ended:
            with suppress(EventError):  # the answer is whole by now: what else lies there is nobody's
                self._out.append(self.take(b"\n\n"))  # some servers leave out the last empty line
            if not self._has_ended:
                self._end_items()
        status = self._status()
        self._emit(f"response.{status}", response=self._response(status))
        return self._ready()

    def error_event(self, error: TwolaneError | Killed) -> bytes:
        """What ends a stream that failed: the failed response, then the error, at which clients of OpenAI raise."""
        self._begin(time.time())
        told = OpenAIErrors().error_fields(error)
        self._emit("response.failed", response=self._response("failed") | {"error": _failure(error, told)})
        return self._ready() + error_event(error, told, self._sequence)

    def whole(self, completion: Completion, usage: Usage | None) -> dict[str, object]:
        """The Response in one piece; `usage` counts for more than what the upstream reported."""
        first = completion.choices.get(0, {})
        choice = {"delta": first.get("message"), "logprobs": first.get("logprobs")}
        self._read({"model": completion.model, "created": completion.created, "choices": [choice]})
        self._finish_reason = completion.finish_reason or ""
        self._end_items()
        self._usage = usage or completion.usage
        return self._response(self._status())

    # ── reading ──

    def _read(self, chunk: Mapping[str, object]) -> None:
        if not self._created:
            created, model = chunk.get("created"), chunk.get("model")
            self._model = model if isinstance(model, str) else ""
            self._begin(created if type(created) is int and created > 0 else time.time())
        self._usage = usage_of(chunk) or self._usage
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict) and choice.get("index") in (None, 0):
                self._read_choice(choice)

    def _read_choice(self, choice: Mapping[str, object]) -> None:
        delta, logprobs = choice.get("delta"), choice.get("logprobs")
        if isinstance(delta, dict):
            self._say("summary_text", delta.get("reasoning_content") or delta.get("reasoning"))
            self._say("output_text", delta.get("content"), logprobs)
            self._say("refusal", delta.get("refusal"))
            calls = delta.get("tool_calls")
            for call in calls if isinstance(calls, list) else ():
                if isinstance(call, dict):
                    self._read_call(call)
        if isinstance(choice.get("finish_reason"), str):
            self._finish_reason = str(choice["finish_reason"])

    def _say(self, kind: str, text: object, logprobs: object = None) -> None:
        if not isinstance(text, str) or not text:
            return
        part = self._part
        if part is None or part.kind != kind:
            part = self._part = self._begin_part(kind)
        part.pieces.append(text)
        more: dict[str, object] = {}
        if kind == "output_text":
            more["logprobs"] = said = _logprobs(logprobs)
            part.logprobs += said
        self._emit(f"response.{_KINDS[kind].text_event}.delta", **part.where, delta=text, **more)

    def _read_call(self, delta: Mapping[str, object]) -> None:
        """The same reading of odd indexes as `Completion` has: whatever is unknown is the next call."""
        index, count = delta.get("index"), len(self._calls)
        index = index if type(index) is int and 0 <= index <= count else count
        if index == count:
            self._end_item("completed")
            self._calls.append(_Call())
        call, function = self._calls[index], delta.get("function")
        if call.output_index is None:
            call.id = call.id or _text(delta.get("id"))
        if isinstance(function, dict):
            call.name += _text(function.get("name"))
            arguments = _text(function.get("arguments"))
            if arguments:
                self._begin_calls(index)
                call.arguments.append(arguments)
                self._emit("response.function_call_arguments.delta", **self._place(call), delta=arguments)

    # ── items ──

    def _begin(self, created: float) -> None:
        if self._created:
            return
        self._created = int(created)
        for name in ("created", "in_progress"):
            self._emit(f"response.{name}", response=self._response("in_progress"))

    def _begin_part(self, kind: str) -> _Part:
        self._end_part()
        spelled = _KINDS[kind]
        if self._item is None or self._item["type"] != spelled.item:
            self._end_item("completed")
            fields: dict[str, object] = {"type": spelled.item, "status": "in_progress", spelled.holder: []}
            self._item = self._add_item(fields | ({"role": "assistant"} if spelled.item == "message" else {}))
        held = self._item[spelled.holder]
        assert isinstance(held, list)
        where = {"item_id": self._item["id"], "output_index": len(self._items) - 1, spelled.index: len(held)}
        part = _Part(kind, where)
        self._emit(f"response.{spelled.part_event}.added", **where, part=part.fields())
        return part

    def _end_part(self) -> None:
        part, self._part = self._part, None
        if part is None or self._item is None:
            return
        spelled, fields = _KINDS[part.kind], part.fields()
        held = self._item[spelled.holder]
        assert isinstance(held, list)
        held.append(fields)
        said = {name: fields[name] for name in (spelled.text, "logprobs") if name in fields}
        self._emit(f"response.{spelled.text_event}.done", **part.where, **said)
        self._emit(f"response.{spelled.part_event}.done", **part.where, part=fields)

    def _end_item(self, status: str) -> None:
        self._end_part()
        item, self._item = self._item, None
        if item is not None:
            item["status"] = status
            self._emit("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _begin_calls(self, last: int) -> None:
        """Make items of the calls up to this one: the output has them in the model's order."""
        for call in self._calls[: last + 1]:
            if call.output_index is None:
                self._end_item("completed")
                call.id = call.id or f"call_{self._frame.step}_{len(self._items)}"
                call.output_index = len(self._items)
                self._add_item(_call_fields(call, "in_progress"))

    def _end_items(self) -> None:
        """Close what is open. What the limit cut off is the last item."""
        self._begin(time.time())
        last = "incomplete" if self._finish_reason in _INCOMPLETE else "completed"
        self._end_item("completed" if self._calls else last)
        self._begin_calls(len(self._calls) - 1)
        for at, call in enumerate(self._calls):
            assert call.output_index is not None
            status = last if at + 1 == len(self._calls) else "completed"
            item = self._items[call.output_index] | _call_fields(call, status)
            self._items[call.output_index] = item
            place = self._place(call) | {"name": call.name}
            self._emit("response.function_call_arguments.done", **place, arguments=item["arguments"])
            self._emit("response.output_item.done", output_index=call.output_index, item=item)
        self._has_ended = True

    def _add_item(self, fields: dict[str, object]) -> dict[str, object]:
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[str(fields["type"])]
        item = {"id": f"{prefix}_{self._frame.step}_{len(self._items)}", **fields}
        self._items.append(item)
        self._emit("response.output_item.added", output_index=len(self._items) - 1, item=item)
        return item

    def _place(self, call: _Call) -> dict[str, object]:
        assert call.output_index is not None
        return {"item_id": self._items[call.output_index]["id"], "output_index": call.output_index}

    # ── writing ──

    def _status(self) -> str:
        return "incomplete" if self._finish_reason in _INCOMPLETE else "completed"

    def _response(self, status: str) -> dict[str, object]:
        reason = _INCOMPLETE.get(self._finish_reason) if status == "incomplete" else None
        response: dict[str, object] = {
            "id": f"resp_{self._frame.step}",
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": reason} if reason else None,
            "model": self._model or self._frame.model,
            "output": [item for item in self._items if status != "failed" or item["status"] == "completed"],
            "previous_response_id": None,
            "store": False,
            "truncation": "disabled",
            **self._frame.echo,
        }
        if self._usage is not None and status != "in_progress":
            response["usage"] = _usage_fields(self._usage)
        return response

    def _emit(self, kind: str, **fields: object) -> None:
        self._out.append(_event(kind, fields, self._sequence))
        self._sequence += 1

    def _ready(self) -> bytes:
        ready = b"".join(self._out)
        self._out.clear()
        return ready


def error_event(error: TwolaneError | Killed, told: Mapping[str, object], sequence: int) -> bytes:
    """The event `error`. Beside the fields that OpenAI describes it has an `error` as chat completions do: without it
    OpenAI's own clients take it for an event like any other and end as if all were well."""
    fault = told["error"]
    assert isinstance(fault, dict)
    fields = {name: fault[name] for name in ("code", "message", "param")}
    return _event("error", fields | {"error": fault}, sequence)


def _failure(error: TwolaneError | Killed, told: Mapping[str, object]) -> dict[str, object]:
    fault = told["error"]
    assert isinstance(fault, dict)
    return {"code": _FAILURES.get(status_of(error), "server_error"), "message": fault["message"]}


def _event(kind: str, fields: Mapping[str, object], sequence: int) -> bytes:
    payload = orjson.dumps({"type": kind, "sequence_number": sequence, **fields})
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), payload)


def _call_fields(call: _Call, status: str) -> dict[str, object]:
    """An open item shows no arguments yet: clients add the pieces to what it began with."""
    arguments = "" if status == "in_progress" else "".join(call.arguments)
    return {
        "type": "function_call",
        "call_id": call.id,
        "name": call.name,
        "arguments": arguments,
        "status": status,
    }


def _usage_fields(usage: Usage) -> dict[str, object]:
    """Usage in the shape of responses, where every count must be a number: what the upstream did not say is 0."""
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {
            "cached_tokens": usage.cache_read_tokens or 0,
            "cache_write_tokens": usage.cache_write_tokens or 0,
        },
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }


def _logprobs(logprobs: object) -> list[object]:
    """The log probabilities of a chunk's tokens, in full."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [
        {**_logprob(token), "top_logprobs": list(map(_logprob, _tokens(token.get("top_logprobs"))))}
        for token in _tokens(content)
    ]


def _tokens(value: object) -> list[dict[str, object]]:
    return [token for token in value if isinstance(token, dict)] if isinstance(value, list) else []


def _logprob(token: Mapping[str, object]) -> dict[str, object]:
    """One of them. `bytes` may be null in chat completions and may not here."""
    logprob, told = token.get("logprob"), token.get("bytes")
    is_told = isinstance(told, list) and all(type(byte) is int for byte in told)
    return {
        "token": _text(token.get("token")),
        "logprob": logprob if isinstance(logprob, int | float) else 0.0,
        "bytes": told if is_told else [],
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
