"""Anthropic's requests told as chat completions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from twolane.domain.anthropic.words import Fields, dicts, json_text, text_of
from twolane.domain.records import Message, ReplySchema


@dataclass(frozen=True, slots=True)
class Chat:
    """A request in OpenAI's words, in the parts that a `ModelCall` has."""

    messages: tuple[Message, ...]
    raw_messages: tuple[Mapping[str, object], ...] | None
    """None where all messages are plain text."""
    extras: Fields
    schema: ReplySchema | None


def to_chat(fields: Mapping[str, object]) -> Chat:
    """A request of Anthropic's as a chat completion. Nothing of its shape is checked here: what makes no sense comes
    out as it came, or not at all."""
    messages: list[Fields] = []
    if system := text_of(fields.get("system")):
        messages.append({"role": "system", "content": system})
    for message in dicts(fields.get("messages")):
        messages += _chat_messages(str(message.get("role")), message.get("content"))
    is_plain = all(isinstance(message["content"], str) and len(message) == 2 for message in messages)
    texts = tuple(Message(str(message["role"]), text_of(message["content"])) for message in messages)
    return Chat(texts, None if is_plain else tuple(messages), _chat_extras(fields), _reply_schema(fields))


def _chat_messages(role: str, content: object) -> list[Fields]:
    if not isinstance(content, list):
        return [{"role": role, "content": content if isinstance(content, str) else ""}]
    return _assistant(dicts(content)) if role == "assistant" else _others(role, dicts(content))


def _assistant(blocks: Iterable[Mapping[str, object]]) -> list[Fields]:
    parts: list[Fields] = []
    calls: list[Fields] = []
    for block in blocks:
        kind = block.get("type")
        if kind == "tool_use":
            function = {"name": block.get("name"), "arguments": json_text(block.get("input") or {})}
            calls.append({"id": block.get("id"), "type": "function", "function": function})
        elif kind not in ("thinking", "redacted_thinking"):
            parts.append(_part(block))
    message: Fields = {"role": "assistant", "content": _joined(parts)}
    if calls:
        message |= {"content": message["content"] or None, "tool_calls": calls}
    return [message]


def _others(role: str, blocks: Iterable[Mapping[str, object]]) -> list[Fields]:
    """A turn of the user: results of tools first, each a message of its own, as OpenAI wants them."""
    results: list[Fields] = []
    parts: list[Fields] = []
    for block in blocks:
        if block.get("type") != "tool_result":
            parts.append(_part(block))
            continue
        content = block.get("content")
        told = [_part(part) for part in dicts(content)]
        parts += [part for part in told if part.get("type") == "image_url"]
        texts = [
            str(part.get("text") or "") if part.get("type") == "text" else json_text(part)
            for part in told
            if part.get("type") != "image_url"
        ]
        text = content if isinstance(content, str) else "\n".join(texts)
        results.append({"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": text})
    if parts or not results:
        results.append({"role": role, "content": _joined(parts)})
    return results


def _part(block: Mapping[str, object]) -> Fields:
    """One block as a part of a message; what has no counterpart stays as it is."""
    kind, source = block.get("type"), block.get("source")
    if kind == "text":
        return {"type": "text", "text": block.get("text") or ""}
    if kind == "search_result":
        return {"type": "text", "text": f"{block.get('title')} ({source})\n{text_of(block.get('content'))}"}
    if isinstance(source, dict):
        held, title = source.get("type"), block.get("title")
        data_url = f"data:{source.get('media_type')};base64,{source.get('data')}"
        if kind == "image" and held in ("base64", "url"):
            return {"type": "image_url", "image_url": {"url": data_url if held == "base64" else source.get("url")}}
        if kind == "document" and held == "base64":
            return {"type": "file", "file": {"filename": str(title or "document.pdf"), "file_data": data_url}}
        if kind == "document" and held in ("text", "content"):
            words = text_of(source.get("data") if held == "text" else source.get("content"))
            return {"type": "text", "text": f"{title}\n{words}" if title else words}
    return dict(block)


def _joined(parts: list[Fields]) -> object:
    """Plain text where all parts are text, else the parts."""
    if all(part.get("type") == "text" for part in parts):
        return "\n".join(str(part.get("text") or "") for part in parts)
    return parts


def _chat_extras(fields: Mapping[str, object]) -> Fields:
    extras: Fields = {}
    if fields.get("stop_sequences"):
        extras["stop"] = fields["stop_sequences"]
    if fields.get("top_p") is not None:
        extras["top_p"] = fields["top_p"]
    metadata = fields.get("metadata")
    if isinstance(metadata, dict) and metadata.get("user_id"):
        extras["user"] = metadata["user_id"]
    tools = [_chat_tool(tool) for tool in dicts(fields.get("tools"))]
    if tools:
        extras["tools"] = tools
        choice = fields.get("tool_choice")
        extras |= _chat_choice(choice) if isinstance(choice, dict) else {}
    return extras


def _chat_tool(tool: Mapping[str, object]) -> Fields:
    if tool.get("type") not in (None, "custom"):
        return dict(tool)  # a tool of Anthropic's own: another upstream says itself that it has none
    function: Fields = {"name": tool.get("name"), "parameters": tool.get("input_schema") or {"type": "object"}}
    function |= {name: tool[name] for name in ("description", "strict") if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _chat_choice(choice: Mapping[str, object]) -> Fields:
    told: Fields = {}
    match choice.get("type"):
        case "auto" | "none" as kind:
            told["tool_choice"] = kind
        case "any":
            told["tool_choice"] = "required"
        case "tool":
            told["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("disable_parallel_tool_use"):
        told["parallel_tool_calls"] = False
    return told


def _reply_schema(fields: Mapping[str, object]) -> ReplySchema | None:
    config = fields.get("output_config")
    wanted = (config.get("format") if isinstance(config, dict) else None) or fields.get("output_format")
    schema = wanted.get("schema") if isinstance(wanted, dict) else None
    return ReplySchema("reply", schema) if isinstance(schema, dict) else None
