"""A load client for what the bench kit's cannot express: users who think between two questions, who hang up before
the first token, whose refusals are timed. One `asyncio.Protocol` a connection, so that the client is not what is
measured."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import httptools


@dataclass(frozen=True)
class Target:
    """Where requests go, and as what."""

    url: str
    """Up to the port."""
    model: str
    key: str = "none"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urllib.parse.urlsplit(self.url)
        return parts.hostname or "127.0.0.1", parts.port or 80

    def request(self, *, is_streamed: bool = True) -> bytes:
        """A chat request of some 450 bytes, as it goes over the wire."""
        text = "Summarise clause 7. " + "x" * 400
        body: dict[str, object] = {"model": self.model, "messages": [{"role": "user", "content": text}]}
        if is_streamed:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        raw = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self.address[0]}:{self.address[1]}\r\n"
            f"authorization: Bearer {self.key}\r\ncontent-type: application/json\r\ncontent-length: {len(raw)}\r\n\r\n"
        )
        return head.encode() + raw


@dataclass
class Reply:
    """How one request went. Times are seconds since it was written."""

    began: float = field(default_factory=time.perf_counter)
    status: int = 0
    """0: no answer came."""
    first_s: float = 0.0
    """To the first event that holds JSON, or the first byte of a body; 0 before."""
    total_s: float = 0.0
    events: int = 0
    """Events with text."""
    problem: str = "no answer"
    """Why it is no good answer; empty for a good one."""
    is_done: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def is_refused(self) -> bool:
        """A clean no: 429 or 503 with an error body."""
        return self.status in (429, 503) and self.problem == f"status {self.status}"


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.is_open = False
        self._transport: asyncio.Transport | None = None
        self._over: asyncio.Future[Reply] | None = None
        self._reply = Reply()
        self._on_events: Callable[[int], None] | None = None
        self._is_streamed, self._tail = True, b""

    @classmethod
    async def to(cls, target: Target) -> Connection:
        """An open connection."""
        _, made = await asyncio.get_running_loop().create_connection(cls, *target.address)
        return made

    def ask(
        self, request: bytes, *, is_streamed: bool = True, on_events: Callable[[int], None] | None = None
    ) -> asyncio.Future[Reply]:
        """Write a request; the future ends with its reply, whatever became of it. `on_events` hears how many events
        with text have come, each time some did."""
        assert self._transport is not None
        self._over = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._is_streamed, self._tail, self._on_events = is_streamed, b"", on_events
        self._reply = Reply()
        self._transport.write(request)
        return self._over

    def hang_up(self) -> None:
        """Close the socket at once, as a client that was killed does."""
        if self._transport is not None:
            self._transport.abort()
        self._end("hung up")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # the fast loop's are not subclasses of it
        self.is_open = True

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        self._end("the connection was lost")

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {error}")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._reply.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        reply = self._reply
        if not reply.first_s and (not self._is_streamed or b"data: {" in body):
            reply.first_s = time.perf_counter() - reply.began
        if not self._is_streamed:
            return
        if b'data: {"error"' in body:
            reply.problem = "an error event"
        if b"[DONE]" in self._tail + body:
            reply.is_done = True
        self._tail = body[-8:]
        came = body.count(b'"content":"') - body.count(b'"content":""')
        reply.events += came
        if came and self._on_events is not None:
            self._on_events(reply.events)

    def on_message_complete(self) -> None:
        reply = self._reply
        reply.status = self._parser.get_status_code()
        if not self._parser.should_keep_alive():
            self.is_open = False
        if reply.status != 200:
            self._end(f"status {reply.status}")
        elif self._is_streamed and reply.problem == "no answer" and not reply.is_done:
            self._end("no [DONE]")
        else:
            self._end("" if reply.problem == "no answer" else reply.problem)

    def _end(self, problem: str) -> None:
        reply = self._reply
        if self._over is not None and not self._over.done():
            reply.problem, reply.total_s = problem, time.perf_counter() - reply.began
            self._over.set_result(reply)


class Pool:
    """Connections that are used again."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._free: list[Connection] = []

    async def warm(self, count: int) -> None:
        """Hold this many open connections ready."""
        missing = count - len(self._free)
        for start in range(0, missing, 100):  # a listener's backlog is finite
            made = (Connection.to(self.target) for _ in range(min(100, missing - start)))
            self._free += await asyncio.gather(*made)

    async def ask(self, request: bytes, *, is_streamed: bool = True, timeout_s: float = 120) -> Reply:
        """One request on a free connection, or a new one."""
        connection = self._free.pop() if self._free else None
        while connection is not None and not connection.is_open:
            connection = self._free.pop() if self._free else None
        began = time.perf_counter()
        try:
            connection = connection or await Connection.to(self.target)
            async with asyncio.timeout(timeout_s):
                reply = await connection.ask(request, is_streamed=is_streamed)
        except OSError as error:  # among them a timeout
            if connection is not None:
                connection.hang_up()
            return Reply(began, total_s=time.perf_counter() - began, problem=type(error).__name__)
        if connection.is_open:
            self._free.append(connection)
        return reply

    def close(self) -> None:
        """Close what is open."""
        for connection in self._free:
            connection.hang_up()
        self._free.clear()


def quantile(values: list[float], part: float) -> float | None:
    """The value below which `part` of them lie; None of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else None


def milliseconds(seconds: float | None) -> float | None:
    """Rounded to hundredths."""
    return None if seconds is None else round(seconds * 1000, 2)


def spread_ms(seconds: list[float]) -> dict[str, float | int | None]:
    """How many, three percentiles and the largest, in milliseconds."""
    return {
        "n": len(seconds),
        "p10": milliseconds(quantile(seconds, 0.1)),
        "p50": milliseconds(quantile(seconds, 0.5)),
        "p99": milliseconds(quantile(seconds, 0.99)),
        "max": milliseconds(max(seconds, default=None)),
    }
