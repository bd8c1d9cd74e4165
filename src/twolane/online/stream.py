"""Bytes in, bytes out: one HTTP exchange at the level of ASGI, and the client's hang-up."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from types import TracebackType

import orjson
from starlette.types import Receive, Scope, Send

from twolane.errors import BadRequest, Killed, TwolaneError
from twolane.kernel import new_id
from twolane.online.wire import Wire, error_headers, status_of

Header = tuple[bytes, bytes]

MAX_BODY_BYTES = 32 * 1024 * 1024
"""The largest request that is read."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_UNFIT = re.compile(rb"[^\x20-\x7e]")
_JSON: list[Header] = [(b"content-type", b"application/json")]
_EVENTS: list[Header] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientGone(Exception):
    """The client hung up before its request was read."""


class Exchange:
    """One HTTP request and its answer: what a handler needs of them, without the cost of larger objects."""

    __slots__ = ("_headers", "_receive", "_send", "error_event", "is_streaming", "request_id", "scope", "wire")

    def __init__(self, scope: Scope, receive: Receive, send: Send, wire: Wire) -> None:
        self.scope, self.wire, self._receive, self._send = scope, wire, receive, send
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        self.request_id = given.decode() if _REQUEST_ID.fullmatch(given) else new_id()
        """The client's own, if it is sane; on every answer."""
        self.is_streaming = False
        """True once a stream has begun: from then on an error is an event."""
        self.error_event: Callable[[TwolaneError | Killed], bytes] = wire.error_event
        """How an error is told inside a stream; a flow that numbers its events has its own way."""
        self._headers: list[Header] = [(b"x-request-id", self.request_id.encode())]

    async def body(self) -> bytes:
        """The request's body.

        Raises:
            BadRequest: with status 413, more than `MAX_BODY_BYTES`.
            ClientGone: it hung up before the end.
        """
        told = next((value for name, value in self.scope["headers"] if name == b"content-length"), b"0")
        if told.isdigit() and int(told) > MAX_BODY_BYTES:
            raise _too_large()
        message = await self._receive()
        parts, size = [], 0
        while True:
            if message["type"] == "http.disconnect":
                raise ClientGone
            part: bytes = message.get("body", b"")
            size += len(part)
            if size > MAX_BODY_BYTES:
                raise _too_large()
            parts.append(part)
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)
            message = await self._receive()

    def header(self, name: bytes) -> str:
        """What the request says under this lower-case name, empty if nothing."""
        return ", ".join(value.decode("latin-1") for told, value in self.scope["headers"] if told == name)

    async def hung_up(self) -> None:
        """Return when the client goes away, or has its whole answer. To be called once the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def tell(self, name: str, value: str) -> None:
        """Add a header to the answer, whatever the answer will be; what no header may hold is replaced."""
        self._headers.append((name.encode(), _UNFIT.sub(b"?", value.encode())))

    async def answer(self, status: int, fields: object, headers: list[Header] | None = None) -> None:
        """The whole answer, as JSON."""
        await self.answer_bytes(status, orjson.dumps(fields), headers)

    async def answer_bytes(self, status: int, body: bytes, headers: list[Header] | None = None) -> None:
        """The whole answer, as JSON that is written already."""
        length = (b"content-length", b"%d" % len(body))
        await self._start(status, [*_JSON, length, *(headers or ())])
        await self._send({"type": "http.response.body", "body": body})

    async def begin_stream(self) -> None:
        """Status 200, and events from here on."""
        self.is_streaming = True
        await self._start(200, _EVENTS)

    async def write(self, block: bytes) -> None:
        """Pass a block on; waits while the client reads more slowly than the upstream writes."""
        await self._send({"type": "http.response.body", "body": block, "more_body": True})

    async def end_stream(self, block: bytes) -> None:
        """The last block."""
        await self._send({"type": "http.response.body", "body": block})

    async def fail(self, error: TwolaneError | Killed) -> None:
        """Tell the client: as an HTTP error before the first byte, as the stream's last event after it."""
        if self.is_streaming:
            await self.end_stream(self.error_event(error))
        else:
            fields = self.wire.error_fields(error)
            if "request_id" in fields:  # a protocol whose errors name it
                fields["request_id"] = self.request_id
            await self.answer(status_of(error), fields, error_headers(error))

    async def _start(self, status: int, headers: list[Header]) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers + self._headers})


def _too_large() -> BadRequest:
    error = BadRequest(f"the request is larger than {MAX_BODY_BYTES // 2**20} MB")
    error.status, error.code = 413, "request_too_large"
    return error


class Hangup:
    """While open, a client that hangs up cancels the task that opened this; that cancellation ends here, silently.

    A bare ASGI application hears of a hang-up only if it waits for it; without this an upstream would go on generating
    for nobody. Open it before the upstream is called: a client may leave while it waits for the first token.
    """

    __slots__ = ("_exchange", "_has_come", "_task", "_watcher")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange, self._has_come = exchange, False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._watcher.cancel()
        if not self._has_come:
            return False
        self._task.uncancel()
        return isinstance(error, asyncio.CancelledError)

    async def _watch(self) -> None:
        await self._exchange.hung_up()
        self._has_come = True
        self._task.cancel("the client hung up")
