"""What a workflow's own means cost: updates of a memory, together and one by one; calls of tools, in both kinds.

PYTHONPATH=. python tests/load/workflows.py
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.integration import toolbox

from twolane import Document, Item
from twolane.batch import memory
from twolane.batch.item import Common
from twolane.domain.records import Origin
from twolane.testing import Rehearsal

ROUNDS, UPDATES, CALLS = 3, 1_000, 60


@asynccontextmanager
async def an_item() -> AsyncIterator[Item]:
    async with Rehearsal() as platform:
        kernel = platform.kernel
        run = await platform.start("contract-audit", [Document("a", "A contract.")])
        subject = await kernel.store.write(lambda tx: kernel.subject(tx, "default", "a"))
        common = Common(kernel)
        try:
            yield Item(kernel, Origin("default", "bench", run, "a"), subject, None, options={}, common=common)
        finally:
            await common.aclose()


def count(total: int | None, name: str) -> int:
    return (total or 0) + 1


async def updates_s(group: int) -> float:
    """Seconds of a thousand updates at once."""
    memory.GROUP = group
    async with an_item() as item:
        began = time.perf_counter()
        await asyncio.gather(*(item.memory("seen", int).update(count, str(number)) for number in range(UPDATES)))
        return time.perf_counter() - began


async def calls_ms(which: str) -> list[float]:
    """Milliseconds of each of some calls of a tool, one after another."""
    tool = toolbox.stamp if which == "plain" else toolbox.whisper
    async with an_item() as item:
        taken = []
        for number in range(CALLS):
            began = time.perf_counter()
            await item(tool, Path("/dev/null"), str(number))
            taken.append((time.perf_counter() - began) * 1000)
        return taken


async def main() -> None:
    whole = memory.GROUP
    for group in (whole, 1):
        median = statistics.median([await updates_s(group) for _ in range(ROUNDS)])
        print(f"{UPDATES:,} updates at once, up to {group} written together: {median:.2f} s (median of {ROUNDS})")
    for which in ("async", "plain"):
        first, *others = await calls_ms(which)
        median = statistics.median(others)
        print(f"a call of a tool, {which}: {median:.1f} ms (median of {len(others)}), the first {first:.0f} ms")


if __name__ == "__main__":
    asyncio.run(main())
