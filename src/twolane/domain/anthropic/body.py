"""Calls told as Anthropic's requests, and requests of its own clients as they go on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from twolane.domain.anthropic.schema import strict_schema
from twolane.domain.anthropic.words import Fields, dicts, input_of, json_text, text_of
from twolane.domain.records import ModelCall, Native, ReplySchema

REPLY_TOOL = "reply"
"""The tool whose input is the reply, where a schema can be asked for in no other way."""

MIN_THINKING_TOKENS = 1_024
"""The smallest `thinking.budget_tokens` that Anthropic takes."""


class Untellable(ValueError):
    """Something in this request cannot be told in Anthropic's words; the message names it."""


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
    system = [text_of(message.get("content")) for message in raw if message.get("role") in ("system", "developer")]
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
    return [block for part in dicts(content) if (block := _block(part)) is not None]


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
    for call in dicts(message.get("tool_calls")):
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        told = function.get("arguments")
        uses.append({"type": "tool_use", "id": call.get("id"), "name": function.get("name"), "input": input_of(told)})
    return uses


def _tools(extras: Mapping[str, object]) -> Fields:
    tools = [_tool(tool) for tool in dicts(extras.get("tools"))]
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
        system.append(words + json_text(schema.schema))
        return None
    before = fields.get("tools")
    tools = before if isinstance(before, list) else []
    taken = {tool.get("name") for tool in tools if isinstance(tool, dict)}
    name = REPLY_TOOL if REPLY_TOOL not in taken else f"{REPLY_TOOL}_{len(taken)}"
    tool = {"name": name, "description": "Give the reply.", "input_schema": {"type": "object", **schema.schema}}
    fields["tools"] = [*tools, tool]
    fields["tool_choice"] = {"type": "any"} if tools else {"type": "tool", "name": name}
    return name
