"""The lanes through the door, with scripted upstreams: who is let in, who waits, who is told at once that it is no use,
and what an upstream's own answers change. Nothing is held when it is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.stores import kept_in

from twolane.config import Config, PriceTable, Rate, Slots, UpstreamSection
from twolane.domain.records import Lane, Message, ModelCall, Origin, Route
from twolane.errors import LaneFull, UpstreamDown, UpstreamError
from twolane.kernel import Kernel, Request, attempt
from twolane.kernel import lanes as lanes_module
from twolane.kernel import slots as slots_module
from twolane.kernel.lanes import Claim, LaneState
from twolane.models.rehearsal import Rehearsal
from twolane.models.sse import MadeStream
from twolane.rules import feedback, pricing
from twolane.rules.feedback import State

TEXT = "one two three four five six seven eight nine ten"
CALL = ModelCall((Message("user", "hello there"),), "", 100)
ONE = Slots(online=1, batch=1)


def config(folder: Path, **upstreams: dict[str, Any]) -> Config:  # Any: fields of a section
    price = PriceTable(input="1", output="2")
    default: dict[str, Any] = {"kind": "rehearsal", "price": price, "retries": 0, "slots": Slots(online=4, batch=4)}
    return Config(
        **kept_in(folder),
        upstream={name: UpstreamSection(**{**default, **fields}) for name, fields in upstreams.items()},
        route={},
    )


@asynccontextmanager
async def opened(folder: Path, model: Rehearsal, other: Rehearsal | None = None, **up: Any) -> AsyncIterator[Kernel]:
    """A kernel with the upstreams `up` and `other`. Any: fields of the first one's section."""
    kernel = await Kernel.open(
        config(folder, up=up, other={}), models={"up": model, "other": other or Rehearsal("other", reply=TEXT)}
    )
    await kernel.lanes.hold(Lane.ONLINE)
    try:
        yield kernel
        assert [state for state in kernel.lanes.state() if state.busy or state.lent or state.waiting] == []
    finally:
        await kernel.aclose()


def request(
    lane: Lane = Lane.ONLINE, *, upstreams: tuple[str, ...] = ("up",), deadline_s: float | None = 2, tenant: str = "t",
    key: str = "", run: str = "r",
) -> Request:  # fmt: skip
    is_batch = lane is Lane.BATCH
    origin = Origin(tenant, run=run if is_batch else "", key="" if is_batch else key)
    return Request(origin, lane, Route("route", upstreams, "test"), CALL, None if is_batch else deadline_s)


async def call(kernel: Kernel, asked: Request) -> str:
    async with kernel.door.step(asked) as answer:
        text = (await answer.whole()).text
    await answer.durable()
    return text


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.001)


def lane(kernel: Kernel, which: Lane = Lane.ONLINE, upstream: str = "up") -> LaneState:
    return next(s for s in kernel.lanes.state() if s.lane is which and s.upstream == upstream)


def rows(kernel: Kernel) -> list[Mapping[str, Any]]:  # Any: SQL columns
    return list(reversed(kernel.store.all("steps_since", count=100_000)))


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "FIRST_BACKOFF_S", 0.0)


# ── waiting, or not ──


async def test_a_burst_is_served_as_far_as_the_deadline_allows_and_the_rest_is_told_at_once(tmp_path: Path) -> None:
    model = Rehearsal("up", reply=TEXT, first_token_ms=200)
    async with opened(tmp_path, model, slots=Slots(online=4, batch=1)) as kernel:
        await call(kernel, request())  # it is known how long a call lasts
        refusals: list[tuple[float, LaneFull]] = []

        async def person(number: int) -> bool:
            began = time.monotonic()
            try:
                await call(kernel, request(deadline_s=0.5, key=f"k{number % 7}"))
            except LaneFull as full:
                refusals.append((time.monotonic() - began, full))
                return False
            return True

        served = await asyncio.gather(*(person(number) for number in range(60)))
        assert 8 <= sum(served) <= 16  # four at once, and one or two rounds within half a second
        at_once = [full for seconds, full in refusals if full.waited_s == 0]
        assert len(at_once) >= 40
        delays = sorted(full.retry_after_s for full in at_once)
        assert 0.1 < delays[0] < delays[-1] < 5
        assert len(set(delays)) == len(delays)
        assert model.requests == 1 + sum(served)


async def test_who_was_promised_too_much_is_let_go_at_the_deadline(tmp_path: Path) -> None:
    async with opened(tmp_path, Rehearsal("up", faults="always: hang 1"), slots=ONE) as kernel:
        kernel.lanes.slots("up", Lane.ONLINE).held_s = 0.01
        async with kernel.door.step(request()):
            with pytest.raises(LaneFull) as full:
                await call(kernel, request(deadline_s=0.1))
        assert full.value.waited_s > 0.09
        assert full.value.retry_after_s > 0


async def test_a_line_that_never_empties_does_not_make_everyone_wait_to_the_end(tmp_path: Path) -> None:
    """Three times as much is asked as can be served: those let in are served soon, and no fewer are served for it."""
    model = Rehearsal("up", reply=TEXT, first_token_ms=40)
    async with opened(tmp_path, model, slots=Slots(online=2, batch=1)) as kernel:
        waits: list[tuple[float, float]] = []
        began = time.monotonic()

        async def person() -> None:
            asked = time.monotonic()
            try:
                async with kernel.door.step(request(deadline_s=0.5)) as answer:
                    waits.append((asked - began, time.monotonic() - asked))
                    await answer.whole()
            except LaneFull:
                pass

        people = []
        while time.monotonic() - began < 3:
            people.append(asyncio.create_task(person()))
            await asyncio.sleep(0.006)
        await asyncio.gather(*people)
        late = sorted(wait for asked, wait in waits if asked > 1.2)
        assert (
            late[len(late) // 2] < 0.25
        )  # 40 ms of it are the upstream's own; to the deadline it would be half a second
        assert len(late) > 20


async def test_tenants_take_turns_whoever_asks_more(tmp_path: Path) -> None:
    async with opened(tmp_path, Rehearsal("up"), slots=ONE) as kernel:
        order: list[str] = []
        first = await kernel.lanes.admit("up", Claim(Lane.ONLINE, "first"))

        async def ask(tenant: str, key: str) -> None:
            permit = await kernel.lanes.admit("up", Claim(Lane.ONLINE, tenant, key=key))
            order.append(tenant + key)
            permit.release()

        asked = [("a", "1")] * 4 + [("a", "2")] * 2 + [("b", "1")] * 2
        tasks = [asyncio.create_task(ask(*one)) for one in asked]
        await until(lambda: lane(kernel).waiting == len(asked))
        first.release()
        await asyncio.gather(*tasks)
        assert order == ["a1", "b1", "a2", "b1", "a1", "a2", "a1", "a1"]


async def test_a_line_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes_module, "LONGEST_LINE", {Lane.ONLINE: 2, Lane.BATCH: 2})
    async with opened(tmp_path, Rehearsal("up"), slots=ONE) as kernel:
        permit = await kernel.lanes.admit("up", Claim(Lane.ONLINE, "t"))
        waiting = [asyncio.create_task(kernel.lanes.admit("up", Claim(Lane.ONLINE, "t"))) for _ in range(2)]
        await until(lambda: lane(kernel).waiting == 2)
        with pytest.raises(LaneFull):
            await kernel.lanes.admit("up", Claim(Lane.ONLINE, "t"))
        permit.release()
        for each in waiting:
            (await each).release()


async def test_a_free_place_is_taken_without_a_task_or_a_timer(tmp_path: Path) -> None:
    async with opened(tmp_path, Rehearsal("up"), rate=Rate(requests_per_minute=9_000)) as kernel:
        before = asyncio.all_tasks()
        for _ in range(100):
            permit = kernel.lanes.try_admit("up", Claim(Lane.ONLINE, "t"))
            assert permit is not None
            permit.release()
            permit.release()  # a second time changes nothing
        assert asyncio.all_tasks() == before
        assert kernel.lanes._gates["up"]._timer is None


async def test_the_next_in_batch_holds_its_money_before_its_slot_is_free_and_nobody_behind_it_does(
    tmp_path: Path,
) -> None:
    model = Rehearsal("up", reply=TEXT, first_token_ms=150)
    async with opened(tmp_path, model, slots=Slots(online=1, batch=17)) as kernel:
        calls = [asyncio.create_task(call(kernel, request(Lane.BATCH))) for _ in range(30)]
        await until(lambda: len(kernel.store.all("reservations")) == 19)  # seventeen, and one of every sixteen begun
        assert model.requests == lane(kernel, Lane.BATCH).busy == 17
        assert lane(kernel, Lane.BATCH).waiting == 13
        assert await asyncio.gather(*calls) == [TEXT] * 30


async def test_money_that_calls_in_flight_give_back_is_waited_for_ahead_of_a_slot_too(tmp_path: Path) -> None:
    model = Rehearsal("up", reply=TEXT, first_token_ms=20)
    async with opened(tmp_path, model, slots=ONE) as kernel:
        bound = pricing.upper_bound(CALL, PriceTable(input="1", output="2").as_price()).pico or 0
        await kernel.treasury.set_budget("tenant:t", period="total", pico=bound * 3 // 2, tokens=None, actor="test")
        calls = [asyncio.create_task(call(kernel, request(Lane.BATCH))) for _ in range(2)]
        assert await asyncio.gather(*calls) == [TEXT] * 2


# ── rates ──


async def test_a_rate_is_never_exceeded_and_refusals_come_at_once_with_an_exact_delay(tmp_path: Path) -> None:
    model = Rehearsal("up", reply=TEXT)
    rate = Rate(requests_per_minute=60)
    async with opened(tmp_path, model, slots=Slots(online=8, batch=4), rate=rate) as kernel:
        began = time.monotonic()
        answers = await asyncio.gather(
            *(call(kernel, request(deadline_s=0.2)) for _ in range(50)), return_exceptions=True
        )
        refused = [answer for answer in answers if isinstance(answer, LaneFull)]
        assert time.monotonic() - began < 5
        assert model.requests == 4  # the online lane's burst of 40 a minute
        assert len(refused) == 46
        assert all(full.waited_s == 0 for full in refused)
        assert 1.4 < min(full.retry_after_s for full in refused) < 3.3
        assert await call(kernel, request(Lane.BATCH)) == TEXT  # batch has its own part


async def test_batch_waits_for_the_rate_and_a_call_that_never_left_gives_it_back(tmp_path: Path) -> None:
    model = Rehearsal("up", reply=TEXT)
    async with opened(tmp_path, model, rate=Rate(requests_per_minute=3_000), slots=Slots(online=1, batch=2)) as kernel:
        slots = kernel.lanes.slots("up", Lane.BATCH)
        assert slots.calls is not None
        slots.calls.take(slots.calls.level(time.monotonic()), time.monotonic())
        waiting = asyncio.create_task(call(kernel, request(Lane.BATCH)))
        await until(lambda: lane(kernel, Lane.BATCH).waiting)
        assert await waiting == TEXT
        permit = await kernel.lanes.admit("up", Claim(Lane.BATCH, "t"))
        left = slots.calls.level(time.monotonic())
        permit.release(has_left=False)
        assert slots.calls.level(time.monotonic()) >= left + 1


async def test_tokens_are_taken_as_expected_and_corrected_by_what_was_used(tmp_path: Path) -> None:
    model = Rehearsal("up", reply=TEXT, input_tokens=20, output_tokens=10)
    async with opened(tmp_path, model, rate=Rate(tokens_per_minute=120_000)) as kernel:
        before = lane(kernel).tokens_left
        assert before is not None
        async with kernel.door.step(request()) as answer:
            during = lane(kernel).tokens_left
            await answer.whole()
        after = lane(kernel).tokens_left
        assert during is not None
        assert after is not None
        assert during <= before - 100 + 1
        assert before - 40 < after < before  # 30 were used


class Telling(Rehearsal):
    """A rehearsal that sends headers."""

    headers: Mapping[str, str] = {}

    async def open(self, call: ModelCall) -> MadeStream:
        stream = await super().open(call)
        stream.headers = dict(self.headers)
        return stream


async def test_a_provider_that_says_nothing_remains_is_left_alone_until_its_reset(tmp_path: Path) -> None:
    model = Telling("up", reply=TEXT)
    async with opened(tmp_path, model) as kernel:
        model.headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "400ms"}
        began = time.monotonic()
        await call(kernel, request())
        model.headers = {}
        with pytest.raises(LaneFull) as full:
            await call(kernel, request(deadline_s=0.05))
        assert 0.1 < full.value.retry_after_s <= 0.8
        await call(kernel, request())
        assert time.monotonic() - began >= 0.4
        assert model.requests == 2


# ── feedback ──


async def test_a_429_cuts_the_pace_and_closes_the_upstream_as_long_as_it_says(tmp_path: Path) -> None:
    model = Rehearsal("up", reply=TEXT, faults="first 1: 429 retry-after 0.3")
    async with opened(tmp_path, model, slots=Slots(online=10, batch=10)) as kernel:
        began = time.monotonic()
        with pytest.raises(UpstreamError) as refused:
            await call(kernel, request())
        assert refused.value.retry_after_s == 0.3
        assert lane(kernel).limit == 7
        await call(kernel, request())
        assert time.monotonic() - began >= 0.3
        while lane(kernel).limit < 10:
            await call(kernel, request())
        assert lane(kernel).breaker is State.CLOSED


async def test_an_upstream_that_only_fails_is_left_alone_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "FIRST_PAUSE_S", 0.05)
    model = Rehearsal("up", reply=TEXT, faults=f"first {feedback.FAILURES + 1}: 500")
    async with opened(tmp_path, model) as kernel:
        for _ in range(feedback.FAILURES):
            with pytest.raises(UpstreamError):
                await call(kernel, request())
        with pytest.raises(UpstreamDown) as down:
            await call(kernel, request())
        assert 0 < down.value.retry_after_s <= 0.07
        assert await call(kernel, request(upstreams=("up", "other"))) == TEXT
        assert rows(kernel)[-1]["upstream"] == "other"
        await asyncio.sleep(down.value.retry_after_s)
        with pytest.raises(UpstreamError):  # the probe, which fails
            await call(kernel, request())
        assert lane(kernel).breaker is State.OPEN
        assert await call(kernel, request(Lane.BATCH)) == TEXT  # batch waits, and is the next probe
        assert lane(kernel).breaker is State.CLOSED
        assert model.requests == feedback.FAILURES + 2


async def test_batch_is_told_when_an_upstream_stays_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "FIRST_PAUSE_S", 0.01)
    model = Rehearsal("up", faults="always: unreachable")
    async with opened(tmp_path, model) as kernel:
        calls = [call(kernel, request(Lane.BATCH)) for _ in range(40)]
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(error, UpstreamError | UpstreamDown) for error in ended)
        assert any(isinstance(error, UpstreamDown) for error in ended)
        assert model.requests < 40


async def test_a_probe_that_is_cancelled_leaves_room_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "FIRST_PAUSE_S", 0.01)
    model = Rehearsal("up", reply=TEXT, faults=f"first {feedback.FAILURES}: 500; {feedback.FAILURES + 1}: hang 0")
    async with opened(tmp_path, model) as kernel:
        for _ in range(feedback.FAILURES):
            with pytest.raises(UpstreamError):
                await call(kernel, request())
        probe = asyncio.create_task(call(kernel, request(Lane.BATCH)))
        await until(lambda: model.active)
        with pytest.raises(UpstreamDown):
            await call(kernel, request())
        probe.cancel()
        await asyncio.gather(probe, return_exceptions=True)
        assert await call(kernel, request()) == TEXT


@pytest.mark.parametrize("fault", ["400", "422", "404"])
async def test_what_is_the_clients_fault_opens_no_breaker(tmp_path: Path, fault: str) -> None:
    async with opened(tmp_path, Rehearsal("up", faults=f"always: {fault}")) as kernel:
        for _ in range(feedback.FAILURES + 1):
            with pytest.raises(UpstreamError, match=fault):
                await call(kernel, request())


async def test_answers_that_break_off_midway_count_as_failures(tmp_path: Path) -> None:
    async with opened(tmp_path, Rehearsal("up", faults="always: cut 2")) as kernel:
        for _ in range(feedback.FAILURES):
            with pytest.raises(UpstreamError):
                await call(kernel, request())
        assert lane(kernel).breaker is State.OPEN


# ── fallback ──


async def test_a_full_lane_hands_the_call_to_the_next_upstream_and_only_then_says_no(tmp_path: Path) -> None:
    hang = "first 1: hang 1"
    model, other = Rehearsal("up", faults=hang), Rehearsal("other", reply=TEXT, faults="after 1: hang 1")
    async with opened(tmp_path, model, other, slots=ONE) as kernel:
        both = request(upstreams=("up", "other"), deadline_s=0.1)
        async with kernel.door.step(request()):
            assert await call(kernel, both) == TEXT
            assert other.requests == 1
            async with kernel.door.step(both), kernel.door.step(both), kernel.door.step(both), kernel.door.step(both):
                kernel.lanes.slots("up", Lane.ONLINE).held_s = 9
                kernel.lanes.slots("other", Lane.ONLINE).held_s = 5
                with pytest.raises(LaneFull) as full:
                    await call(kernel, both)
        assert full.value.upstream == "other"  # where a place comes sooner
        assert {row["status"] for row in rows(kernel)} <= {"ok", "cancelled"}


async def test_a_backoff_that_would_pass_the_deadline_is_not_slept(tmp_path: Path) -> None:
    model = Rehearsal("up", faults="always: 429 retry-after 20")
    async with opened(tmp_path, model, retries=2) as kernel:
        began = time.monotonic()
        with pytest.raises(UpstreamError) as refused:
            await call(kernel, request(deadline_s=1))
        assert refused.value.retry_after_s == 20
        assert model.requests == 1
        assert await call(kernel, request(upstreams=("up", "other"), deadline_s=1)) == TEXT
        assert time.monotonic() - began < 5


async def test_one_deadline_covers_all_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "FIRST_BACKOFF_S", 0.1)
    model = Rehearsal("up", faults="always: 500")
    async with opened(tmp_path, model, retries=10) as kernel:
        began = time.monotonic()
        with pytest.raises(UpstreamError):
            await call(kernel, request(deadline_s=0.5))
        assert time.monotonic() - began < 2
        assert model.requests < feedback.FAILURES


async def test_a_refusal_holds_no_money(tmp_path: Path) -> None:
    async with opened(tmp_path, Rehearsal("up", faults="always: hang 1"), slots=ONE) as kernel:
        await kernel.treasury.set_budget("tenant:t", period="total", pico=10**12, tokens=None, actor="test")
        async with kernel.door.step(request()):
            with pytest.raises(LaneFull):
                await call(kernel, request(deadline_s=0.1))
            assert len(kernel.store.all("reservations")) == 1
        await kernel.store.write(lambda tx: None)
        assert kernel.store.all("reservations") == []


# ── lending ──


@asynccontextmanager
async def lending(folder: Path, model: Rehearsal, **up: Any) -> AsyncIterator[Kernel]:
    """Three online slots of which two may be lent, one of batch; both leased. Any: fields of the section."""
    async with opened(folder, model, slots=Slots(online=3, batch=1), **{"lend": 2, **up}) as kernel:
        await kernel.lanes.hold(Lane.BATCH)
        yield kernel


async def test_nothing_is_lent_unless_it_is_said(tmp_path: Path) -> None:
    async with lending(tmp_path, Rehearsal("up", faults="always: hang 1"), lend=0) as kernel:
        tasks = [asyncio.create_task(call(kernel, request(Lane.BATCH))) for _ in range(3)]
        await until(lambda: lane(kernel, Lane.BATCH).busy == 1 and lane(kernel, Lane.BATCH).waiting == 2)
        assert lane(kernel).lent == 0
        await cancel_all(tasks)


async def cancel_all(tasks: list[asyncio.Task[str]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_batch_borrows_idle_slots_and_a_step_that_ends_gives_its_slot_to_online(tmp_path: Path) -> None:
    gate = asyncio.Event()

    class Held(Rehearsal):
        async def open(self, call: ModelCall) -> Any:  # Any: the rehearsal's own stream
            if self.requests < 3:
                self.requests += 1
                await gate.wait()
            return await super().open(call)

    model = Held("up", reply=TEXT)
    async with lending(tmp_path, model) as kernel:
        batch = [asyncio.create_task(call(kernel, request(Lane.BATCH))) for _ in range(6)]
        await until(lambda: model.requests == 3)
        assert (lane(kernel).lent, lane(kernel, Lane.BATCH).busy, lane(kernel, Lane.BATCH).waiting) == (2, 3, 3)
        permit = kernel.lanes.try_admit("up", Claim(Lane.ONLINE, "t"))
        assert permit is not None  # the one that is never lent
        order: list[str] = []

        async def ask() -> None:
            (await kernel.lanes.admit("up", Claim(Lane.ONLINE, "t"))).release()
            order.append("online")

        online = asyncio.create_task(ask())
        await until(lambda: lane(kernel).waiting == 1)
        for task in batch:
            task.add_done_callback(lambda _: order.append("batch"))
        gate.set()
        await asyncio.gather(online, *batch)
        assert order.index("online") <= 3  # within a step of those that ran
        permit.release()


async def test_a_lane_whose_idle_slots_are_lent_is_not_taken_for_overloaded(tmp_path: Path) -> None:
    """Nobody online finds a free place at once, since batch has them all; and everybody is served within a step."""
    model = Rehearsal("up", reply=TEXT, first_token_ms=40)
    async with opened(tmp_path, model, slots=Slots(online=2, batch=1), lend=2) as kernel:
        batch = [asyncio.create_task(call(kernel, request(Lane.BATCH))) for _ in range(200)]
        await until(lambda: lane(kernel).lent == 2)
        began = time.monotonic()
        while time.monotonic() - began < 1.2:
            assert await call(kernel, request(deadline_s=0.4)) == TEXT
        await cancel_all(batch)


async def test_a_preempted_step_begins_again_by_itself_and_is_recorded_as_what_it_was(tmp_path: Path) -> None:
    model = Rehearsal("up", reply=TEXT, token_ms=20)
    async with lending(tmp_path, model, preempt=True) as kernel:
        await kernel.treasury.set_budget("tenant:t", period="total", pico=10**14, tokens=None, actor="test")
        batch = [asyncio.create_task(call(kernel, request(Lane.BATCH))) for _ in range(3)]
        await until(lambda: model.active == 3 and model.tokens >= 9)
        began = time.monotonic()
        answers = await asyncio.gather(*(call(kernel, request()) for _ in range(3)))
        assert answers == [TEXT] * 3
        assert (await asyncio.gather(*batch)) == [TEXT] * 3
        assert time.monotonic() - began < 5
        assert all(task.cancelling() == 0 for task in batch)
        preempted = [row for row in rows(kernel) if row["status"] == "cancelled"]
        assert len(preempted) == 2
        assert all(row["reason"].startswith("preempted") and row["cost_pico"] > 0 for row in preempted)
        ok = [row for row in rows(kernel) if row["status"] == "ok"]
        assert sorted(row["attempt"] for row in ok) == [1, 1, 1, 1, 2, 2]
        await kernel.treasury.give_back()
        assert kernel.store.all("reservations") == []
        spent = kernel.store.one("spending", scope="tenant:t", window="total")
        assert spent is not None
        assert (spent["held_pico"], spent["spent_pico"]) == (0, sum(row["cost_pico"] for row in rows(kernel)))


async def test_a_step_is_preempted_before_its_first_token_as_well_and_as_often_as_it_takes(tmp_path: Path) -> None:
    model = Rehearsal("up", reply=TEXT, first_token_ms=60)
    async with lending(tmp_path, model, preempt=True) as kernel:
        batch = [asyncio.create_task(call(kernel, request(Lane.BATCH))) for _ in range(3)]
        for _ in range(3):
            await until(lambda: model.active == 3 or all(task.done() for task in batch))
            await asyncio.gather(*(call(kernel, request()) for _ in range(3)))
        assert (await asyncio.gather(*batch)) == [TEXT] * 3
        assert {"ok", "cancelled"} <= {row["status"] for row in rows(kernel)} <= {"ok", "cancelled", "unreached"}


async def test_a_step_is_preempted_while_its_hold_is_on_its_way(tmp_path: Path) -> None:
    model = Rehearsal("up", reply=TEXT)
    async with lending(tmp_path, model, preempt=True) as kernel:
        batch = [asyncio.create_task(call(kernel, request(Lane.BATCH))) for _ in range(3)]
        await until(lambda: lane(kernel).lent == 2)
        assert model.requests == 0
        assert await asyncio.gather(*(call(kernel, request()) for _ in range(3))) == [TEXT] * 3
        assert (await asyncio.gather(*batch)) == [TEXT] * 3
        assert kernel.store.all("reservations") == []


@pytest.mark.parametrize("when", ["opening", "streaming"])
async def test_who_leaves_while_being_preempted_leaves(tmp_path: Path, when: str) -> None:
    model = Rehearsal("up", faults=f"always: hang {1 if when == 'streaming' else 0}")
    async with lending(tmp_path, model, preempt=True) as kernel:
        batch = [asyncio.create_task(call(kernel, request(Lane.BATCH))) for _ in range(3)]
        await until(lambda: model.active == 3 and (model.tokens == 3 or when == "opening"))
        online = [asyncio.create_task(call(kernel, request())) for _ in range(2)]
        await until(lambda: model.requests >= 4)
        await cancel_all([*batch, *online])
        assert all(task.cancelled() for task in batch)
        await kernel.store.write(lambda tx: None)
        assert kernel.store.all("reservations") == []
        assert model.active == 0


async def test_loans_go_to_other_processes_and_come_back(tmp_path: Path) -> None:
    """A gateway and a worker, each with its own view of one store."""
    slots = Slots(online=3, batch=1)
    up: dict[str, Any] = {"slots": slots, "lend": 2, "preempt": True}
    model = Rehearsal("up", reply=TEXT, token_ms=50)
    async with opened(tmp_path, Rehearsal("up", faults="always: hang 1"), **up) as gateway:
        worker = await Kernel.open(config(tmp_path, up=up, other={}), models={"up": model})
        batch = [asyncio.create_task(call(worker, request(Lane.BATCH))) for _ in range(4)]
        await until(lambda: lane(worker, Lane.BATCH).busy == 3)
        assert (lane(gateway).held, lane(worker).lent) == (1, 2)
        online = [asyncio.create_task(call(gateway, request(deadline_s=20))) for _ in range(3)]
        await until(lambda: lane(gateway).busy == 3)
        assert lane(worker).lent == lane(worker).held == 0
        assert await asyncio.gather(*batch) == [TEXT] * 4
        await cancel_all(online)
        await worker.aclose()


async def test_what_people_needed_a_moment_ago_is_not_lent_to_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots_module, "SPARE_S", 0.5)
    up: dict[str, Any] = {"slots": Slots(online=4, batch=1), "lend": 3}
    async with opened(tmp_path, Rehearsal("up", reply=TEXT, first_token_ms=20), **up) as gateway:
        worker = await Kernel.open(
            config(tmp_path, up=up, other={}), models={"up": Rehearsal("up", faults="always: hang 1")}
        )
        await asyncio.gather(*(call(gateway, request()) for _ in range(2)))
        batch = [asyncio.create_task(call(worker, request(Lane.BATCH))) for _ in range(6)]
        await until(lambda: lane(worker, Lane.BATCH).busy == 2)
        assert lane(gateway).held == 3  # two were busy at once, and one is to spare
        await until(lambda: lane(worker, Lane.BATCH).busy == 4)  # nobody came any more
        assert lane(gateway).held == 1
        await cancel_all(batch)
        await worker.aclose()
