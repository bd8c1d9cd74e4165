"""Requests in Anthropic's words and in OpenAI's: each told in the other's.

What the other side has no word for is dealt with in one of three ways, and the tables below say which:

- dropped, where only the manner of an answer changes (`top_k`, `cache_control`, `seed`, `logprobs` …);
- passed on as it came, where the meaning would change (a server tool, a file by address): an upstream that does not
  know it refuses it in its own words, which is honest;
- refused with `Untellable`, where nothing could be passed on (`n` above 1, `functions`).

| Anthropic → OpenAI | |
|---|---|
| `system`, `messages` | messages; several blocks of `system` are joined by line ends |
| `tool_use`, `tool_result` | `tool_calls`, messages of role `tool`; pictures in a result follow in the user's turn |
| `thinking`, `redacted_thinking` blocks | dropped: only who signed them can read them |
| `stop_sequences`, `metadata.user_id`, `top_p`, `temperature` | `stop`, `user`, as they are |
| `tools`, `tool_choice`, `disable_parallel_tool_use` | `tools`, `tool_choice`, `parallel_tool_calls` |
| `output_config.format`, `output_format` | a JSON Schema reply |
| `top_k`, `thinking`, `output_config.effort`, `service_tier`, `cache_control` and all others | dropped |

| OpenAI → Anthropic | |
|---|---|
| messages of role `system`, `developer` | `system`, wherever they stood (as Anthropic's own compatible endpoint does) |
| `stop`, `user` or `safety_identifier`, `top_p` | `stop_sequences`, `metadata.user_id`, as it is |
| `temperature` | at most 1 |
| `tools`, `tool_choice`, `parallel_tool_calls` | `tools`, `tool_choice`, `disable_parallel_tool_use` |
| `reasoning_effort` | `output_config.effort` |
| `response_format` `json_object` | words |
| `top_k`, `thinking` | as they are: Anthropic's own, given by clients that know whom they ask |
| `n` above 1, `functions`, `function_call`, sound | refused |
| `seed`, `logprobs`, `logit_bias`, penalties, `metadata`, `service_tier` and all others | dropped |

Sources: the types of anthropic 2.11.0 and openai 3.52.0; Anthropic's page on OpenAI SDK compatibility.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import orjson

from twolane.domain.anthropic_schema import strict_schema
from twolane.domain.records import Message, ModelCall, Native, ReplySchema

DIALECT = "anthropic"
"""The kind of upstream that understands these requests as they are."""

REPLY_TOOL = "reply"
"""The tool whose input is the reply, where a schema can be asked for in no other way."""

MIN_THINKING_TOKENS = 1_024
"""The smallest `thinking.budget_tokens` that Anthropic takes."""

Fields = dict[str, object]


class Untellable(ValueError):
    """Something in this request cannot be told in Anthropic's words; the message names it."""


# ── Anthropic → OpenAI ──


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
    if system := _text_of(fields.get("system")):
        messages.append({"role": "system", "content": system})
    for message in _dicts(fields.get("messages")):
        messages += _chat_messages(str(message.get("role")), message.get("content"))
    is_plain = all(isinstance(message["content"], str) and len(message) == 2 for message in messages)
    texts = tuple(Message(str(message["role"]), _text_of(message["content"])) for message in messages)
    return Chat(texts, None if is_plain else tuple(messages), _chat_extras(fields), _reply_schema(fields))


def _chat_messages(role: str, content: object) -> list[Fields]:
    if not isinstance(content, list):
        return [{"role": role, "content": content if isinstance(content, str) else ""}]
    return _assistant(_dicts(content)) if role == "assistant" else _others(role, _dicts(content))


def _assistant(blocks: Iterable[Mapping[str, object]]) -> list[Fields]:
    parts: list[Fields] = []
    calls: list[Fields] = []
    for block in blocks:
        kind = block.get("type")
        if kind == "tool_use":
            function = {"name": block.get("name"), "arguments": _json(block.get("input") or {})}
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
        told = [_part(part) for part in _dicts(content)]
        parts += [part for part in told if part.get("type") == "image_url"]
        texts = [
            str(part.get("text") or "") if part.get("type") == "text" else _json(part)
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
        return {"type": "text", "text": f"{block.get('title')} ({source})\n{_text_of(block.get('content'))}"}
    if isinstance(source, dict):
        held, title = source.get("type"), block.get("title")
        data_url = f"data:{source.get('media_type')};base64,{source.get('data')}"
        if kind == "image" and held in ("base64", "url"):
            return {"type": "image_url", "image_url": {"url": data_url if held == "base64" else source.get("url")}}
        if kind == "document" and held == "base64":
            return {"type": "file", "file": {"filename": str(title or "document.pdf"), "file_data": data_url}}
        if kind == "document" and held in ("text", "content"):
            words = _text_of(source.get("data") if held == "text" else source.get("content"))
            return {"type": "text", "text": f"{title}\n{words}" if title else words}
    return dict(block)


def _joined(parts: list[Fields]) -> object:
    """Plain text where all parts are text, else the parts."""
    if all(part.get("type") == "text" for part in parts):
        return "\n".join(str(part.get("text") or "") for part in parts)
    return parts


def _text_of(content: object) -> str:
    """The text in a message's content, whichever shape it has."""
    if isinstance(content, str):
        return content
    return "\n".join(text for part in _dicts(content) if isinstance(text := part.get("text"), str))


def _chat_extras(fields: Mapping[str, object]) -> Fields:
    extras: Fields = {}
    if fields.get("stop_sequences"):
        extras["stop"] = fields["stop_sequences"]
    if fields.get("top_p") is not None:
        extras["top_p"] = fields["top_p"]
    metadata = fields.get("metadata")
    if isinstance(metadata, dict) and metadata.get("user_id"):
        extras["user"] = metadata["user_id"]
    tools = [_chat_tool(tool) for tool in _dicts(fields.get("tools"))]
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


# ── OpenAI → Anthropic ──


@dataclass(frozen=True, slots=True)
class Body:
    """A request as Anthropic takes it."""

    fields: Fields
    reply_tool: str | None = None
    """The tool whose input is the reply; None where the reply is text."""


def native_body(native: Native, call: ModelCall) -> Body:
    """A client's own request, with the model and the limit that the call has now.

    Where the limit was lowered below what the client let the model think, so is the thinking: Anthropic refuses a
    budget of thinking that does not fit into `max_tokens`.
    """
    fields = {**native.body, "model": call.model, "max_tokens": call.max_tokens, "stream": True}
    thinking = fields.get("thinking")
    budget = thinking.get("budget_tokens") if isinstance(thinking, dict) else None
    if isinstance(thinking, dict) and isinstance(budget, int) and budget >= call.max_tokens > MIN_THINKING_TOKENS:
        asked = native.body.get("max_tokens")
        if isinstance(asked, int) and asked > call.max_tokens:
            fields["thinking"] = {**thinking, "budget_tokens": max(MIN_THINKING_TOKENS, call.max_tokens - 1)}
    return Body(fields)


def to_body(call: ModelCall, *, structured: str = "json_schema") -> Body:
    """A call as a request for a streamed message. `structured` is as in the configuration of an upstream: with
    `json_schema` a reply's schema is asked for by the API's own means where it can be, else by a tool that must be
    used, with `none` in words.

    Raises:
        Untellable: it holds what Anthropic's protocol has no word for.
    """
    extras = call.extras
    _refuse_untellable(extras)
    raw = call.raw_messages or tuple({"role": m.role, "content": m.content} for m in call.messages)
    system = [_text_of(message.get("content")) for message in raw if message.get("role") in ("system", "developer")]
    format_ = extras.get("response_format")
    if isinstance(format_, dict) and format_.get("type") == "json_object":
        system.append("Reply with one JSON object and nothing else.")
    fields: Fields = {"model": call.model, "max_tokens": call.max_tokens, "messages": _turns(raw), "stream": True}
    if call.temperature is not None:
        fields["temperature"] = min(call.temperature, 1.0)
    fields |= {name: extras[name] for name in ("top_p", "top_k", "thinking") if extras.get(name) is not None}
    stop = extras.get("stop")
    if stop:
        fields["stop_sequences"] = [stop] if isinstance(stop, str) else stop
    user = extras.get("safety_identifier") or extras.get("user")
    if isinstance(user, str):
        fields["metadata"] = {"user_id": user}
    effort = extras.get("reasoning_effort")
    if effort and effort != "none":
        fields["output_config"] = {"effort": "low" if effort == "minimal" else effort}
    fields |= _tools(extras)
    reply_tool = _ask_for_schema(call.schema, fields, system, structured) if call.schema else None
    if any(system):
        fields["system"] = "\n".join(filter(None, system))
    return Body(fields, reply_tool)


def _refuse_untellable(extras: Mapping[str, object]) -> None:
    if extras.get("n") not in (None, 1):
        raise Untellable("'n' must be 1: this upstream gives one answer a call")
    for name, hint in (("functions", "tools"), ("function_call", "tool_choice")):
        if extras.get(name):
            raise Untellable(f"{name!r} is not known to this upstream: use {hint!r}")


def _turns(messages: Iterable[Mapping[str, object]]) -> list[Fields]:
    """Messages as turns: results of tools belong into the turn of the user that follows, all in one."""
    turns: list[Fields] = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role in ("system", "developer"):
            continue
        if role not in ("user", "assistant", "tool"):
            raise Untellable(f"a message of role {role!r} is not known to this upstream")
        who = "assistant" if role == "assistant" else "user"
        if role == "tool":
            result = _blocks(content)
            blocks = [{"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": result}]
        else:
            blocks = _blocks(content) + _tool_uses(message)
        if not blocks and isinstance(message.get("refusal"), str):
            blocks = _blocks(message["refusal"])
        if turns and turns[-1]["role"] == who:
            before = turns[-1]["content"]
            assert isinstance(before, list)
            before += blocks
        elif blocks:
            turns.append({"role": who, "content": blocks})
    return turns


def _blocks(content: object) -> list[Fields]:
    """Blocks of a message's content. Empty text has none: Anthropic refuses it."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    return [block for part in _dicts(content) if (block := _block(part)) is not None]


def _block(part: Mapping[str, object]) -> Fields | None:
    match part.get("type"):
        case "text" | "refusal" as kind:
            block: Fields = {"type": "text", "text": part.get(kind)}
            if part.get("cache_control"):
                block["cache_control"] = part["cache_control"]
            return block if block["text"] else None
        case "image_url":
            held = part.get("image_url")
            address = held.get("url") if isinstance(held, dict) else held
            return {"type": "image", "source": _source(str(address))}
        case "file":
            return _file(part.get("file"))
        case "input_audio":
            raise Untellable("sound cannot be sent to this upstream")
    return dict(part)


def _file(held: object) -> Fields:
    file = held if isinstance(held, dict) else {}
    if file.get("file_id"):
        return {"type": "document", "source": {"type": "file", "file_id": file["file_id"]}}
    block: Fields = {"type": "document", "source": _source(str(file.get("file_data")))}
    if file.get("filename"):
        block["title"] = file["filename"]
    return block


def _source(address: str) -> Fields:
    """An address, or the data that a `data:` address holds itself."""
    if not address.startswith("data:"):
        return {"type": "url", "url": address}
    head, _, data = address[5:].partition(",")
    return {"type": "base64", "media_type": head.partition(";")[0], "data": data}


def _tool_uses(message: Mapping[str, object]) -> list[Fields]:
    uses: list[Fields] = []
    for call in _dicts(message.get("tool_calls")):
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        told = function.get("arguments")
        uses.append({"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": input_of(told)})
    return uses


def input_of(arguments: object) -> Fields:
    """The input that a tool's arguments are as text; what is no JSON object is kept under `arguments`."""
    if not arguments:
        return {}
    try:
        found = orjson.loads(str(arguments))
    except orjson.JSONDecodeError:
        found = arguments
    return found if isinstance(found, dict) else {"arguments": found}


def _tools(extras: Mapping[str, object]) -> Fields:
    tools = [_tool(tool) for tool in _dicts(extras.get("tools"))]
    if not tools:
        return {}
    choice = _choice(extras.get("tool_choice"))
    if extras.get("parallel_tool_calls") is False and (choice or {}).get("type") != "none":
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    return {"tools": tools} | ({"tool_choice": choice} if choice else {})


def _tool(tool: Mapping[str, object]) -> Fields:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        return dict(tool)
    told: Fields = {"name": function.get("name"), "input_schema": function.get("parameters") or {"type": "object"}}
    return told | {name: function[name] for name in ("description", "strict") if function.get(name) is not None}


def _choice(choice: object) -> Fields | None:
    if choice in (None, "auto", "none"):
        return {"type": choice} if choice else None
    if choice == "required":
        return {"type": "any"}
    function = choice.get("function") if isinstance(choice, dict) else None
    if isinstance(function, dict):
        return {"type": "tool", "name": function.get("name")}
    raise Untellable("'tool_choice' must be auto, none, required or one function")


def _ask_for_schema(schema: ReplySchema, fields: Fields, system: list[str], structured: str) -> str | None:
    """Ask for a reply that fits; gives the tool's name where that is how."""
    strict = strict_schema(schema.schema) if structured == "json_schema" else None
    if strict is not None:
        before = fields.get("output_config")
        config = before if isinstance(before, dict) else {}
        fields["output_config"] = {**config, "format": {"type": "json_schema", "schema": strict}}
        return None
    if structured == "none":
        words = "Reply with one JSON object that fits this JSON Schema, and nothing else:\n"
        system.append(words + _json(schema.schema))
        return None
    before = fields.get("tools")
    tools = before if isinstance(before, list) else []
    taken = {tool.get("name") for tool in tools if isinstance(tool, dict)}
    name = REPLY_TOOL if REPLY_TOOL not in taken else f"{REPLY_TOOL}_{len(taken)}"
    tool = {"name": name, "description": "Give the reply.", "input_schema": {"type": "object", **schema.schema}}
    fields["tools"] = [*tools, tool]
    fields["tool_choice"] = {"type": "any"} if tools else {"type": "tool", "name": name}
    return name


def _dicts(value: object) -> list[Mapping[str, object]]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list | tuple) else []


def _json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode()
