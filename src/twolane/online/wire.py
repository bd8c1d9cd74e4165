"""OpenAI's shapes: what a client's request means, what an error looks like, which models there are. No I/O here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import orjson

from twolane.domain.records import Message, ModelCall, ReplySchema
from twolane.errors import BadRequest, Killed, LaneFull, NotFound, TwolaneError, Unauthenticated, UpstreamError

MAX_CHOICES = 128
"""The most answers (`n`) of one request."""

REFUSED = frozenset(
    "api_base api_key api_type api_version azure_endpoint base_url custom_llm_provider extra_body extra_headers "
    "headers organization proxy url".split()
)
"""Fields by which some clients ask a proxy to call another place, or with another key: the route decides that here."""


# ── requests ──


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion as a client asks for it. The call's `max_tokens` is 0 where the client named none."""

    model: str
    """The name of a route or of an upstream."""
    call: ModelCall
    is_streamed: bool
    wants_usage: bool
    """The client asked for usage in its stream; in a whole answer it always stands."""


def read_chat(body: bytes) -> ChatRequest:
    """Read a chat completion request: the fields we act on are checked, all others pass through as `extras`.

    Raises:
        BadRequest: not JSON, or a field we act on is missing or wrong; `param` names it.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadRequest("the body must be a JSON object")
    refused = next((name for name in fields if name in REFUSED), None)
    if refused is not None:
        raise BadRequest(f"{refused!r} is not taken: the route decides where a call goes. Leave it out", param=refused)
    model = fields.pop("model", None)
    if not isinstance(model, str) or not model:
        raise BadRequest("'model' must be the name of a route or an upstream; GET /v1/models lists them", param="model")
    is_streamed = _flag(fields.pop("stream", None), "stream")
    options = fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise BadRequest("'stream_options' must be an object", param="stream_options")
    _choices(fields.get("n"))
    messages, raw_messages = _messages(fields.pop("messages", None))
    call = ModelCall(
        messages=messages,
        model="",
        max_tokens=_max_tokens(fields),
        temperature=_temperature(fields.pop("temperature", None)),
        schema=_schema(fields),
        extras=fields,
        raw_messages=raw_messages,
    )
    return ChatRequest(model, call, is_streamed, wants_usage=bool(options and options.get("include_usage")))


def _messages(value: object) -> tuple[tuple[Message, ...], tuple[Mapping[str, object], ...] | None]:
    """The messages' text, and the messages as they came where they hold more than plain text."""
    if not isinstance(value, list) or not value:
        raise BadRequest("'messages' must be a list of at least one message", param="messages")
    texts, is_plain = [], True
    for at, message in enumerate(value):
        where = f"messages[{at}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) or not message["role"]:
            raise BadRequest(f"'{where}' must be an object with a role", param=where)
        content = message.get("content")
        is_plain = is_plain and isinstance(content, str) and len(message) == 2
        texts.append(Message(message["role"], _text(message, content, where)))
    return tuple(texts), None if is_plain else tuple(value)


def _text(message: Mapping[str, object], content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if content is None and any(message.get(name) for name in ("tool_calls", "function_call", "refusal", "audio")):
        return ""
    if isinstance(content, list) and content and all(isinstance(part, dict) and "type" in part for part in content):
        return "\n".join(part["text"] for part in content if isinstance(part.get("text"), str))
    problem = "must be text, a list of parts that each have a type, or null beside tool_calls"
    raise BadRequest(f"'{where}.content' {problem}", param=f"{where}.content")


def _flag(value: object, name: str) -> bool:
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"'{name}' must be true or false", param=name)
    return bool(value)


def _choices(value: object) -> None:
    if value is not None and not (type(value) is int and 1 <= value <= MAX_CHOICES):
        raise BadRequest(f"'n' must be a whole number from 1 to {MAX_CHOICES}", param="n")


def _max_tokens(fields: dict[str, object]) -> int:
    """The client's limit, 0 for none. `max_completion_tokens` stays in the fields: an upstream is told under the name
    that the client used."""
    limits = []
    for name, value in (
        ("max_tokens", fields.pop("max_tokens", None)),
        ("max_completion_tokens", fields.get("max_completion_tokens")),
    ):
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise BadRequest(f"'{name}' must be a whole number of at least 1", param=name)
        limits.append(value)
    return min(limits, default=0)


def _temperature(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise BadRequest("'temperature' must be a number of at least 0", param="temperature")
    return float(value)


def _schema(fields: dict[str, object]) -> ReplySchema | None:
    """Take a `json_schema` response format out of the fields; other formats pass through."""
    wanted = fields.get("response_format")
    if wanted is None:
        return None
    if not isinstance(wanted, dict):
        raise BadRequest("'response_format' must be an object", param="response_format")
    if wanted.get("type") != "json_schema":
        return None
    described = wanted.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(described, dict) or not isinstance(schema, dict):
        where = "response_format.json_schema"
        raise BadRequest(f"'{where}' must be an object with a schema", param=where)
    del fields["response_format"]
    return ReplySchema(str(described.get("name") or "reply"), schema, described.get("strict") is True)


# ── errors ──

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_NOT_THE_CLIENTS = frozenset({401, 402, 403, 404, 405, 407})
"""With these an upstream speaks about us (our key, our address), not about the client's request."""


def status_of(error: TwolaneError | Killed) -> int:
    """The HTTP status an error has for our client."""
    if isinstance(error, Killed):
        return 503
    if isinstance(error, UpstreamError) and error.status in _NOT_THE_CLIENTS:
        return 502
    return error.status


def error_fields(error: TwolaneError | Killed) -> dict[str, object]:
    """An error as OpenAI's clients read it. It names no address and no secret of an upstream."""
    status = status_of(error)
    code = "switch_tripped" if isinstance(error, Killed) else error.code
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {
        "error": {
            "message": _message(error),
            "type": code if code == "insufficient_quota" else kind,
            "param": getattr(error, "param", None),
            "code": code,
        }
    }


def _message(error: TwolaneError | Killed) -> str:
    if isinstance(error, Killed):
        return f"{error.scope}: stopped by its switch while it ran ({error.cause})"
    if isinstance(error, UpstreamError) and error.is_gone:
        return f"upstream {error.upstream}: it cannot be reached"
    return str(error)


def error_headers(error: TwolaneError | Killed) -> list[tuple[bytes, bytes]]:
    """What tells a client's own retries what to do."""
    should_retry = not isinstance(error, Killed) and error.should_retry
    headers = [(b"x-should-retry", b"true" if should_retry else b"false")]
    delay_s = error.retry_after_s if isinstance(error, LaneFull | UpstreamError) else None
    if delay_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(delay_s))))
        headers.append((b"retry-after-ms", b"%d" % max(1, math.ceil(delay_s * 1000))))
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def unforeseen(request_id: str) -> TwolaneError:
    """What a client is told when we broke in a way nobody foresaw; the rest stands in the log, under the same id."""
    return TwolaneError(f"Something broke here that was not foreseen. The operator finds it in the log as {request_id}")


# ── models ──


def model_fields(name: str) -> dict[str, object]:
    """One model. A route is as old as its configuration, which nobody knows: `created` is 0 because clients want a
    number."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "twolane"}


def models_fields(names: Iterable[str]) -> dict[str, object]:
    """The list of models."""
    return {"object": "list", "data": [model_fields(name) for name in names]}


def no_such_model(error: NotFound) -> NotFound:
    """The same error under the code that OpenAI's clients know."""
    error.code = "model_not_found"
    return error
