"""What every protocol of the gateway fills in, and what all share: OpenAI's errors, the list of models. No I/O here."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable
from typing import Protocol

import orjson

from twolane.domain.completion import Completion
from twolane.domain.records import ModelCall, Usage
from twolane.errors import (
    BadRequest,
    Killed,
    LaneFull,
    NotFound,
    TwolaneError,
    Unauthenticated,
    Unavailable,
    UpstreamError,
)
from twolane.rules.rates import Told

LARGE = 1_000_000
"""Bytes from which on a body is parsed without looking for garbage."""
REFUSED = frozenset(
    "api_base api_key api_type api_version azure_endpoint base_url custom_llm_provider extra_body extra_headers "
    "headers organization proxy url".split()
)
"""Fields by which some clients ask a proxy to call another place, or with another key: the route decides that here."""

MAX_PARTS = 16_384
"""The most messages, and parts of messages, of one request. Half a million tiny ones fit into 20 MB, and to read them
would keep every other client waiting for seconds."""


class Flow(Protocol):
    """What of an upstream's stream goes to the client, in the client's own protocol, and when.

    Where an error in mid-stream depends on what was sent before it, a flow has an `error_event` of its own, which then
    takes the place of its wire's.
    """

    @property
    def has_failed(self) -> bool:
        """True once an error of the upstream's own was passed on: nothing may follow it."""
        ...

    def take(self, block: bytes) -> bytes:
        """What may leave now that this block has come; empty where nothing may.

        Raises:
            EventError: the stream holds something that cannot be told in this protocol.
        """
        ...

    def end(self) -> bytes:
        """What closes the stream: to be sent when the step's record is on disk."""
        ...


class Named(Protocol):
    """What a step is made of. The call's `max_tokens` is 0 where the client named none."""

    @property
    def model(self) -> str:
        """The name of a route or of an upstream."""
        ...

    @property
    def call(self) -> ModelCall:
        """What is asked of the upstream; `model` is filled in by the door."""
        ...


class Asked(Named, Protocol):
    """One request for words as a client meant it."""

    @property
    def is_streamed(self) -> bool:
        """True where the client reads events."""
        ...

    def flow(self, step: str) -> Flow:
        """The events of its answer."""
        ...

    def whole(self, completion: Completion, step: str, usage: Usage | None) -> dict[str, object]:
        """Its answer in one piece; `usage` is what the record says, None where nothing does yet."""
        ...


class Wire(Protocol):
    """A protocol that clients speak."""

    keep_alive: bytes
    """What may be sent at any time between events, and says nothing."""

    def read(self, body: bytes) -> Asked:
        """The request in a body.

        Raises:
            BadRequest: not JSON, or a field we act on is missing or wrong; `param` names it.
        """
        ...

    def error_fields(self, error: TwolaneError | Killed) -> dict[str, object]:
        """An error as its clients read it. It names no address and no secret of an upstream."""
        ...

    def error_event(self, error: TwolaneError | Killed) -> bytes:
        """The same inside a stream that has begun."""
        ...


def read_object(body: bytes, *, counted: Iterable[str] = ("messages", "input")) -> dict[str, object]:
    """The JSON object in a body, without fields by which a client would choose the address or the key of a call.

    Raises:
        BadRequest: it is not one, or holds such a field, or more than `MAX_PARTS` messages and their parts in one of
            the fields `counted`.
    """
    try:
        fields = _loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadRequest("the body must be a JSON object")
    if not REFUSED.isdisjoint(fields):
        refused = next(name for name in fields if name in REFUSED)
        raise BadRequest(f"{refused!r} is not taken: the route decides where a call goes. Leave it out", param=refused)
    for name in counted:
        if _parts(fields.get(name)) > MAX_PARTS:
            raise BadRequest(f"'{name}' may hold at most {MAX_PARTS:,} messages and parts of messages", param=name)
    return fields


def _loads(body: bytes) -> object:
    """Parse. Nobody else moves meanwhile, and of a large body of small lists two thirds of that time went into looking
    for garbage among them."""
    if len(body) < LARGE or not gc.isenabled():
        return orjson.loads(body)
    gc.disable()
    try:
        return orjson.loads(body)
    finally:
        gc.enable()


def _parts(messages: object) -> int:
    """How many messages there are, and parts of them: those that are lists of parts count as many."""
    if not isinstance(messages, list) or len(messages) > MAX_PARTS:
        return len(messages) if isinstance(messages, list) else 0
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    return len(messages) + sum(len(content) for content in contents if isinstance(content, list))


def take_model(fields: dict[str, object]) -> str:
    """Take the name of the route or upstream out of a request's fields.

    Raises:
        BadRequest: there is none.
    """
    model = fields.pop("model", None)
    if not isinstance(model, str) or not model:
        raise BadRequest("'model' must be the name of a route or an upstream; GET /v1/models lists them", param="model")
    return model


def take_flag(fields: dict[str, object], name: str) -> bool:
    """Take a truth value out of a request's fields; left out and null are false.

    Raises:
        BadRequest: it is something else.
    """
    value = fields.pop(name, None)
    if value is not None and not isinstance(value, bool):
        raise BadRequest(f"'{name}' must be true or false", param=name)
    return bool(value)


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


class OpenAIErrors:
    """Errors, and silence, as OpenAI's clients read them."""

    keep_alive = b": keep-alive\n\n"

    def error_fields(self, error: TwolaneError | Killed) -> dict[str, object]:
        """See `Wire.error_fields`."""
        status = status_of(error)
        code = "switch_tripped" if isinstance(error, Killed) else error.code
        kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
        return {
            "error": {
                "message": message_of(error),
                "type": code if code == "insufficient_quota" else kind,
                "param": getattr(error, "param", None),
                "code": code,
            }
        }

    def error_event(self, error: TwolaneError | Killed) -> bytes:
        """See `Wire.error_event`."""
        return b"data: " + orjson.dumps(self.error_fields(error)) + b"\n\n"


def message_of(error: TwolaneError | Killed) -> str:
    """An error in words that a client may read: no address and no secret of an upstream stands in them."""
    if isinstance(error, Killed):
        return f"{error.scope}: stopped by its switch while it ran ({error.cause})"
    if isinstance(error, UpstreamError) and error.is_gone:
        return f"upstream {error.upstream}: it cannot be reached"
    return str(error)


def error_headers(error: TwolaneError | Killed) -> list[tuple[bytes, bytes]]:
    """What tells a client's own retries what to do."""
    should_retry = not isinstance(error, Killed) and error.should_retry
    headers = [(b"x-should-retry", b"true" if should_retry else b"false")]
    delay_s = error.retry_after_s if isinstance(error, LaneFull | Unavailable | UpstreamError) else None
    if delay_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(delay_s))))
        headers.append((b"retry-after-ms", b"%d" % max(1, math.ceil(delay_s * 1000))))
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    return headers


def rate_headers(told: Iterable[Told]) -> list[tuple[bytes, bytes]]:
    """The limits of a lane as OpenAI's clients read them: `x-ratelimit-limit-requests`, `-remaining-`, `-reset-`, and
    the same for tokens. What nobody knows is left out.

    Source: https://platform.openai.com/docs/guides/rate-limits
    """
    headers = []
    for each in told:
        reset = None if each.reset_s is None else _duration(each.reset_s)
        for part, value in (("limit", each.limit), ("remaining", each.remaining), ("reset", reset)):
            if value is not None:
                headers.append((f"x-ratelimit-{part}-{each.what}".encode(), str(value).encode()))
    return headers


def _duration(seconds: float) -> str:
    """As `20ms`, `7s` or `6m0s`, rounded up."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def unforeseen(request_id: str) -> TwolaneError:
    """What a client is told when we broke in a way nobody foresaw; the rest stands in the log, under the same id."""
    return TwolaneError(f"Something broke here that was not foreseen. The operator finds it in the log as {request_id}")


# ── models ──


def model_fields(name: str) -> dict[str, object]:
    """One model, as OpenAI's and as Anthropic's clients read it. A route is as old as its configuration, which nobody
    knows: both times are 1970, because clients want one."""
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "twolane",
        "type": "model",
        "display_name": name,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "active",
    }


def models_fields(names: Iterable[str]) -> dict[str, object]:
    """The list of models: one page, whatever a client asks for."""
    models = [model_fields(name) for name in names]
    ends = {"first_id": models[0]["id"], "last_id": models[-1]["id"]} if models else {"first_id": None, "last_id": None}
    return {"object": "list", "data": models, "has_more": False, **ends}


def no_such_model(error: NotFound) -> NotFound:
    """The same error under the code that OpenAI's clients know."""
    error.code, error.param = "model_not_found", "model"
    return error
