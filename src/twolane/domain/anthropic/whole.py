"""Whole messages, put together from their events: fields and kinds that come later are kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from twolane.domain.anthropic.teller import Teller
from twolane.domain.anthropic.words import Fields, input_of, mapping, parsed, place_of
from twolane.domain.records import Usage

_SET = frozenset({"signature", "encrypted_content"})
"""Fields of a delta that come in one piece."""


def whole_message(events: Iterable[Mapping[str, object]]) -> Fields:
    """The message that a stream of events tells, with all that it tells."""
    message: Fields = {}
    content: dict[object, Fields] = {}
    inputs: dict[object, str] = {}
    for event in events:
        index = place_of(event.get("index"))
        match event.get("type"):
            case "message_start":
                message = dict(mapping(event.get("message")))
            case "content_block_start":
                content[index] = dict(mapping(event.get("content_block")))
            case "content_block_delta":
                delta = mapping(event.get("delta"))
                if delta.get("type") == "input_json_delta":
                    inputs[index] = inputs.get(index, "") + str(delta.get("partial_json") or "")
                elif index in content:
                    _merge(content[index], delta)
            case "message_delta":
                usage = mapping(event.get("usage"))
                message |= mapping(event.get("delta"))
                message |= {name: event[name] for name in event if name not in ("type", "delta", "usage")}
                told = {name: value for name, value in usage.items() if value is not None}
                message["usage"] = {**mapping(message.get("usage")), **told}
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
    said = mapping(choice.get("message"))
    calls = said.get("tool_calls")
    numbered = [{**mapping(call), "index": at} for at, call in enumerate(calls if isinstance(calls, list) else [])]
    told = teller.take({"choices": [{**choice, "index": 0, "delta": {**said, "tool_calls": numbered}}]}, usage)
    return whole_message(read_events(told + teller.finish()))


def read_events(stream: bytes) -> list[Mapping[str, object]]:
    """The events of a stream that ended."""
    lines = (line[5:] for line in stream.split(b"\n") if line.startswith(b"data:"))
    return [parsed(line) for line in lines]
