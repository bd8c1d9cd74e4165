"""An upstream's events told as chunks."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from twolane.domain.anthropic.words import RAW, Fields, mapping, parsed, place_of, usage_from
from twolane.domain.completion import EventError, usage_fields

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


class ReportedError(EventError):
    """An error event: the upstream says itself that it failed."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        """Anthropic's own type of it, such as `overloaded_error`."""
        super().__init__(message)


class Chunker:
    """The chunks of one answer. With `keeps_events` each event stands in a chunk as it came; with `reply_tool` what
    that tool is given is the answer's text."""

    def __init__(self, *, created: int, keeps_events: bool = False, reply_tool: str | None = None) -> None:
        self._created, self._keeps_events, self._reply_tool = created, keeps_events, reply_tool
        self._id, self._model = "", ""
        self._usage: Fields = {}
        self._tools: dict[object, int] = {}
        """Place among the tool calls, by the index of the block."""
        self._replies: set[object] = set()
        """Blocks of the reply tool."""
        self._has_input = False

    def take(self, payload: bytes) -> bytes:
        """The chunks that an event's payload becomes; empty where it says nothing to those who read chunks.

        Raises:
            ReportedError: it is an error event.
            EventError: it is not an event at all.
        """
        event = parsed(payload)
        delta: Fields | None = None
        finish: str | None = None
        match event.get("type"):
            case "message_start":
                delta = self._start(mapping(event.get("message")))
            case "content_block_start":
                delta = self._block(event.get("index"), mapping(event.get("content_block")))
            case "content_block_delta":
                delta = self._delta(event.get("index"), mapping(event.get("delta")))
            case "content_block_stop":
                delta = self._block_end(event.get("index"))
            case "message_delta":
                self._count(event.get("usage"))
                delta, finish = {}, self._finish(mapping(event.get("delta")).get("stop_reason"))
            case "message_stop":
                return self._end(event)
            case "ping":
                return b": ping\n\n"
            case "error":
                fault = mapping(event.get("error"))
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
            given = mapping(block.get("input"))
            text = orjson.dumps(given).decode() if given else ""
            self._has_input = bool(text)
            if self._reply_tool is not None and block.get("name") == self._reply_tool:
                self._replies.add(place_of(index))
                return {"content": text} if text else None
            at = self._tools[place_of(index)] = len(self._tools)
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
        if place_of(index) in self._replies:
            return {"content": text}
        at = self._tools.get(place_of(index))
        return None if at is None else {"tool_calls": [{"index": at, "function": {"arguments": text}}]}

    def _block_end(self, index: object) -> Fields | None:
        """A tool without arguments is given none by Anthropic; OpenAI's clients parse them."""
        is_bare, self._has_input = not self._has_input, False
        return self._given(index, "{}") if is_bare else None

    def _finish(self, stop_reason: object) -> str | None:
        if stop_reason is None:
            return None
        reason = _FINISH.get(str(stop_reason), "stop")
        return "stop" if reason == "tool_calls" and not self._tools else reason

    def _count(self, fields: object) -> None:
        """Counts are totals: later ones replace earlier ones, and what is left out stays."""
        self._usage |= {name: value for name, value in mapping(fields).items() if value is not None}

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
