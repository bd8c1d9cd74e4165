"""Chunks told as Anthropic's events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from twolane.domain.anthropic.words import Fields, anthropic_usage, event_bytes, mapping
from twolane.domain.records import Usage

_STOP = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}


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
                told += self._delta(mapping(choice.get("delta")))
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
        function = mapping(call.get("function"))
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
