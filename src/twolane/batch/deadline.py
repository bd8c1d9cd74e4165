"""The time an item may take."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, TypeVar

from twolane.errors import OutOfTime

if TYPE_CHECKING:
    from twolane.batch.item import Item

T = TypeVar("T")

log = logging.getLogger("twolane.batch")

WALK_S = 30.0
"""How long an item may take to be walked without calling."""
CANCELS, CANCEL_S = 5, 1.0
"""How often a workflow is told to end, and how long it may take each time: some catch the first."""


async def within(
    seconds: float,
    doing: Awaitable[T],
    item: Item,
    *,
    name: str = "",
    closed: asyncio.Future[BaseException] | None = None,
) -> T:
    """What a workflow comes to, if it does within `seconds`, and before it is `closed` for a reason; `name` is that of
    one within another. What it raises is raised, and where it calls `sys.exit`, which would end the worker with
    everybody's items, a RuntimeError.

    BUG: a workflow that never awaits holds up the whole worker, and this clock with it; the log says where. One that
    catches every cancellation is left behind, without a way to call anything, and keeps the process from ending.

    Raises:
        OutOfTime: it did not end in time; it was told to, its calls in flight are closed, and it can make no others.
        BaseException: the reason, after the same.
    """
    task = asyncio.ensure_future(_tamed(doing))
    ends: list[asyncio.Future[Any]] = [task] if closed is None else [task, closed]  # Any: each has its own result
    try:
        await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    except BaseException:  # we are told to end ourselves
        await _end(task)
        raise
    if task.done():
        return task.result()
    item.give_up()
    reason = OutOfTime(seconds, name) if closed is None or not closed.done() else closed.result()
    if not await _end(task):
        log.error("item %s: its workflow was given up (%s), and does not end", item.name, reason)
    raise reason


async def _tamed(doing: Awaitable[T]) -> T:
    try:
        return await doing
    except SystemExit as error:
        raise RuntimeError(f"the workflow called sys.exit({error.code!r})") from error


async def _end(task: asyncio.Future[T]) -> bool:
    for _ in range(CANCELS):
        task.cancel()
        await asyncio.wait([task], timeout=CANCEL_S)
        if task.done():
            if not task.cancelled():
                task.exception()  # asked for, or asyncio says that nobody did
            return True
    return False
