"""Reading a streamed chat completion: server-sent events in OpenAI's shape → text, finish reason, usage.

Used where an answer is needed whole (batch, non-streaming clients). The online lane passes bytes through and only asks
`usage_in` about the last ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import orjson

from twolane.domain.records import INPUT_KINDS, OUTPUT_KINDS, WEB_SEARCH, Usage

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""A single event larger than this is not a completion chunk; the stream is broken off."""
MAX_TEXT_CHARS = 16 * 1024 * 1024
"""No answer is longer; an upstream that never ends its own is not read for ever."""


_OWN = frozenset({"id", "object", "created", "model", "choices", "usage", "obfuscation", "anthropic"})
"""Fields of a chunk that are read one by one. `obfuscation` is padding of that chunk alone."""
_CHOICE = frozenset({"index", "delta", "message", "logprobs", "finish_reason"})
"""The same for a choice of a chunk."""


class EventError(ValueError):
    """The stream holds something that is not a completion chunk, or an error event."""


class EventReader:
    """Cuts a byte stream into the payloads of its `data:` events, whatever the block boundaries are."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, block: bytes) -> Iterator[bytes]:
        """Payloads that became complete with this block; comments and other fields are skipped."""
        data = self._rest + block if self._rest else block
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n")
        *events, self._rest = data.split(b"\n\n")
        if len(self._rest) > MAX_EVENT_BYTES:
            raise EventError(f"an event of more than {MAX_EVENT_BYTES} bytes")
        for event in events:
            if event.startswith(b"data: {") and b"\n" not in event:  # as nearly every event is
                yield event[6:]
                continue
            lines = [line[5:].lstrip(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
            if any(lines):  # an empty one keeps a connection awake and says nothing
                yield b"\n".join(lines)


def parse_event(payload: bytes) -> dict[str, object] | None:
    """One chunk as a dict, or None for `[DONE]`.

    Raises:
        EventError: not JSON, not an object, or an `error` event; the message is the upstream's own where it gave one.
    """
    if payload[:1] != b"{" and payload.strip() == b"[DONE]":
        return None
    try:
        chunk = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise EventError(f"an event that is not JSON: {error}") from None
    if not isinstance(chunk, dict):
        raise EventError("an event that is not a JSON object")
    if chunk.get("error"):
        fault = chunk["error"]
        raise EventError(str(fault.get("message", fault) if isinstance(fault, dict) else fault))
    return chunk


def end_of(block: bytes) -> int:
    """Where the closing `data: [DONE]` begins in a block; -1 where it is not there. At the beginning of a line only:
    JSON holds no raw line end, so no text of an answer can begin a line."""
    at = block.rfind(b"[DONE]")
    while at >= 0:
        start = block.rfind(b"\n", 0, at) + 1
        if block[start:at].rstrip(b" ") == b"data:":
            return start
        at = block.rfind(b"[DONE]", 0, at)
    return -1


def cut_end(begun: bytes, choices: int) -> bytes:
    """What ends an answer that was cut off, as a limit on its tokens would have ended it. `begun` is how it began:
    where Anthropic's own events stand in its chunks, they end too."""
    first = next((parse_event(payload) for payload in EventReader().feed(begun)), None) or {}
    kept: dict[str, object] = {name: first[name] for name in ("id", "object", "created", "model") if name in first}
    ends = [{"index": at, "delta": {}, "finish_reason": "length"} for at in range(choices)]
    chunks: list[dict[str, object]] = [{**kept, "choices": ends}]
    if "anthropic" in first:
        delta = {"stop_reason": "max_tokens", "stop_sequence": None}
        chunks[0]["anthropic"] = {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 0}}
        chunks.append({**kept, "choices": [], "anthropic": {"type": "message_stop"}})
    return b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"


def usage_of(chunk: Mapping[str, object]) -> Usage | None:
    """The usage a chunk reports, on empty or non-empty `choices` alike; None where it reports none that makes sense.

    A detail that makes no sense is unknown; its tokens are still in the counts that contain it. Some servers (xAI's,
    Gemini's) count reasoning beside the completion: what the total has more than both was written too.
    """
    usage = chunk.get("usage")
    if not isinstance(usage, dict):
        return None
    read, written = whole_count(usage.get("prompt_tokens")), whole_count(usage.get("completion_tokens"))
    if read is None or written is None:
        return None
    total = whole_count(usage.get("total_tokens")) or 0
    prompt, completion = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    prompt = prompt if isinstance(prompt, dict) else {}
    completion = completion if isinstance(completion, dict) else {}
    return Usage(
        input_tokens=read,
        output_tokens=max(written, total - read),
        cache_read_tokens=_first(prompt.get("cached_tokens"), *map(usage.get, _CACHED)),
        cache_write_tokens=whole_count(prompt.get("cache_write_tokens")),
        reasoning_tokens=_first(completion.get("reasoning_tokens"), usage.get("reasoning_tokens")),
        cache_write_1h_tokens=whole_count(prompt.get("cache_write_1h_tokens")),
        kinds=_kinds(usage, prompt, completion),
    )


_CACHED = ("prompt_cache_hit_tokens", "cached_tokens", "num_cached_tokens")
"""Where DeepSeek, Moonshot and Mistral say it."""


def _kinds(usage: _Fields, prompt: _Fields, completion: _Fields) -> dict[str, int] | None:
    """What is told apart beside caches and reasoning; None where nothing is, as of nearly every call."""
    if _IN.isdisjoint(prompt) and _OUT.isdisjoint(completion) and _BESIDE.isdisjoint(usage):
        return None
    cached = prompt.get("cached_tokens_details")
    told = {f"input_{kind}": prompt.get(f"{kind}_tokens") for kind in INPUT_KINDS}
    if isinstance(cached, dict):
        told |= {f"cache_read_{kind}": cached.get(f"{kind}_tokens") for kind in INPUT_KINDS}
    told |= {kind: completion.get(f"{kind.removeprefix('output_')}_tokens") for kind in OUTPUT_KINDS}
    told["output_citation"] = usage.get("citation_tokens", told["output_citation"])
    told[WEB_SEARCH] = usage.get("num_search_queries")
    return {name: count for name, value in told.items() if (count := whole_count(value))} or None


_Fields = Mapping[str, object]
_IN = frozenset(f"{kind}_tokens" for kind in INPUT_KINDS)
_OUT = frozenset(f"{kind.removeprefix('output_')}_tokens" for kind in OUTPUT_KINDS)
_BESIDE = frozenset({"citation_tokens", "num_search_queries"})


def _first(*values: object) -> int | None:
    return next((count for value in values if (count := whole_count(value)) is not None), None)


MOST_COUNT = 100_000_000
"""No call has more tokens, so more is no count. Sums stay in 64 bits after nine thousand such lies at $10 a million; at
prices beyond a thousand see `pricing.MOST_CHARGE`."""


def whole_count(value: object) -> int | None:
    """A count as an upstream tells it; None where it makes no sense."""
    return value if type(value) is int and 0 <= value <= MOST_COUNT else None


@dataclass
class Completion:
    """A completion as it grows, first choice only for `text`; all choices in `choices`.

    Texts are kept as the pieces they came in and put together when they are asked for: to lengthen the whole with each
    piece took 3 s for an answer of 100,000 pieces.
    """

    finish_reason: str | None = None
    usage: Usage | None = None
    id: str = ""
    created: int = 0
    model: str = ""
    is_done: bool = False
    """True once `[DONE]` was read: without it the answer was cut off."""
    events: list[Mapping[str, object]] = field(default_factory=list)
    """The upstream's own events, where the call was native and they stand beside the chunks."""
    further: dict[str, object] = field(default_factory=dict)
    """What else its chunks said about the answer: `system_fingerprint`, `service_tier`, fields of one server alone."""
    _reader: EventReader = field(default_factory=EventReader)
    _choices: dict[int, dict[str, object]] = field(default_factory=dict)
    _pieces: dict[tuple[int, str], list[str]] = field(default_factory=dict)
    """By choice and field of its message."""
    _chars: int = 0

    def feed(self, block: bytes) -> None:
        """Read one block of the stream.

        Raises:
            EventError: see `parse_event`.
        """
        for payload in self._reader.feed(block):
            chunk = parse_event(payload)
            if chunk is None:
                self.is_done = True
                continue
            self._read(chunk)

    @property
    def text(self) -> str:
        """What the first choice has said so far."""
        return self._joined((0, "content"))

    @property
    def choices(self) -> dict[int, dict[str, object]]:
        """Every choice by its index, as far as it has come."""
        for index, name in self._pieces:
            message = self._choices[index]["message"]
            assert isinstance(message, dict)
            message[name] = self._joined((index, name))
        return self._choices

    def _joined(self, place: tuple[int, str]) -> str:
        pieces = self._pieces.get(place, [])
        if len(pieces) > 1:
            pieces[:] = ["".join(pieces)]
        return pieces[0] if pieces else ""

    def _lengthen(self, message: dict[str, object], place: tuple[int, str], part: str) -> None:
        pieces = self._pieces.get(place)
        if pieces is None:
            before = message.setdefault(place[1], None)  # its place among the fields; its text comes with `choices`
            pieces = self._pieces[place] = [before] if isinstance(before, str) else []
        pieces.append(part)
        self._chars += len(part)
        if self._chars > MAX_TEXT_CHARS:
            raise EventError(f"an answer of more than {MAX_TEXT_CHARS:,} characters")

    def _read(self, chunk: dict[str, object]) -> None:
        if not (self.id and self.model and self.created):
            self.id = self.id or str(chunk.get("id") or "")
            self.model = self.model or str(chunk.get("model") or "")
            created = chunk.get("created")
            self.created = self.created or (created if isinstance(created, int) else 0)
        if "usage" in chunk:
            self.usage = usage_of(chunk) or self.usage
        if isinstance(event := chunk.get("anthropic"), dict):
            self.events.append(event)
        if not chunk.keys() <= _OWN:
            self.further |= {name: value for name, value in chunk.items() if name not in _OWN and value is not None}
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._merge(choice)

    def _merge(self, choice: dict[str, object]) -> None:
        index = choice.get("index")
        index = index if isinstance(index, int) else 0
        whole = self._choices.get(index)
        if whole is None:
            whole = self._choices[index] = {"index": index, "message": {"role": "assistant", "content": None}}
        if not choice.keys() <= _CHOICE:
            whole |= {name: value for name, value in choice.items() if name not in _CHOICE and value is not None}
        message = whole["message"]
        assert isinstance(message, dict)
        delta = choice.get("delta")
        word = delta.get("content") if isinstance(delta, dict) and len(delta) == 1 else None
        if isinstance(word, str) and isinstance(message.get("content") or "", str):
            self._lengthen(message, (index, "content"), word)  # a piece of text alone, as most deltas are
            delta = None
        for name, part in (delta if isinstance(delta, dict) else {}).items():
            if name == "tool_calls" and isinstance(part, list):
                calls = message.get("tool_calls")
                calls = message["tool_calls"] = calls if isinstance(calls, list) else []
                _merge_tool_calls(calls, part)
            elif name == "role":
                message["role"] = part or message["role"]
            elif isinstance(part, str) and isinstance(message.get(name) or "", str):
                self._lengthen(message, (index, name), part)
            elif part is not None:
                before = self._joined((index, name)) or message.get(name)
                self._pieces.pop((index, name), None)
                message[name] = _grown(before, part)
        if choice.get("logprobs"):
            _merge_logprobs(whole, choice["logprobs"])
        if choice.get("finish_reason"):
            whole["finish_reason"] = choice["finish_reason"]
            if index == 0:
                self.finish_reason = str(choice["finish_reason"])

    def as_response(self) -> dict[str, object]:
        """The whole answer in the shape of a non-streamed chat completion."""
        response: dict[str, object] = {
            **self.further,
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [_whole_choice(self.choices[index]) for index in sorted(self.choices)],
        }
        if self.usage is not None:
            response["usage"] = usage_fields(self.usage)
        return response


def usage_fields(usage: Usage) -> dict[str, object]:
    """Usage in OpenAI's shape; `usage_of` reads the same back."""
    kinds = usage.kinds or {}
    prompt: dict[str, object] = {
        "cached_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "cache_write_1h_tokens": usage.cache_write_1h_tokens,
    }
    completion: dict[str, object] = {"reasoning_tokens": usage.reasoning_tokens}
    if kinds:
        prompt |= {f"{kind}_tokens": kinds.get(f"input_{kind}") for kind in INPUT_KINDS}
        cached = {f"{kind}_tokens": kinds.get(f"cache_read_{kind}") for kind in INPUT_KINDS}
        prompt["cached_tokens_details"] = _known(cached) or None
        completion |= {f"{kind.removeprefix('output_')}_tokens": kinds.get(kind) for kind in OUTPUT_KINDS}
    fields: dict[str, object] = {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": _known(prompt) or None,
        "completion_tokens_details": _known(completion) or None,
        "num_search_queries": kinds.get(WEB_SEARCH),
    }
    return _known(fields)


def _known(fields: _Fields) -> dict[str, object]:
    return {name: value for name, value in fields.items() if value is not None}


def _whole_choice(choice: Mapping[str, object]) -> dict[str, object]:
    """A choice with every field that clients of OpenAI count on, `refusal` among them."""
    message = choice["message"]
    assert isinstance(message, dict)
    told = {"refusal": None, **message}
    return {"logprobs": None, "finish_reason": None, **choice, "message": told}


def _grown(before: object, part: object) -> object:
    """A field of a message after one more part of it: texts and lists are continued, objects member by member."""
    if isinstance(before, str) and isinstance(part, str):
        return before + part
    if isinstance(before, list) and isinstance(part, list):
        return [*before, *part]
    if isinstance(before, dict) and isinstance(part, dict):
        members = {name: _grown(before.get(name), value) for name, value in part.items() if value is not None}
        return {**before, **members}
    return part


def _merge_tool_calls(calls: list[dict[str, object]], parts: list[object]) -> None:
    for part in parts:
        if not isinstance(part, dict):
            continue
        index = part.get("index")
        index = index if isinstance(index, int) and 0 <= index <= len(calls) else len(calls)
        if index == len(calls):
            calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call = calls[index]
        call["id"] = call["id"] or part.get("id") or ""
        call["type"] = part.get("type") or call["type"]
        function, delta = call["function"], part.get("function")
        if isinstance(function, dict) and isinstance(delta, dict):
            for name in ("name", "arguments"):
                function[name] = str(function[name]) + str(delta.get(name) or "")


def _merge_logprobs(whole: dict[str, object], part: object) -> None:
    if not isinstance(part, dict):
        return
    logprobs = whole.setdefault("logprobs", {})
    assert isinstance(logprobs, dict)
    for name, values in part.items():
        before = logprobs.get(name)
        logprobs[name] = _grown(before, values) if values is not None else before
