"""One timer for everybody's patience: it strikes as asyncio.timeout does, those who waited too long and nobody else."""

from __future__ import annotations

import asyncio
import time

import pytest

from twolane.kernel.watch import Patience, Watch


async def wait_for(watch: Watch, patience_s: float, event: asyncio.Event) -> float:
    began = time.monotonic()
    with watch.patience() as patience:
        patience.begins(patience_s)
        await event.wait()
    return time.monotonic() - began


async def test_whoever_waits_too_long_is_struck_in_time_and_the_others_go_on() -> None:
    watch, event = Watch(), asyncio.Event()
    began = time.monotonic()
    long = asyncio.create_task(wait_for(watch, 30, event))
    ends: dict[float, float] = {}

    async def short(patience_s: float) -> None:
        with pytest.raises(TimeoutError):
            await wait_for(watch, patience_s, event)
        ends[patience_s] = time.monotonic() - began

    await asyncio.gather(short(0.12), short(0.04), short(0.08))
    for patience_s, took in ends.items():
        assert patience_s * 0.9 <= took <= patience_s + 1.0
    assert list(ends) == sorted(ends)
    event.set()
    assert await long < 30
    watch.close()


async def test_what_is_not_waited_for_takes_as_long_as_it_takes() -> None:
    watch = Watch()
    with watch.patience() as patience:
        patience.begins(0.01)
        patience.ends()
        await asyncio.sleep(0.05)  # nobody waits for the upstream
        patience.begins(5)
        await asyncio.sleep(0)
    watch.close()


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    watch = Watch()
    task = asyncio.create_task(wait_for(watch, 5, asyncio.Event()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    watch.close()


async def test_a_cancellation_that_meets_the_end_of_patience_is_not_swallowed() -> None:
    watch, patiences = Watch(), list[Patience]()

    async def waits() -> None:
        with watch.patience() as patience:
            patiences.append(patience)
            patience.begins(5)
            await asyncio.Event().wait()

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    patiences[0].end()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    watch.close()


async def test_after_a_strike_the_task_can_wait_again() -> None:
    watch, event = Watch(), asyncio.Event()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await wait_for(watch, 0.01, event)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    watch.close()
