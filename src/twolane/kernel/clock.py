"""Time that a call holds of a budget, while the call runs. Nobody can bound it before: it is held a slice at a time,
more is asked for before a slice is used up, and where there is no more the call is cut off in time. Only calls whose
chain has a budget of seconds or accelerator-seconds have a clock.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from twolane.errors import StoreError, TwolaneError
from twolane.kernel.treasury import Hold, Treasury
from twolane.kernel.watch import Patience
from twolane.rules.budgets import CUT_US

ASK_S = 0.5
"""More is asked for at nine tenths of a slice, and at least so long before it is cut off: a commit, and a few tries."""
AGAIN_S = 0.05
"""After a refusal it is asked again, as long as there is time: calls that end give time back."""

_LOG = logging.getLogger("twolane.kernel")


class Clock:
    """The time of one call. `refusal` is there once it is used up: nothing more may be waited for."""

    def __init__(
        self, treasury: Treasury, hold: Hold, cut: Callable[[], None], *, accelerators: int = 0, slots: int = 1
    ) -> None:
        """`cut` ends the call; it is called once, without an await, and then `refusal` says why. After it, whoever
        waits for the upstream waits no longer."""
        self._treasury, self._hold, self._cut = treasury, hold, cut
        self._accelerators, self._slots = accelerators, slots
        self._loop = asyncio.get_running_loop()
        self._until = 0.0
        self._timers: list[asyncio.TimerHandle] = []
        self._asking: asyncio.Task[None] | None = None
        self._refused: TwolaneError = StoreError("no more time could be held for the call before it was used up")
        self.refusal: TwolaneError | None = None
        self.patience: Patience | None = None
        """Of the task that waits for the upstream."""

    def begin(self) -> None:
        """The call leaves now."""
        self._until = self._loop.time()
        self._has_got(self._hold.amount.us)

    def end(self) -> None:
        """The call is over."""
        for timer in self._timers:
            timer.cancel()
        if self._asking is not None:
            self._asking.cancel()

    def _has_got(self, us: int) -> None:
        for timer in self._timers:
            timer.cancel()
        self._until += us / 1e6
        last = self._until - CUT_US / 1e6
        ahead = min(last - ASK_S, self._until - us / 1e7)
        self._timers = [self._loop.call_at(ahead, self._ask), self._loop.call_at(last, self._use_up)]

    def _ask(self) -> None:
        self._asking = self._loop.create_task(self._hold_more())

    async def _hold_more(self) -> None:
        try:
            answer = await self._treasury.hold_time(self._hold.step, accelerators=self._accelerators, slots=self._slots)
        except StoreError as error:
            _LOG.warning("no time could be held for a call, trying again: %s", error)
            self._timers[0] = self._loop.call_later(AGAIN_S, self._ask)
            return
        if self.refusal is not None:
            return
        if answer is None:  # nothing limits its time any more
            self.end()
        elif isinstance(answer, int):
            self._has_got(answer)
        else:
            self._refused = answer
            self._timers[0] = self._loop.call_later(AGAIN_S, self._ask)

    def _use_up(self) -> None:
        self.end()
        self.refusal = self._refused
        self._cut()
        if self.patience is not None and self.patience.is_waiting:
            self.patience.end()
