"""How much is measured, and what every experiment of the online lane does the same way."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import uvloop
from tests.load.client import Pool, Reply, Target

T = TypeVar("T")

PACED = "mock-t50-i20-n64"
"""50 ms to the first token, 20 ms between tokens, 64 tokens: 1.3 s a generation."""


@dataclass(frozen=True)
class Plan:
    """How much is measured: everything for the record, `quick` to look, `slice` for a test."""

    kit: Path
    effort: Literal["full", "quick", "slice"] = "full"
    lends: bool = False
    """Isolation also with `lend` and `preempt`."""

    def pick(self, full: T, quick: T, slice_: T) -> T:
        """The one for this effort."""
        return {"full": full, "quick": quick, "slice": slice_}[self.effort]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a client's work on the fast loop. SIGTERM cancels it: an exception raised in a callback may be swallowed."""

    async def go() -> T:
        task = asyncio.current_task()
        assert task is not None
        loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
        loop.add_signal_handler(signal.SIGTERM, task.cancel, "SIGTERM")
        try:
            return await work
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, before)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(go())


def say(text: str) -> None:
    """Progress, beside the result."""
    print(f"  {text}", file=sys.stderr, flush=True)


async def ask_all(target: Target, count: int) -> list[Reply]:
    """As many requests at the same instant, on connections that are open before; how each went."""
    pool, request = Pool(target), target.request()
    await pool.warm(count)
    replies = await asyncio.gather(*(pool.ask(request, timeout_s=60) for _ in range(count)))
    pool.close()
    return list(replies)


def firsts(replies: list[Reply]) -> list[float]:
    """Seconds to the first token of those that ended well."""
    return [reply.first_s for reply in replies if not reply.problem]
