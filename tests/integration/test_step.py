"""The door, on a real store with scripted upstreams: whatever happens, every hold and every slot is given back, every
attempt that left the house has its row, and the money of all rows is the money that was spent."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from tests.stores import kept_in

from twolane.config import BudgetSection, Config, PriceTable, Slots, Timeout, UpstreamSection
from twolane.domain.money import PICO
from twolane.domain.records import Lane, Message, ModelCall, Origin, Route
from twolane.errors import (
    BudgetExceeded,
    ConfigError,
    Killed,
    LaneFull,
    Refused,
    StoreError,
    SwitchTripped,
    Unpriced,
    UpstreamError,
)
from twolane.kernel import Answer, Kernel, Request, Settled, attempt, ledger, treasury
from twolane.kernel.books import Books, amount_of, state_of
from twolane.kernel.lanes import Claim, Permit
from twolane.kernel.switches import Switches
from twolane.models.rehearsal import Rehearsal, Script, read_faults
from twolane.rules.budgets import Amount
from twolane.rules.reading import input_bound
from twolane.store import Row, Transaction
from twolane.store.opening import open_store

pytestmark = pytest.mark.usefixtures("each_store")

PRICE = PriceTable(input="1", output="2")  # a millionth of a dollar a token, two for output
TEXT = "one two three four five six seven eight nine ten"
IN, OUT = 20, 10
"""What the upstreams of these tests report."""
PAID = (IN + 2 * OUT) * PICO // 10**6
CALL = ModelCall((Message("user", "hello there"),), "", 100)
BOUND = (input_bound(CALL) + 200) * PICO // 10**6


def config(folder: Path, **upstreams: dict[str, Any]) -> Config:  # Any: fields of a section
    default: dict[str, Any] = {"kind": "rehearsal", "price": PRICE, "retries": 0, "slots": Slots(online=4, batch=4)}
    return Config(
        **kept_in(folder),
        upstream={name: UpstreamSection(**{**default, **fields}) for name, fields in (upstreams or {"up": {}}).items()},
        route={},
    )


def rehearsal(faults: str = "", **options: Any) -> Rehearsal:  # Any: each option has its own type
    return Rehearsal("up", faults=faults, **{"reply": TEXT, "input_tokens": IN, "output_tokens": OUT, **options})


@asynccontextmanager
async def opened(folder: Path, model: Rehearsal | None = None, settings: Config | None = None) -> AsyncIterator[Kernel]:
    settings = settings or config(folder)
    kernel = await Kernel.open(settings, models={"up": model or rehearsal()})
    try:
        yield kernel
    finally:
        await kernel.aclose()


def request(
    run: str = "r", *, lane: Lane = Lane.BATCH, upstreams: tuple[str, ...] = ("up",), call: ModelCall = CALL,
    deadline_s: float | None = None, is_bounded: bool = True, tenant: str = "t", item: str = "",
) -> Request:  # fmt: skip
    origin = Origin(tenant, workflow="w", run=run, item=item, agent="a")
    return Request(origin, lane, Route("route", upstreams, "test"), call, deadline_s, is_bounded_by_caller=is_bounded)


async def run_to_end(kernel: Kernel, asked: Request) -> str:
    async with kernel.door.step(asked) as answer:
        text = (await answer.whole()).text
    await answer.durable()
    return text


def rows(kernel: Kernel) -> list[Row]:
    return list(reversed(kernel.store.all("steps_since", count=100_000)))


async def drained(kernel: Kernel) -> None:
    """Everything that was handed to the writer is on disk."""
    await kernel.store.write(lambda tx: None)


async def set_budget(kernel: Kernel, scope: str, *, pico: int | None = None, tokens: int | None = None) -> None:
    await kernel.treasury.set_budget(scope, period="total", pico=pico, tokens=tokens, actor="test")


def spending(kernel: Kernel, scope: str, window: str = "total") -> dict[str, int]:
    row = kernel.store.one("spending", scope=scope, window=window)
    return dict(row) if row else {}


async def assert_settled(kernel: Kernel) -> None:
    """The invariants: nothing is held, nothing is busy, and four ways of counting the money agree."""
    await kernel.treasury.give_back()
    await drained(kernel)
    assert treasury.drift(kernel.store) == []
    assert kernel.store.all("reservations") == []
    assert [state for state in kernel.lanes.state() if state.busy or state.waiting or state.lent] == []
    assert kernel.switches._running == {}
    steps = rows(kernel)
    cost, tokens = (
        sum(row["cost_pico"] for row in steps),
        sum(row["input_tokens"] + row["output_tokens"] for row in steps),
    )
    for budget in kernel.store.all("budgets"):
        account = spending(kernel, budget["scope"])
        if budget["scope"] == "tenant:t" and account:
            doubt = kernel.store.one("doubt", scope="tenant:t", window="total")
            assert doubt is not None
            calls = sum(row["status"] not in ("reused", "unreached") for row in steps)
            spent = Amount(cost, tokens, calls, sum(row["total_us"] or 0 for row in steps))
            assert state_of(account).spent == spent.plus(amount_of(doubt))
        assert not account or not any(state_of(account).held)
    days = kernel.store.one(
        "spent_since", since="", until="9999", tenant=None, api_key=None, workflow=None, upstream=None
    )
    assert days is not None
    assert (days["pico"], days["tokens"]) == (cost, tokens)
    totals = {row["run"]: (row["calls"], row["cost_pico"]) for row in kernel.store.all("all_run_totals")}
    assert sum(calls for calls, _ in totals.values()) == sum(row["status"] != "unreached" for row in steps)
    assert sum(money for _, money in totals.values()) == cost
    verdict = ledger.verify(kernel.store)
    assert verdict.problem == ""


# ── one call ──


@pytest.mark.parametrize("lane", Lane)
async def test_a_call_is_answered_charged_and_recorded(tmp_path: Path, lane: Lane) -> None:
    async with opened(tmp_path) as kernel:
        await set_budget(kernel, "tenant:t", pico=PICO)
        assert await run_to_end(kernel, request(lane=lane)) == TEXT
        (row,) = rows(kernel)
        told = {
            name: row[name]
            for name in ("status", "attempt", "lane", "upstream", "input_tokens", "output_tokens", "cost_pico")
        }
        assert told == {
            "status": "ok", "attempt": 1, "lane": lane, "upstream": "up", "input_tokens": IN, "output_tokens": OUT,
            "cost_pico": PAID,
        }  # fmt: skip
        assert row["ttft_us"] <= row["total_us"]
        assert spending(kernel, "tenant:t")["spent_pico"] == PAID
        await assert_settled(kernel)


async def test_in_batch_an_intent_is_on_disk_before_the_call_leaves(tmp_path: Path) -> None:
    model = rehearsal("always: hang 1")
    async with opened(tmp_path, model) as kernel:
        async with kernel.door.step(request()) as answer:
            (held,) = kernel.store.all("reservations")
            assert held["step"] == answer.step
            assert '"kind":"intent"' in kernel.store.all("entries_of_run", run="r", kind="intent")[0]["leaf"]
        await assert_settled(kernel)


# Each is what happens to a step: the faults of its upstream, the status of its row, what is raised.
ENDS = [
    ("", "ok", None),
    ("always: 400", "failed", UpstreamError),
    ("always: unreachable", "unreached", UpstreamError),
    ("always: cut 0", "failed", UpstreamError),
    ("always: cut 3", "failed", UpstreamError),
    ("always: error 0", "failed", UpstreamError),
    ("always: error 3", "failed", UpstreamError),
    ("always: garbled", "failed", UpstreamError),
    ("always: no-done", "failed", UpstreamError),
    ("always: no-usage", "ok", None),
    ("always: wrong-usage", "ok", None),
]


@pytest.mark.parametrize("faults, status, error", ENDS)
@pytest.mark.parametrize("lane", Lane)
async def test_every_end_of_an_upstream_ends_hold_and_slot_and_has_its_row(
    tmp_path: Path, lane: Lane, faults: str, status: str, error: type[Exception] | None
) -> None:
    async with opened(tmp_path, rehearsal(faults)) as kernel:
        await set_budget(kernel, "tenant:t", pico=PICO, tokens=10**6)
        with pytest.raises(error) if error else contextlib.nullcontext():
            await run_to_end(kernel, request(lane=lane))
        await assert_settled(kernel)
        (row,) = rows(kernel)
        assert row["status"] == status
        refused_at_the_door = any(word in faults for word in ("400", "unreachable"))
        assert (row["cost_pico"] == 0) is refused_at_the_door
        assert row["cost_pico"] <= BOUND


async def test_every_intent_has_its_step(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        for turns in (*range(1, 4), 1000):
            task = asyncio.create_task(run_to_end(kernel, request()))
            await Slow(turns)()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await drained(kernel)
        intended, made = (
            {orjson.loads(row["leaf"])["step"] for row in kernel.store.all("entries_of_run", run="r", kind=kind)}
            for kind in ("intent", "step")
        )
        assert intended == made


async def leaf_of(kernel: Kernel) -> str:
    await drained(kernel)
    (entry,) = kernel.store.all("entries_of_run", run="r", kind="step")
    return str(entry["leaf"])


async def test_usage_that_was_not_reported_is_estimated_and_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path, rehearsal("always: no-usage")) as kernel:
        await run_to_end(kernel, request())
        assert '"estimated":1' in await leaf_of(kernel)
        assert kernel.store.all("steps_since", count=9)[0]["input_tokens"] != IN
    async with opened(tmp_path) as kernel:
        await run_to_end(kernel, request("another"))
        (row,) = kernel.store.all("entries_of_run", run="another", kind="step")
        assert "estimated" not in row["leaf"]


async def test_an_estimate_never_takes_more_than_was_held(tmp_path: Path) -> None:
    model = rehearsal("always: no-usage", reply="data: " * 50)
    async with opened(tmp_path, model) as kernel:
        call = ModelCall(CALL.messages, "", 3)
        await set_budget(kernel, "tenant:t", tokens=input_bound(call) + 3)
        with contextlib.suppress(UpstreamError):
            async with kernel.door.step(request(lane=Lane.ONLINE, call=call)) as answer:
                async for _ in answer:
                    pass
        await assert_settled(kernel)
        account = spending(kernel, "tenant:t")
        assert 0 < account["spent_tokens"] <= input_bound(call) + 3


@pytest.mark.parametrize("problem", ["my own fault", "half a \ud800 pair", "", "long " * 500])
async def test_an_error_in_the_callers_own_code_is_recorded_and_raised(tmp_path: Path, problem: str) -> None:
    async with opened(tmp_path) as kernel:
        await set_budget(kernel, "tenant:t", pico=PICO)
        with pytest.raises(LookupError):
            async with kernel.door.step(request()):
                raise LookupError(problem)
        await assert_settled(kernel)
        assert rows(kernel)[0]["status"] == "failed"


async def test_an_answer_not_read_to_its_end_is_cancelled(tmp_path: Path) -> None:
    model = rehearsal(token_ms=1)
    async with opened(tmp_path, model) as kernel:
        async with kernel.door.step(request()):
            pass
        await assert_settled(kernel)
        assert (rows(kernel)[0]["status"], model.active, model.aborted) == ("cancelled", 0, 1)


@pytest.mark.parametrize("ending", [b"data: [DONE]\n\n", b"data: [DONE]\n", b"data: [DONE]", b"data:[DONE]\r\n\r\n"])
async def test_an_answer_is_whole_however_its_end_is_written(tmp_path: Path, ending: bytes) -> None:
    async with opened(tmp_path, Raw([chunk("whole"), ending])) as kernel:
        assert await run_to_end(kernel, request()) == "whole"


async def test_a_text_that_speaks_of_the_end_is_not_the_end(tmp_path: Path) -> None:
    for text in ("[DONE]", "data: [DONE]", "\ndata: [DONE]"):
        async with opened(tmp_path, Raw([chunk("a"), chunk(text)])) as kernel:
            with pytest.raises(UpstreamError, match="cut off"):
                await run_to_end(kernel, request())


async def test_an_error_event_in_pieces_is_still_a_failure_before_the_first_byte(tmp_path: Path) -> None:
    event = b'data: {"error": {"message": "overloaded"}}\n\n'
    async with opened(tmp_path, Raw([event[:9], event[9:30], event[30:]])) as kernel:
        with pytest.raises(UpstreamError, match="overloaded"):
            async with kernel.door.step(request()):
                raise AssertionError("nobody is told that this attempt succeeded")
        await assert_settled(kernel)


def chunk(text: str) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}) + b"\n\n"


class Raw(Rehearsal):
    """Sends these blocks and ends."""

    def __init__(self, blocks: list[bytes]) -> None:
        super().__init__("raw")
        self._raw = blocks

    async def _blocks(self, *_: object) -> AsyncIterator[bytes]:
        for block in self._raw:
            yield block


# ── the storm ──


class Slow:
    """Waits, by the loop's own turns instead of by the clock, and so ends at any point of a step."""

    def __init__(self, turns: int) -> None:
        self.turns = turns

    async def __call__(self) -> None:
        for _ in range(self.turns):
            await asyncio.sleep(0)


FAULTS = (
    "503 retry-after 0", "400", "unreachable", "cut 0", "cut 4", "error 0", "error 5", "hang 0", "hang 3", "no-done",
    "no-usage", "wrong-usage", "garbled",
)  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
async def test_in_a_storm_of_failures_cancellations_and_kills_nothing_stays_held(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    kinds = [read_faults(f"always: {fault}") for fault in FAULTS]
    model = Rehearsal("up", Script(
        first_token_s=0.0002, token_s=0.0002, reply=TEXT, input_tokens=IN, output_tokens=OUT,
        faults=lambda number, call: draw.choice(kinds)(number, call) if draw.random() < 0.6 else None,
    ))  # fmt: skip
    fast = {"slots": Slots(online=3, batch=3), "retries": 1, "timeout": Timeout(first_token_s=0.05, idle_s=0.05)}
    async with opened(tmp_path, model, config(tmp_path, up=fast)) as kernel:
        await set_budget(kernel, "tenant:t", pico=PICO, tokens=10**7)
        far_store = open_store(kernel.config.store_address())
        far = Switches(far_store)

        async def one(number: int) -> None:
            lane = draw.choice(list(Lane))
            deadline = draw.choice([None, 0.001, 0.02]) if lane is Lane.ONLINE else None
            with contextlib.suppress(Refused, UpstreamError, Killed, LookupError):
                async with kernel.door.step(request(f"r{number % 10}", lane=lane, deadline_s=deadline)) as answer:
                    match draw.randrange(4):
                        case 0:
                            async for _ in answer:
                                if draw.random() < 0.1:
                                    raise LookupError("mine")
                        case 1:
                            await anext(aiter(answer))
                        case _:
                            await answer.whole()

        async def disturb(task: asyncio.Task[None], number: int) -> None:
            await Slow(draw.randrange(400))()
            run = f"run:r{number % 10}"
            match draw.randrange(8):
                case 0 | 1 | 2:
                    task.cancel()
                case 3:
                    switches = draw.choice([kernel.switches, far])
                    await switches.trip(run, cause="storm", actor="test")
                    await Slow(draw.randrange(50))()
                    await switches.reset(run, cause="over", actor="test")
                case _:
                    pass

        tasks: list[asyncio.Task[None]] = []
        for number in range(100):
            tasks.append(asyncio.create_task(one(number)))
            tasks.append(asyncio.create_task(disturb(tasks[-1], number)))
            if draw.random() < 0.3:
                await Slow(draw.randrange(40))()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [error for task in tasks if not task.cancelled() and (error := task.exception())] == []
        far_store.close()
        await assert_settled(kernel)
        statuses = {row["status"] for row in rows(kernel)}
        assert len(statuses) > 1, "a storm ends its steps in many ways; which, is as the moments and the breaker fall"
        assert (model.active, model.tokens_after_close) == (0, 0)


# ── leaving and killing, at chosen moments ──


async def cancel_when(kernel: Kernel, asked: Request, is_there: Callable[[], bool]) -> None:
    task = asyncio.create_task(run_to_end(kernel, asked))
    while not is_there():
        assert not task.done()
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_leaves_before_the_hold_is_on_disk_leaves_none_behind(tmp_path: Path) -> None:
    model = rehearsal()
    async with opened(tmp_path, model) as kernel:
        await set_budget(kernel, "tenant:t", pico=PICO)
        for turns in range(1, 4):
            task = asyncio.create_task(run_to_end(kernel, request()))
            await Slow(turns)()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await assert_settled(kernel)
        assert model.requests == 0
        assert {(row["status"], row["cost_pico"]) for row in rows(kernel)} <= {("unreached", 0)}


async def test_who_leaves_while_waiting_for_a_slot_costs_nothing(tmp_path: Path) -> None:
    model = rehearsal("always: hang 1")
    async with opened(tmp_path, model, config(tmp_path, up={"slots": Slots(online=1, batch=1)})) as kernel:
        slots = kernel.lanes.slots("up", Lane.BATCH)
        async with kernel.door.step(request()):
            next_one = asyncio.create_task(run_to_end(kernel, request()))
            await cancel_when(kernel, request(), lambda: bool(slots.queue))
            assert (slots.busy, slots.waiting()) == (1, 1)
            await cancel_when(kernel, request(), lambda: bool(slots.queue))
            next_one.cancel()
            await asyncio.gather(next_one, return_exceptions=True)
            assert (slots.busy, slots.waiting()) == (1, 0)
        await assert_settled(kernel)
        ends = [(row["status"], row["cost_pico"]) for row in rows(kernel)]
        assert len(ends) == 2
        assert ("unreached", 0) in ends  # its intent was on disk; who stood in line behind it had none


@pytest.mark.parametrize("tokens", [0, 1, 5])
async def test_who_leaves_midway_closes_the_upstream_and_pays_for_what_came(tmp_path: Path, tokens: int) -> None:
    model = rehearsal(f"always: hang {tokens}")
    async with opened(tmp_path, model) as kernel:
        await set_budget(kernel, "tenant:t", pico=PICO)
        await cancel_when(kernel, request(), lambda: model.active == 1 and model.tokens == tokens)
        assert (model.active, model.aborted) == (0, 1)
        await assert_settled(kernel)
        (row,) = rows(kernel)
        assert row["status"] == "cancelled"
        assert 0 < row["cost_pico"] <= BOUND


@pytest.mark.parametrize("tokens", [0, 3])
@pytest.mark.parametrize("is_far", [False, True])
async def test_a_switch_closes_what_runs_from_here_and_from_another_process(
    tmp_path: Path, tokens: int, is_far: bool
) -> None:
    model = rehearsal(f"always: hang {tokens}")
    async with opened(tmp_path, model) as kernel:
        far_store = open_store(kernel.config.store_address())
        switches = Switches(far_store) if is_far else kernel.switches
        task = asyncio.create_task(run_to_end(kernel, request()))
        other = asyncio.create_task(run_to_end(kernel, request("other")))
        while model.active < 2 or model.tokens < 2 * tokens:
            await asyncio.sleep(0)
        began = time.monotonic()
        await switches.trip("run:r", cause="test", actor="me")
        with pytest.raises(Killed) as killed:
            await task
        assert time.monotonic() - began < 2
        assert (killed.value.scope, killed.value.cause) == ("run:r", "test")
        assert task.cancelling() == 0
        assert (model.active, model.aborted) == (1, 1)
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
        await assert_settled(kernel)
        assert [(row["run"], row["status"]) for row in rows(kernel)] == [("r", "killed"), ("other", "cancelled")]
        with pytest.raises(SwitchTripped):
            await run_to_end(kernel, request())
        epoch = kernel.store.epoch()
        await switches.reset("run:r", cause="test", actor="me")
        while is_far and kernel.store.epoch() == epoch:  # what another process resets is seen within FRESH_S
            await asyncio.sleep(0)
        model.script = rehearsal().script
        assert await run_to_end(kernel, request()) == TEXT
        far_store.close()


async def test_a_step_may_trip_its_own_switch_and_its_task_lives_on(tmp_path: Path) -> None:
    model = rehearsal("always: hang 1")
    async with opened(tmp_path, model) as kernel:
        with pytest.raises(Killed):
            async with kernel.door.step(request()):
                await kernel.switches.trip("run:r", cause="test", actor="me")
        await asyncio.sleep(0)  # no cancellation is left over
        await kernel.switches.reset("run:r", cause="test", actor="me")
        with pytest.raises(Killed):  # noqa: PT012 - the body is what is tested
            async with kernel.door.step(request()) as answer:
                await kernel.switches.trip("run:r", cause="test", actor="me")
                await answer.whole()
        await asyncio.sleep(0)
        await assert_settled(kernel)
        assert [row["status"] for row in rows(kernel)] == ["killed", "killed"]


async def test_a_step_that_waits_for_a_slot_is_refused_when_its_switch_trips(tmp_path: Path) -> None:
    model = rehearsal("always: hang 1")
    async with opened(tmp_path, model, config(tmp_path, up={"slots": Slots(online=1, batch=1)})) as kernel:
        slots = kernel.lanes.slots("up", Lane.BATCH)
        async with kernel.door.step(request("first")):
            waiting = [asyncio.create_task(run_to_end(kernel, request())) for _ in range(2)]
            while slots.waiting() < 2:
                await asyncio.sleep(0)
            await kernel.switches.trip("run:r", cause="test", actor="me")
        for each in waiting:
            with pytest.raises(SwitchTripped):
                await each
        await assert_settled(kernel)
        assert model.requests == 1


# ── retries, fallbacks, lanes ──


@pytest.fixture
def no_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "FIRST_BACKOFF_S", 0.0)


async def test_each_attempt_before_the_first_byte_is_a_row_and_the_last_one_answers(
    tmp_path: Path, no_backoff: None
) -> None:
    model = rehearsal("1-2: 503")
    async with opened(tmp_path, model, config(tmp_path, up={"retries": 2})) as kernel:
        await set_budget(kernel, "tenant:t", pico=PICO)
        assert await run_to_end(kernel, request()) == TEXT
        told = [(row["attempt"], row["status"], row["cost_pico"]) for row in rows(kernel)]
        assert told == [(1, "failed", 0), (2, "failed", 0), (3, "ok", PAID)]
        assert len({row["step"] for row in rows(kernel)}) == 3
        await assert_settled(kernel)


async def test_a_fallback_is_taken_when_the_chosen_one_fails(tmp_path: Path, no_backoff: None) -> None:
    settings = config(tmp_path, up={"retries": 1}, backup={})
    kernel = await Kernel.open(settings, models={"up": rehearsal("always: 500"), "backup": rehearsal()})
    assert await run_to_end(kernel, request(upstreams=("up", "backup"))) == TEXT
    assert [(row["upstream"], row["attempt"]) for row in rows(kernel)] == [("up", 1), ("up", 2), ("backup", 3)]
    await assert_settled(kernel)
    await kernel.aclose()


async def test_what_cannot_pass_is_not_tried_again(tmp_path: Path, no_backoff: None) -> None:
    model = rehearsal("always: 400")
    async with opened(tmp_path, model, config(tmp_path, up={"retries": 3})) as kernel:
        with pytest.raises(UpstreamError, match="400"):
            await run_to_end(kernel, request())
        assert model.requests == 1


@pytest.mark.parametrize("fault", ["cut 2", "error 2", "no-done"])
async def test_after_the_first_byte_nothing_is_tried_again(tmp_path: Path, fault: str, no_backoff: None) -> None:
    model = rehearsal(f"always: {fault}")
    settings = config(tmp_path, up={"retries": 3}, backup={})
    kernel = await Kernel.open(settings, models={"up": model, "backup": rehearsal()})
    with pytest.raises(UpstreamError):
        await run_to_end(kernel, request(upstreams=("up", "backup")))
    await assert_settled(kernel)
    assert (model.requests, len(rows(kernel))) == (1, 1)
    await kernel.aclose()


async def test_a_full_lane_sheds_at_once_with_an_honest_delay_and_the_other_lane_is_free(tmp_path: Path) -> None:
    model = rehearsal("first 1: hang 1")
    async with opened(tmp_path, model, config(tmp_path, up={"slots": Slots(online=1, batch=1)})) as kernel:
        async with kernel.door.step(request(lane=Lane.ONLINE)):
            with pytest.raises(LaneFull) as full:
                await run_to_end(kernel, request(lane=Lane.ONLINE, deadline_s=0.02))
            assert await run_to_end(kernel, request(lane=Lane.BATCH)) == TEXT
        assert full.value.waited_s == 0
        assert 0.05 <= full.value.retry_after_s <= 5
        assert full.value.should_retry
        assert await run_to_end(kernel, request(lane=Lane.ONLINE, deadline_s=0.02)) == TEXT
        await assert_settled(kernel)


async def test_slots_are_given_in_the_order_of_asking(tmp_path: Path) -> None:
    async with opened(tmp_path, rehearsal(), config(tmp_path, up={"slots": Slots(online=1, batch=1)})) as kernel:
        order: list[int] = []
        first = await kernel.lanes.admit("up", Claim(Lane.ONLINE, "t"))

        async def wait(number: int) -> None:
            permit = await kernel.lanes.admit("up", Claim(Lane.ONLINE, "t"))
            order.append(number)
            permit.release()

        tasks = [asyncio.create_task(wait(number)) for number in range(5)]
        await asyncio.sleep(0)
        tasks[2].cancel()
        first.release()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (order, kernel.lanes.slots("up", Lane.ONLINE).busy) == ([0, 1, 3, 4], 0)


async def test_a_slot_that_comes_at_the_moment_of_leaving_goes_to_the_next(tmp_path: Path) -> None:
    async with opened(tmp_path, settings=config(tmp_path, up={"slots": Slots(online=1, batch=1)})) as kernel:
        for waiters in (1, 2):
            first = await kernel.lanes.admit("up", Claim(Lane.ONLINE, "t"))
            tasks = [asyncio.create_task(kernel.lanes.admit("up", Claim(Lane.ONLINE, "t"))) for _ in range(waiters)]
            await asyncio.sleep(0)
            first.release()  # hands the slot to the first …
            tasks[0].cancel()  # … who leaves before it has noticed
            left, *others = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(left, asyncio.CancelledError)
            assert kernel.lanes.slots("up", Lane.ONLINE).busy == waiters - 1
            for permit in others:
                assert isinstance(permit, Permit)
                permit.release()


# ── budgets ──


async def gathered(calls: list[Coroutine[Any, Any, str]]) -> tuple[int, int]:
    """How many were answered, and how many refused for their budget."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, BudgetExceeded)]
    answered = [answer for answer in answers if isinstance(answer, str)]
    assert len(refused) + len(answered) == len(answers), answers
    return len(answered), len(refused)


@pytest.mark.parametrize("lane", Lane)
async def test_of_two_hundred_calls_at_once_none_overspends(tmp_path: Path, lane: Lane) -> None:
    model = rehearsal(input_tokens=input_bound(CALL), output_tokens=100)  # each takes all that it may
    async with opened(tmp_path, model, config(tmp_path, up={"slots": Slots(online=50, batch=50)})) as kernel:
        await set_budget(kernel, "tenant:t", pico=30 * BOUND + 17)
        answered, refused = await gathered([run_to_end(kernel, request(lane=lane)) for _ in range(200)])
        assert (answered, refused, model.requests) == (30, 170, 30)
        assert spending(kernel, "tenant:t")["spent_pico"] == 30 * BOUND
        await assert_settled(kernel)


async def test_a_refusal_says_what_was_asked_and_what_is_left(tmp_path: Path) -> None:
    model = rehearsal()
    async with opened(tmp_path, model) as kernel:
        await set_budget(kernel, "run:r", pico=BOUND - 1)
        with pytest.raises(BudgetExceeded) as refused:
            await run_to_end(kernel, request())
        assert (refused.value.scope, refused.value.spent, refused.value.held) == ("run:r", "$0.00", "$0.00")
        assert "twolane budget set run:r --money AMOUNT" in str(refused.value)
        assert (model.requests, rows(kernel)) == (0, [])
        await assert_settled(kernel)


async def test_a_call_that_names_no_limit_is_shortened_to_what_can_be_paid(tmp_path: Path) -> None:
    model = rehearsal()
    async with opened(tmp_path, model) as kernel:
        await set_budget(kernel, "tenant:t", pico=BOUND - 2 * 60 * PICO // 10**6)
        await run_to_end(kernel, request(is_bounded=False))
        assert model.calls[0].max_tokens == 40
        await set_budget(kernel, "tenant:t", pico=PAID + input_bound(CALL) * PICO // 10**6)
        with pytest.raises(BudgetExceeded):
            await run_to_end(kernel, request(is_bounded=False))
        assert model.requests == 1


async def test_budgets_of_tokens_bind_without_a_price(tmp_path: Path) -> None:
    settings = config(tmp_path, up={"price": None, "unpriced": "allow"}, strict={"price": None})
    async with opened(tmp_path, rehearsal(), settings) as kernel:
        await set_budget(kernel, "tenant:t", tokens=2 * (input_bound(CALL) + 100))
        answered, refused = await gathered([run_to_end(kernel, request(lane=Lane.ONLINE)) for _ in range(5)])
        assert (answered, refused) == (2, 3)
        assert rows(kernel)[0]["cost_pico"] is None
        assert spending(kernel, "tenant:t")["spent_tokens"] == 2 * (IN + OUT)

        async def spend_all() -> None:
            for _ in range(20):
                await run_to_end(kernel, request())

        with pytest.raises(BudgetExceeded, match="tokens"):
            await spend_all()
        with pytest.raises(Unpriced):
            await run_to_end(kernel, request(upstreams=("strict",)))


async def test_every_scope_of_the_chain_is_asked_and_charged(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        for scope in ("tenant:t", "workflow:t/w", "run:r", "item:r/i", "tenant:other"):
            await set_budget(kernel, scope, pico=PICO)
        await run_to_end(kernel, request(item="i"))
        for scope in ("tenant:t", "workflow:t/w", "run:r", "item:r/i"):
            assert spending(kernel, scope)["spent_pico"] == PAID, scope
        assert state_of(spending(kernel, "tenant:other")).spent == Amount()
        await set_budget(kernel, "item:r/i", pico=PAID)
        with pytest.raises(BudgetExceeded, match="item:r/i"):
            await run_to_end(kernel, request(item="i"))
        await run_to_end(kernel, request(item="j"))
        await assert_settled(kernel)


async def test_a_budget_for_each_run_item_and_workflow_covers_these_and_nothing_that_is_named_alike(
    tmp_path: Path,
) -> None:
    settings = config(tmp_path)
    settings = settings.model_copy(update={"budget": {
        "run": BudgetSection(money="1"), "item": BudgetSection(money="1"), "workflow:w": BudgetSection(money="1"),
    }})  # fmt: skip
    async with opened(tmp_path, rehearsal(), settings) as kernel:
        await run_to_end(kernel, request("a", item="x"))
        await run_to_end(kernel, request("b", item="w"))
        for scope, calls in (("run:a", 1), ("run:b", 1), ("item:a/x", 1), ("item:b/w", 1), ("workflow:t/w", 2)):
            assert spending(kernel, scope)["spent_pico"] == calls * PAID, scope
        others = ["key:t/w", "tenant:w", "workflow:other/w"]
        limited = await kernel.store.write(lambda tx: kernel.treasury.accounts(tx, others))
        assert [account.scope for account in limited] == ["workflow:other/w"]


async def test_a_budget_set_later_counts_what_was_spent_before_and_what_was_on_its_way(tmp_path: Path) -> None:
    model = rehearsal()
    async with opened(tmp_path, model) as kernel:
        await run_to_end(kernel, request(lane=Lane.ONLINE))
        async with kernel.door.step(request(lane=Lane.ONLINE)) as answer:
            await set_budget(kernel, "tenant:t", pico=PICO)
            await run_to_end(kernel, request(lane=Lane.ONLINE))  # opens the window
            await answer.whole()
        await answer.durable()
        assert spending(kernel, "tenant:t")["spent_pico"] == 3 * PAID
        await assert_settled(kernel)


async def test_a_window_that_opens_in_the_group_of_a_step_counts_that_step(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        await set_budget(kernel, "tenant:t", pico=PICO)
        fields = {"kind": "step", "run": "r", "tenant": "t", "status": "ok", "cost_pico": 5}
        fields |= {"at_us": time.time_ns() // 1000, "input_tokens": 1, "output_tokens": 1}

        def work(tx: Transaction) -> int:
            Books.of(tx).settle("s", ("tenant:t",), Amount(5, 2, 1))
            ledger.append(tx, fields)
            treasury.count(tx, fields, pico=5)
            return kernel.treasury.accounts(tx, ["tenant:t"])[0].spent.pico

        assert await kernel.store.write(work) == 5
        assert ledger.verify(kernel.store).ok


async def test_a_budget_whose_period_changes_back_and_forth_forgets_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        for count, period in enumerate(("total", "day", "month", "total", "day"), 1):
            await kernel.treasury.set_budget("tenant:t", period=period, pico=PICO, tokens=None, actor="test")
            await run_to_end(kernel, request())
            (account,) = await kernel.store.write(lambda tx: kernel.treasury.accounts(tx, ["tenant:t"]))
            assert account.spent.pico == count * PAID


async def test_a_budget_of_the_file_is_taken_and_a_later_command_wins(tmp_path: Path) -> None:
    settings = config(tmp_path).model_copy(
        update={"budget": {"tenant:t": BudgetSection(money="0.000001", period="total")}}
    )
    async with opened(tmp_path, settings=settings) as kernel:
        with pytest.raises(BudgetExceeded):
            await run_to_end(kernel, request())
        await set_budget(kernel, "tenant:t", pico=PICO)
    async with opened(tmp_path, settings=settings) as kernel:
        await run_to_end(kernel, request())


async def test_what_the_caller_adds_is_committed_with_the_record_or_not_at_all(tmp_path: Path) -> None:
    def also(tx: Transaction, settled: Settled) -> None:
        tx.run("set_meta", name="also", value=settled.step)

    async with opened(tmp_path) as kernel:
        async with kernel.door.step(request()) as answer:
            await answer.whole()
            answer.also = also
        await answer.durable()
        kept = kernel.store.one("get_meta", name="also")
        assert kept is not None
        assert kept["value"] == answer.step
        with pytest.raises(LookupError):  # noqa: PT012 - the body is what is tested
            async with kernel.door.step(request()) as answer:
                answer.also = also
                raise LookupError
        await assert_settled(kernel)
        again = kernel.store.one("get_meta", name="also")
        assert again == kept


# ── opening ──


async def test_a_kernel_that_cannot_open_leaves_nothing_open(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    for _ in range(3):
        with pytest.raises(ConfigError, match="the store keeps USD"):
            await Kernel.open(config(tmp_path).model_copy(update={"currency": "EUR"}), models={"up": rehearsal()})
    for key in config(tmp_path).keys_folder().iterdir():
        key.unlink()
    with pytest.raises(StoreError, match="keys"):
        await Kernel.open(config(tmp_path), models={"up": rehearsal()})


CRASH = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_step import Kernel, Lane, config, rehearsal, request, run_to_end, set_budget
async def main():
    kernel = await Kernel.open(config(Path(sys.argv[1])), models={"up": rehearsal("after 1: hang 2")})
    await set_budget(kernel, "tenant:t", pico=10**12, tokens=10**6)
    await run_to_end(kernel, request())
    async with kernel.door.step(request()), kernel.door.step(request(lane=Lane.ONLINE)):
        print("midway", flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""


async def test_a_call_cut_by_a_crash_is_settled_at_its_bound_and_in_doubt(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CRASH, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == b"midway\n"
        async with opened(tmp_path) as kernel:  # it lives: nothing of its is touched
            assert len(kernel.store.all("reservations")) == 2
        process.send_signal(signal.SIGKILL)
    async with opened(tmp_path) as kernel:
        async with asyncio.timeout(20):  # at once where file locks prove life, else after `DEAD_BEATS`
            while kernel.store.all("owners"):
                await asyncio.sleep(0.01)
        told = sorted((row["status"], row["lane"], row["cost_pico"]) for row in rows(kernel))
        assert told == [("in_doubt", "batch", BOUND), ("in_doubt", "online", BOUND), ("ok", "batch", PAID)]
        account, block = spending(kernel, "tenant:t"), kernel.store.one("doubt", scope="tenant:t", window="total")
        assert block is not None
        assert (account["spent_pico"], account["held_pico"]) == (2 * BOUND + PAID + block["pico"], 0)
        await assert_settled(kernel)
    async with opened(tmp_path) as kernel:
        assert len(rows(kernel)) == 3
        await assert_settled(kernel)


async def test_a_reused_step_costs_nothing_and_points_at_the_one_that_paid(tmp_path: Path) -> None:
    async with opened(tmp_path) as kernel:
        async with kernel.door.step(request()) as answer:
            await answer.whole()
        await answer.durable()
        await kernel.store.write(lambda tx: kernel.door.reuse(tx, request(), of_step=answer.step, output_digest="00"))
        assert [(row["status"], row["cost_pico"]) for row in rows(kernel)] == [("ok", PAID), ("reused", 0)]
        assert f'"of":"{answer.step}"' in kernel.store.all("entries_of_run", run="r", kind="step")[1]["leaf"]
        assert ledger.verify(kernel.store).ok
        assert isinstance(answer, Answer)
