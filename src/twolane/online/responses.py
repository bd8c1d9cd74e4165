"""OpenAI's Responses, without a memory: what a request means in the words of chat completions. No I/O here.

Nothing is stored, so what would need a memory (`previous_response_id`, `conversation`, `background`) and what would
need tools on this side (`web_search` …) is refused by name: an answer that silently forgot them would be wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from twolane.domain.completion import Completion
from twolane.domain.records import ModelCall, ReplySchema, Usage
from twolane.errors import BadRequest, Killed, TwolaneError
from twolane.online.response_input import plain, read_input
from twolane.online.response_output import Frame, ResponseFlow, error_event
from twolane.online.wire import OpenAIErrors, read_object, take_flag, take_model

T = TypeVar("T")

_REFUSED = {
    "previous_response_id": "no response is kept here. Send the whole conversation as 'input'",
    "conversation": "no conversation is kept here. Send the whole of it as 'input'",
    "prompt": "no prompt templates are kept here. Send 'instructions' and 'input'",
    "context_management": "nothing is left out of an input here. Send what the model shall read",
    "moderation": "there is no moderation here. Leave it out",
    "messages": "this is a field of chat completions. Send 'input'",
    "max_tokens": "this is a field of chat completions. Send 'max_output_tokens'",
    "max_completion_tokens": "this is a field of chat completions. Send 'max_output_tokens'",
    "response_format": "this is a field of chat completions. Send 'text.format'",
    "reasoning_effort": "this is a field of chat completions. Send 'reasoning.effort'",
    "functions": "this is a field of chat completions. Send 'tools'",
    "function_call": "this is a field of chat completions. Send 'tool_choice'",
    "web_search_options": "this is a field of chat completions, and no tools run here. Leave it out",
    "logprobs": "this is a field of chat completions. Send include = ['message.output_text.logprobs']",
    "n": "a response is one answer. Ask several times",
}
"""What is not taken, and what to do instead. Any other field that is not named here passes through to the upstream."""
_PASSED = ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier")
"""Text fields that chat completions know by the same name."""
_LOGPROBS = "message.output_text.logprobs"


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """A response as a client asks for it; see `wire.Asked`."""

    model: str
    call: ModelCall
    is_streamed: bool
    echo: Mapping[str, object]
    """What every Response says back of its request."""

    def flow(self, step: str) -> ResponseFlow:
        """See `wire.Asked.flow`."""
        return ResponseFlow(Frame(step, self.model, self.echo))

    def whole(self, completion: Completion, step: str, usage: Usage | None) -> dict[str, object]:
        """See `wire.Asked.whole`."""
        return self.flow(step).whole(completion, usage)


class Responses(OpenAIErrors):
    """The protocol of `/v1/responses`."""

    def read(self, body: bytes) -> ResponseRequest:
        """See `wire.Wire.read`."""
        fields = read_object(body)
        for name, reason in _REFUSED.items():
            if fields.pop(name, None) is not None:
                raise BadRequest(f"'{name}': {reason}", param=name)
        if take_flag(fields, "background"):
            raise BadRequest("'background': nothing runs on without its client here. Leave it out", param="background")
        take_flag(fields, "store")  # whatever it says, nothing is kept; the answer says so
        _take(fields, "stream_options", _object)
        model, is_streamed = take_model(fields), take_flag(fields, "stream")
        instructions = _take(fields, "instructions", _text)
        messages, raw_messages = plain(read_input(fields.pop("input", None), instructions))
        echo: dict[str, object] = {"instructions": instructions}
        extras: dict[str, object] = {}
        _read_sampling(fields, echo, extras)
        _read_tools(fields, echo, extras)
        schema = _read_text(fields, echo, extras)
        _read_rest(fields, echo, extras)
        call = ModelCall(
            messages=messages,
            model="",
            max_tokens=_max_tokens(fields, echo),
            temperature=_temperature(fields, echo),
            schema=schema,
            extras={name: value for name, value in fields.items() if value is not None} | extras,
            raw_messages=raw_messages,
        )
        return ResponseRequest(model, call, is_streamed, echo)

    def error_event(self, error: TwolaneError | Killed) -> bytes:
        """See `wire.Wire.error_event`; the flow of an answer that has begun tells more."""
        return error_event(error, self.error_fields(error), 0)


# ── fields: each `_read_…` takes its own out of `fields`, for the upstream (`extras`) and for the Response (`echo`) ──


def _read_sampling(fields: dict[str, object], echo: dict[str, object], extras: dict[str, object]) -> None:
    echo["top_p"] = top_p = _take(fields, "top_p", _number_to(1))
    if top_p is not None:
        extras["top_p"] = top_p
    included = _take(fields, "include", _texts) or []
    echo["top_logprobs"] = top = _take(fields, "top_logprobs", _whole_from(0))
    if top or _LOGPROBS in included:
        extras["logprobs"] = True
    if top:
        extras["top_logprobs"] = top


def _read_tools(fields: dict[str, object], echo: dict[str, object], extras: dict[str, object]) -> None:
    tools = _take(fields, "tools", _list) or []
    functions = [_function(tool, f"tools[{at}]") for at, tool in enumerate(tools)]
    echo["tools"] = [{"type": "function", "parameters": None, "strict": None, **function} for function in functions]
    is_parallel = _take(fields, "parallel_tool_calls", _flag)
    echo["parallel_tool_calls"] = is_parallel is not False
    echo["tool_choice"], chosen = _choice(fields.pop("tool_choice", None))
    if functions:
        extras["tools"] = [{"type": "function", "function": function} for function in functions]
        if is_parallel is not None:
            extras["parallel_tool_calls"] = is_parallel
    if chosen is not None and (functions or chosen not in ("auto", "none")):  # these say nothing where there is no tool
        extras["tool_choice"] = chosen
    echo["max_tool_calls"] = _take(fields, "max_tool_calls", _whole_from(1))  # counts tools of a server: none are here


def _function(tool: object, where: str) -> dict[str, object]:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if not isinstance(tool, dict) or kind != "function":
        problem = "only functions, which the client runs itself, are offered to the model here"
        raise BadRequest(f"'{where}' is a {kind!r} tool; {problem}", param=f"{where}.type")
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        raise BadRequest(f"'{where}.name' must be the function's name", param=f"{where}.name")
    checks: dict[str, Callable[[object], object]] = {"description": _text, "parameters": _object, "strict": _flag}
    function: dict[str, object] = {"name": tool["name"]}
    for name, check in checks.items():
        if tool.get(name) is not None:
            function[name] = _checked(tool[name], check, f"{where}.{name}")
    return function


def _choice(choice: object) -> tuple[object, object]:
    """A choice of tools in the words of responses and of chat completions, where None is no choice."""
    if choice is None or choice in ("none", "auto", "required"):
        return choice or "auto", choice
    match choice:
        case {"type": "function", "name": str(name)}:
            return _named(name)
        case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": [_, *_] as tools}:
            names = [tool.get("name") for tool in tools if isinstance(tool, dict) and tool.get("type") == "function"]
            if len(names) == len(tools) and all(isinstance(name, str) for name in names):
                allowed = [_named(str(name)) for name in names]
                told, asked = [list(side) for side in zip(*allowed, strict=True)]
                return (
                    {"type": "allowed_tools", "mode": mode, "tools": told},
                    {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": asked}},
                )
    problem = "must be none, auto, required, a function by name, or allowed_tools that are functions by name"
    raise BadRequest(f"'tool_choice' {problem}", param="tool_choice")


def _named(name: str) -> tuple[dict[str, object], dict[str, object]]:
    return {"type": "function", "name": name}, {"type": "function", "function": {"name": name}}


def _read_text(fields: dict[str, object], echo: dict[str, object], extras: dict[str, object]) -> ReplySchema | None:
    text = _take(fields, "text", _object) or {}
    told: dict[str, object] = {}
    echo["text"] = told
    if text.get("verbosity") is not None:
        told["verbosity"] = extras["verbosity"] = _checked(text["verbosity"], _text, "text.verbosity")
    wanted = _checked(text.get("format") or {"type": "text"}, _object, "text.format")
    match wanted.get("type"):
        case "text":
            told["format"] = {"type": "text"}
            return None
        case "json_object":
            told["format"] = extras["response_format"] = {"type": "json_object"}
            return None
        case "json_schema":
            schema = _checked(wanted.get("schema"), _object, "text.format.schema")
            called = _checked(wanted.get("name"), _text, "text.format.name")
            reply = ReplySchema(called or "reply", schema, wanted.get("strict") is True)
            told["format"] = {"type": "json_schema", "name": reply.name, "schema": schema, "strict": reply.is_strict}
            return reply
    raise BadRequest("'text.format.type' must be text, json_object or json_schema", param="text.format.type")


def _read_rest(fields: dict[str, object], echo: dict[str, object], extras: dict[str, object]) -> None:
    for name in _PASSED:
        value = _take(fields, name, _text)
        if value is not None:  # some of them may not be null in a Response
            echo[name] = extras[name] = value
    echo["metadata"] = _take(fields, "metadata", _metadata) or {}
    reasoning = _take(fields, "reasoning", _object)
    if reasoning is not None:
        said = {name: reasoning.get(name) for name in ("effort", "summary")}
        for name, given in said.items():
            if given is not None:
                _checked(given, _text, f"reasoning.{name}")
        if said["effort"] is not None:
            extras["reasoning_effort"] = said["effort"]
        echo["reasoning"] = said
    # Nothing is ever cut here: an input that does not fit is refused, which is what "disabled" means.
    if _take(fields, "truncation", _text) not in (None, "auto", "disabled"):
        raise BadRequest("'truncation' must be auto or disabled", param="truncation")


def _max_tokens(fields: dict[str, object], echo: dict[str, object]) -> int:
    """The client's limit, 0 for none."""
    echo["max_output_tokens"] = limit = _take(fields, "max_output_tokens", _whole_from(1))
    return limit or 0


def _temperature(fields: dict[str, object], echo: dict[str, object]) -> float | None:
    echo["temperature"] = temperature = _take(fields, "temperature", _number_to(2))
    return temperature


# ── checks: a value as what it must be, or a ValueError that says what that is ──


def _take(fields: dict[str, object], name: str, check: Callable[[object], T]) -> T | None:
    """Take a field out; None where it is left out or null."""
    value = fields.pop(name, None)
    return None if value is None else _checked(value, check, name)


def _checked(value: object, check: Callable[[object], T], where: str) -> T:
    try:
        return check(value)
    except ValueError as error:
        raise BadRequest(f"'{where}' must be {error}", param=where) from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("text")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError("an object")
    return value


def _list(value: object) -> list[object]:
    if not isinstance(value, list):
        raise ValueError("a list")
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("a list of names")
    return value


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("an object whose values are texts")
    return value


def _number_to(most: float) -> Callable[[object], float]:
    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise ValueError(f"a number from 0 to {most:g}")
        return float(value)

    return check


def _whole_from(least: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        if type(value) is not int or not least <= value < math.inf:
            raise ValueError(f"a whole number of at least {least}")
        return value

    return check
