"""Several processes on one upstream: together they stay within its slots and its rate, each gets its turn, and what a
killed one held comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.integration.counted import Counted, Tally
from tests.integration.test_lanes import call, config, lane, opened, request, until

from twolane.config import Rate, Slots
from twolane.domain.records import Lane
from twolane.kernel import Kernel
from twolane.kernel.lanes import Claim
from twolane.models.rehearsal import Rehearsal

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("each_store")]

CHILD = """
import asyncio, sys
from pathlib import Path
from tests.integration.counted import worker
asyncio.run(worker(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), sys.argv[5]))
"""


@contextmanager
def processes(
    folder: Path, count: int, *, lane: str = "batch", tasks: int = 8, rate: str = ""
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that call without end, all ready to begin; a signal ends them."""
    repository = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{repository / 'src'}:{repository}"}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, str(folder), str(number), lane, str(tasks), rate],
            env=environment, stdout=subprocess.PIPE,
        )
        for number in range(count)
    ]  # fmt: skip
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        yield running
    finally:
        for process in running:
            process.kill()
            process.communicate()


async def served(tally: Tally, enough: Callable[[Counter[int]], bool]) -> Counter[int]:
    """Wait until the counts of answered calls by process are enough."""
    async with asyncio.timeout(60):
        while not enough(counts := tally.answered()):
            await asyncio.sleep(0.05)
    return counts


@pytest.mark.parametrize("which", ["batch", "online"])
async def test_processes_together_stay_within_the_slots_and_each_gets_its_turn(tmp_path: Path, which: str) -> None:
    tally = Tally(tmp_path / "tally")
    with processes(tmp_path, 3, lane=which):
        counts = await served(tally, lambda counts: len(counts) == 3 and min(counts.values()) >= 40)
    assert tally.peak() == 5
    assert max(counts.values()) <= 6 * min(counts.values())


async def test_more_processes_than_slots_take_turns(tmp_path: Path) -> None:
    tally = Tally(tmp_path / "tally")
    with processes(tmp_path, 4, rate="slots 2"):
        await served(tally, lambda counts: len(counts) == 4 and min(counts.values()) >= 5)
    assert tally.peak() <= 2


async def test_the_slots_of_a_killed_process_come_back(tmp_path: Path) -> None:
    tally = Tally(tmp_path / "tally")
    with processes(tmp_path, 2) as (first, second):
        await served(tally, lambda counts: len(counts) == 2 and min(counts.values()) >= 10)
        first.send_signal(signal.SIGKILL)
        first.wait()
        tally.forget(0)
        await served(tally, lambda _: tally.active(1) == 5)
        assert second.poll() is None
    assert tally.peak() <= 5


async def test_processes_together_stay_within_the_rate(tmp_path: Path) -> None:
    tally = Tally(tmp_path / "tally")
    with processes(tmp_path, 3, rate="rate 240"):
        await served(tally, lambda counts: len(counts) == 3 and min(counts.values()) >= 3)
        began = time.monotonic()
        await until(lambda: time.monotonic() - began > 6)
        times = tally.times()
    # The batch lane's part of 240 is 120: twelve at once, and 109 in 61 seconds.
    for at, begin in enumerate(times):
        for to in range(at, len(times)):
            assert to - at + 1 <= 12 + 2 * (times[to] - begin) + 1


# ── two kernels, each with a presence and a store of its own, in one process ──


async def other_kernel(folder: Path, model: Rehearsal, slots: Slots, **up: object) -> Kernel:
    return await Kernel.open(config(folder, up={"slots": slots, **up}, other={}), models={"up": model})


async def test_a_process_that_is_alone_holds_the_whole_lane_and_writes_no_more(tmp_path: Path) -> None:
    async with opened(tmp_path, Rehearsal("up", reply="x"), slots=Slots(online=8, batch=3)) as kernel:
        assert lane(kernel).held == 8
        await call(kernel, request(Lane.BATCH))
        assert lane(kernel, Lane.BATCH).held == 3
        rows = [dict(row) for row in kernel.store.all("lane_members")]
        permits = [await kernel.lanes.admit("up", Claim(Lane.ONLINE, "t")) for _ in range(8)]
        for permit in permits:
            permit.release()
        await asyncio.sleep(0.05)  # time enough for a look at the store
        await kernel.store.write(lambda tx: None)
        assert [dict(row) for row in kernel.store.all("lane_members")] == rows


async def test_idle_slots_go_to_whoever_wants_them_and_at_most_a_fair_share_of_busy_ones(tmp_path: Path) -> None:
    slots = Slots(online=8, batch=3)
    async with opened(tmp_path, Rehearsal("up"), slots=slots) as kernel:
        other = await other_kernel(tmp_path, Rehearsal("up"), slots)
        await other.lanes.hold(Lane.ONLINE)
        assert (lane(kernel).held, lane(other).held) == (7, 1)
        theirs = [await other.lanes.admit("up", Claim(Lane.ONLINE, "t")) for _ in range(6)]
        assert lane(other).held >= 6
        mine = [await kernel.lanes.admit("up", Claim(Lane.ONLINE, "t")) for _ in range(2)]
        waiting = [asyncio.create_task(kernel.lanes.admit("up", Claim(Lane.ONLINE, "t"))) for _ in range(4)]
        await until(lambda: lane(kernel).waiting == 4)
        for permit in theirs:
            permit.release()
        mine += [await each for each in waiting]
        assert lane(kernel).held + lane(other).held <= 8
        for permit in mine:
            permit.release()
        await other.aclose()


async def test_a_process_that_leaves_gives_all_back_and_the_rates_are_not_used_twice(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"slots": Slots(online=2, batch=2), "rate": Rate(requests_per_minute=120)}
    async with opened(tmp_path, Rehearsal("up", reply="x"), **settings) as kernel:
        assert lane(kernel).calls_left == 6
        for _ in range(6):
            await call(kernel, request())
    async with opened(tmp_path, Rehearsal("up"), **settings) as kernel:
        assert lane(kernel).held == 2
        left = lane(kernel).calls_left
        assert left is not None
        assert left < 1


async def test_a_lease_that_cannot_be_written_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from twolane.kernel import leases

    real, failures = leases._Change.work, iter((True, True))

    def work(change: leases._Change, tx: object) -> object:
        if next(failures, False):
            raise OSError("the disk is full")
        return real(change, tx)  # type: ignore[arg-type]

    monkeypatch.setattr(leases._Change, "work", work)
    async with opened(tmp_path, Rehearsal("up", reply="x")) as kernel:
        assert lane(kernel).held == 4
        await call(kernel, request())


def test_the_tally_counts(tmp_path: Path) -> None:
    """The measure itself: it would see a peak."""
    tally = Tally(tmp_path / "tally")
    for number in (0, 0, 1):
        tally.began(number)
    tally.ended(0)
    assert (tally.peak(), tally.active(0), tally.active(1), tally.answered()) == (3, 1, 1, Counter({0: 1}))
    assert Counted.__mro__[1] is Rehearsal
