"""How much a worker loads at once: what would not fit is refused before it is loaded, the rest waits for its turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from twolane.errors import DocumentRefused

SWELL = 8
"""What an item under way takes, in multiples of what is stored of it: its text with up to four bytes a character, its
copies in prompts and requests, and what its workflow makes of it. An estimate: a workflow may do worse, and is not
stopped by this."""


class Room:
    """Memory of one worker for the items under way, by estimate. Nothing is measured, since what Python has freed the
    system may still count."""

    def __init__(self, limit: int) -> None:
        """`limit` in bytes."""
        self._limit, self._used = limit, 0
        self._has_left = asyncio.Event()

    @asynccontextmanager
    async def held(self, stored: int) -> AsyncIterator[None]:
        """Room for an item of which so many bytes are stored; waits until others have left.

        Raises:
            DocumentRefused: it would not fit even alone.
        """
        need = stored * SWELL
        if need > self._limit:
            raise DocumentRefused(
                f"its {stored / 1e6:.1f} MB would take about {need / 1e6:.0f} MB at work, and [work] memory is "
                f"{self._limit / 1e6:.0f} MB: split it, or allow more"
            )
        while self._used + need > self._limit:
            self._has_left.clear()
            await self._has_left.wait()
        self._used += need
        try:
            yield
        finally:
            self._used -= need
            self._has_left.set()
