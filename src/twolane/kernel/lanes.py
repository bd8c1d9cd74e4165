"""Slots: how many calls of each lane may be in flight on each upstream. Lanes never share them."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping

from twolane.domain.records import Lane
from twolane.errors import LaneFull


class Slots:
    """The slots of one lane on one upstream; whoever waited longest is next."""

    def __init__(self, upstream: str, lane: Lane, count: int) -> None:
        self.upstream, self.lane, self.count = upstream, lane, count
        self.busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._held_s = 0.5
        """How long a slot is held, smoothed: what an honest retry-after is made of."""

    async def acquire(self, deadline_s: float | None) -> float:
        """Take a slot, waiting at most `deadline_s` (None: as long as it takes). Gives the seconds waited.

        Raises:
            LaneFull: no slot came free in time.
        """
        if self.busy < self.count and not self._waiting:
            self.busy += 1
            return 0.0
        began = time.monotonic()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(deadline_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._pass_on()  # the slot came at the moment we left
            else:
                self._waiting.remove(turn) if turn in self._waiting else None
            if isinstance(error, TimeoutError):
                raise self._full(time.monotonic() - began) from None
            raise
        return time.monotonic() - began

    def release(self, held_s: float) -> None:
        """Give the slot back, to the next in line if there is one."""
        self._held_s += (held_s - self._held_s) / 8
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.busy -= 1

    def _full(self, waited_s: float) -> LaneFull:
        rounds = (len(self._waiting) + 1) / self.count
        return LaneFull(self.lane, self.upstream, waited_s=waited_s, retry_after_s=max(0.05, rounds * self._held_s))


class Lanes:
    """Every upstream's slots, by lane."""

    def __init__(self, counts: Mapping[str, Mapping[Lane, int]]) -> None:
        self._slots = {
            (upstream, lane): Slots(upstream, lane, count)
            for upstream, lanes in counts.items()
            for lane, count in lanes.items()
        }

    def slots(self, upstream: str, lane: Lane) -> Slots:
        """The slots of `lane` on `upstream`."""
        return self._slots[upstream, lane]
