"""Answers in Anthropic's words and in OpenAI's: typed events ↔ chat completion chunks. No I/O, no clock.

An answer goes through three forms. `Chunker` reads an upstream's events and writes chunks, with the event itself beside
them where a client of the same dialect waits. `Teller` reads chunks and writes events. `whole_message` puts events back
together, without knowing more of them than it must: fields and kinds that come later are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import orjson

from twolane.domain.anthropic import Fields, input_of
from twolane.domain.completion import EventError, usage_fields
from twolane.domain.records import Usage

RAW = "anthropic"
"""The key of a chunk under which the upstream's own event stands."""

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_DONE = b"data: [DONE]\n\n"

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_STOP = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


class ReportedError(EventError):
    """An error event: the upstream says itself that it failed."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        """Anthropic's own type of it, such as `overloaded_error`."""
        super().__init__(message)


def event_bytes(event: Mapping[str, object]) -> bytes:
    """One event as it goes over the wire."""
    return b"event: " + str(event.get("type")).encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"


# ── usage ──


def usage_from(fields: object) -> Usage | None:
    """Anthropic's counts, whose `input_tokens` are without the cached ones; None where there are none that make
    sense."""
    if not isinstance(fields, dict):
        return None
    plain, written = _count(fields.get("input_tokens")), _count(fields.get("output_tokens"))
    if plain is None or written is None:
        return None
    cached, kept = _count(fields.get("cache_read_input_tokens")), _count(fields.get("cache_creation_input_tokens"))
    details = fields.get("output_tokens_details")
    return Usage(
        input_tokens=plain + (cached or 0) + (kept or 0),
        output_tokens=written,
        cache_read_tokens=cached,
        cache_write_tokens=kept,
        reasoning_tokens=_count(details.get("thinking_tokens")) if isinstance(details, dict) else None,
    )


def anthropic_usage(usage: Usage | None) -> Fields:
    """The same the other way; zeros where nobody counted, because its clients want numbers."""
    if usage is None:
        return {"input_tokens": 0, "output_tokens": 0}
    cached, kept = usage.cache_read_tokens, usage.cache_write_tokens
    fields: Fields = {"input_tokens": max(0, usage.input_tokens - (cached or 0) - (kept or 0))}
    if kept is not None:
        fields["cache_creation_input_tokens"] = kept
    if cached is not None:
        fields["cache_read_input_tokens"] = cached
    fields["output_tokens"] = usage.output_tokens
    if usage.reasoning_tokens is not None:
        fields["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return fields


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value < 2**31 else None


# ── events → chunks ──


class Chunker:
    """The chunks of one answer. With `keeps_events` each event stands in a chunk as it came; with `reply_tool` what
    that tool is given is the answer's text."""

    def __init__(self, *, created: int, keeps_events: bool = False, reply_tool: str | None = None) -> None:
        self._created, self._keeps_events, self._reply_tool = created, keeps_events, reply_tool
        self._id, self._model = "", ""
        self._usage: Fields = {}
        self._tools: dict[object, int] = {}
        """Place among the tool calls, by the index of the block."""
        self._reply_index: object = None
        self._has_input = False

    def take(self, payload: bytes) -> bytes:
        """The chunks that an event's payload becomes; empty where it says nothing to those who read chunks.

        Raises:
            ReportedError: it is an error event.
            EventError: it is not an event at all.
        """
        event = _parsed(payload)
        delta: Fields | None = None
        finish: str | None = None
        match event.get("type"):
            case "message_start":
                delta = self._start(_dict(event.get("message")))
            case "content_block_start":
                delta = self._block(event.get("index"), _dict(event.get("content_block")))
            case "content_block_delta":
                delta = self._delta(event.get("index"), _dict(event.get("delta")))
            case "content_block_stop":
                delta = self._block_end(event.get("index"))
            case "message_delta":
                self._count(event.get("usage"))
                delta, finish = {}, self._finish(_dict(event.get("delta")).get("stop_reason"))
            case "message_stop":
                return self._end(event)
            case "ping":
                return b": ping\n\n"
            case "error":
                fault = _dict(event.get("error"))
                raise ReportedError(
                    str(fault.get("type") or "api_error"), str(fault.get("message") or "no reason given")
                )
        if delta is None:
            return self._chunk([], event) if self._keeps_events else b""
        return self._chunk([{"index": 0, "delta": delta, "finish_reason": finish}], event)

    def _start(self, message: Mapping[str, object]) -> Fields:
        self._id, self._model = str(message.get("id") or ""), str(message.get("model") or "")
        self._count(message.get("usage"))
        return {"role": "assistant", "content": ""}

    def _block(self, index: object, block: Mapping[str, object]) -> Fields | None:
        kind = block.get("type")
        if kind == "tool_use":
            given = _dict(block.get("input"))
            text = orjson.dumps(given).decode() if given else ""
            self._has_input = bool(text)
            if self._reply_tool is not None and block.get("name") == self._reply_tool:
                self._reply_index = index
                return {"content": text} if text else None
            at = self._tools[_key(index)] = len(self._tools)
            function = {"name": block.get("name"), "arguments": text}
            return {"tool_calls": [{"index": at, "id": block.get("id"), "type": "function", "function": function}]}
        name = {"text": "text", "thinking": "thinking"}.get(str(kind))
        return self._said(str(kind), str(block.get(name) or "")) if name else None

    def _delta(self, index: object, delta: Mapping[str, object]) -> Fields | None:
        match delta.get("type"):
            case "text_delta":
                return self._said("text", str(delta.get("text") or ""))
            case "thinking_delta":
                return self._said("thinking", str(delta.get("thinking") or ""))
            case "input_json_delta":
                return self._given(index, str(delta.get("partial_json") or ""))
        return None

    def _said(self, kind: str, text: str) -> Fields | None:
        if not text:
            return None
        # Beside a reply that is a tool's input, words are thoughts: as content they would stand before its JSON.
        is_reply = kind == "text" and self._reply_tool is None
        return {"content" if is_reply else "reasoning_content": text}

    def _given(self, index: object, text: str) -> Fields | None:
        """A piece of a tool's input."""
        if not text:
            return None
        self._has_input = True
        if self._reply_index is not None and index == self._reply_index:
            return {"content": text}
        at = self._tools.get(_key(index))
        return None if at is None else {"tool_calls": [{"index": at, "function": {"arguments": text}}]}

    def _block_end(self, index: object) -> Fields | None:
        """A tool without arguments is given none by Anthropic; OpenAI's clients parse them."""
        is_bare, self._has_input = not self._has_input, False
        if is_bare and (_key(index) in self._tools or (self._reply_index is not None and index == self._reply_index)):
            return self._given(index, "{}")
        return None

    def _finish(self, stop_reason: object) -> str | None:
        if stop_reason is None:
            return None
        reason = _FINISH.get(str(stop_reason), "stop")
        return "stop" if reason == "tool_calls" and not self._tools else reason

    def _count(self, fields: object) -> None:
        """Counts are totals: later ones replace earlier ones, and what is left out stays."""
        self._usage |= {name: value for name, value in _dict(fields).items() if value is not None}

    def _end(self, event: Mapping[str, object]) -> bytes:
        usage = usage_from(self._usage)
        return self._chunk([], event, usage_fields(usage) if usage else None) + _DONE

    def _chunk(self, choices: list[Fields], event: Mapping[str, object], usage: Fields | None = None) -> bytes:
        chunk: Fields = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": choices,
        }
        if usage is not None:
            chunk["usage"] = usage
        if self._keeps_events:
            chunk[RAW] = event
        return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _parsed(payload: bytes) -> Mapping[str, object]:
    try:
        event = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise EventError(f"an event that is not JSON: {error}") from None
    if not isinstance(event, dict):
        raise EventError("an event that is not a JSON object")
    return event


# ── chunks → events ──


class Teller:
    """The events of one answer, from its chunks. Blocks follow each other, as Anthropic's own do; only where an
    upstream goes back to a tool call it had left do further pieces of its input come after its end.

    `stops` are the client's stop sequences, to name the one that was met where the upstream says which.
    """

    def __init__(self, id: str, model: str, stops: Iterable[str] = ()) -> None:
        self._id, self._model, self._stops = id, model, frozenset(stops)
        self._blocks = 0
        self._open: tuple[str, int] | None = None
        """What the block that is open holds, and its index; a tool call holds `tool N`."""
        self._tools: dict[str, int] = {}
        self._waiting: dict[str, Fields] = {}
        """Tool calls whose name has not come yet."""
        self._has_begun = False
        self._finish: str | None = None
        self._stop: str | None = None
        self._usage: Usage | None = None

    def take(self, chunk: Mapping[str, object], usage: Usage | None) -> bytes:
        """What a chunk becomes; `usage` is what it reports. Never raises, whatever stands in it."""
        self._usage = usage or self._usage
        told = b"" if self._has_begun else self._begin(chunk)
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if isinstance(choice, dict) and choice.get("index") in (0, None):
                told += self._delta(_dict(choice.get("delta")))
                self._note_end(choice)
        return told

    def finish(self) -> bytes:
        """What comes when the answer is complete: all but `message_stop`."""
        told = b"" if self._has_begun else self._begin({})
        for name in list(self._waiting):
            told += self._open_tool(name)
        told += self._close()
        stop_reason = "stop_sequence" if self._stop else _STOP.get(self._finish or "stop", "end_turn")
        if self._tools and stop_reason == "end_turn":
            stop_reason = "tool_use"  # some servers say "stop" after a tool call
        delta = {"stop_reason": stop_reason, "stop_sequence": self._stop}
        return told + event_bytes({"type": "message_delta", "delta": delta, "usage": anthropic_usage(self._usage)})

    def _begin(self, chunk: Mapping[str, object]) -> bytes:
        self._has_begun = True
        message: Fields = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": str(chunk.get("model") or self._model),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": anthropic_usage(None),
        }
        return event_bytes({"type": "message_start", "message": message})

    def _delta(self, delta: Mapping[str, object]) -> bytes:
        told = b""
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if isinstance(thought, str) and thought:
            empty: Fields = {"type": "thinking", "thinking": "", "signature": ""}
            told += self._say("thinking", empty, {"type": "thinking_delta", "thinking": thought})
        for name in ("content", "refusal"):
            text = delta.get(name)
            if isinstance(text, str) and text:
                told += self._say("text", {"type": "text", "text": ""}, {"type": "text_delta", "text": text})
        calls = delta.get("tool_calls")
        for call in calls if isinstance(calls, list) else []:
            if isinstance(call, dict):
                told += self._tool(call)
        return told

    def _say(self, kind: str, empty: Fields, delta: Fields) -> bytes:
        told = b""
        if self._open is None or self._open[0] != kind:
            told = self._close() + self._start(kind, empty)
        assert self._open is not None
        return told + _delta_event(self._open[1], delta)

    def _tool(self, call: Mapping[str, object]) -> bytes:
        name = f"tool {_place(call.get('index'), len(self._tools) + len(self._waiting))}"
        function = _dict(call.get("function"))
        text = function.get("arguments")
        text = text if isinstance(text, str) else ""
        if name in self._tools:
            return _input_delta(self._tools[name], text)
        waiting = self._waiting.setdefault(name, {"id": "", "name": "", "input": ""})
        waiting["id"] = waiting["id"] or str(call.get("id") or "")
        waiting["name"] = waiting["name"] or str(function.get("name") or "")
        waiting["input"] = str(waiting["input"]) + text
        return self._open_tool(name) if waiting["name"] else b""

    def _open_tool(self, name: str) -> bytes:
        waiting = self._waiting.pop(name)
        id = waiting["id"] or f"toolu_{self._id.removeprefix('msg_')}_{len(self._tools)}"
        told = self._close() + self._start(name, {"type": "tool_use", "id": id, "name": waiting["name"], "input": {}})
        assert self._open is not None
        self._tools[name] = self._open[1]
        return told + _input_delta(self._open[1], str(waiting["input"]))

    def _start(self, kind: str, block: Fields) -> bytes:
        self._open = (kind, self._blocks)
        self._blocks += 1
        return event_bytes({"type": "content_block_start", "index": self._open[1], "content_block": block})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        index, self._open = self._open[1], None
        return event_bytes({"type": "content_block_stop", "index": index})

    def _note_end(self, choice: Mapping[str, object]) -> None:
        if choice.get("finish_reason"):
            self._finish = str(choice["finish_reason"])
        met = choice.get("stop_reason")  # vLLM's: the stop sequence that was met
        if isinstance(met, str) and met in self._stops:
            self._stop = met


def _delta_event(index: int, delta: Fields) -> bytes:
    return event_bytes({"type": "content_block_delta", "index": index, "delta": delta})


def _input_delta(index: int, text: str) -> bytes:
    return _delta_event(index, {"type": "input_json_delta", "partial_json": text}) if text else b""


def _place(index: object, count: int) -> int:
    """As `Completion` reads it: a call without a sane index is a new one."""
    return int(index) if isinstance(index, int) and 0 <= index <= count else count


# ── whole messages ──

_SET = frozenset({"signature", "encrypted_content"})
"""Fields of a delta that come in one piece."""


def whole_message(events: Iterable[Mapping[str, object]]) -> Fields:
    """The message that a stream of events tells, with all that it tells."""
    message: Fields = {}
    content: dict[object, Fields] = {}
    inputs: dict[object, str] = {}
    for event in events:
        index = _key(event.get("index"))
        match event.get("type"):
            case "message_start":
                message = dict(_dict(event.get("message")))
            case "content_block_start":
                content[index] = dict(_dict(event.get("content_block")))
            case "content_block_delta":
                delta = _dict(event.get("delta"))
                if delta.get("type") == "input_json_delta":
                    inputs[index] = inputs.get(index, "") + str(delta.get("partial_json") or "")
                elif index in content:
                    _merge(content[index], delta)
            case "message_delta":
                usage = _dict(event.get("usage"))
                message |= _dict(event.get("delta"))
                message |= {name: event[name] for name in event if name not in ("type", "delta", "usage")}
                told = {name: value for name, value in usage.items() if value is not None}
                message["usage"] = {**_dict(message.get("usage")), **told}
    for index, text in inputs.items():
        if index in content and text:
            content[index]["input"] = input_of(text)
    message["content"] = list(content.values())
    return message


def _merge(block: Fields, delta: Mapping[str, object]) -> None:
    if delta.get("type") == "citations_delta":
        before = block.get("citations")
        block["citations"] = [*(before if isinstance(before, list) else []), delta.get("citation")]
        return
    for name, value in delta.items():
        before = block.get(name)
        if name == "type" or value is None:
            continue
        is_longer = isinstance(before, str) and isinstance(value, str) and name not in _SET
        block[name] = f"{before}{value}" if is_longer else value


def message_of(choice: Mapping[str, object], *, id: str, model: str, usage: Usage | None) -> Fields:
    """A whole answer of a chat completion as a message; `choice` is its first choice."""
    teller = Teller(id, model)
    said = _dict(choice.get("message"))
    calls = said.get("tool_calls")
    numbered = [{**_dict(call), "index": at} for at, call in enumerate(calls if isinstance(calls, list) else [])]
    told = teller.take({"choices": [{**choice, "index": 0, "delta": {**said, "tool_calls": numbered}}]}, usage)
    return whole_message(read_events(told + teller.finish()))


def read_events(stream: bytes) -> list[Mapping[str, object]]:
    """The events of a stream that ended."""
    lines = (line[5:] for line in stream.split(b"\n") if line.startswith(b"data:"))
    return [_parsed(line) for line in lines]


def _dict(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _key(index: object) -> object:
    return index if isinstance(index, int | str) else None
