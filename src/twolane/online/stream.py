"""Bytes in, bytes out: one HTTP exchange at the level of ASGI, and the client's hang-up."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from types import TracebackType

import orjson
from starlette.types import Message, Receive, Scope, Send

from twolane.errors import BadRequest, Killed, TwolaneError
from twolane.kernel import new_id
from twolane.online.patience import Patience
from twolane.online.wire import Wire, error_headers, status_of

Header = tuple[bytes, bytes]

MAX_BODY_BYTES = 32 * 1024 * 1024
"""The largest request that is read."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_UNFIT = re.compile(rb"[^\x20-\x7e]")
_EVENTS: list[Header] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ClientGone(Exception):
    """The client hung up before its request was read."""


class Exchange:
    """One HTTP request and its answer: what a handler needs of them, without the cost of larger objects."""

    __slots__ = (
        "_has_waited",
        "_headers",
        "_is_cut",
        "_patience",
        "_quiet_since",
        "_reader",
        "_receive",
        "_said",
        "_send",
        "error_event",
        "is_kept_alive",
        "is_streaming",
        "request_id",
        "scope",
        "wire",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, wire: Wire, patience: Patience | None = None
    ) -> None:
        self.scope, self.wire, self._receive, self._send = scope, wire, receive, send
        self._patience = patience
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        self.request_id = given.decode() if _REQUEST_ID.fullmatch(given) else new_id()
        """The client's own, if it is sane; on every answer."""
        self.is_streaming = False
        """True once a stream has begun: from then on an error is an event."""
        self.error_event: Callable[[TwolaneError | Killed], bytes] = wire.error_event
        """How an error is told inside a stream; a flow that numbers its events has its own way."""
        self.is_kept_alive = False
        """True while silence is to be filled: set by the handler of a streamed answer, ended with it."""
        self._headers: list[Header] = [(b"x-request-id", self.request_id.encode())]
        self._said: bytes | None = b"\n\n"
        """What was written since the tick last looked, so that a write costs one store and reads no clock."""
        self._is_cut = False
        self._quiet_since = 0.0
        self._reader: asyncio.Task[object] | None = None
        """Who waits for the body."""
        self._has_waited = False

    @property
    def is_draining(self) -> bool:
        """True once the server was told to stop: an answer without an end of its own ends here."""
        return self._patience is not None and self._patience.is_draining

    async def body(self) -> bytes:
        """The request's body.

        Raises:
            BadRequest: with status 413, more than `MAX_BODY_BYTES`; with 408, it did not arrive in time, and the
                connection ends.
            Unavailable: too much is being read already.
            ClientGone: it hung up before the end.
        """
        told = next((value for name, value in self.scope["headers"] if name == b"content-length"), b"0")
        if told.isdigit() and int(told) > MAX_BODY_BYTES:
            raise _too_large()
        self._reader = task = asyncio.current_task()
        try:
            return await self._read()
        except asyncio.CancelledError:
            # Somebody else may have cancelled it too, in the same moment: that one goes on.
            if not self._has_waited or task is None or task.uncancel() > 0:
                raise
            self.tell("connection", "close")
            raise _too_late() from None
        finally:
            self._reader = None

    async def _read(self) -> bytes:
        message = await self._receive()
        if message["type"] != "http.disconnect" and not message.get("more_body"):
            whole: bytes = message.get("body", b"")
            if len(whole) > MAX_BODY_BYTES:
                raise _too_large()
            return whole
        parts, size = [], 0
        try:
            while True:
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part: bytes = message.get("body", b"")
                if size + len(part) > MAX_BODY_BYTES:
                    raise _too_large()
                if self._patience is not None:
                    self._patience.hold_body(len(part))
                size += len(part)
                parts.append(part)
                if not message.get("more_body"):
                    return b"".join(parts)
                message = await self._receive()
        finally:
            if self._patience is not None:
                self._patience.free_body(size)

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

    def tell_all(self, headers: Iterable[Header]) -> None:
        """Add headers that are sound as they are."""
        self._headers += headers

    async def answer(self, status: int, fields: object, headers: list[Header] | None = None) -> None:
        """The whole answer, as JSON."""
        await self.answer_bytes(status, orjson.dumps(fields), headers)

    async def answer_bytes(
        self, status: int, body: bytes, headers: list[Header] | None = None, *, kind: bytes = b"application/json"
    ) -> None:
        """The whole answer, as bytes that are written already."""
        told = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
        await self._start(status, [*told, *(headers or ())])
        await self._send({"type": "http.response.body", "body": body})

    async def begin_stream(self) -> None:
        """Status 200, and events from here on."""
        self.is_streaming = True
        await self._start(200, _EVENTS)

    async def write(self, block: bytes) -> None:
        """Pass a block on; waits while the client reads more slowly than the upstream writes."""
        self._said = block
        await self._send({"type": "http.response.body", "body": block, "more_body": True})

    async def end_stream(self, block: bytes) -> None:
        """The last block."""
        self.is_kept_alive = False
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

    # ── what the tick asks ──

    def look(self, now: float, *, keep_alive_s: float, body_s: float) -> None:
        """End the wait for a body that is late; say that a silent stream lives. `now` is an instant of the loop."""
        said = self._said
        if said is not None:
            self._said, self._quiet_since = None, now
            # An event too large to be kept passes in pieces: a word between two of them would be a part of it.
            self._is_cut = not said.endswith((b"\n\n", b"\n\r\n"))
        elif self._reader is not None:
            if now - self._quiet_since >= body_s and not self._has_waited:
                self._has_waited = True
                self._reader.cancel("the body did not arrive in time")
        elif self.is_kept_alive and now - self._quiet_since >= keep_alive_s and not self._is_cut:
            self._quiet_since = now
            self._keep_alive()

    def _keep_alive(self) -> None:
        if not self.is_streaming:
            if not self._put({"type": "http.response.start", "status": 200, "headers": _EVENTS + self._headers}):
                return
            self.is_streaming = True
        self._put({"type": "http.response.body", "body": self.wire.keep_alive, "more_body": True})

    def _put(self, message: Message) -> bool:
        """Send this now or not at all. A server's `send` waits before it writes, and only while a client is slow: it
        then has more to read than a sign of life, and a write that waits there comes first."""
        sending = self._send(message)
        try:
            sending.send(None)  # type: ignore[attr-defined]  # a coroutine, as every server's is
        except StopIteration:
            return True
        sending.close()  # type: ignore[attr-defined]
        return False

    async def _start(self, status: int, headers: list[Header]) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers + self._headers})


def _too_large() -> BadRequest:
    error = BadRequest(f"the request is larger than {MAX_BODY_BYTES // 2**20} MB")
    error.status, error.code = 413, "request_too_large"
    return error


def _too_late() -> BadRequest:
    error = BadRequest("the body of the request did not arrive in time. Send it again")
    error.status, error.code, error.should_retry = 408, "request_timeout", True
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
