"""The `input` of OpenAI's Responses → messages of a chat completion. No I/O here.

A conversation comes as items: messages, calls of functions, what those brought, and the model's own reasoning. Chat
completions know only messages, so calls join the assistant message they belong to. Reasoning is left out: chat
completions have no common place for it, and some servers refuse it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from twolane.domain.records import Message
from twolane.errors import BadRequest

_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
"""Roles on the wire. OpenAI reads `developer` as `system`, and most other servers know only the latter."""
_TEXTS = frozenset({"input_text", "output_text", "text"})

ChatMessage = dict[str, object]


def read_input(value: object, instructions: str | None) -> list[ChatMessage]:
    """The messages that an input, a text or a list of items, comes to; instructions stand before them.

    Raises:
        BadRequest: an item is wrong, or is one that only a server with a memory or with tools of its own can read.
    """
    messages: list[ChatMessage] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(value, str):
        return [*messages, {"role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise BadRequest("'input' must be text or a list of at least one item", param="input")
    for at, item in enumerate(value):
        where = f"input[{at}]"
        if not isinstance(item, dict):
            raise BadRequest(f"'{where}' must be an object", param=where)
        _add(messages, item, where)
    if not messages:
        raise BadRequest("'input' holds nothing but reasoning; a message must go with it", param="input")
    return messages


def plain(messages: Sequence[ChatMessage]) -> tuple[tuple[Message, ...], tuple[Mapping[str, object], ...] | None]:
    """The messages' text, and the messages themselves where they hold more than plain text."""
    texts = tuple(Message(str(message["role"]), _text(message["content"])) for message in messages)
    is_plain = all(len(message) == 2 and isinstance(message["content"], str) for message in messages)
    return texts, None if is_plain else tuple(messages)


def _text(content: object) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content if part["type"] == "text")
    return content if isinstance(content, str) else ""


def _add(messages: list[ChatMessage], item: Mapping[str, object], where: str) -> None:
    match item.get("type") or "message":
        case "message":
            _add_message(messages, item, where)
        case "function_call":
            _add_call(messages, item, where)
        case "function_call_output":
            content = _content(item.get("output"), f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": _string(item, "call_id", where), "content": content})
        case "reasoning":
            pass
        case "item_reference":
            raise BadRequest(f"'{where}' refers to an item, and none are kept here: send it whole", param=where)
        case kind:
            raise BadRequest(
                f"'{where}' is a {kind!r}; here an item is a message, function_call, function_call_output or reasoning",
                param=f"{where}.type",
            )


def _add_message(messages: list[ChatMessage], item: Mapping[str, object], where: str) -> None:
    role = _ROLES.get(_string(item, "role", where))
    if role is None:
        raise BadRequest(f"'{where}.role' must be one of: {', '.join(_ROLES)}", param=f"{where}.role")
    given = item.get("content")
    content = "" if role == "assistant" and given == [] else _content(given, f"{where}.content")
    last = messages[-1] if messages else {}
    if role == "assistant" and last.get("role") == role and last.get("content") is None:
        last["content"] = content  # words after a call: the call's result must follow on the message that holds it
    else:
        messages.append({"role": role, "content": content})


def _add_call(messages: list[ChatMessage], item: Mapping[str, object], where: str) -> None:
    arguments = item.get("arguments")
    if not isinstance(arguments, str):
        raise BadRequest(f"'{where}.arguments' must be JSON as text", param=f"{where}.arguments")
    function = {"name": _string(item, "name", where), "arguments": arguments}
    call = {"id": _string(item, "call_id", where), "type": "function", "function": function}
    last = messages[-1] if messages else {}
    if last.get("role") != "assistant":
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        return
    calls = last.setdefault("tool_calls", [])
    assert isinstance(calls, list)
    calls.append(call)


def _content(value: object, where: str) -> object:
    """Text, or parts where they are more than one text: many servers read parts in a user's message only."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise BadRequest(f"'{where}' must be text or a list of at least one part", param=where)
    parts = [_part(part, f"{where}[{at}]") for at, part in enumerate(value)]
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _part(part: object, where: str) -> dict[str, object]:
    if not isinstance(part, dict):
        raise BadRequest(f"'{where}' must be an object with a type", param=where)
    kind = part.get("type")
    if kind in _TEXTS:
        return {"type": "text", "text": _string(part, "text", where, may_be_empty=True)}
    match kind:
        case "refusal":
            return {"type": "refusal", "refusal": _string(part, "refusal", where, may_be_empty=True)}
        case "input_image":
            return {"type": "image_url", "image_url": _image(part, where)}
        case "input_file":
            return {"type": "file", "file": _file(part, where)}
    raise BadRequest(
        f"'{where}' is a {kind!r}; here a part is an input_text, output_text, refusal, input_image or input_file",
        param=f"{where}.type",
    )


def _image(part: Mapping[str, object], where: str) -> dict[str, object]:
    if part.get("file_id"):
        raise BadRequest(f"'{where}.file_id': no files are kept here. Send an image_url", param=f"{where}.file_id")
    image: dict[str, object] = {"url": _string(part, "image_url", where)}
    return image | {"detail": _string(part, "detail", where)} if part.get("detail") is not None else image


def _file(part: Mapping[str, object], where: str) -> dict[str, object]:
    if part.get("file_url"):
        problem = "chat completions, which the upstream speaks, take no file by address. Send file_data"
        raise BadRequest(f"'{where}.file_url': {problem}", param=f"{where}.file_url")
    if part.get("file_id"):
        return {"file_id": _string(part, "file_id", where)}
    name = {"filename": _string(part, "filename", where)} if part.get("filename") is not None else {}
    return {**name, "file_data": _string(part, "file_data", where)}


def _string(holder: Mapping[str, object], name: str, where: str, *, may_be_empty: bool = False) -> str:
    value = holder.get(name)
    if not isinstance(value, str) or not (value or may_be_empty):
        raise BadRequest(f"'{where}.{name}' must be text", param=f"{where}.{name}")
    return value
