"""Blocks of money: a hold costs no write, the limit stays hard, and what is not used comes back, in every process and
however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.stores import KEPT_AT, kept_in

from twolane.config import BudgetSection, Config, PriceTable, Slots, UpstreamSection
from twolane.domain.money import PICO
from twolane.domain.records import Lane, Message, ModelCall, Origin, Route
from twolane.errors import BudgetExceeded, Refused, StoreError, SwitchTripped
from twolane.kernel import Kernel, Request, ledger
from twolane.kernel.blocks import CALLS, Block
from twolane.kernel.treasury import Durably, drift
from twolane.models.rehearsal import Rehearsal
from twolane.rules.reading import input_bound
from twolane.store import Row, Transaction
from twolane.store.opening import open_store

pytestmark = pytest.mark.usefixtures("each_store")

CALL = ModelCall((Message("user", "hello there"),), "", 100)
IN, OUT = 20, 10
PAID = (IN + 2 * OUT) * PICO // 10**6
BOUND = (input_bound(CALL) + 200) * PICO // 10**6


def config(folder: Path, **fields: Any) -> Config:  # Any: fields of a section
    price = PriceTable(input="1", output="2")
    default: dict[str, Any] = {"kind": "rehearsal", "price": price, "retries": 0, "slots": Slots(online=99, batch=99)}
    default["limit"] = {"context": 10**9, "output": 10**9}
    section = UpstreamSection(**{**default, **fields})
    return Config(**kept_in(folder), upstream={"up": section}, route={})


def rehearsal(faults: str = "", **options: Any) -> Rehearsal:  # Any: each option has its own type
    return Rehearsal("up", faults=faults, **{"reply": "one two", "input_tokens": IN, "output_tokens": OUT, **options})


@asynccontextmanager
async def opened(folder: Path, model: Rehearsal | None = None, settings: Config | None = None) -> AsyncIterator[Kernel]:
    kernel = await Kernel.open(settings or config(folder), models={"up": model or rehearsal()})
    try:
        yield kernel
    finally:
        await kernel.aclose()


def request(*, lane: Lane = Lane.ONLINE, key: str = "k", call: ModelCall = CALL, is_bounded: bool = True) -> Request:
    return Request(Origin("t", key=key), lane, Route("up", ("up",), "test"), call, is_bounded_by_caller=is_bounded)


async def ask(kernel: Kernel, asked: Request | None = None) -> None:
    async with kernel.door.step(asked or request()) as answer:
        await answer.whole()
    await answer.durable()


async def inherited(kernel: Kernel, *others: Kernel) -> None:
    """Wait until the dead hold nothing any more: at once where file locks prove life, else after `DEAD_BEATS`."""
    living = {each.presence.name for each in (kernel, *others)}
    await until(lambda: {row["owner"] for row in kernel.store.all("owners")} <= living)


async def limit(kernel: Kernel, scope: str = "tenant:t", **most: Any) -> None:  # Any: figures of a Ceiling
    await kernel.treasury.set_budget(scope, period="total", actor="test", **most)


def account(kernel: Kernel, scope: str = "tenant:t", window: str = "total") -> dict[str, int]:
    row = kernel.store.one("spending", scope=scope, window=window)
    assert row is not None
    return dict(row)


def leases(kernel: Kernel) -> list[Row]:
    return [row for row in kernel.store.all("leases") if row["pico"] or row["tokens"]]


def block(kernel: Kernel, scope: str = "tenant:t", window: str = "total") -> Block:
    return kernel.treasury._blocks._blocks[scope, window]


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.002)


async def warmed(kernel: Kernel, scope: str = "tenant:t") -> None:
    """A first call has been made, and the block that it asked for is there."""
    await ask(kernel)
    await until(lambda: not block(kernel, scope).is_empty())


async def assert_at_rest(kernel: Kernel) -> None:
    """All blocks given back: nothing is held, and what was spent is what the steps cost."""
    await kernel.treasury.give_back()
    await kernel.store.write(lambda tx: None)
    assert kernel.store.all("reservations") == []
    assert kernel.store.all("leases") == []
    assert drift(kernel.store) == []
    cost = sum(row["cost_pico"] or 0 for row in kernel.store.all("steps_since", count=100_000))
    assert (account(kernel)["spent_pico"], account(kernel)["held_pico"]) == (cost, 0)


@contextlib.contextmanager
def busy_writer(kernel: Kernel) -> Any:  # Any: a context manager's own type
    """The writer stands still while this is open: nothing reaches the disk."""
    is_writing, may_write = threading.Event(), threading.Event()

    def stand_still(_: Transaction) -> None:
        is_writing.set()
        may_write.wait(20)

    kernel.store.submit(stand_still)
    is_writing.wait(20)
    try:
        yield
    finally:
        may_write.set()


# ── one process ──


async def test_no_first_token_waits_for_the_disk_once_a_block_is_there(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        for scope in ("all", "tenant:t", "key:t/k"):
            await limit(kernel, scope, pico=PICO, tokens=10**6)
        await warmed(kernel)
        with busy_writer(kernel):
            answers = []
            for _ in range(CALLS - 2):
                async with kernel.door.step(request()) as answer:
                    await answer.whole()
                answers.append(answer)
            assert not any(answer.recorded.done() for answer in answers if answer.recorded is not None)
        for answer in answers:
            await answer.durable()
        assert account(kernel)["spent_pico"] == (CALLS - 1) * PAID
        await assert_at_rest(kernel)


async def test_under_steady_load_nearly_every_hold_is_taken_in_memory(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        await limit(kernel, pico=1000 * PICO)
        await warmed(kernel)
        slow = 0
        reserve = kernel.treasury.reserve

        async def counted(*args: Any, **options: Any) -> Any:  # Any: whatever reserve takes and gives
            nonlocal slow
            slow += 1
            return await reserve(*args, **options)

        kernel.treasury.reserve = counted  # type: ignore[method-assign]  # to count
        numbers = iter(range(2000))

        async def person() -> None:
            for _ in numbers:
                await ask(kernel)

        await asyncio.gather(*(person() for _ in range(20)))
        assert slow <= 100
        await assert_at_rest(kernel)


async def test_a_block_is_small_and_carries_no_more_than_a_hundredth_of_what_is_left(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        await limit(kernel, pico=200 * BOUND)
        for _ in range(30):
            await ask(kernel)
            assert block(kernel).free.pico <= 2 * BOUND
        await limit(kernel, pico=10**6 * BOUND)
        await warmed(kernel)
        assert block(kernel).free.pico <= 40 * BOUND, "what was used, not what could be had"
        await assert_at_rest(kernel)


async def test_near_the_limit_holds_are_taken_one_by_one(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        await limit(kernel, pico=50 * BOUND)
        await ask(kernel)
        await kernel.store.write(lambda tx: None)
        assert (leases(kernel), block(kernel).is_empty()) == ([], True)
        async with kernel.door.step(request()):
            assert len(kernel.store.all("reservations")) == 1
        await assert_at_rest(kernel)


async def test_what_is_not_used_comes_back_within_half_a_second(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        await limit(kernel, pico=PICO)
        await warmed(kernel)
        await kernel.store.write(lambda tx: None)
        began = time.monotonic()
        assert account(kernel)["held_pico"] > 0
        await until(lambda: not leases(kernel))
        assert time.monotonic() - began < 2, "half a second, on a machine that is not busy with something else"
        assert account(kernel)["held_pico"] == 0
        await assert_at_rest(kernel)


async def test_what_lies_in_the_own_block_can_be_held_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        await limit(kernel, pico=1000 * BOUND)
        await warmed(kernel)
        whole = ModelCall(CALL.messages, "", (1000 * BOUND - PAID) * 10**6 // PICO // 2 - input_bound(CALL))
        async with kernel.door.step(request(call=whole)) as answer:
            assert answer.hold is not None
            assert (answer.hold.shares, block(kernel).is_empty()) == ((), True)
        await assert_at_rest(kernel)


async def test_a_call_that_is_shortened_gets_what_lies_in_the_own_block_too(tmp_path: Path) -> None:
    model = rehearsal()
    async with opened(tmp_path, model) as kernel:
        await limit(kernel, tokens=10**6)
        await warmed(kernel)
        await ask(kernel, request(call=ModelCall(CALL.messages, "", 10**7), is_bounded=False))
        assert model.calls[-1].max_tokens == 10**6 - (IN + OUT) - input_bound(CALL)
        await assert_at_rest(kernel)


async def test_a_call_on_its_way_to_the_store_is_not_taken_up_before(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        scopes, price = ("tenant:t",), kernel.upstreams["up"].price
        await limit(kernel, pico=10 * BOUND)  # 1 % of it carries no call
        assert isinstance(kernel.treasury.try_reserve("s", scopes, CALL, price), Durably)
        kernel.treasury.take_up()
        await kernel.treasury.reserve("s", scopes, CALL, price, may_shrink=False, entry={}, intent=None)
        assert account(kernel)["held_pico"] == BOUND
        kernel.treasury.release("s", scopes)
        await assert_at_rest(kernel)


async def test_calls_that_could_not_be_taken_up_are_taken_up_at_the_next_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise StoreError("it cannot be read")

    async with opened(tmp_path) as kernel:
        async with kernel.door.step(request()) as answer:
            kernel.switches.close()  # whose poll looks as well
            await limit(kernel, pico=PICO)
            with monkeypatch.context() as patched:
                patched.setattr(kernel.treasury._limits, "of", fails)
                with pytest.raises(StoreError):
                    kernel.treasury._blocks.chain(("tenant:t",), ledger.now_us())
            kernel.treasury._blocks.chain(("tenant:t",), ledger.now_us())
            await kernel.store.write(lambda tx: None)
            assert account(kernel)["held_pico"] == BOUND
            await answer.whole()
        await answer.durable()
        await assert_at_rest(kernel)


async def test_of_a_thousand_calls_at_once_none_overspends(tmp_path: Path) -> None:
    model = rehearsal(input_tokens=input_bound(CALL), output_tokens=100)  # each takes all that it may
    async with opened(tmp_path, model) as kernel:
        await limit(kernel, pico=600 * BOUND + 17)
        await warmed(kernel)
        answers = await asyncio.gather(*(ask(kernel) for _ in range(1000)), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, BudgetExceeded)]
        assert len(refused) + sum(answer is None for answer in answers) == 1000
        assert account(kernel)["spent_pico"] == model.requests * BOUND <= 600 * BOUND
        assert model.requests == 600
        await assert_at_rest(kernel)


async def test_more_used_than_bound_is_booked_whole(tmp_path: Path) -> None:
    model = rehearsal(input_tokens=10**6, output_tokens=10**6)
    async with opened(tmp_path, model) as kernel:
        await limit(kernel, pico=1000 * PICO, tokens=10**9)
        await warmed(kernel)
        for _ in range(5):
            await ask(kernel)
        assert account(kernel)["spent_pico"] == 6 * 3 * PICO
        assert drift(kernel.store) == []
        await assert_at_rest(kernel)


@pytest.mark.parametrize("faults", ["always: 400", "always: cut 1", "always: unreachable", "always: no-usage"])
async def test_however_a_call_ends_its_share_of_the_block_ends_with_it(tmp_path: Path, faults: str) -> None:
    model = rehearsal()
    async with opened(tmp_path, model) as kernel:
        await limit(kernel, pico=PICO)
        await warmed(kernel)
        model.script = rehearsal(faults).script
        free = block(kernel).free.pico
        with contextlib.suppress(Exception):
            await ask(kernel)
        assert (block(kernel).holds, kernel.treasury._in_memory) == (0, {})
        assert block(kernel).free.pico <= free
        await assert_at_rest(kernel)


async def test_a_budget_that_is_lowered_holds_for_what_lies_in_blocks_too(tmp_path: Path) -> None:
    model = rehearsal()
    async with opened(tmp_path, model) as kernel, opened(tmp_path) as other:
        await limit(kernel, pico=1000 * BOUND)
        await warmed(kernel)
        epoch = kernel.store.epoch()
        await limit(other, pico=PAID)
        await until(lambda: kernel.store.epoch() != epoch)  # within FRESH_S
        with pytest.raises(BudgetExceeded):
            await ask(kernel)
        epoch = kernel.store.epoch()
        await limit(other, tokens=10**6)
        await until(lambda: kernel.store.epoch() != epoch)
        await ask(kernel)
        assert model.requests == 2
        await assert_at_rest(kernel)


async def test_a_switch_stops_calls_that_a_block_would_carry(tmp_path: Path) -> None:
    model = rehearsal()
    async with opened(tmp_path, model) as kernel, opened(tmp_path) as other:
        await limit(kernel, pico=PICO)
        await warmed(kernel)
        epoch = kernel.store.epoch()
        await other.switches.trip("key:t/k", cause="test", actor="test")
        await until(lambda: kernel.store.epoch() != epoch)  # within FRESH_S
        with pytest.raises(SwitchTripped):
            await ask(kernel)
        chain = kernel.treasury._blocks.chain(request().origin.scopes(), ledger.now_us())
        await kernel.treasury.give_back()
        kernel.treasury._blocks._fill(request().origin.scopes(), chain.blocks, time.monotonic())
        await until(lambda: not block(kernel).is_filling)
        assert (model.requests, block(kernel).is_empty(), leases(kernel)) == (1, True, [])


async def test_at_the_end_of_a_period_the_new_one_begins_with_its_own_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as kernel:
        await kernel.treasury.set_budget("tenant:t", period="day", pico=PICO, tokens=None, actor="test")
        monkeypatch.setattr(ledger, "now_us", lambda: 1_795_219_199_000_000)  # a second before midnight
        await ask(kernel)
        await until(lambda: not block(kernel, window="2026-11-20").is_empty())
        async with kernel.door.step(request()) as answer:
            assert answer.hold is not None
            assert answer.hold.shares
            monkeypatch.setattr(ledger, "now_us", lambda: 1_795_219_200_000_000)
            await ask(kernel)
            await answer.whole()
        await answer.durable()
        await kernel.treasury.give_back()
        assert account(kernel, window="2026-11-20")["spent_pico"] == 2 * PAID
        assert account(kernel, window="2026-11-21")["spent_pico"] == PAID
        assert (leases(kernel), drift(kernel.store)) == ([], [])


async def test_where_a_clock_is_set_back_no_block_of_the_later_day_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as kernel:
        await kernel.treasury.set_budget("tenant:t", period="day", pico=PICO, tokens=None, actor="test")
        monkeypatch.setattr(ledger, "now_us", lambda: 1_795_219_200_000_000)
        await ask(kernel)
        await until(lambda: not block(kernel, window="2026-11-21").is_empty())
        monkeypatch.setattr(ledger, "now_us", lambda: 1_795_219_199_000_000)
        await ask(kernel)
        await kernel.treasury.give_back()
        assert account(kernel, window="2026-11-20")["spent_pico"] == PAID
        assert account(kernel, window="2026-11-21")["spent_pico"] == PAID
        assert (leases(kernel), drift(kernel.store)) == ([], [])


async def test_blocks_of_days_that_are_over_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as kernel:
        await kernel.treasury.set_budget("tenant:t", period="day", pico=PICO, tokens=None, actor="test")
        for day in range(3):
            monkeypatch.setattr(ledger, "now_us", lambda day=day: 1_795_219_200_000_000 + day * 86_400_000_000)
            await ask(kernel)
            await kernel.treasury.give_back()
        assert [window for _, window in kernel.treasury._blocks._blocks] == ["2026-11-23"]


async def test_a_block_that_could_not_be_given_back_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as kernel:
        await limit(kernel, pico=PICO)
        await warmed(kernel)
        free = block(kernel).free.pico

        def fails(*_: object, **__: object) -> bool:
            raise OSError("the disk is full")

        with monkeypatch.context() as patched:
            patched.setattr(kernel.treasury._blocks, "_take_back", fails)
            await kernel.treasury.give_back()
        assert (block(kernel).free.pico, drift(kernel.store)) == (free, [])
        await assert_at_rest(kernel)


async def test_budget_list_shows_what_lies_in_blocks(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        await limit(kernel, pico=PICO)
        await warmed(kernel)
        (told,) = await kernel.treasury.all_accounts()
        assert 0 < told.leased.pico == told.held.pico


async def test_the_books_agree_at_every_commit_of_a_storm(tmp_path: Path) -> None:
    draw = random.Random(1)
    model = rehearsal(token_ms=1)
    async with opened(tmp_path, model) as kernel, opened(tmp_path, model) as other:
        await limit(kernel, pico=400 * BOUND)
        await limit(kernel, "key:t/a", pico=150 * BOUND, tokens=10**6)
        far, problems, looks = open_store(kernel.config.store_address()), [], 0

        async def watch() -> None:
            nonlocal looks
            seen = -1
            while True:
                if (version := far.version()) != seen:
                    seen, looks = version, looks + 1
                    problems.extend(drift(far))
                await asyncio.sleep(0)

        async def one() -> None:
            asked = request(key=draw.choice("ab"), lane=draw.choice([Lane.ONLINE, Lane.ONLINE, Lane.BATCH]))
            with contextlib.suppress(Refused, asyncio.CancelledError):
                async with kernel.door.step(asked) if draw.random() < 0.5 else other.door.step(asked) as answer:
                    if draw.random() < 0.8:
                        await answer.whole()

        watcher, tasks = asyncio.create_task(watch()), []
        for _ in range(400):
            tasks.append(asyncio.create_task(one()))
            if draw.random() < 0.1:
                draw.choice(tasks).cancel()
            await asyncio.sleep(draw.choice([0, 0, 0.003]))
        await asyncio.gather(*tasks, return_exceptions=True)
        watcher.cancel()
        await other.treasury.give_back()
        await other.store.write(lambda tx: None)
        assert problems == []
        assert looks > 20
        far.close()
        await assert_at_rest(kernel)


# ── several processes ──


async def test_who_would_be_refused_gets_what_lies_unused_in_another_process(tmp_path: Path) -> None:
    async with opened(tmp_path) as rich, opened(tmp_path) as poor:
        await limit(rich, pico=1000 * BOUND)
        await warmed(rich)
        whole = ModelCall(CALL.messages, "", (1000 * BOUND - PAID) * 10**6 // PICO // 2 - input_bound(CALL))
        began = time.monotonic()
        async with poor.door.step(request(call=whole)) as answer:
            await answer.whole()
        await answer.durable()
        assert time.monotonic() - began < 5
        assert block(rich).is_empty()
        await assert_at_rest(poor)


async def test_a_refusal_does_not_wait_for_calls_that_run_elsewhere(tmp_path: Path) -> None:
    model = rehearsal("after 1: hang 1")
    async with opened(tmp_path, model) as busy, opened(tmp_path) as poor:
        await limit(busy, pico=1000 * BOUND)
        await warmed(busy)
        async with busy.door.step(request()) as answer:
            assert answer.hold is not None
            assert answer.hold.shares
            whole = ModelCall(CALL.messages, "", (1000 * BOUND) * 10**6 // PICO // 2 - input_bound(CALL))
            with pytest.raises(BudgetExceeded):
                await ask(poor, request(call=whole))
            assert leases(busy)[0]["pico"] == BOUND
            assert poor.store.one("unanswered", scope="tenant:t", window="total", owner=poor.presence.name) is None
        async with asyncio.timeout(10):
            while leases(busy):  # its record, and a block that was on its way, were not waited for
                await asyncio.sleep(0.01)
        await assert_at_rest(poor)


async def test_who_asks_is_answered_when_what_was_on_its_way_to_a_block_has_come_back(tmp_path: Path) -> None:
    async with opened(tmp_path) as rich, opened(tmp_path) as poor:
        await limit(rich, pico=1000 * BOUND)
        await warmed(rich)
        name = {"scope": "tenant:t", "window": "total", "owner": poor.presence.name}
        async with rich.door.step(request()) as answer:
            assert answer.hold is not None
            assert answer.hold.shares
            await until(lambda: not block(rich).is_filling)
            block(rich).is_filling = True
            await poor.store.write(lambda tx: tx.run("want_leases", **name))
            for is_filling in (True, False):
                block(rich).is_filling = is_filling
                rich.treasury._blocks._answer_others()
                await rich.store.write(lambda tx: None)
                assert (poor.store.one("unanswered", **name) is not None) is is_filling
            await answer.whole()
        await answer.durable()
        await assert_at_rest(rich)


CHILD = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_treasury import *
BIG = ModelCall(CALL.messages, "", 1000)

async def main(what):
    kernel = await Kernel.open(config(Path(sys.argv[1])), models={"up": MODEL[what]()})
    print("ready", flush=True)
    sys.stdin.readline()
    if what == "midway":
        await warmed(kernel)
        async with kernel.door.step(request()), kernel.door.step(request(key="other")):
            print("midway", flush=True)
            await asyncio.Event().wait()
    elif what == "forever":
        async def person():
            while True:
                await ask(kernel)
        await asyncio.gather(*(person() for _ in range(8)))
    async def person(call):
        while True:
            try:
                await ask(kernel, request(call=call))
            except BudgetExceeded:
                return
    calls = [CALL] * 8 + ([BIG] * 2 if what == "mixed" else [])
    await asyncio.gather(*map(person, calls))
    await kernel.aclose()
    print(kernel.upstreams["up"].model.requests, flush=True)

MODEL = {
    "midway": lambda: rehearsal("after 1: hang 1"),
    "forever": lambda: rehearsal(token_ms=1),
    "small": lambda: rehearsal(input_tokens=input_bound(CALL), output_tokens=100, token_ms=0.2),
    "mixed": lambda: rehearsal(input_tokens=input_bound(CALL), output_tokens=100, token_ms=0.2),
}
asyncio.run(main(sys.argv[3]))
"""


@contextlib.contextmanager
def children(folder: Path, what: str, count: int) -> Any:  # Any: a context manager's own type
    """So many processes, all ready and let go at once."""
    command = [sys.executable, "-c", CHILD, str(folder), str(Path(__file__).parent), what]
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            for _ in range(count)
        ]
        try:
            for process in running:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
            for process in running:
                assert process.stdin is not None
                process.stdin.write(b"go\n")
                process.stdin.flush()
            yield running
        finally:
            for process in running:
                process.kill()


async def race(folder: Path, what: str, *, processes: int, calls: int) -> None:
    async with opened(folder) as kernel:
        await limit(kernel, pico=calls * BOUND + 17)
        with children(folder, what, processes) as running:
            made = [int(await asyncio.to_thread(process.stdout.read)) for process in running]
        spent = account(kernel)["spent_pico"]
        assert spent == sum(made) * BOUND <= calls * BOUND
        largest = BOUND if what == "small" else BOUND + 900 * 2 * PICO // 10**6
        assert spent >= 0.98 * (calls * BOUND + 17 - largest), f"{spent / BOUND} of {calls} calls, by process {made}"
        await assert_at_rest(kernel)


@pytest.mark.parametrize("what", ["small", "mixed"])
async def test_two_processes_race_for_a_budget_and_spend_all_of_it_and_no_more(tmp_path: Path, what: str) -> None:
    await race(tmp_path, what, processes=2, calls=600)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["small", "mixed"])
async def test_eight_processes_race_for_a_budget_and_spend_all_of_it_and_no_more(tmp_path: Path, what: str) -> None:
    await race(tmp_path, what, processes=8, calls=4000)


async def test_a_dead_processs_blocks_are_settled_whole_and_a_living_ones_are_not_touched(tmp_path: Path) -> None:
    async with opened(tmp_path) as alive:
        await limit(alive, pico=1000 * PICO, tokens=10**9)
        await limit(alive, "key:t/k", pico=500 * PICO)
        await ask(alive)  # it has slots of its own, and needs none of the dead one's
        with children(tmp_path, "midway", 1) as (process,):
            assert await asyncio.to_thread(process.stdout.readline) == b"midway\n"
            process.send_signal(signal.SIGKILL)
        there = [row for row in alive.store.all("leases") if row["owner"] != alive.presence.name]
        left = {(row["scope"], row["owner"]): (row["pico"], row["tokens"]) for row in there}
        (owner,) = {owner for _, owner in left}
        assert left["tenant:t", owner][0] >= BOUND
        await warmed(alive)
        mine = leases(alive)
        before = account(alive)
        async with opened(tmp_path) as kernel:
            await inherited(kernel, alive)
            assert (mine, drift(kernel.store)) != ([], ["…"])
            after = account(kernel)
            unsettled = sum(row["status"] == "in_doubt" for row in kernel.store.all("steps_since", count=99))
            assert after["spent_pico"] == before["spent_pico"] + left["tenant:t", owner][0] + unsettled * BOUND
            assert after["spent_tokens"] - before["spent_tokens"] >= left["tenant:t", owner][1]
            entries = [orjson.loads(row["leaf"]) for row in kernel.store.all("entries", first=0, count=999)]
            told = {entry["scope"]: entry["amount_pico"] for entry in entries if entry["kind"] == "lease"}
            assert told == {scope: pico for (scope, _), (pico, _) in left.items()}
            assert ledger.verify(kernel.store).ok
            assert drift(kernel.store) == []
        async with opened(tmp_path) as kernel:
            assert account(kernel)["spent_pico"] == after["spent_pico"], "once is enough"


async def test_what_is_in_doubt_counts_in_a_period_that_begins_later(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        await limit(kernel, pico=1000 * PICO)
        with children(tmp_path, "midway", 1) as (process,):
            assert await asyncio.to_thread(process.stdout.readline) == b"midway\n"
            process.send_signal(signal.SIGKILL)
    async with opened(tmp_path) as kernel:
        await inherited(kernel)
        spent = account(kernel)["spent_pico"]
        await kernel.treasury.set_budget("tenant:t", period="month", pico=1000 * PICO, tokens=None, actor="test")
        (told,) = await kernel.treasury.all_accounts()
        assert told.spent.pico == spent > 2 * BOUND
        assert drift(kernel.store) == []


async def kills(folder: Path, count: int) -> None:
    draw, limits = random.Random(7), 4000 * BOUND
    async with opened(folder) as kernel:
        await limit(kernel, pico=limits)
        await limit(kernel, "key:t/k", tokens=10**8)
    for _ in range(count):
        with children(folder, "forever", 2) as running:
            await asyncio.sleep(draw.uniform(0.05, 0.4))
            running[0].kill()
            await asyncio.sleep(draw.uniform(0, 0.1))
        async with opened(folder) as kernel:
            await inherited(kernel)
            assert drift(kernel.store) == []
            assert (account(kernel)["held_pico"], kernel.store.all("leases")) == (0, [])
            assert account(kernel)["spent_pico"] <= limits
            assert ledger.verify(kernel.store).ok


async def test_after_a_kill_in_mid_call_nothing_is_held_and_the_books_agree(tmp_path: Path) -> None:
    await kills(tmp_path, 2)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_after_fifty_kills_the_books_agree(tmp_path: Path) -> None:
    await kills(tmp_path, 5 if KEPT_AT in os.environ else 25)  # each takes six seconds to be noticed there


# ── gaps of old ──


async def test_a_crash_on_an_unpriced_upstream_is_in_doubt_at_an_unknown_cost(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        await limit(kernel, tokens=10**6)
        entry = {"v": 1, "kind": "step", "step": "s", "tenant": "t", "lane": "online"}
        await kernel.treasury.reserve("s", ("all", "tenant:t"), CALL, None, may_shrink=False, entry=entry, intent=None)
        await kernel.treasury.give_back()
        kernel.treasury._is_alive = lambda name: False
        assert await kernel.treasury.recover() == 1
        (row,) = kernel.store.all("steps_since", count=9)
        assert (row["status"], row["cost_pico"]) == ("in_doubt", None)
        assert account(kernel)["spent_tokens"] == row["input_tokens"] + row["output_tokens"] > 0
        assert drift(kernel.store) == []


async def test_a_budget_that_leaves_the_file_is_lifted_and_one_that_was_commanded_stays(tmp_path: Path) -> None:
    budgets = {name: BudgetSection(money="0.000001", period="total") for name in ("tenant:t", "key:t/k")}
    plain = config(tmp_path).model_copy(update={"source": tmp_path / "twolane.toml"})
    limited = plain.model_copy(update={"budget": budgets})
    async with opened(tmp_path, settings=limited) as kernel:
        with pytest.raises(BudgetExceeded):
            await ask(kernel)
        await limit(kernel, "key:t/k", pico=PICO)
    elsewhere = plain.model_copy(update={"source": tmp_path / "other.toml"})
    async with opened(tmp_path, settings=elsewhere) as kernel:
        assert len(kernel.store.all("budgets")) == 2, "another file never had it"
    async with opened(tmp_path, settings=plain) as kernel:
        await ask(kernel)
        assert [row["scope"] for row in kernel.store.all("budgets")] == ["key:t/k"]
    async with opened(tmp_path, settings=limited) as kernel:
        with pytest.raises(BudgetExceeded):
            await ask(kernel)
