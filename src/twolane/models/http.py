"""HTTP/1.1 to one origin: what an adapter needs of it, and nothing on the way between two bytes.

A small client of our own, because the client is what a gateway's first token waits for: the general one it replaced was
the largest piece of the hot path (docs/decisions/0013-own-http-client.md). One request at a time on a connection,
connections kept and reused, no redirects (a key never leaves for another origin), no cookies, no compression.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Mapping
from urllib.parse import urlsplit

import httptools

CONNECT_S = 10.0
"""Longest wait for a connection, TLS included."""
KEEP_S = 30.0
"""How long an unused connection is kept, unless the server names a shorter time."""
PAUSE_BYTES = 262_144
"""A reader slower than the server lets this much pile up before the server must wait."""
MAX_HEAD_BYTES = 65_536


class Unreachable(Exception):
    """No connection could be made: the request never left."""


class BrokenOff(Exception):
    """The connection ended before the answer did, or what came was not HTTP."""


class Client:
    """Requests to one base address, such as `https://api.example.com/v1`, each with the same `headers`; a query in the
    address goes with every request."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None, "the configuration has checked the address"
        self._host, self._is_tls = parts.hostname, parts.scheme == "https"
        self._port = parts.port or (443 if self._is_tls else 80)
        self._base, self._query = parts.path.rstrip("/"), f"?{parts.query}" if parts.query else ""
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        if parts.port is not None:
            host = f"{host}:{parts.port}"
        lines = {"host": host, "user-agent": "twolane", **headers}
        self._lines = _head_lines(lines)
        self._tls: ssl.SSLContext | None = None
        self._idle: deque[_Connection] = deque()
        self._busy: set[_Connection] = set()

    async def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Response:
        """Send `body` and return once the head of the answer is there, whatever its status says.

        Raises:
            Unreachable: no connection could be made within `CONNECT_S`; nothing was sent.
            BrokenOff: the connection ended before the head was whole.
        """
        return await self._ask(b"POST", path, body, headers)

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> Response:
        """The same without a body."""
        return await self._ask(b"GET", path, b"", headers)

    async def _ask(self, method: bytes, path: str, body: bytes, headers: Mapping[str, str] | None) -> Response:
        connection = self._take() or await self._connect()
        self._busy.add(connection)
        line = b"%b %b HTTP/1.1\r\n" % (method, (self._base + path + self._query).encode("ascii"))
        length = b"content-length: %d\r\n" % len(body) if method == b"POST" else b""
        head = b"".join((line, self._lines, _head_lines(headers) if headers else b"", length, b"\r\n"))
        return await connection.ask(head, body)

    async def aclose(self) -> None:
        """Close every connection."""
        for connection in (*self._idle, *self._busy):
            connection.abort()
        self._idle.clear()

    def _take(self) -> _Connection | None:
        """The connection used last that is still good."""
        now = asyncio.get_running_loop().time()
        while self._idle and self._idle[0].is_stale(now):
            self._idle.popleft().abort()
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_stale(now):
                return connection
            connection.abort()
        return None

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        if self._is_tls and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), self._host, self._port, ssl=self._tls
                )
        except TimeoutError:
            raise Unreachable(f"no connection within {CONNECT_S:g} s") from None
        except (OSError, UnicodeError) as error:  # a host name of more than 63 letters is a UnicodeError
            raise Unreachable(str(error) or type(error).__name__) from None
        return connection

    def _is_free(self, connection: _Connection) -> None:
        """The connection's answer was read to its end, and it can carry another."""
        self._busy.discard(connection)
        self._idle.append(connection)

    def _is_lost(self, connection: _Connection) -> None:
        self._busy.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


class Response:
    """An answer: its head, and an async iterator over its body as it comes, each block what has piled up meanwhile.

    Iterating raises `BrokenOff` when the connection ends before the body does.
    """

    __slots__ = ("_blocks", "_connection", "_ended", "_error", "_held_bytes", "_waiter", "headers", "status")

    def __init__(self, connection: _Connection) -> None:
        self._connection: _Connection | None = connection
        self.status = 0
        self.headers: dict[str, str] = {}
        """By lower-case name; of several with one name the last."""
        self._blocks: list[bytes] = []
        self._held_bytes = 0
        self._ended = False
        self._error: BrokenOff | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> bytes:
        while not self._blocks:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        block = self._blocks[0] if len(self._blocks) == 1 else b"".join(self._blocks)
        self._blocks.clear()
        if self._held_bytes > PAUSE_BYTES and self._connection is not None:
            self._connection.resume()
        self._held_bytes = 0
        return block

    async def read(self, limit: int) -> bytes:
        """The body up to about `limit` bytes."""
        body = b""
        async for block in self:
            body += block
            if len(body) > limit:
                break
        return body

    def close(self) -> None:
        """Give up what has not come yet: the connection is closed, which is how a server learns to stop. An answer read
        to its end has given its connection back already. May be called at any time and more than once."""
        if self._connection is not None:
            self._connection.drop()
            self._end(None)

    # ── for its connection ──

    def _body(self, block: bytes) -> None:
        self._blocks.append(block)
        self._held_bytes += len(block)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end(self, error: BrokenOff | None) -> None:
        self._connection, self._ended, self._error = None, True, error
        self._wake()


class _Connection(asyncio.Protocol):
    """One connection, and the answer that is on its way over it, if any."""

    __slots__ = (
        "_client", "_free_since", "_head", "_head_bytes", "_is_endless", "_is_paused", "_keep_s", "_parser",
        "_response", "_transport",
    )  # fmt: skip

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._response: Response | None = None
        self._head: asyncio.Future[None] | None = None
        self._head_bytes = 0
        self._is_endless = self._is_paused = False
        self._keep_s, self._free_since = KEEP_S, 0.0
        self._parser = httptools.HttpResponseParser(self)

    async def ask(self, head: bytes, body: bytes) -> Response:
        """Send a request; its answer once the head is whole."""
        if self._transport is None or self._transport.is_closing():
            self.abort()
            raise BrokenOff("the connection was closed")
        self._response = response = Response(self)
        self._is_endless, self._head_bytes = False, 0
        told = self._head = asyncio.get_running_loop().create_future()
        self._transport.write(head + body if len(body) < PAUSE_BYTES else head)
        if len(body) >= PAUSE_BYTES:
            self._transport.write(body)
        try:
            await told
        except BaseException:
            response.close()
            raise
        return response  # by now the whole answer may be here, and the connection at work for another

    def is_stale(self, now: float) -> bool:
        """True where the server may close it at any moment, or has."""
        return self._transport is None or self._transport.is_closing() or now - self._free_since > self._keep_s

    def resume(self) -> None:
        """The reader has caught up."""
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close now, without a word."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
        self._client._is_lost(self)

    def drop(self) -> None:
        """Nobody wants the answer any more."""
        self._response = None
        self.abort()

    # ── asyncio.Protocol ──

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is a transport in all but its bases

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:  # words that nobody asked for
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, BrokenOff) as error:
            self._break(str(error) or "what came was not HTTP")
            return
        if response._blocks:
            response._wake()
            if response._held_bytes > PAUSE_BYTES and not self._is_paused and self._transport is not None:
                self._is_paused = True
                self._transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._response is not None and self._is_endless and error is None:
            self._finish(is_reusable=False)
        else:
            self._break(str(error) if error else "the server closed the connection")

    def _break(self, reason: str) -> None:
        self.abort()
        response, self._response = self._response, None
        if response is not None:
            response._end(BrokenOff(reason))
        if self._head is not None and not self._head.done():
            self._head.set_exception(BrokenOff(reason))

    def _finish(self, *, is_reusable: bool) -> None:
        response, self._response = self._response, None
        if response is not None:
            response._end(None)
        if is_reusable and self._transport is not None:
            self.resume()
            self._free_since = asyncio.get_running_loop().time()
            self._client._is_free(self)
        else:
            self.abort()

    # ── httptools ──

    def on_message_begin(self) -> None:
        if self._response is None:
            raise BrokenOff("an answer came that nobody had asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise BrokenOff(f"the head of the answer is longer than {MAX_HEAD_BYTES} bytes")
        if self._response is not None:
            self._response.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        response = self._response
        if response is None:
            return
        status = self._parser.get_status_code()
        if status < 200:  # an interim answer: the real one follows
            response.headers.clear()
            return
        response.status = status
        headers = response.headers
        self._is_endless = "content-length" not in headers and "chunked" not in headers.get("transfer-encoding", "")
        self._keep_s = _keep_s(headers.get("keep-alive"))
        if self._head is not None and not self._head.done():
            self._head.set_result(None)

    def on_body(self, block: bytes) -> None:
        if self._response is not None:
            self._response._body(block)

    def on_message_complete(self) -> None:
        if self._response is not None and self._response.status:
            self._finish(is_reusable=self._parser.should_keep_alive())


def _head_lines(headers: Mapping[str, str]) -> bytes:
    lines = b"".join(
        b"%b: %b\r\n" % (name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()
    )
    if lines.count(b"\n") != len(headers) or b"\x00" in lines:
        raise ValueError("a header holds a line end")
    return lines


def _keep_s(told: str | None) -> float:
    """How long to keep a connection whose server said `keep-alive: timeout=5`: a little less."""
    for part in (told or "").split(","):
        name, _, value = part.strip().partition("=")
        if name.lower() == "timeout" and value.isdigit():
            return min(KEEP_S, max(0.0, int(value) - 1.0))
    return KEEP_S
