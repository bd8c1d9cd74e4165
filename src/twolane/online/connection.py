"""One client's connection, as far as it differs from uvicorn's."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from twolane.online.patience import Patience


class Connection(HttpToolsProtocol):
    """uvicorn's connection, which tells when its client stops taking what is sent, and can be left at once."""

    def __init__(self, patience: Patience, **options: Any) -> None:  # Any: uvicorn's, passed through
        super().__init__(**options)
        self._patience = patience

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own word
        """A client came."""
        super().connection_made(_HeadAndBody(transport, self.loop))  # type: ignore[arg-type]  # as far as it is used

    def pause_writing(self) -> None:
        """Too much waits to be taken."""
        super().pause_writing()
        self._patience.stalled(self)

    def resume_writing(self) -> None:
        """It was taken."""
        super().resume_writing()
        self._patience.moved(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, whoever ended it."""
        self._patience.moved(self)
        super().connection_lost(exc)

    def give_up(self) -> None:
        """Leave the client: to close would wait until it has taken everything. Who answers it hears of a hang-up."""
        self._patience.moved(self)
        self.transport.abort()

    def end_after_answer(self) -> None:
        """Take no further request after the one that is being answered. Where none is, the next one is turned away."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever its type says
        if cycle is not None and not cycle.response_complete:
            cycle.keep_alive = False


class _HeadAndBody:
    """A client's transport that sends the head of an answer together with what follows it at once: one system call and
    one packet less before the first token."""

    __slots__ = ("_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop, self._head = transport, loop, b""

    def write(self, data: bytes) -> None:
        """A head waits for the end of this turn of the loop; all else goes now."""
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self._send_head)
            return
        self._transport.write(data)

    def _send_head(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def close(self) -> None:
        """What was written is sent first."""
        self._send_head()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:  # Any: the rest of a transport, as it is
        return getattr(self._transport, name)
