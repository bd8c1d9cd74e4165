"""How long the gateway waits for a client, and a client for the gateway: one tick over all that is open.

A request costs no timer and no task of its own: whatever is open lies in a set, and one `call_later` looks through it
while there is anything to look at. So an instant is kept to within a tick (an eighth of the shortest patience, and at
most a second).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from twolane.errors import Unavailable

if TYPE_CHECKING:
    from twolane.online.connection import Connection
    from twolane.online.stream import Exchange

KEEP_ALIVE_S = 15.0
"""After so long without a word a stream says that it lives: proxies cut what is silent for 30 or 60 s."""
STALL_S = 60.0
"""How long a client may take nothing of what was sent to it."""
BODY_S = 30.0
"""How long the body of a request may take to arrive."""
BODIES_BYTES = 256 * 1024 * 1024
"""The most that unfinished bodies may hold together."""
LEAST_TAKEN_BYTES = 16 * 1024
"""A client that takes less than this within `STALL_S` counts as taking nothing: drop by drop it could stay for ever."""
LONGEST_TICK_S = 1.0
BUSY_RETRY_S = 1.0

_LOG = logging.getLogger("twolane.online")


@dataclass(slots=True)
class _Stall:
    since: float
    left_bytes: int


class Patience:
    """What is open in this process, and how long each may keep the others waiting. One for each gateway."""

    def __init__(
        self,
        *,
        keep_alive_s: float = KEEP_ALIVE_S,
        stall_s: float = STALL_S,
        body_s: float = BODY_S,
        bodies_bytes: int = BODIES_BYTES,
    ) -> None:
        self.keep_alive_s, self.stall_s, self.body_s, self.bodies_bytes = keep_alive_s, stall_s, body_s, bodies_bytes
        self.is_draining = False
        """True once the server was told to stop: nobody who comes now is waited for."""
        self.held_bytes = 0
        """What unfinished bodies hold now."""
        self._tick_s = min(LONGEST_TICK_S, keep_alive_s / 8, stall_s / 8, body_s / 8)
        self._open: set[Exchange] = set()
        self._stalled: dict[Connection, _Stall] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_ticking(self) -> bool:
        """True while there is anything to look at, and until the next look after that."""
        return self._timer is not None

    def watch(self, exchange: Exchange) -> None:
        """Look after this exchange until `leave`."""
        self._open.add(exchange)
        if self._timer is None:
            self._arm()

    def leave(self, exchange: Exchange) -> None:
        """It is over."""
        self._open.discard(exchange)

    def stalled(self, connection: Connection) -> None:
        """The client does not take what is sent to it."""
        size = connection.transport.get_write_buffer_size()
        self._stalled[connection] = _Stall(connection.loop.time(), size)
        if self._timer is None:
            self._arm()

    def moved(self, connection: Connection) -> None:
        """It took it, or is gone."""
        self._stalled.pop(connection, None)

    def hold_body(self, size: int) -> None:
        """Count a part of a body that is not complete; whoever does so ends it with `free_body`.

        Raises:
            Unavailable: all that is being read together would be too much.
        """
        if self.held_bytes + size > self.bodies_bytes:
            raise Unavailable(
                "more is being sent here at this moment than can be read",
                code="too_much_at_once",
                retry_after_s=BUSY_RETRY_S,
            )
        self.held_bytes += size

    def free_body(self, size: int) -> None:
        """The body is complete, or given up."""
        self.held_bytes -= size

    def _arm(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._tick_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.look(asyncio.get_running_loop().time())
        if self._open or self._stalled:
            self._arm()

    def look(self, now: float) -> None:
        """Act on whoever kept the others waiting for too long; `now` is an instant of the loop's clock."""
        for exchange in list(self._open):
            try:
                exchange.look(now, keep_alive_s=self.keep_alive_s, body_s=self.body_s)
            except Exception:  # noqa: BLE001 - the outermost turn of the tick: the other exchanges are looked at
                _LOG.exception("request %s", exchange.request_id)
        for connection, stall in list(self._stalled.items()):
            left = connection.transport.get_write_buffer_size()
            if left <= stall.left_bytes - LEAST_TAKEN_BYTES:
                stall.since, stall.left_bytes = now, left
            elif now - stall.since >= self.stall_s:
                connection.give_up()
